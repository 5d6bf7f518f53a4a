"""Which heads, hidden channels and experts to keep, from what the original computes on rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..eval.models import TextModel
from .anatomy import Anatomy
from .calibration import LayerRunner
from .importance import choose_by_score, choose_channels
from .least_squares import Moments
from .sizes import Sizes
from .surgery import Cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

RIDGE = 1e-3


class States:
    """What a model's layers are given and give, summed over calibration rows.

    Attributes:
        hidden: E[h hᵀ] of the residual stream, (H, H), each layer's share of the same weight.
        heads: Moments of what the heads give and of what is made of it, for each layer.
        experts: Mean share of the router's probability, (E,) for each layer that has experts.
    """

    def __init__(self, runner: LayerRunner, layers: Sequence[Any], anatomy: Anatomy) -> None:
        stack = anatomy.stacks[0]
        self.heads: list[Moments] = []
        self.experts: list[NDArray[np.float64] | None] = []
        states = list(runner.inputs)
        size = states[0].shape[-1]
        self.hidden = torch.zeros(size, size, dtype=torch.float64)
        self._add_hidden(states, runner)
        for number, layer in enumerate(layers):
            out = layer.get_submodule(stack.attention_out)
            gate = getattr(getattr(layer, "mlp", None), "gate", None)
            moments, shares, tokens = None, 0.0, 0
            for batch, mask in enumerate(runner.masks):
                seen: dict[str, Any] = {}
                handles = [out.register_forward_hook(_note(seen, "out"))]
                if gate is not None:
                    handles.append(gate.register_forward_hook(_note(seen, "gate")))
                try:
                    states[batch] = runner.run(layer, number, batch, states[batch])
                finally:
                    for handle in handles:
                        handle.remove()
                read, wrote = seen["out"]
                if moments is None:
                    moments = Moments(read.shape[-1], wrote.shape[-1])
                one = torch.ones(int(mask.sum()), device=read.device)
                moments.add(read[mask].float(), wrote[mask].float(), one)
                if gate is not None:
                    chosen = seen["gate"][1][0].float().softmax(-1)[mask.reshape(-1)]
                    shares, tokens = shares + chosen.sum(0).double().cpu(), tokens + len(chosen)
            assert moments is not None
            self.heads.append(moments)
            self.experts.append(None if gate is None else np.asarray(shares / tokens))
            self._add_hidden(states, runner)
        self.hidden /= len(layers) + 1

    def _add_hidden(self, states: Sequence[Tensor], runner: LayerRunner) -> None:
        total = torch.zeros_like(self.hidden)
        for one, mask in zip(states, runner.masks, strict=True):
            flat = one[mask].float()
            total += (flat.T @ flat).double().cpu()
        self.hidden += total / total.trace().clamp(min=1e-12) * len(total)


def _note(seen: dict[str, Any], name: str) -> Any:
    def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
        seen[name] = args[0], output

    return hook


def choose(
    model: TextModel,
    anatomy: Anatomy,
    states: States,
    sizes: Sizes,
    scores: Mapping[str, Sequence[NDArray[np.float64]]],
) -> Cut:
    """Chooses heads, hidden channels and experts of every layer.

    Args:
        model: The original.
        anatomy: Of its architecture.
        states: Of the calibration rows.
        sizes: How many to keep.
        scores: Of axes that a criterion decides, the highest being kept; else what can best be
            written by what stays.
    """
    config = model.config
    every, groups, width = anatomy.heads(config), anatomy.kv_heads(config), anatomy.head_dim(config)
    share = every // groups
    hidden = None
    if sizes.hidden_size is not None and "hidden_size" in scores:
        hidden = choose_by_score(scores["hidden_size"][0], sizes.hidden_size)
    elif sizes.hidden_size is not None:
        hidden = choose_hidden(states, sizes.hidden_size)
    count = sizes.attention_heads
    if sizes.hidden_size is not None and anatomy.attention.head_dim is None:
        count = sizes.hidden_size // width  # heads go with the hidden size
    kv = None
    if sizes.kv_heads is not None:
        sides = [range(g * share, (g + 1) * share) for g in range(groups)]
        if "kv_heads" in scores:
            kv = [choose_by_score(one, sizes.kv_heads) for one in scores["kv_heads"]]
        else:
            kv = [choose_groups(m, width, sides, sizes.kv_heads) for m in states.heads]
    heads = None
    if count is not None:
        heads = []
        for number, moments in enumerate(states.heads):
            if share == 1:
                parts, keep = [range(every)], [count]
            else:
                stay = set(range(groups) if kv is None else kv[number])
                parts = [range(g * share, (g + 1) * share) for g in range(groups)]
                keep = [count // len(stay) if g in stay else 0 for g in range(groups)]
            if "attention_heads" in scores:
                said = scores["attention_heads"][number]
                kept = [
                    part[i]
                    for part, some in zip(parts, keep, strict=True)
                    for i in choose_by_score(said[list(part)], some)
                ]
                heads.append(sorted(kept))
            else:
                heads.append(choose_heads(moments, width, parts, keep))
    experts = None
    if sizes.experts is not None:
        said_of = scores.get("experts", states.experts)
        experts = [
            choose_by_score(share, sizes.experts) if share is not None and len(share) else []
            for share in said_of
        ]
    return Cut(hidden=hidden, heads=heads, kv_heads=kv, experts=experts)


def choose_hidden(states: States, count: int) -> list[int]:
    """The channels of the residual stream that tell most about all of them.

    Backward elimination, as for FFN channels: those stay from which all are best written by least
    squares, over the inputs and outputs of all layers.
    """
    second = states.hidden.numpy()
    return choose_channels(second, second, count)


def choose_heads(
    moments: Moments, width: int, groups: Sequence[Sequence[int]], keep: Sequence[int]
) -> list[int]:
    """The heads from which what all heads write is best written by least squares.

    Backward elimination of one head after another: removing those of a block B costs
    tr(Wᵦᵀ (C⁻¹ᵦᵦ)⁻¹ Wᵦ) once the others are fitted again.

    Args:
        moments: Of what the heads give, (heads × width), and of what is made of it.
        width: Of a head.
        groups: Heads that are told apart; within each, some stay.
        keep: How many of each group stay.

    Returns:
        Heads, ascending.
    """
    covariance, cross = moments.covariances()
    strength = RIDGE * float(np.trace(covariance)) / len(covariance) or 1.0
    inverse = np.linalg.inv(covariance + strength * np.eye(len(covariance)))
    fit = inverse @ cross
    of = {head: group for group, heads in enumerate(groups) for head in heads}
    left = [len(heads) for heads in groups]
    heads = sorted(of)
    while any(some > wanted for some, wanted in zip(left, keep, strict=True)):
        costs = {}
        for place, head in enumerate(heads):
            if left[of[head]] > keep[of[head]]:
                block = np.arange(place * width, (place + 1) * width)
                solved = np.linalg.solve(inverse[np.ix_(block, block)], fit[block])
                costs[head] = float((fit[block] * solved).sum())
        out = min(costs, key=lambda head: (costs[head], head))
        place = heads.index(out)
        gone = np.arange(place * width, (place + 1) * width)
        stay = np.setdiff1d(np.arange(len(inverse)), gone)
        solved = np.linalg.solve(
            inverse[np.ix_(gone, gone)],
            np.concatenate([inverse[np.ix_(gone, stay)], fit[gone]], axis=1),
        )
        block_rows = inverse[np.ix_(stay, gone)]
        inverse = inverse[np.ix_(stay, stay)] - block_rows @ solved[:, : len(stay)]
        fit = fit[stay] - block_rows @ solved[:, len(stay) :]
        heads.remove(out)
        left[of[out]] -= 1
    return heads


def choose_groups(
    moments: Moments, width: int, groups: Sequence[Sequence[int]], count: int
) -> list[int]:
    """The key and value heads whose query heads together tell most; as `choose_heads`.

    Args:
        moments: Of what all query heads give.
        width: Of a head.
        groups: Query heads of each key and value head, one after another.
        count: Key and value heads to keep.

    Returns:
        Key and value heads, ascending.
    """
    wide = width * len(groups[0])  # a group's heads lie side by side
    return choose_heads(moments, wide, [range(len(groups))], [count])
