"""Which heads, hidden channels and experts to keep, from what the original computes on rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..eval.models import TextModel
from .anatomy import Anatomy, Stack
from .calibration import LayerRunner
from .importance import channel_importance, choose_by_score, choose_channels, without
from .least_squares import Moments, positive_inverse, positive_solve, symmetric
from .modules import Linear
from .plan import Cut
from .sizes import Sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

RIDGE = 1e-3
Scores = Mapping[str, Sequence["NDArray[np.float64]"]]
"""Axis → an array for each layer, or a single one."""


class States:
    """What a model's layers are given and give, summed over calibration rows.

    Attributes:
        hidden: E[h hᵀ] of the residual stream, (H, H), each layer's share of the same weight.
        heads: Moments of what the heads give and of what is made of it, for each layer.
        channels: Contribution of the FFN's channels to its output, (C,) for each layer.
        experts: Mean share of the router's probability, (E,) for each layer that has experts.
    """

    def __init__(
        self,
        runner: LayerRunner,
        layers: Sequence[Any],
        anatomy: Anatomy,
        wanted: Collection[str] = ("hidden", "heads", "experts"),
    ) -> None:
        self.stack, self.wanted = anatomy.stacks[0], wanted
        self.heads: list[Moments] = []
        self.channels: list[NDArray[np.float64]] = []
        self.experts: list[NDArray[np.float64] | None] = []
        states = list(runner.inputs)
        size = states[0].shape[-1]
        self.hidden = torch.zeros(size, size, dtype=torch.float64)
        self._add_hidden(states, runner)
        for number, layer in enumerate(layers):
            sums = _LayerSums(layer, self.stack, wanted)
            for batch, mask in enumerate(runner.masks):
                with sums.watching(mask):
                    states[batch] = runner.run(layer, number, batch, states[batch])
                runner.learn(number, batch, states[batch])
            if "heads" in wanted:
                self.heads.append(sums.heads)
            if "channels" in wanted:
                self.channels.append(sums.contributions())
            if "experts" in wanted:
                self.experts.append(sums.shares())
            self._add_hidden(states, runner)
        self.hidden /= len(layers) + 1

    def _add_hidden(self, states: Sequence[Tensor], runner: LayerRunner) -> None:
        if "hidden" not in self.wanted:
            return
        total = torch.zeros_like(self.hidden)
        for one, mask in zip(states, runner.masks, strict=True):
            flat = one[mask].float()
            total += symmetric(flat, flat).double().cpu()
        self.hidden += total / total.trace().clamp(min=1e-12) * len(total)


class _LayerSums:
    """Sums over what single modules of a layer read and give."""

    def __init__(self, layer: nn.Module, stack: Stack, wanted: Collection[str]) -> None:
        self.tokens = 0
        self._hooks: list[tuple[nn.Module, Callable[..., None]]] = []
        gate = getattr(getattr(layer, "mlp", None), "gate", None)
        if "heads" in wanted:
            out = Linear(layer.get_submodule(stack.attention_out))
            self.heads = Moments(out.inputs, out.outputs)
            self._hooks.append((out.module, self._add_heads))
        if "channels" in wanted and stack.ffn_out:
            self.out = Linear(layer.get_submodule(stack.ffn_out))
            self.squares = torch.zeros(self.out.inputs, dtype=torch.float64)
            self._hooks.append((self.out.module, self._add_channels))
        self.routed: Tensor | None = None
        if "experts" in wanted and gate is not None:
            self._hooks.append((gate, self._add_experts))

    @contextlib.contextmanager
    def watching(self, mask: Tensor) -> Iterator[None]:
        """Runs a block in which the layer is run on a batch."""
        self.mask = mask
        self.tokens += int(mask.sum())
        handles = [module.register_forward_hook(hook) for module, hook in self._hooks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add_heads(self, module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        read = args[0][self.mask]
        self.heads.add(read, output[self.mask], torch.ones(len(read), device=read.device))

    def _add_channels(self, module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.squares += args[0][self.mask].float().square().sum(0).double().cpu()

    def _add_experts(self, module: Any, args: Any, output: tuple[Tensor, ...]) -> None:
        shares = output[0].float().softmax(-1)[self.mask.reshape(-1)].sum(0).double().cpu()
        self.routed = shares if self.routed is None else self.routed + shares

    def contributions(self) -> NDArray[np.float64]:
        """Of the FFN's channels, (C,)."""
        return channel_importance((self.squares / self.tokens).numpy(), self.out.as_float64())

    def shares(self) -> NDArray[np.float64] | None:
        """Of the experts, (E,)."""
        return None if self.routed is None else np.asarray(self.routed / self.tokens)


