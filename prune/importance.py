"""What matters least: scores and choices of layers and FFN channels, from calibration rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..eval.models import TextModel
from .anatomy import Anatomy
from .calibration import LayerRunner, distance
from .least_squares import positive_inverse, positive_solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUBSETS = 64
"""So many subsets of layers are all tried; more of them are first made fewer, one by one."""
STEPS = 12
"""Rounds in which channels are removed; one at a time gave the same fit at ten times the time."""


def layer_importance(
    model: TextModel,
    anatomy: Anatomy,
    batches: Sequence[dict[str, Tensor]],
    precision: str,
    keep: Sequence[int] | None = None,
) -> dict[int, float]:
    """The change of the output when one layer is removed: layer → distance to the whole model.

    Args:
        model: Is not changed.
        anatomy: Of its architecture.
        batches: Calibration rows; the states of all of them are held after every layer.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        keep: The layers that are still there, or None for all.
    """
    every = range(len(anatomy.layers_of(model.backbone)))
    search = _Subsets(LayerRunner(model, anatomy, batches, precision))
    return search.without_one(list(every if keep is None else keep))


def rank_layers(
    model: TextModel,
    anatomy: Anatomy,
    batches: Sequence[dict[str, Tensor]],
    precision: str,
    count: int,
    scores: Mapping[int, float] | None = None,
) -> list[tuple[float, tuple[int, ...]]]:
    """Subsets of ``count`` layers, the one nearest to the whole model first.

    The least important layer is removed, what is left is scored again, and so on until the
    subsets of what is left are at most `SUBSETS`; these are all tried. Of deep models only layers
    whose removal alone changes little are thought of: twice as many as go.

    Args:
        model: Is not changed.
        anatomy: Of its architecture.
        batches: Calibration rows; the states of all of them are held after every layer.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        count: Layers to keep.
        scores: What `layer_importance` says of all layers, if that is known.

    Returns:
        (distance to the whole model, layers kept), sorted by distance.
    """
    search = _Subsets(LayerRunner(model, anatomy, batches, precision))
    keep = list(range(len(search.runner.layers)))
    fixed = {0} if anatomy.first_layer else set()  # no stock checkpoint goes without it
    if math.comb(len(keep), count) > SUBSETS:
        found = dict(scores or search.without_one(keep))
        order = sorted(set(keep) - fixed, key=lambda layer: (found[layer], layer))
        fixed |= set(order[2 * (len(keep) - count) :])
        keep.remove(order[0])
    while math.comb(len(keep) - len(fixed), count - len(fixed)) > SUBSETS:
        found = search.without_one(keep, fixed)
        keep.remove(min(found, key=lambda layer: (found[layer], layer)))
    every = [kept for kept in itertools.combinations(keep, count) if fixed <= set(kept)]
    return sorted(zip(search.distances(every), every, strict=True))


class _Subsets:
    """Some of a model's layers against all of them, on calibration rows."""

    def __init__(self, runner: LayerRunner) -> None:
        self.runner = runner
        whole = tuple(range(len(runner.layers)))
        ((_, self.reference),) = self._signals([whole])

    def without_one(self, keep: list[int], fixed: Collection[int] = ()) -> dict[int, float]:
        """Layer → distance when it is removed from those that are still there."""
        gone = [layer for layer in keep if layer not in fixed]
        subsets = [tuple(i for i in keep if i != layer) for layer in gone]
        return dict(zip(gone, self.distances(subsets), strict=True))

    def distances(self, subsets: Sequence[tuple[int, ...]]) -> list[float]:
        """The distance of each subset."""
        signal = self.runner.model.signal
        found = {
            kept: distance(signal, self.reference, values)
            for kept, values in self._signals(subsets)
        }
        return [found[kept] for kept in subsets]

    def _signals(
        self, subsets: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """The signal of each subset; what begins alike is computed once."""
        runner = self.runner
        states = [list(runner.inputs)]  # after each layer of the subset before
        before: tuple[int, ...] = ()
        for kept in sorted(subsets):
            both = zip(before, kept, strict=False)
            alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))
            del states[alike + 1 :]
            for layer in kept[alike:]:
                last = enumerate(states[-1])
                states.append([runner.run(runner.layers[layer], layer, i, one) for i, one in last])
            before = kept
            found = [runner.finish(i, one).float() for i, one in enumerate(states[-1])]
            yield kept, torch.cat(found)


def channel_importance(
    second_moment: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """An FFN channel's contribution to the FFN's output: E[h_j²] · ‖w_j‖².

    Args:
        second_moment: E[h_j²] of the channels, (C,).
        weight: The output projection, (H, C).

    Returns:
        (C,).
    """
    scores: NDArray[np.float64] = second_moment * (weight**2).sum(0)
    return scores


def choose_by_score(scores: NDArray[np.float64], count: int) -> list[int]:
    """The indices of the highest scores, ascending; the lower index where scores are equal."""
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())


def choose_channels(
    covariance: NDArray[np.float64], cross: NDArray[np.float64], count: int, ridge: float = 1e-3
) -> list[int]:
    """Chooses the channels from which a target is best written by least squares.

    Backward elimination: in a least-squares fit on the channels that are left, removing channel j
    costs ‖b_j‖² / (C⁻¹)_jj once the others are fitted again (optimal brain surgeon, Hassibi and
    Stork 1992). The cheapest go, in `STEPS` rounds, and the fit is updated after each.

    Args:
        covariance: Of the channels, (C, C).
        cross: Covariance of channels and target, (C, H).
        count: Channels to keep.
        ridge: Relative to the mean variance.

    Returns:
        Indices, ascending.
    """
    size = len(covariance)
    strength = ridge * float(np.trace(covariance)) / size or 1.0
    shifted = torch.from_numpy(covariance).clone()
    shifted.diagonal().add_(strength)
    inverse = positive_inverse(shifted)
    fit = inverse @ torch.from_numpy(cross)  # (C, H)
    left = torch.arange(size)
    step = max(1, math.ceil((size - count) / STEPS))
    while len(left) > count:
        cost = fit.square().sum(1) / inverse.diagonal()
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[cost.argsort(stable=True)[: min(step, len(left) - count)]] = False
        inverse, fit = without(inverse, fit, stays)
        left = left[stays]
    return [int(i) for i in left]


def without(inverse: Tensor, fit: Tensor, stays: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of a covariance, and a fit, after some variables are left out.

    Args:
        inverse: Of the covariance, (C, C).
        fit: Weights of all variables, (C, H).
        stays: Which variables stay, (C,) booleans.
    """
    block, rest = inverse[stays], fit[stays]
    cross = block[:, ~stays]
    right = torch.cat([cross.T, fit[~stays]], 1)
    solved = cross @ positive_solve(inverse[~stays][:, ~stays], right)
    split = solved.shape[1] - fit.shape[1]
    return block[:, stays] - solved[:, :split], rest - solved[:, split:]
