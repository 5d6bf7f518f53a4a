"""Least squares from moments: summed batch by batch, solved in float64, steadied by a ridge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

RIDGE = 0.3
"""Strength of the ridge: times unknowns ÷ tokens, relative to each channel's variance."""
FLOOR = 1e-6
"""Ridge on top, relative to the mean variance, for channels that never fire."""


class Moments:
    """Weighted second moments of features and target, summed batch by batch in float64.

    Memory is that of the moments, whatever the number of rows. Sums are taken around the first
    batch's means, so that large means do not swallow small variances.
    """

    def __init__(self, features: int, targets: int) -> None:
        self.tokens = 0
        self._shift: tuple[Tensor, Tensor] | None = None
        self._features: NDArray[np.float64] = np.zeros((features + 1, features + 1))
        self._cross: NDArray[np.float64] = np.zeros((features + 1, targets))

    def add(self, features: Tensor, target: Tensor, weight: Tensor) -> None:
        """Adds tokens.

        Args:
            features: (N, F).
            target: (N, H).
            weight: (N,), above 0.
        """
        if not len(features):
            return
        if self._shift is None:
            self._shift = features.mean(0), target.mean(0)
        features, target = features - self._shift[0], target - self._shift[1]
        one = torch.ones(len(features), 1, dtype=features.dtype, device=features.device)
        wide = torch.cat([features, one], dim=1)
        weighted = wide * weight[:, None]
        self._features += as_float64(weighted.T @ wide)
        self._cross += as_float64(weighted.T @ target)
        self.tokens += len(features)

    def covariances(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Covariance of the features (F, F), and of features and target (F, H)."""
        total = self._features[-1, -1]
        mean, target = self._features[-1, :-1] / total, self._cross[-1] / total
        return (
            self._features[:-1, :-1] / total - np.outer(mean, mean),
            self._cross[:-1] / total - np.outer(mean, target),
        )

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weighted mean of the features (F,) and of the target (H,)."""
        assert self._shift is not None  # a row has tokens
        total = self._features[-1, -1]
        features, target = (as_float64(shift) for shift in self._shift)
        return features + self._features[-1, :-1] / total, target + self._cross[-1] / total

    def second_moment(self) -> NDArray[np.float64]:
        """Weighted mean of the features' squares, (F,)."""
        found: NDArray[np.float64] = np.diag(self.covariances()[0]) + self.means()[0] ** 2
        return found


def solve(
    moments: Moments,
    keep: Sequence[int],
    start: NDArray[np.float64],
    *,
    intercept: bool = True,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least squares of the target on some of the features, with intercept, in float64.

    The ridge pulls towards ``start`` and fades as tokens are added: with few tokens little is
    changed, and a feature that never varies keeps its weight.

    Args:
        moments: Of features and target.
        keep: Features to use, K of them.
        start: Weights to fall back on, (H, K).
        intercept: Whether a constant is fitted; the map has no place for one otherwise.

    Returns:
        Weights (H, K) and intercept (H,), which is 0 where none is fitted.
    """
    index = np.asarray(keep)
    covariance, cross = moments.covariances()
    mean, target = moments.means()
    if not intercept:
        covariance, cross = covariance + np.outer(mean, mean), cross + np.outer(mean, target)
    variance = np.diag(covariance)
    part = covariance[np.ix_(index, index)]
    ridge = RIDGE * len(index) / moments.tokens * variance[index] + FLOOR * variance.mean() + 1e-12
    solved = np.linalg.solve(part + np.diag(ridge), cross[index] + ridge[:, None] * start.T).T
    if not intercept:
        return solved, np.zeros_like(target)
    return solved, target - solved @ mean[index]


def as_float64(tensor: Tensor) -> NDArray[np.float64]:
    """A tensor as a float64 array on the CPU."""
    found: NDArray[np.float64] = tensor.detach().cpu().double().numpy()
    return found
