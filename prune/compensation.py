"""Fits what remains to what was cut: FFN output projections in closed form, layer after layer.

A kept layer ends in ``norm(W h + b + r)``: h are the FFN's channels, r is the residual. Where
channels or layers are cut, W and b are chosen by least squares on calibration tokens so that
``W h + b + r`` is the original model's sum at the end of the gap that follows the layer, and the
layer takes over the norm that stands there. h and r come from the model as cut so far, so a later
layer also mends what earlier cuts did.

docs/lab-notes.md has what each of these choices gave, and what was tried beside them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..eval.models import TextModel
from .anatomy import Anatomy
from .calibration import LayerRunner, another_forward
from .importance import channel_importance, choose_by_score, choose_channels
from .least_squares import Moments, as_float64, solve
from .modules import Linear, copy_sharing

LARGE = 4096
"""FFN channels from which on they are chosen one by one, if there are no more tokens than that."""


def too_many(channels: int, tokens: int) -> bool:
    """Whether FFN channels are told apart by their own contribution only."""
    return channels > max(LARGE, tokens / 2)


def fit(
    model: TextModel,
    anatomy: Anatomy,
    rows: LayerRunner,
    layers: Sequence[int],
    width: int | None,
    *,
    compensate: bool,
    narrowed: TextModel | None = None,
    kept: Callable[[Tensor], Tensor] | None = None,
    scores: Sequence[NDArray[np.float64]] | None = None,
    bridged: bool = False,
) -> tuple[TextModel, list[list[int]] | None]:
    """Chooses the FFN channels of the kept layers, and fits the kept layers to the cut.

    Args:
        model: The original; is not changed.
        anatomy: Of its architecture.
        rows: Runs its layers on calibration rows.
        layers: Layers kept, ascending.
        width: FFN channels to keep of each, or None for all.
        compensate: Whether to fit. If not, channels are chosen by `channel_importance` and no
            weight of a kept channel is changed.
        narrowed: The original with other axes cut, to go on from; the original itself if None. Is
            not changed.
        kept: What is left of the original's residual stream in it; None for all of it.
        scores: Of the FFN channels of each layer of the original; the highest are kept.
        bridged: Whether the narrowed model's layers have the norms that end the gaps already.

    Returns:
        A model of the narrowed one's shape, ready for `surgery.cut`: with the other layers skipped
        it computes what the cut model will. It shares the numbers that are not fitted. And the
        channels kept of each kept layer, ascending, or None where the width is not cut.
    """
    walk = _Walk(rows, anatomy, narrowed or model, layers, kept)
    ends = [*(i - 1 for i in layers[1:]), len(rows.layers) - 1]
    channels: list[list[int]] = []
    begin, equal = 0, layers[0] == 0 and narrowed is None
    for number, end in zip(layers, ends, strict=True):
        if compensate and end != number and not bridged:
            walk.take_norm(number, end)
        equal = equal and end == number and width is None
        said = None if scores is None else scores[number]
        if equal:
            walk.skip(number)
        elif compensate:
            channels.append(walk.fit(number, range(begin, end + 1), width, said))
        elif width is not None:
            channels.append(walk.choose(number, width, said))
        begin = end + 1
    return walk.work, channels if width is not None else None


def unfitted(
    model: TextModel, anatomy: Anatomy, layers: Sequence[int], channels: list[list[int]] | None
) -> TextModel:
    """A model whose channels that are not kept are 0; it shares all other numbers with a model."""
    if channels is None:
        return model
    every = anatomy.layers_of(model.backbone)
    work = copy_sharing(model, [every[i].get_submodule(anatomy.ffn_out) for i in layers])
    for number, keep in zip(layers, channels, strict=True):
        out = anatomy.layers_of(work.backbone)[number].get_submodule(anatomy.ffn_out)
        Linear(out).silence(keep)
    return work


class _Passes:
    """What a layer's output projection reads on each batch, and what its output is added to.

    Computed once and kept if it is not too large, else computed each time.
    """

    def __init__(self, runner: LayerRunner, anatomy: Anatomy, number: int, states: list[Tensor]):
        self.runner, self.anatomy, self.number, self.states = runner, anatomy, number, states
        self.layer = runner.layers[number]
        self.out = Linear(self.layer.get_submodule(anatomy.ffn_out))
        self.every = list(range(self.out.inputs))
        self._kept: list[tuple[Tensor, Tensor]] | None = None
        if runner.may_keep(self.out.inputs):
            self._kept = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Channels (B, T, C) and residual (B, T, H) of one batch after another."""
        for batch in range(len(self.states)):
            if self._kept is None:
                yield self._run(batch)
                continue
            if len(self._kept) == batch:
                self._kept.append(self._run(batch))
            yield self._kept[batch]

    def _run(self, batch: int) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def silent(channels: Tensor) -> Tensor:
            seen.append(channels)
            return channels.new_zeros(*channels.shape[:-1], self.out.outputs)

        with another_forward(self.out.module, silent):
            total, _ = run_to_sum(self.runner, self.anatomy, self.number, batch, self.states[batch])
        return seen[0], total

    def outputs(self) -> Iterator[Tensor]:
        """What the layer gives now, (B, T, H), of one batch after another."""
        path = self.anatomy.ffn_norm
        for batch, states in enumerate(self.states):
            known = self._kept is not None and len(self._kept) > batch
            if self._kept is None or not known or self.anatomy.stacks[0].sandwich:
                yield self.runner.run(self.layer, self.number, batch, states)
                continue
            channels, residual = self._kept[batch]
            with self.runner.computing():
                found = self.out.module(channels) + residual
                if path is not None:
                    found = self.layer.get_submodule(path)(found)
            yield found.to(states.dtype)


