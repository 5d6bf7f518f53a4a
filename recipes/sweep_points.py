"""What a sweep found, as plain data: ``sweep.json``, and the rows of its tables.

The keys are stable: a change that could break a reader raises `SCHEMA`. A figure that was not
measured is null.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import figures
from .deployables import fastest
from .grid import JUDGES, Axes, Point
from .report import plain

if TYPE_CHECKING:
    from .stage_score import Score

SCHEMA = 1
"""Version of the keys of ``sweep.json``."""

FRONTS = {
    "flops": ("flops_ratio", "retention"),
    "latency": ("latency_ms", "retention"),
    "validation": ("validation_flops", "validation_retention"),
}
"""Each front by what it weighs: a cost, of which less is better, and a quality."""


@dataclass(frozen=True)
class Made:
    """What became of a point.

    Attributes:
        error: Why it failed; None if it did not.
        validation: How its student does on the validation rows, where that is known.
        report: Its run's report.
        student: A hash of its student's weights.
    """

    error: str | None = None
    validation: Score | None = None
    report: Mapping[str, Any] | None = None
    student: str | None = None


def sweep_content(
    points: Sequence[Point], made: Mapping[str, Made], axes: Axes, *, command: str, smoke: bool
) -> dict[str, Any]:
    """The content of ``sweep.json``.

    Args:
        points: In the order of the grid.
        made: What became of each, by name.
        axes: Of the grid.
        command: What to type to get the sweep again.
        smoke: Whether it is not to be judged.
    """
    first = points[0].recipe
    rows = sweep_points(points, made)
    told = next((entry.report for entry in made.values() if entry.report), None)
    content = {
        "schema": SCHEMA,
        "name": first.name,
        "task": first.task,
        "command": command,
        "smoke": smoke,
        "metric": first.target.metric,
        "teacher": told["quality"]["teacher"] if told else None,
        "examples": told["quality"]["examples"] if told else None,
        "axes": {key: list(values) for key, values in axes.items()},
        "points": rows,
        "failed": sum(row["error"] is not None for row in rows),
        "same": [] if smoke else same_students(points, made),
        "environment": told["environment"] if told else {},
    }
    cleaned: dict[str, Any] = plain(content)
    return cleaned


def sweep_points(points: Sequence[Point], made: Mapping[str, Made]) -> list[dict[str, Any]]:
    """One mapping a point, with these keys.

    ``name``, ``values`` (by key) and ``error`` (null if it was made); on the test rows: ``student``
    (the metric), ``retention``, ``retention_ci95``; ``flops_ratio`` (of the teacher's),
    ``flops_per_example``, ``parameters``, ``bytes`` and ``latency_ms`` of ``runtime``, the fastest
    export that was timed or else the checkpoint in PyTorch; on the validation rows
    ``validation_retention``, ``validation_ci95``, ``validation_agreement`` (with the teacher) and
    ``validation_flops`` (of a row); ``verdict``; and ``fronts``, the names of `FRONTS` it is on.

    Args:
        points: In the order of the grid.
        made: What became of each, by name.
    """
    rows = [_row(point, made[point.name]) for point in points]
    for name, (cost, quality) in FRONTS.items():
        pairs = [(figures.number(row[cost]), figures.number(row[quality])) for row in rows]
        for index in pareto(pairs):
            rows[index]["fronts"].append(name)
    return rows


def _row(point: Point, made: Made) -> dict[str, Any]:
    report, score = made.report or {}, made.validation
    quality, cost = report.get("quality", {}), report.get("cost", {})
    deployed = fastest(report)
    measured = {
        "student": quality.get("student"),
        "retention": quality.get("retention"),
        "retention_ci95": quality.get("retention_ci95"),
        "flops_ratio": cost.get("ratio", {}).get("flops"),
        "flops_per_example": cost.get("student", {}).get("flops_per_example"),
        "parameters": cost.get("student", {}).get("parameters"),
        "bytes": deployed.bytes,
        "latency_ms": deployed.latency_ms,
        "runtime": deployed.runtime if report else None,
        "validation_retention": score.retention if score else None,
        "validation_ci95": list(score.interval) if score and score.interval else None,
        "validation_agreement": float(score.agreement.mean()) if score else None,
        "validation_flops": score.flops if score else None,
        "verdict": report.get("verdict"),
    }
    if made.error is not None:
        measured = dict.fromkeys(measured)
    return {
        "name": point.name,
        "values": point.values,
        "error": made.error,
        **measured,
        "fronts": [],
    }


def pareto(pairs: Sequence[tuple[float | None, float | None]]) -> list[int]:
    """Which of some (cost, quality) no other one beats: none is as good and cheaper, or better.

    Pairs with a part missing are on no front; of equal ones, all are on it or none.

    Examples:
        >>> pareto([(1.0, 0.5), (2.0, 0.9), (3.0, 0.8), (None, 1.0)])
        [0, 1]
    """
    known = [
        (cost, -quality, index)
        for index, (cost, quality) in enumerate(pairs)
        if cost is not None and quality is not None
    ]
    found: list[int] = []
    best = float("inf")
    for _, group in itertools.groupby(sorted(known), key=lambda entry: entry[0]):
        entries = list(group)
        top = entries[0][1]
        if top < best:
            found += [index for _, quality, index in entries if quality == top]
            best = top
    return sorted(found)


def same_students(points: Sequence[Point], made: Mapping[str, Made]) -> list[str]:
    """Sentences on points that differ in what makes a student, and have the same one all the same.

    What was asked for then had no effect: two widths, for instance, that are the same multiple.
    """
    seen: dict[str, tuple[str, str]] = {}
    found = []
    for point in points:
        student = made[point.name].student
        if student is None:
            continue
        values = point.recipe.model_dump(mode="json", exclude={*JUDGES, "export"})
        asked = json.dumps(values, sort_keys=True)
        other, before = seen.setdefault(student, (point.name, asked))
        if asked != before:
            found.append(
                f"{other} and {point.name} are the same student, byte for byte: what differs "
                "between them had no effect."
            )
    return found


COLUMNS = ("", "point", "kept", "95 % interval", "FLOPs", "p50", "validation", "front")


def sweep_rows(sweep: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a sweep's table: one a point that was made, in `COLUMNS`."""
    return [
        [
            str(number),
            row["name"],
            figures.share(row["retention"]),
            figures.span(row["retention_ci95"]),
            figures.share(row["flops_ratio"]),
            figures.digits(row["latency_ms"], " ms"),
            figures.share(row["validation_retention"]),
            ", ".join(row["fronts"]),
        ]
        for number, row in enumerate(sweep["points"], 1)
        if row["error"] is None
    ]


def advice(sweep: Mapping[str, Any]) -> list[str]:
    """What a reader must know before picking a point."""
    if sweep["smoke"]:
        return ["A smoke run: its models are tiny and random, and its figures mean nothing."]
    told = [
        "No point was chosen on the test rows. Whoever picks one because it looks best here has "
        "chosen on them, and its figures flatter it: judge it on fresh rows before it is used."
    ]
    if any("validation" in row["fronts"] for row in sweep["points"]):
        told.append(
            "The front called validation is of what is kept on the validation rows, and of their "
            "FLOPs. Of a point that is picked by it alone, the figures on the test rows hold."
        )
    else:
        told.append("There is no score on validation rows to pick by.")
    return told


def runtimes(rows: Iterable[Mapping[str, Any]]) -> str:
    """The runtimes whose times a sweep gives, in words."""
    found = sorted({str(r["runtime"]) for r in rows if figures.number(r["latency_ms"]) is not None})
    return " and ".join(found)
