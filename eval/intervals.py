"""A figure with its interval, and how many test rows would make the interval narrow enough."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval over the test rows.

    Attributes:
        value: The figure itself.
        low: Lower end.
        high: Upper end.
        examples: Test rows it comes from.
    """

    value: float
    low: float
    high: float
    examples: int


def rows_needed(interval: Interval, target: float) -> int | None:
    """Rows at which the interval would lie on one side of the target, if the figure stays.

    It narrows as 1 / sqrt(rows). The figure may be a share that is to be kept, or a difference that
    is to be told from 0, over all test rows or those of a slice.

    ``None`` if the figure is the target itself, or the interval has no width to extrapolate.
    """
    room = abs(interval.value - target)
    above = interval.value > target
    width = interval.value - interval.low if above else interval.high - interval.value
    if room == 0 or not width > 0:
        return None
    return max(interval.examples + 1, math.ceil(interval.examples * (width / room) ** 2))


def least_rows(retain: float) -> int | None:
    """Rows without a single loss that it takes to show that at least ``retain`` is kept.

    None where no number of rows shows it: that nothing at all is lost.

    A loss that befalls a share q of all rows is missed by n rows with probability (1 - q)^n. The
    largest q that is not yet unlikely (2.5 %, as the lower end of an interval has it) must be
    within 1 - retain; this is Clopper and Pearson's bound for no event. A bootstrap cannot see it:
    where no row differs, its interval has no width, however few the rows.

    Examples:
        >>> least_rows(0.95), least_rows(0.99)
        (72, 368)
    """
    if retain <= 0:  # nothing has to be kept
        return 1
    if retain >= 1:
        return None
    return math.ceil(math.log(0.025) / math.log(retain))


def seen(interval: Interval, share: float) -> bool:
    """Whether a loss that would take the figure below ``share`` would have been seen in the rows.

    With fewer than `least_rows`, the lower end must lie above the share by all that so few rows can
    miss, 1 - 0.025^(1/n). Where everything is to be kept, it is the interval's width that tells.
    """
    least = least_rows(share)
    if least is not None and interval.examples >= least:
        return True
    if least is None and interval.low < interval.high:
        return True
    missed: float = 1 - 0.025 ** (1 / max(1, interval.examples))
    return interval.low - missed >= share


def two_digits(rows: int) -> int:
    """Rounds up to two digits, all that an extrapolation is worth.

    Examples:
        >>> two_digits(3161), two_digits(87)
        (3200, 87)
    """
    unit: int = 10 ** max(0, len(str(rows)) - 2)
    return -(-rows // unit) * unit


def percent(share: float, places: int = 2) -> str:
    """A share in percent, as few digits as it has.

    Examples:
        >>> percent(0.97), percent(0.98625)
        ('97 %', '98.62 %')
    """
    if math.isnan(share):
        return "not measured"
    return f"{100 * share:.{places}f}".rstrip("0").rstrip(".") + " %"