def run_to_sum(
    runner: LayerRunner, anatomy: Anatomy, number: int, batch: int, states: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs a layer: the sum of FFN output and residual, and what the layer gives, (B, T, H)."""
    if runner.known is not None and (number, batch) in runner.known:
        return runner.known[number, batch]
    layer, seen = runner.layers[number], []
    with contextlib.ExitStack() as stack:
        if (path := anatomy.ffn_norm) is not None:

            def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                seen.append(args[0])

            handle = layer.get_submodule(path).register_forward_pre_hook(note)
            stack.callback(handle.remove)
        found = runner.run(layer, number, batch, states)
    result = (seen[0] if seen else found), found
    if runner.known is not None:
        runner.known[number, batch] = result
    return result


class _Walk:
    """The original and a copy in the making, side by side, from the first layer to the last."""

    def __init__(
        self,
        rows: LayerRunner,
        anatomy: Anatomy,
        start: TextModel,
        layers: Sequence[int],
        kept: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.anatomy, self.rows, self.kept = anatomy, rows, kept
        every = anatomy.layers_of(start.backbone)
        paths = [path for path in (anatomy.ffn_out, anatomy.ffn_norm) if path]
        self.work = copy_sharing(start, [every[i].get_submodule(p) for i in layers for p in paths])
        self.runner = rows.of(self.work)
        self.teacher = list(rows.inputs)  # each (B, T, H)
        self.student = list(self.runner.inputs)  # each (B, T, kept H)

    def take_norm(self, number: int, end: int) -> None:
        """Gives a layer the norm at the end of the gap behind it."""
        if (path := self.anatomy.ffn_norm) is not None:
            state = self.runner.layers[end].get_submodule(path).state_dict()
            self.runner.layers[number].get_submodule(path).load_state_dict(state)

    def skip(self, number: int) -> None:
        """Moves the states, which are still the same on both sides, through a layer."""
        for batch, states in enumerate(self.teacher):
            _, self.teacher[batch] = run_to_sum(self.rows, self.anatomy, number, batch, states)
        self.student = list(self.teacher)

    def choose(self, number: int, width: int, scores: NDArray[np.float64] | None) -> list[int]:
        """Chooses a layer's channels without a fit, silences the others, and moves on.

        Args:
            number: The layer.
            width: Channels to keep.
            scores: Of the channels, or None for their contribution.
        """
        passes = self._passes(number)
        scores = self._contributions(passes, None) if scores is None else scores
        keep = choose_by_score(scores, width)
        passes.out.silence(keep)
        self.student = list(passes.outputs())
        return keep

    def fit(
        self, number: int, gap: range, width: int | None, scores: NDArray[np.float64] | None
    ) -> list[int]:
        """Chooses a layer's channels, fits its output projection to meet a sum, and moves on.

        Args:
            number: The layer.
            gap: Layers of the original up to the sum to be met.
            width: Channels to keep, or None for all.
            scores: Of the channels, or None for what can best be written by what stays.

        Returns:
            The channels that are kept; the others get weight 0.
        """
        passes = self._passes(number)
        targets = self._targets(passes, gap)
        out, keep = passes.out, passes.every
        if width is not None and scores is None and too_many(out.inputs, self.rows.tokens):
            scores = self._contributions(passes, targets)
        if width is None or scores is not None:
            keep = keep if scores is None or width is None else choose_by_score(scores, width)
            moments, inside = self._moments(passes, targets, keep), list(range(len(keep)))
        else:
            moments = self._moments(passes, targets, keep)
            keep = inside = self._chosen(passes, moments, width)
        start = out.as_float64()
        weight = np.zeros_like(start)
        weight[:, keep], bias = solve(moments, inside, start[:, keep], intercept=out.has_bias)
        out.set(weight, bias)
        self.student = list(passes.outputs())
        return keep

    def _passes(self, number: int) -> _Passes:
        return _Passes(self.runner, self.anatomy, number, self.student)

    def _targets(self, passes: _Passes, gap: range) -> list[tuple[Tensor, Tensor]]:
        """What the output projection should give each token, (N, H), and the token's weight."""
        found = []
        for batch, (channels, residual) in enumerate(passes):
            mask = self.rows.masks[batch]
            if self.anatomy.stacks[0].sandwich:  # the sum hides it behind a norm: its own output
                with self.runner.computing():
                    own = passes.out.module(channels[mask]).float()
                found.append((own, own.new_ones(len(own))))
                continue
            for number in gap:
                total, self.teacher[batch] = run_to_sum(
                    self.rows, self.anatomy, number, batch, self.teacher[batch]
                )
            met = total[mask] if self.kept is None else self.kept(total[mask])
            met = met.float()
            # A norm divides by the deviation, and with it the error of this token.
            weight = 1 / met.var(-1, correction=0).clamp(min=1e-12)
            found.append((met - residual[mask].float(), weight))
        return found

    def _contributions(
        self, passes: _Passes, targets: list[tuple[Tensor, Tensor]] | None
    ) -> NDArray[np.float64]:
        """Of the channels, by the weight of tokens."""
        total, weights = torch.zeros(passes.out.inputs, dtype=torch.float64), 0.0
        for batch, (channels, _) in enumerate(passes):
            squares = channels[self.rows.masks[batch]].float().square_()
            weight = squares.new_ones(len(squares)) if targets is None else targets[batch][1]
            total += (weight @ squares).double().cpu()
            weights += float(weight.sum())
        return channel_importance((total / weights).numpy(), passes.out.as_float64())

    def _moments(
        self, passes: _Passes, targets: list[tuple[Tensor, Tensor]], keep: list[int]
    ) -> Moments:
        """Moments of some channels, and of what they should give."""
        moments = Moments(len(keep), passes.out.outputs)
        some = None if len(keep) == passes.out.inputs else torch.tensor(keep)
        for batch, (channels, _) in enumerate(passes):
            read = channels[self.rows.masks[batch]]
            read = read if some is None else read.index_select(1, some.to(read.device))
            moments.add(read, *targets[batch])
        return moments

    def _chosen(self, passes: _Passes, moments: Moments, width: int) -> list[int]:
        """The channels by which the target is best written."""
        covariance, cross = moments.covariances()
        if (path := self.anatomy.ffn_norm) is not None:
            norm: Any = passes.layer.get_submodule(path)
            cross = cross * as_float64(norm.weight)
        return choose_channels(covariance, cross, width)
