"""Whether a student is no worse than its teacher by more than a stated margin, and in what words.

A non-inferiority test (Piaggio et al., JAMA 2012, 308(24)): the margin is stated beforehand, and
what is compared with it is the end of the interval, not the figure. With the lower end of a
two-sided 95 % interval a student that just misses is passed once in forty times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .intervals import Interval, least_rows, percent, rows_needed, seen, two_digits


@dataclass(frozen=True)
class NonInferiority:
    """What the test rows say of a share that is to be kept.

    Attributes:
        outcome: ``pass``: that much is kept; ``fail``: it is not; ``undecided``: too few rows.
        sentence: The claim with its figure, interval and number of rows.
        rows_needed: About how many rows would settle an undecided one; None where none may.
    """

    outcome: Literal["pass", "fail", "undecided"]
    sentence: str
    rows_needed: int | None = None


def non_inferiority(retention: Interval, retain: float) -> NonInferiority:
    r"""Tests whether at least a share of the teacher's quality is kept.

    Args:
        retention: Share kept, with its interval.
        retain: Least share to keep; the margin is 1 less this.

    Examples:
        >>> said = non_inferiority(Interval(0.984, 0.976, 0.991, 2000), 0.97).sentence
        >>> print(*said.split(": "), sep=":\n")
        Keeps at least 97 % of the teacher's quality:
        98.4 %, 95 % interval 97.6–99.1 %, n = 2,000.
    """
    claim = f"{percent(retain)} of the teacher's quality"
    figures = _figures(retention, retain)
    least = least_rows(retain)
    if retention.high < retain:
        said = f"Does not keep {claim}: {figures}; even the upper end is below."
        return NonInferiority("fail", said)
    if retention.low >= retain and seen(retention, retain):
        return NonInferiority("pass", f"Keeps at least {claim}: {figures}.")
    if retention.low >= retain:
        said = f"Too few rows to show that at least {claim} is kept: {figures}; {unseen(retain)}."
        return NonInferiority("undecided", said, least)
    found = rows_needed(retention, retain)
    rows = None if found is None else max(found, least or 1)
    said = f"Not shown to keep at least {claim}: {figures}, on both sides of it"
    return NonInferiority("undecided", f"{said}; {_advice(retention, retain, rows)}.", rows)


def unseen(share: float) -> str:
    """Why rows without a loss do not yet show that a share is kept, in words."""
    rows = least_rows(share)
    if rows is None:
        return "no number of rows without a loss shows that nothing is ever lost"
    return f"even without a single loss it takes {rows:,} test rows"


def _figures(retention: Interval, retain: float) -> str:
    """Figure, interval and rows, with enough digits to see on which side of the claim they lie."""
    ends = (retention.low, retention.high)
    apart = [share for share in (retention.value, *ends) if share != retain]
    places = next(
        (n for n in (1, 2, 3) if percent(retain, n) not in [percent(s, n) for s in apart]), 4
    )
    low, high = (percent(end, places).removesuffix(" %") for end in ends)
    return (
        f"{percent(retention.value, places)}, 95 % interval {low}–{high} %, "
        f"n = {retention.examples:,}"
    )


def _advice(retention: Interval, retain: float, rows: int | None) -> str:
    if rows is None:
        return f"more test rows than the {retention.examples:,} there are may never settle it"
    outcome = "" if retention.value > retain else ", as not kept,"
    return (
        f"about {two_digits(rows):,} test rows instead of {retention.examples:,} would settle "
        f"it{outcome} if the figure stays"
    )
