"""How figures are written for people: one way everywhere, "not measured" where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

NOT_MEASURED = "not measured"

_METRIC_NAMES = {"mrr": "MRR", "ndcg": "nDCG", "macro_f1": "macro-F1"}


def number(value: Any) -> float | None:
    """A finite number, or ``None`` for anything else: missing figures are never 0."""
    if value is None or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def digits(value: Any, unit: str = "") -> str:
    """Three significant digits: 0.0123, 1.23, 12.3, 123, 1,234.

    Examples:
        >>> digits(7.8432, " ms")
        '7.84 ms'
        >>> digits(None)
        'not measured'
    """
    found = number(value)
    if found is None:
        return NOT_MEASURED
    if found == 0 or abs(found) >= 99.95:
        return f"{found:,.0f}{unit}"
    places = max(0, 2 - math.floor(math.log10(abs(found))))
    return f"{found:.{places}f}{unit}"


def _scaled(value: Any, base: float, names: Sequence[str]) -> str:
    found = number(value)
    if found is None:
        return NOT_MEASURED
    power = 0
    while abs(found) >= base and power < len(names) - 1:
        found /= base
        power += 1
    text = f"{found:,.0f}" if power == 0 and found == int(found) else digits(found)
    return f"{text} {names[power]}".strip()


def count(value: Any) -> str:
    """A number of things.

    Examples:
        >>> count(22713216)
        '22.7 M'
        >>> count(431)
        '431'
    """
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P"))


def flops(value: Any) -> str:
    """Floating-point operations: 612 MFLOP."""
    return _scaled(value, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def size(value: Any) -> str:
    """Bytes, by thousands: 90.9 MB."""
    return _scaled(value, 1000, ("B", "kB", "MB", "GB", "TB"))


def energy(value: Any) -> str:
    """Energy in joules: 12.3 kJ."""
    return _scaled(value, 1000, ("J", "kJ", "MJ", "GJ"))


def whole(value: Any) -> str:
    """A whole number in full: 2,012."""
    found = number(value)
    return NOT_MEASURED if found is None else f"{found:,.0f}"


def share(value: Any, places: int = 1) -> str:
    """A ratio as a percentage.

    Examples:
        >>> share(0.9857)
        '98.6 %'
    """
    found = number(value)
    return NOT_MEASURED if found is None else f"{100 * found:.{places}f} %"


def fine_share(value: Any) -> str:
    """A ratio as a percentage, with the digits that a small one needs.

    Examples:
        >>> fine_share(0.181), fine_share(0.0004)
        ('18.1 %', '0.0400 %')
    """
    found = number(value)
    if found is None or found == 0 or abs(found) >= 0.01:
        return share(value)
    return digits(100 * found, " %")


def points(value: Any) -> str:
    """A difference of shares: 0.31 percentage points."""
    found = number(value)
    return NOT_MEASURED if found is None else f"{100 * found:.2f} percentage points"


def signed(value: Any) -> str:
    """A difference of a metric's values, with its sign.

    Examples:
        >>> signed(-0.01234), signed(0.002), signed(0)
        ('−0.0123', '+0.0020', '0.0000')
    """
    found = number(value)
    if found is None:
        return NOT_MEASURED
    text = f"{abs(found):.4f}"
    sign = "" if float(text) == 0 else "\N{MINUS SIGN}" if found < 0 else "+"
    return sign + text


def signed_span(ends: Any) -> str:
    """The two ends of an interval of differences: −0.0123 to +0.0020."""
    pair = ends if isinstance(ends, Sequence) and len(ends) == 2 else (None, None)
    if None in (number(pair[0]), number(pair[1])):
        return NOT_MEASURED
    return f"{signed(pair[0])} to {signed(pair[1])}"


def p_value(value: Any) -> str:
    """A probability of a test.

    Examples:
        >>> p_value(0.0004), p_value(0.0412), p_value(0.62)
        ('< 0.001', '0.041', '0.62')
    """
    found = number(value)
    if found is None:
        return NOT_MEASURED
    return "< 0.001" if found < 0.001 else f"{found:.3f}" if found < 0.1 else f"{found:.2f}"


def usd(value: Any) -> str:
    """Money, small amounts with three digits: 12.30 USD, 0.0000123 USD."""
    found = number(value)
    if found is None:
        return NOT_MEASURED
    return f"{found:,.2f} USD" if abs(found) >= 1 else digits(found, " USD")


def span(ends: Any) -> str:
    """The two ends of an interval of ratios: 97.1 to 99.9 %."""
    pair = ends if isinstance(ends, Sequence) and len(ends) == 2 else (None, None)
    low, high = number(pair[0]), number(pair[1])
    if low is None or high is None:
        return NOT_MEASURED
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def times(ratio: Any, more: str, less: str) -> str:
    """Says a ratio of student to teacher as a factor: 5.4 times less.

    Examples:
        >>> times(0.185, "more", "less")
        '5.4 times less'
    """
    found = number(ratio)
    if found is None or found <= 0:
        return NOT_MEASURED
    if 0.995 < found < 1.005:
        return "the same"
    factor, word = (1 / found, less) if found < 1 else (found, more)
    return f"{factor:.{2 if factor < 1.95 else 1 if factor < 99 else 0}f} times {word}"


def quality(value: Any) -> str:
    """A metric's value: 0.7123."""
    found = number(value)
    return NOT_MEASURED if found is None else f"{found:.4f}"


def seconds(value: Any) -> str:
    """A duration.

    Examples:
        >>> seconds(0.42), seconds(75)
        ('0.4 s', '1 min 15 s')
    """
    found = number(value)
    if found is None:
        return NOT_MEASURED
    if found < 59.95:
        return f"{found:.1f} s"
    minutes, rest = divmod(round(found), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def metric_name(name: str) -> str:
    """A metric as it is written in running text.

    Examples:
        >>> metric_name("ndcg@10"), metric_name("accuracy")
        ('nDCG@10', 'accuracy')
    """
    head, at, depth = name.partition("@")
    return _METRIC_NAMES.get(head, head) + at + depth