def choose(
    model: TextModel,
    anatomy: Anatomy,
    states: States | None,
    sizes: Sizes,
    scores: Scores,
    *,
    turned: bool = False,
) -> Cut:
    """Chooses heads, hidden channels, experts, and FFN channels that have scores, of every layer.

    Args:
        model: The original.
        anatomy: Of its architecture.
        states: Of the calibration rows; None where scores decide everything.
        sizes: How many to keep.
        scores: Of axes that are decided by them, the highest being kept; else what can best be
            written by what stays.
        turned: Whether the hidden space is turned first, so that its first channels stay.
    """
    hidden, count = None, sizes.attention_heads
    if sizes.hidden_size is not None:
        if anatomy.attention.head_dim is None:  # heads go with the hidden size
            count = sizes.hidden_size // anatomy.head_dim(model.config)
        if turned:
            hidden = list(range(sizes.hidden_size))
        elif (said := scores.get("hidden_size")) is not None:
            hidden = choose_by_score(said[0], sizes.hidden_size)
        else:
            hidden = choose_hidden(_known(states), sizes.hidden_size)
    kv = None
    if sizes.kv_heads is not None:
        kv = _kv_heads(model, anatomy, states, sizes.kv_heads, scores.get("kv_heads"))
    heads = None
    if count is not None:
        heads = _query_heads(model, anatomy, states, count, scores.get("attention_heads"), kv)
    experts = channels = None
    if sizes.experts is not None:
        routed = scores.get("experts") or _known(states).experts
        experts = [
            choose_by_score(share, sizes.experts) if share is not None and len(share) else []
            for share in routed
        ]
    if (wide := scores.get("intermediate_size")) is not None and sizes.intermediate_size:
        channels = [choose_by_score(one, sizes.intermediate_size) for one in wide]
    return Cut(hidden=hidden, heads=heads, kv_heads=kv, experts=experts, channels=channels)


def _known(states: States | None) -> States:
    assert states is not None  # an axis without scores
    return states


def _kv_heads(
    model: TextModel,
    anatomy: Anatomy,
    states: States | None,
    count: int,
    scores: Sequence[NDArray[np.float64]] | None,
) -> list[list[int]]:
    """Key and value heads to keep of each layer."""
    if scores is not None:
        return [choose_by_score(one, count) for one in scores]
    config = model.config
    groups = anatomy.kv_heads(config)
    share = anatomy.heads(config) // groups
    sides = [range(g * share, (g + 1) * share) for g in range(groups)]
    width = anatomy.head_dim(config)
    return [choose_groups(m, width, sides, count) for m in _known(states).heads]


def _query_heads(
    model: TextModel,
    anatomy: Anatomy,
    states: States | None,
    count: int,
    scores: Sequence[NDArray[np.float64]] | None,
    kv: Sequence[Sequence[int]] | None,
) -> list[list[int]]:
    """Query heads to keep of each layer, of each key and value head equally many."""
    config = model.config
    every, groups = anatomy.heads(config), anatomy.kv_heads(config)
    share, width = every // groups, anatomy.head_dim(config)
    found = []
    for number in range(anatomy.size(config, "layers")):
        parts, keep = [range(every)], [count]
        if share > 1:
            stay = set(range(groups) if kv is None else kv[number])
            parts = [range(g * share, (g + 1) * share) for g in range(groups)]
            keep = [count // len(stay) if g in stay else 0 for g in range(groups)]
        if scores is None:
            found.append(choose_heads(_known(states).heads[number], width, parts, keep))
            continue
        kept = [
            part[i]
            for part, some in zip(parts, keep, strict=True)
            for i in choose_by_score(scores[number][list(part)], some)
        ]
        found.append(sorted(kept))
    return found


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
    covariance, cross = (torch.from_numpy(part) for part in moments.covariances())
    covariance.diagonal().add_(RIDGE * float(covariance.diagonal().mean()) or 1.0)
    inverse = positive_inverse(covariance)
    fit = inverse @ cross
    of = {head: group for group, heads in enumerate(groups) for head in heads}
    left = [len(heads) for heads in groups]
    heads = sorted(of)
    while any(some > wanted for some, wanted in zip(left, keep, strict=True)):
        costs = {}
        for place, head in enumerate(heads):
            if left[of[head]] > keep[of[head]]:
                block = slice(place * width, (place + 1) * width)
                solved = positive_solve(inverse[block, block], fit[block])
                costs[head] = float((fit[block] * solved).sum())
        out = min(costs, key=lambda head: (costs[head], head))
        place = heads.index(out)
        stays = torch.ones(len(inverse), dtype=torch.bool)
        stays[place * width : (place + 1) * width] = False
        inverse, fit = without(inverse, fit, stays)
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
