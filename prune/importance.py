"""What matters least: scores and choices of layers and FFN channels, from calibration rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..eval.models import TextModel
from .anatomy import Anatomy
from .calibration import distance, only_layers, signals

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

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
        batches: Calibration rows; one batch is held at a time.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        keep: The layers that are still there, or None for all.
    """
    keep = list(range(len(anatomy.layers_of(model.backbone)))) if keep is None else list(keep)
    reference = signals(model, batches, precision)
    return {
        layer: _distance_without(model, anatomy, batches, precision, keep, (layer,), reference)
        for layer in keep
    }


def _distance_without(
    model: TextModel,
    anatomy: Anatomy,
    batches: Sequence[dict[str, Tensor]],
    precision: str,
    keep: Sequence[int],
    removed: tuple[int, ...],
    reference: Tensor,
) -> float:
    with only_layers(model, anatomy, [i for i in keep if i not in removed]):
        return distance(model.signal, reference, signals(model, batches, precision))


def rank_layers(
    model: TextModel,
    anatomy: Anatomy,
    batches: Sequence[dict[str, Tensor]],
    precision: str,
    count: int,
) -> list[tuple[float, tuple[int, ...]]]:
    """Subsets of ``count`` layers, the one nearest to the whole model first.

    The least important layer is removed, what is left is scored again, and so on until the
    subsets of what is left are at most `SUBSETS`; these are all tried.

    Returns:
        (distance to the whole model, layers kept), sorted by distance.
    """
    keep = list(range(len(anatomy.layers_of(model.backbone))))
    while math.comb(len(keep), count) > SUBSETS and len(keep) > count + 1:
        scores = layer_importance(model, anatomy, batches, precision, keep)
        free = keep[1:] if anatomy.first_layer else keep
        keep.remove(min(free, key=lambda layer: (scores[layer], layer)))
    reference = signals(model, batches, precision)
    found = []
    for kept in itertools.combinations(keep, count):
        if anatomy.first_layer and kept[0] != 0:
            continue  # no stock checkpoint goes without it
        removed = tuple(i for i in keep if i not in kept)
        found.append(
            (
                _distance_without(model, anatomy, batches, precision, keep, removed, reference),
                kept,
            )
        )
    return sorted(found)


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
    inverse = np.linalg.inv(covariance + strength * np.eye(size))
    fit = inverse @ cross  # (C, H)
    left = np.arange(size)
    step = max(1, math.ceil((size - count) / STEPS))
    while len(left) > count:
        cost = (fit**2).sum(1) / np.diag(inverse)
        order = np.argsort(cost, kind="stable")
        out = np.sort(order[: min(step, len(left) - count)])
        keep = np.setdiff1d(np.arange(len(left)), out)
        block = inverse[np.ix_(keep, out)]
        solved = np.linalg.solve(
            inverse[np.ix_(out, out)], np.concatenate([inverse[np.ix_(out, keep)], fit[out]], 1)
        )
        inverse = inverse[np.ix_(keep, keep)] - block @ solved[:, : len(keep)]
        fit = fit[keep] - block @ solved[:, len(keep) :]
        left = left[keep]
    return [int(i) for i in left]
