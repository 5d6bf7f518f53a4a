"""What the report says of attribution, seeds, significance, slices, calibration and risk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..eval.intervals import Interval, rows_needed, two_digits
from . import figures

SHOWN = 8
"""Slices that stand in a table of the terminal or the model card, at most."""
LEVEL = 0.05
COVERED = 0.9
"""Share of the test rows answered, at which risk and rows out of scope are told in words."""


def attribution_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The way from the teacher to the exports as columns and rows."""
    metric = figures.metric_name(report["quality"]["metric"])
    columns = ["", metric, "to the step before", "95 % interval", "p", "kept"]
    rows = []
    for number, step in enumerate(report["attribution"]):
        name = step["name"]
        if number and step["before"] != report["attribution"][number - 1]["name"]:
            name = f"{name} (from: {step['before']})"
        rows.append(
            [
                name,
                figures.quality(step["value"]),
                "" if step["before"] is None else signed(step["difference"]),
                "" if step["before"] is None else signed_span(step["difference_ci95"]),
                "" if step["p"] is None else p_value(step["p"]),
                figures.share(step["retention"]),
            ]
        )
    return columns, rows


def signed(value: Any) -> str:
    """A difference of a metric.

    Examples:
        >>> signed(-0.0123), signed(0.5)
        ('−0.0123', '+0.5000')
    """
    found = figures.number(value)
    if found is None:
        return figures.NOT_MEASURED
    text = f"{found:+.4f}"
    return "0.0000" if float(text) == 0 else text.replace("-", "−")


def signed_span(ends: Any) -> str:
    """The interval of a difference: −0.0200 to +0.0040."""
    if not ends:
        return figures.NOT_MEASURED
    return f"{signed(ends[0])} to {signed(ends[1])}"


def p_value(value: float) -> str:
    """A p value, with no more digits than it is worth.

    Examples:
        >>> p_value(0.03456), p_value(1e-9)
        ('0.035', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def seeds_sentence(quality: Mapping[str, Any]) -> str | None:
    """The spread between training runs beside the spread between rows; None for one run.

    Only the first run's student is handed out, so what stands of one student is of that one.
    """
    spread, ends = quality.get("retention_std_seeds"), quality["retention_ci95"]
    if spread is None or ends is None:
        return None
    each = [figures.share(seed["retention"]) for seed in quality["seeds"]]
    half = (ends[1] - ends[0]) / 2
    return (
        f"Spread between {len(each)} training runs: standard deviation {figures.points(spread)} of "
        f"retention ({', '.join(each)}). Spread between test rows: 95 % interval of ± "
        f"{figures.points(half)} around their mean. Steps, exports, slices and differing rows are "
        f"of the first of them, seed {quality['seeds'][0]['seed']}, whose student is handed out."
    )


def shown_slices(parts: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    """All slices where they are few, else those that lose most, compared ones first."""
    parts = list(parts or ())
    if len(parts) <= SHOWN:
        return parts
    return sorted(parts, key=lambda part: (part.get("difference") is None, _loss(part)))[:SHOWN]


def _loss(part: Mapping[str, Any]) -> float:
    teacher, student = figures.number(part["teacher"]), figures.number(part["student"])
    return 0.0 if teacher is None or student is None else student - teacher


def slice_name(part: Mapping[str, Any]) -> str:
    """A slice as tables name it: its value, and the column where the recipe or task gives one."""
    by = part.get("by") or "slice"
    return str(part["name"]) if by == "slice" else f"{by}: {part['name']}"


def slice_metric(metric: str) -> str:
    """The metric that slices are judged by."""
    from ..eval.slices import SLICED_BY

    return SLICED_BY.get(metric, metric)


def slice_sentences(quality: Mapping[str, Any], classes: int = 0) -> list[str]:
    """Which slices pay for the rest, as far as the rows tell.

    Args:
        quality: Of the report.
        classes: How many classes the test rows have, if they are told apart.
    """
    from ..eval.slices import MOST, SMALLEST

    parts = list(quality.get("slices") or ())
    compared = [part for part in parts if part.get("difference") is not None]
    found = []
    if (metric := slice_metric(quality["metric"])) != quality["metric"] and parts:
        found.append(
            f"Slices are judged by {metric}: {figures.metric_name(quality['metric'])} of the rows "
            "of one class would count every class that one of them is taken for."
        )
    if len(compared) < len(parts):
        found.append(
            f"{len(parts) - len(compared)} of {len(parts)} slices have fewer than {SMALLEST} rows: "
            "their figures are told, and not compared."
        )
    if classes > MOST:
        found.append(f"Of {classes:,} classes the {MOST} with the most test rows are told apart.")
    return found + (_losers(compared) if compared else [])


def _losers(compared: Sequence[Mapping[str, Any]]) -> list[str]:
    tested = [part for part in compared if part.get("p") is not None]
    sure = [part for part in tested if part["p"] < LEVEL and part["difference"] < 0]
    if sure:
        sure.sort(key=lambda part: part["difference"])
        names = ", ".join(_told(part) for part in sure[:3])
        more = f" and {len(sure) - 3} more" if len(sure) > 3 else ""
        return [
            f"The student loses beyond chance (p < {LEVEL}, adjusted by Holm over {len(tested)} "
            f"slices) on: {names}{more}."
        ]
    worst = min(compared, key=lambda part: part["difference"])
    if worst["difference"] >= 0:
        return ["On no slice that is compared does the student lose."]
    low, high = worst["difference_ci95"]
    needed = rows_needed(Interval(worst["difference"], low, high, worst["rows"]), 0.0)
    told = f"The largest loss of a slice is that of {_told(worst)}"
    if tested:
        told += "; with p adjusted by Holm over all slices, none is told from chance"
    elif high < 0:
        return [f"{told}; the intervals of slices are not adjusted for their number."]
    if high >= 0 and needed is not None:
        told += f". About {two_digits(needed):,} of its rows would tell it from none if it stays"
    return [f"{told}."]


def _told(part: Mapping[str, Any]) -> str:
    return (
        f"{slice_name(part)} ({signed(part['difference'])}, 95 % interval "
        f"{signed_span(part['difference_ci95'])}, {part['rows']:,} rows)"
    )


def statistics_lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Significance, calibration and risk in a line each, with what it is called."""
    found = []
    if report.get("significance"):
        found.append(("Significance", _significance(report["significance"])))
    if report.get("calibration"):
        each = ", ".join(f"{c['side']} {100 * c['ece']:.1f} %" for c in report["calibration"])
        found.append(("Calibration", f"expected calibration error {each}."))
    found += [("Risk", line) for line in _risks(report.get("risk_coverage") or ())]
    return found


def _significance(found: Mapping[str, Any]) -> str:
    return (
        f"the teacher alone is right on {found['teacher_alone']:,} rows, the student alone on "
        f"{found['student_alone']:,} (McNemar's exact test: p {_equals(found['p'])})."
    )


def _equals(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _risks(curves: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for curve in curves:
        if curve["side"] not in ("teacher", "student"):
            continue
        place = max(i for i, share in enumerate(curve["coverage"]) if share >= COVERED or i == 0)
        line = (
            f"{curve['side']}, answering the surest {figures.share(curve['coverage'][place])}: "
            f"{figures.share(curve['risk'][place])} wrong instead of "
            f"{figures.share(curve['risk'][0])}"
        )
        if curve["out_of_scope"] is not None:
            share = figures.share(curve["out_of_scope"][place])
            line += f", and {share} of the rows out of scope answered"
        lines.append(f"{line}.")
    return lines
