"""Holm's correction: p values of several tests, so that not one of them cries wolf too often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusts p values of several tests (Holm, Scandinavian Journal of Statistics 1979, 6).

    The k-th smallest of m becomes max over j <= k of min(1, (m - j + 1) p_(j)). If all of the tests
    are of no effect, the chance that any adjusted value falls below 5 % is at most 5 %, whatever
    their dependence.

    Args:
        p_values: One a test; None where there was none, which counts for nothing.

    Returns:
        The adjusted values in the same order, None where None was given.

    Raises:
        ValueError: If a value is no probability.

    Examples:
        >>> holm([0.01, None, 0.04, 0.03])
        [0.03, None, 0.06, 0.06]
    """
    places = [place for place, p in enumerate(p_values) if p is not None]
    given = np.asarray([p_values[place] for place in places], dtype=np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"Expected p values from 0 to 1, got {given.tolist()}.")
    order = np.argsort(given, kind="stable")
    scaled = np.minimum(1, given[order] * np.arange(len(given), 0, -1))
    adjusted: list[float | None] = [None] * len(p_values)
    for place, value in zip(order, np.maximum.accumulate(scaled), strict=True):
        adjusted[places[place]] = float(value)
    return adjusted
