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
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..eval.models import TextModel
from .anatomy import Anatomy
from .calibration import LayerRunner
from .importance import channel_importance, choose_by_score, choose_channels
from .least_squares import Moments, as_float64, solve
from .modules import Linear

LARGE = 4096
"""FFN channels from which on they are chosen one by one, if there are no more tokens than that."""


def fit(
    model: TextModel,
    anatomy: Anatomy,
    rows: LayerRunner,
    layers: Sequence[int],
    width: int | None,
    *,
    compensate: bool,
    narrowed: TextModel | None = None,
    hidden: Sequence[int] | None = None,
    scores: Sequence[NDArray[np.float64]] | None = None,
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
        narrowed: The original with other axes cut, to go on from; the original itself if None.
        hidden: Channels of the residual stream that it has kept, or None for all.
        scores: Of the FFN channels of each layer of the original; the highest are kept.

    Returns:
        A model of the narrowed one's shape, ready for `surgery.cut`: with the other layers skipped
        it computes what the cut model will. And the channels kept of each kept layer, ascending,
        or None where the width is not cut.
    """
    walk = _Walk(model, anatomy, rows, narrowed, hidden)
    ends = [*(i - 1 for i in layers[1:]), len(walk.originals) - 1]
    channels: list[list[int]] = []
    begin, equal = 0, layers[0] == 0 and narrowed is None
    for number, end in zip(layers, ends, strict=True):
        if compensate and end != number:
            walk.take_norm(number, end)
        equal = equal and end == number
        moments = walk.moments(number, range(begin, end + 1) if compensate else None)
        if scores is not None and width is not None:
            keep = choose_by_score(scores[number], width)
        else:
            keep = walk.choose(number, moments, width, fitted=compensate)
        if compensate and not (equal and width is None):
            walk.fit(number, moments, keep)
        else:
            walk.out(number).silence(keep)
        equal = equal and width is None
        walk.advance(number)
        channels.append(keep)
        begin = end + 1
    return walk.work, channels if width is not None else None


def unfitted(
    model: TextModel, anatomy: Anatomy, layers: Sequence[int], channels: list[list[int]] | None
) -> TextModel:
    """A copy of a model whose channels that are not kept are 0, and nothing else is changed."""
    work = copy.deepcopy(model)
    for number, keep in zip(layers, channels or [], strict=False):
        out = anatomy.layers_of(work.backbone)[number].get_submodule(anatomy.ffn_out)
        Linear(out).silence(keep)
    return work


class _Tap:
    """What passes through the end of a layer: channels h, FFN output y, sum s = y + residual."""

    channels: Tensor
    output: Tensor
    sum: Tensor


class _Walk:
    """The original and a copy in the making, side by side, from the first layer to the last."""

    def __init__(
        self,
        model: TextModel,
        anatomy: Anatomy,
        rows: LayerRunner,
        narrowed: TextModel | None,
        hidden: Sequence[int] | None,
    ) -> None:
        self.anatomy, self.rows, self.runner = anatomy, rows, rows
        self.work = copy.deepcopy(narrowed or model)
        self.originals = anatomy.layers_of(model.backbone)
        self.copies = anatomy.layers_of(self.work.backbone)
        self.teacher = list(rows.inputs)  # each (B, T, H)
        if narrowed is not None:
            self.runner = rows.of(self.work)
        self.student = list(self.runner.inputs)  # each (B, T, kept H)
        self.hidden = None if hidden is None else torch.tensor(list(hidden))

    def take_norm(self, number: int, end: int) -> None:
        """Gives a layer the norm at the end of the gap behind it."""
        if (path := self.anatomy.ffn_norm) is not None:
            state = self.copies[end].get_submodule(path).state_dict()
            self.copies[number].get_submodule(path).load_state_dict(state)

    def moments(self, number: int, gap: range | None) -> Moments:
        """Moments of a layer's channels in the copy, and of the FFN output they should give.

        Args:
            number: The layer.
            gap: Layers of the original up to the sum to be met, through which the original's
                states are moved; None to meet the layer's own FFN output.
        """
        out = self.out(number)
        moments = Moments(out.inputs, out.outputs)
        gap = None if self.anatomy.stacks[0].sandwich else gap
        for batch, mask in enumerate(self.rows.masks):
            with self._tapped(self.copies[number]) as own:
                self.runner.run(self.copies[number], number, batch, self.student[batch])
            target, weight = own.output, torch.ones_like(mask, dtype=torch.float32)
            for passed in gap or ():
                with self._tapped(self.originals[passed]) as original:
                    self.teacher[batch] = self.rows.run(
                        self.originals[passed], passed, batch, self.teacher[batch]
                    )
                total = original.sum
                if self.hidden is not None:
                    total = total.index_select(-1, self.hidden.to(total.device))
                target = total - (own.sum - own.output)
                # A norm divides by the deviation, and with it the error of this token.
                weight = 1 / total.var(-1, correction=0).clamp(min=1e-12)
            moments.add(own.channels[mask], target[mask], weight[mask])
        return moments

    def choose(
        self, number: int, moments: Moments, width: int | None, *, fitted: bool
    ) -> list[int]:
        """The channels to keep of a layer."""
        out = self.out(number)
        if width is None:
            return list(range(out.inputs))
        if not fitted or out.inputs > max(LARGE, moments.tokens / 2):
            scores = channel_importance(moments.second_moment(), out.as_float64())
            return choose_by_score(scores, width)
        covariance, cross = moments.covariances()
        scale = np.ones(out.outputs)
        if (path := self.anatomy.ffn_norm) is not None:
            scale = as_float64(self.copies[number].get_submodule(path).weight)  # type: ignore[arg-type]
        return choose_channels(covariance, cross * scale, width)

    def fit(self, number: int, moments: Moments, keep: Sequence[int]) -> None:
        """Fits a layer's output projection; channels that are not kept get weight 0."""
        out = self.out(number)
        start = out.as_float64()
        weight = np.zeros_like(start)
        weight[:, keep], bias = solve(moments, keep, start[:, keep], intercept=out.has_bias)
        out.set(weight, bias)

    def advance(self, number: int) -> None:
        """Moves the copy's states through a layer."""
        for batch, states in enumerate(self.student):
            self.student[batch] = self.runner.run(self.copies[number], number, batch, states)

    def out(self, number: int) -> Linear:
        """The output projection of a layer of the copy."""
        return Linear(self.copies[number].get_submodule(self.anatomy.ffn_out))

    @contextlib.contextmanager
    def _tapped(self, layer: nn.Module) -> Iterator[_Tap]:
        tap = _Tap()

        def at_out(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            tap.channels, tap.output = args[0].float(), output.float()

        def at_norm(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            tap.sum = args[0].float()

        def at_end(module: nn.Module, args: Any, output: Any) -> None:
            tap.sum = (output[0] if isinstance(output, tuple) else output).float()

        handles = [layer.get_submodule(self.anatomy.ffn_out).register_forward_hook(at_out)]
        if (path := self.anatomy.ffn_norm) is not None:
            handles.append(layer.get_submodule(path).register_forward_pre_hook(at_norm))
        else:
            handles.append(layer.register_forward_hook(at_end))
        try:
            yield tap
        finally:
            for handle in handles:
                handle.remove()
