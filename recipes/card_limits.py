"""What a model card says of limits: rows it was judged on, kinds of rows that pay, licences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import figures
from .card_origins import UNKNOWN, Origin, Origins
from .page_quality import sign, slice_rows
from .statistics_report import slice_metric

MOST_SLICES = 10


def limit_lines(report: Mapping[str, Any]) -> list[str]:
    """Limits that the run measured, in sentences."""
    quality, lines = report["quality"], []
    if not report["smoke"]:
        lines.append(
            f"It was judged on {figures.whole(quality['examples'])} test rows of one source. Rows "
            "of another source, another time or another language were not measured."
        )
    lines += _slices(report)
    for side in report.get("calibration") or ():
        if side["side"] == "student" and figures.number(side["ece"]) is not None:
            lines.append(
                f"Its probabilities are off by {figures.digits(100 * side['ece'], ' %')} on "
                "average (expected calibration error)."
            )
    return [*lines, *_outside(report)]


def _slices(report: Mapping[str, Any]) -> list[str]:
    rows = slice_rows(report["quality"])
    if not rows:
        return []
    metric = figures.metric_name(slice_metric(report["quality"]["metric"]))
    losing = [row for row in rows if sign(row["interval"]) == "down"][:MOST_SLICES]
    if losing:
        named = ", ".join(
            f"{quoted(row['name'])} ({figures.signed(row['value'])}, {row['rows']:,} rows)"
            for row in losing
        )
        return [
            f"Kinds of rows that pay, by what they lose of the teacher's {metric}: {named}. Only "
            "those are named whose own 95 % interval leaves out 0."
        ]
    if any(row["interval"] for row in rows):
        return [
            f"Of {len(rows)} kinds of rows none loses so much {metric} that its own 95 % interval "
            "leaves out 0; small kinds can hide a loss."
        ]
    return []


def _outside(report: Mapping[str, Any]) -> list[str]:
    """How often rows outside of the task are answered, at 95 % of the task's own."""
    for side in report.get("risk_coverage") or ():
        if side["side"] != "student" or not side.get("out_of_scope"):
            continue
        fits = [i for i, covered in enumerate(side["coverage"]) if covered >= 0.95]
        if fits:
            at = min(fits, key=lambda i: side["coverage"][i])
            return [
                f"It has no class for rows outside of the task. Answering only above a probability "
                f"of {figures.share(side['threshold'][at])}, it still answers "
                f"{figures.share(side['out_of_scope'][at])} of them, and "
                f"{figures.share(side['coverage'][at])} of the task's own rows."
            ]
    return []


def licence_lines(origins: Origins) -> list[str]:
    """The licences that the student carries on."""
    lines = []
    for what, origin in (
        ("The teacher", origins.teacher),
        ("The base model", origins.base),
        ("The data", origins.data),
    ):
        if origin is not None:
            lines.append(f"- {what}, {quoted(origin.name)}: {_licence(origin)}.")
    if not lines:
        return ["Of the teacher and the data no licence is known."]
    return [*lines, "", "Whoever passes the student on has to keep to all of them."]


def _licence(origin: Origin) -> str:
    rest = f" ({origin.remark})" if origin.remark else ""
    if origin.licence == UNKNOWN:
        return f"licence unknown{rest}; look before you pass it on"
    return f"licence {quoted(origin.licence)}{rest}"


def quoted(text: Any) -> str:
    """A code span that no text can leave."""
    return "`" + " ".join(str(text).replace("`", " ").split()) + "`"
