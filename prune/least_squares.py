"""Least squares from moments: summed batch by batch, solved in float64, steadied by a ridge."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
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
BLOCKS = 4
"""A symmetric product is made in blocks, and those below its diagonal are copied."""


class Moments:
    """Weighted second moments of features and target, summed batch by batch in float64.

    Memory is that of the moments, whatever the number of rows; as long as there are fewer rows than
    features the rows themselves are kept, which are smaller. Sums are taken around the first
    batch's means, so that large means do not swallow small variances.
    """

    def __init__(self, features: int, targets: int) -> None:
        self.features, self.targets = features, targets
        self.tokens = 0
        self.rows: list[tuple[Tensor, Tensor, Tensor]] | None = []
        """Features, target and weight, shifted; None once they are summed."""
        self._shift: tuple[Tensor, Tensor] | None = None
        self._weight = 0.0
        self._sums = _zeros(features), _zeros(targets)
        self._gram = self._cross = _zeros(0, 0)

    def add(self, features: Tensor, target: Tensor, weight: Tensor) -> None:
        """Adds tokens.

        Args:
            features: (N, F).
            target: (N, H).
            weight: (N,), above 0.
        """
        if len(features):
            with full_precision(features.device):
                self._note(features.float(), target.float(), weight.float())

    def _note(self, features: Tensor, target: Tensor, weight: Tensor) -> None:
        if self._shift is None:
            self._shift = features.mean(0), target.mean(0)
        row = features - self._shift[0], target - self._shift[1], weight
        self.tokens += len(features)
        self._weight += float(weight.sum(dtype=torch.float64))
        for total, part in zip(self._sums, row[:2], strict=True):
            total += _on_cpu(weight @ part)
        if self.rows is None:
            self._add(*row)
            return
        self.rows.append(row)
        if self.tokens >= self.features:
            self._sum()

    def _sum(self) -> None:
        """Sums the rows that were kept, and lets them go."""
        rows, self.rows = self.rows, None
        self._gram = _zeros(self.features, self.features)
        self._cross = _zeros(self.features, self.targets)
        for row in rows or ():
            self._add(*row)

    def _add(self, features: Tensor, target: Tensor, weight: Tensor) -> None:
        weighted = features * weight[:, None]
        self._gram += _on_cpu(symmetric(weighted, features))
        self._cross += _on_cpu(weighted.T @ target)

    def covariances(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Covariance of the features (F, F), and of features and target (F, H)."""
        if self.rows is not None:
            self._sum()
        mean, target = (total / self._weight for total in self._sums)
        gram = (self._gram / self._weight).addr_(mean, mean, alpha=-1)
        cross = (self._cross / self._weight).addr_(mean, target, alpha=-1)
        return gram.numpy(), cross.numpy()

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weighted mean of the features (F,) and of the target (H,)."""
        assert self._shift is not None  # a row has tokens
        mean, target = (
            (total / self._weight + _on_cpu(shift)).numpy()
            for total, shift in zip(self._sums, self._shift, strict=True)
        )
        return mean, target

    def scaled_rows(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """The kept rows so that XᵀX and XᵀY are the (centred) moments, (N, F) and (N, H)."""
        assert self.rows is not None and self._shift is not None
        found = []
        for place in (0, 1):
            part = torch.cat([_on_cpu(row[place]) for row in self.rows])
            middle = -self._sums[place] / self._weight if centred else _on_cpu(self._shift[place])
            found.append(part.add_(middle))
        scale = (torch.cat([_on_cpu(row[2]) for row in self.rows]) / self._weight).sqrt_()
        return found[0].mul_(scale[:, None]), found[1].mul_(scale[:, None])


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Runs a block outside autocast, for sums that hooks make within a forward pass.

    A product rounded to bf16 is no longer that of any data: it can have negative eigenvalues.
    """
    with torch.autocast(device.type, enabled=False):
        yield


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def symmetric(left: Tensor, right: Tensor) -> Tensor:
    """``leftᵀ right`` where that is symmetric; with four blocks a side 10 of 16 are computed."""
    size = left.shape[1]
    found = left.new_empty(size, size)
    edges = [size * i // BLOCKS for i in range(BLOCKS + 1)]
    for start, end in itertools.pairwise(edges):
        found[start:end, start:] = left[:, start:end].T @ right[:, start:]
        found[end:, start:end] = found[start:end, end:].T
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
    index, first = torch.as_tensor(list(keep)), torch.from_numpy(start).T
    mean, target = (torch.from_numpy(part) for part in moments.means())
    if moments.rows is not None and len(index) > moments.tokens:
        solved = _from_rows(moments, index, first, intercept)
    else:
        solved = _from_covariances(moments, index, first, intercept)
    if not intercept:
        return solved.T.numpy(), np.zeros(len(target))
    return solved.T.numpy(), (target - mean[index] @ solved).numpy()


def _ridge(variance: Tensor, index: Tensor, tokens: int) -> Tensor:
    """Of each feature, (K,)."""
    share = RIDGE * len(index) / tokens
    return share * variance[index] + FLOOR * variance.mean() + 1e-12


def _from_covariances(moments: Moments, index: Tensor, start: Tensor, intercept: bool) -> Tensor:
    covariance, cross = (torch.from_numpy(part) for part in moments.covariances())
    ridge = _ridge(covariance.diagonal().clone(), index, moments.tokens)
    if not intercept:
        mean, target = (torch.from_numpy(part) for part in moments.means())
        covariance, cross = covariance.addr_(mean, mean), cross.addr_(mean, target)
    if len(index) < moments.features:
        covariance, cross = covariance[index][:, index], cross[index]
    covariance.diagonal().add_(ridge)
    return positive_solve(covariance, cross + ridge[:, None] * start)


def _from_rows(moments: Moments, index: Tensor, start: Tensor, intercept: bool) -> Tensor:
    """The same where tokens are fewer than features: their N equations are solved instead.

    W = S + R⁻¹ Xᵀ (X R⁻¹ Xᵀ + 1)⁻¹ (Y - X S) for a ridge R towards S.
    """
    features, target = moments.scaled_rows(centred=True)
    ridge = _ridge(features.square().sum(0), index, moments.tokens)
    if not intercept:
        features, target = moments.scaled_rows(centred=False)
    features = features[:, index]
    eased = features / ridge
    system = eased @ features.T
    system.diagonal().add_(1.0)
    solved: Tensor = start + eased.T @ positive_solve(system, target - features @ start)
    return solved


def positive_solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solves a symmetric positive definite system, by LU where rounding has spoilt that."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        solved: Tensor = torch.linalg.solve(matrix, right)
        return solved
    return torch.cholesky_solve(right, factor)


def positive_inverse(matrix: Tensor) -> Tensor:
    """The inverse of a symmetric positive definite matrix, as `positive_solve` does it."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.linalg.inv(matrix) if int(failed) else torch.cholesky_inverse(factor)


def as_float64(tensor: Tensor) -> NDArray[np.float64]:
    """A tensor as a float64 array on the CPU."""
    found: NDArray[np.float64] = tensor.detach().cpu().double().numpy()
    return found
