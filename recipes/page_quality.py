"""What a report says of quality, as rows of tables: steps, slices, calibration, risk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import figures
from .charts import Chart, forest
from .report import kept_share

MOST_SLICES = 15
"""Slices shown before the rest is folded."""
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.5)
"""Shares answered that the table of risks has a row for."""


def metric_rows(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every metric of both models."""
    return [
        {
            "name": figures.metric_name(name),
            "teacher": pair["teacher"],
            "student": pair["student"],
            "kept": kept_share(pair),
            "judged": name == quality["metric"],
        }
        for name, pair in quality["metrics"].items()
    ]


def right_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows by who gets them right, and what McNemar's test says; none where it was not tested."""
    found = report.get("significance")
    if not found:
        return []
    names = {
        "both": "both", "teacher_alone": "the teacher alone", "student_alone": "the student alone",
        "neither": "neither",
    }  # fmt: skip
    total = sum(found[key] for key in names)
    return [
        [said, figures.whole(found[key]), figures.share(found[key] / total if total else None)]
        for key, said in names.items()
    ]


def step_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages from the teacher to what is deployed."""
    rows = []
    for step in report.get("attribution") or ():
        first = step.get("before") is None
        rows.append(
            {
                "name": step["name"],
                "before": step.get("before"),
                "value": figures.quality(step.get("value")),
                "difference": "" if first else figures.signed(step.get("difference")),
                "interval": "" if first else figures.signed_span(step.get("difference_ci95")),
                "p": _tested(step),
                "retention": figures.share(step.get("retention")),
                "retention_ci95": figures.span(step.get("retention_ci95")),
                "flops": figures.flops(step.get("flops_per_example")),
                "bytes": figures.size(step.get("bytes")),
                "latency": figures.digits(step.get("latency_ms_p50"), " ms"),
                "sign": sign(step.get("difference_ci95")),
            }
        )
    return rows


def _tested(row: Mapping[str, Any]) -> str:
    """A test's probability; nothing where there was none to make."""
    return "" if figures.number(row.get("p")) is None else figures.p_value(row["p"])


def sign(interval: Any) -> str:
    """``up`` or ``down`` where an interval of differences leaves 0 out, else nothing."""
    ends = [figures.number(end) for end in interval or (None, None)]
    if ends[0] is None or ends[1] is None:
        return ""
    return "down" if ends[1] < 0 else "up" if ends[0] > 0 else ""


def steps_chart(report: Mapping[str, Any], metric: str) -> Chart | None:
    """Each step's difference to the one before, with its interval."""
    rows = []
    for step in report.get("attribution") or ():
        value = figures.number(step.get("difference"))
        if step.get("before") is None or value is None:
            continue
        said = (
            f"{step['name']}: {figures.signed(value)} {metric} to {step['before']}, 95 % interval "
            f"{figures.signed_span(step.get('difference_ci95'))}"
        )
        rows.append((str(step["name"]), value, step.get("difference_ci95"), said))
    return forest(rows, f"{metric}, difference to the step before") if rows else None


def slice_rows(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Slices, those that lose most first; those without a difference by what they keep, last."""
    rows = []
    for part in quality.get("slices") or ():
        value = figures.number(part.get("difference"))
        if value is None and None not in (part["teacher"], part["student"]):
            value = part["student"] - part["teacher"]
        rows.append(
            {
                "by": part.get("by") or "",
                "name": part["name"],
                "rows": part["rows"],
                "teacher": part["teacher"],
                "student": part["student"],
                "kept": kept_share(part),
                "value": value,
                "interval": part.get("difference_ci95"),
                "p": _tested(part),
                "sign": sign(part.get("difference_ci95")),
            }
        )
    return sorted(rows, key=lambda row: (row["value"] is None, row["value"] or 0.0))


def slices_chart(rows: Sequence[Mapping[str, Any]], metric: str) -> Chart | None:
    """The slices that lose most, with their intervals; None where none was measured."""
    shown = [row for row in rows if row["value"] is not None and row["interval"]][:MOST_SLICES]
    points = []
    for row in shown:
        by = f"{row['by']}: " if row["by"] else ""
        said = (
            f"{by}{row['name']}, {figures.whole(row['rows'])} rows: {figures.signed(row['value'])} "
            f"{metric}, 95 % interval {figures.signed_span(row['interval'])}"
        )
        points.append((f"{by}{row['name']}", row["value"], row["interval"], said))
    return forest(points, f"{metric}, student less teacher") if points else None


def calibration_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Expected calibration error by side."""
    return [
        [
            str(side["side"]),
            figures.digits(100 * side["ece"], " %") if side["ece"] is not None
            else figures.NOT_MEASURED,
            _shift(side.get("shift")),
        ]
        for side in report.get("calibration") or ()
    ]  # fmt: skip


def _shift(value: Any) -> str:
    """A change of a probability; nothing for the models that exports are compared with."""
    if figures.number(value) is None:
        return ""
    return f"{100 * value:+.2f} points".replace("-", "\N{MINUS SIGN}")


def bin_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The reliability diagram as a table: every bin with rows in it."""
    return [
        [
            str(side["side"]),
            f"{100 * one['low']:.0f} to {100 * one['high']:.0f} %",
            figures.whole(one["rows"]),
            figures.share(one["confidence"]),
            figures.share(one["accuracy"]),
        ]
        for side in report.get("calibration") or ()
        for one in side["bins"]
        if one["rows"]
    ]


def risk_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Wrong answers at some shares answered, by side; the nearest point that answers as many."""
    rows = []
    for side in report.get("risk_coverage") or ():
        rest = side.get("out_of_scope")
        for asked in COVERAGES:
            fits = [i for i, covered in enumerate(side["coverage"]) if covered >= asked - 1e-9]
            if not fits:
                continue
            at = min(fits, key=lambda i: side["coverage"][i])
            rows.append(
                [
                    str(side["side"]),
                    figures.share(side["coverage"][at]),
                    figures.share(side["threshold"][at]),
                    figures.share(side["risk"][at], 2),
                    figures.share(rest[at]) if rest else "",
                ]
            )
    return rows


def aurc_line(report: Mapping[str, Any]) -> str:
    """The mean risk of each side, in a sentence."""
    said = [
        f"{side['side']} {figures.digits(side['aurc'])}"
        for side in report.get("risk_coverage") or ()
        if figures.number(side.get("aurc")) is not None
    ]
    return f"Mean risk over coverage (AURC, lower is better): {', '.join(said)}." if said else ""
