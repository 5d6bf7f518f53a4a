"""Risk against coverage: what is wrong among the answers if only the surest rows are answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .calibration import checked
from .ranking import Floats, Rows

POINTS = 100
"""Thresholds that a report shows, at most."""


@dataclass(frozen=True)
class Selective:
    """What answering only from a confidence on gives, from all rows answered to few.

    Attributes:
        threshold: Confidences, rising.
        coverage: Share of the rows that are answered: those at or above the threshold.
        risk: Share of the answers that is wrong.
        aurc: Area under the whole curve of risk over coverage; less is better.
    """

    threshold: Floats
    coverage: Floats
    risk: Floats
    aurc: float


def risk_coverage(
    confidences: npt.ArrayLike, right: npt.ArrayLike, points: int = POINTS
) -> Selective:
    """The risk-coverage curve of a classifier (Geifman and El-Yaniv 2017, arXiv 1705.08500).

    The area is the mean of the risk over the n coverages 1/n, 2/n, … 1 (Geifman et al. 2019,
    arXiv 1805.08206). Rows of one confidence have no order: the area takes the mean over all of
    their orders, so that it does not hang on how rows happen to be sorted.

    Args:
        confidences: Probability of each row's decided class, (n,), from 0 to 1.
        right: Whether the decision is right, (n,).
        points: Thresholds to keep, spread evenly over those there are; the first answers all rows.

    Raises:
        RunError: If the two are not of the same rows, there are none, or a confidence is none.
    """
    said, hits = checked(confidences, right)
    levels, kind = np.unique(said, return_inverse=True)
    rows = np.bincount(kind)[::-1].astype(np.int64)  # the surest first
    wrong = np.bincount(kind, 1 - hits)[::-1].astype(np.int64)
    answered, failed = (np.cumsum(part, dtype=np.int64) for part in (rows, wrong))
    kept = _spread(len(levels), points)
    return Selective(
        threshold=levels[kept],
        coverage=(answered / len(said))[::-1][kept],
        risk=(failed / answered)[::-1][kept],
        aurc=_area(rows, wrong, answered - rows, failed - wrong),
    )


def answered_share(confidences: npt.ArrayLike, thresholds: npt.ArrayLike) -> Floats:
    """Share of rows that is still answered at each threshold: (n,) and (T,) -> (T,).

    Of rows outside the task every answer is wrong, and the share should fall to 0.
    """
    said = np.sort(np.asarray(confidences, dtype=np.float64))
    below = np.searchsorted(said, np.asarray(thresholds, dtype=np.float64), side="left")
    return np.asarray(1 - below / len(said))


def _spread(count: int, points: int) -> npt.NDArray[np.int64]:
    """At most so many places of a list, spread evenly, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, points)).round().astype(np.int64))


def _area(rows: Rows, wrong: Rows, answered: Rows, failed: Rows) -> float:
    """Mean risk over all coverages, rows of one confidence in the mean of all their orders.

    Args:
        rows: How many have each confidence, the surest first.
        wrong: How many of them are wrong.
        answered: Rows of higher confidence.
        failed: How many of those are wrong.
    """
    each = np.repeat(np.arange(len(rows)), rows)
    coverage = np.arange(1, len(each) + 1)  # k rows answered
    within = (coverage - answered[each]) / rows[each]
    return float(np.mean((failed[each] + within * wrong[each]) / coverage))
