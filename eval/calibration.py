"""Whether a classifier is as often right as it says it is: reliability bins and their error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import RunError
from .ranking import Floats

BINS = 15
"""As many as Guo et al. take."""


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence lies in [low, high), the last bin's upper end included.

    Attributes:
        low: Lower end.
        high: Upper end.
        rows: How many there are.
        confidence: Their mean confidence; None where there are none.
        accuracy: The share of them that is right; None where there are none.
    """

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


def confidence(logits: npt.ArrayLike) -> Floats:
    """The probability of the class that is decided: softmax's largest, (n, C) -> (n,)."""
    values = np.asarray(logits, dtype=np.float64)
    return np.asarray(1 / np.exp(values - values.max(axis=1, keepdims=True)).sum(axis=1))


def reliability(confidences: npt.ArrayLike, right: npt.ArrayLike, bins: int = BINS) -> list[Bin]:
    """Rows in bins of equal width by their confidence (Guo et al. 2017, arXiv 1706.04599).

    Args:
        confidences: Probability of each row's decided class, (n,), from 0 to 1.
        right: Whether the decision is right, (n,).
        bins: How many bins the range from 0 to 1 is cut into.

    Raises:
        RunError: If the two are not of the same rows, there are none, or a confidence is none.
    """
    said, hits = checked(confidences, right)
    edges = np.arange(1, bins) / bins
    place = np.searchsorted(edges, said, side="right")
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, said, bins), np.bincount(place, hits, bins)
    found = []
    for i, rows in enumerate(counts.tolist()):
        means = [float(total[i]) / rows if rows else None for total in sums]
        found.append(Bin(i / bins, (i + 1) / bins, rows, *means))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean over rows of |accuracy - confidence| of their bin.

    ECE = sum over bins of |B| / n * |acc(B) - conf(B)| (Guo et al. 2017). 0 for a classifier that
    is right as often as it says, in every bin.
    """
    total = sum(one.rows for one in bins)
    gaps = (one.rows * abs(_gap(one)) for one in bins if one.rows)
    return sum(gaps) / total


def _gap(one: Bin) -> float:
    assert one.accuracy is not None and one.confidence is not None  # it has rows
    return one.accuracy - one.confidence


def checked(confidences: npt.ArrayLike, right: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Confidences and hits (0 or 1) of the same rows, both (n,) float64.

    Raises:
        RunError: If they are not of the same rows, there are none, or a confidence is none.
    """
    said = np.asarray(confidences, dtype=np.float64)
    hits = np.asarray(right, dtype=np.float64)
    if said.ndim != 1 or said.shape != hits.shape or not len(said):
        raise RunError(
            f"Expected a confidence and right or wrong for at least one row each, got shapes "
            f"{said.shape} and {hits.shape}."
        )
    if not ((said >= 0) & (said <= 1)).all():
        raise RunError("A confidence is a probability from 0 to 1; give softmax's largest.")
    return said, hits
