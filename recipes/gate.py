"""Compares a finished run with criteria: the one line of a pipeline that decides on shipping."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..eval.errors import RecipeError, RunError
from .report_schema import SCHEMA


class Criterion(NamedTuple):
    """One criterion of a gate, measured.

    Attributes:
        name: ``retain`` or ``compute``.
        limit: What was asked for.
        value: What is compared with it: the lower end of the interval, or the ratio of FLOPs.
        met: Whether it is enough.
        text: One line saying all of it.
    """

    name: str
    limit: float
    value: float
    met: bool
    text: str


def read_report(run: str | Path) -> dict[str, Any]:
    """Reads a run's ``report.json``.

    Args:
        run: The run's folder, or its report.json.

    Raises:
        RunError: If there is no report, it is damaged, or a newer paredown wrote it.
    """
    path = Path(run)
    path = path if path.suffix == ".json" and not path.is_dir() else path / "report.json"
    if not path.is_file():
        if not path.parent.is_dir():
            raise RecipeError(
                f"There is no run '{run}'. Name a run's folder, such as runs/search_query."
            )
        advice = "Name a run's folder, such as runs/search_query."
        if path.parent.is_dir() and (path.parent / "recipe.yaml").is_file():
            advice = "The run is not finished; the same `paredown run` goes on with it."
        raise RunError(f"There is no report '{path}'. {advice}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"The report '{path}' is damaged ({error}). Run the recipe again.") from None
    if not isinstance(report, dict) or not isinstance(report.get("schema"), int):
        raise RunError(f"'{path}' is not a paredown report: it has no schema number.")
    if report["schema"] > SCHEMA:
        raise RunError(
            f"The report '{path}' has schema {report['schema']}, made by a newer paredown; this "
            f"one reads up to {SCHEMA}. Install a newer paredown."
        )
    return report


def outcome_of(report: Mapping[str, Any]) -> tuple[str, list[str]]:
    """A report's verdict (``pass``, ``fail`` or ``undecided``) and its reasons."""
    return str(report["verdict"]), list(report["reasons"])


def gate(
    run: str | Path, *, retain: float | None = None, compute: float | None = None
) -> list[Criterion]:
    """Measures a finished run against criteria.

    Args:
        run: The run's folder, or its report.json.
        retain: Least share of the teacher's metric, compared with the lower end of the interval.
        compute: Largest ratio of the student's FLOPs to the teacher's.

    Returns:
        Each criterion, met or not.

    Raises:
        RecipeError: If no criterion is given, one is no share, or the run was a smoke run.
        RunError: If the report cannot be used.
    """
    if retain is None and compute is None:
        raise RecipeError("A gate needs a criterion: give --retain, --compute or both.")
    for name, limit in (("retain", retain), ("compute", compute)):
        if limit is not None and not 0 < limit <= 1:
            raise RecipeError(
                f"--{name} is a share above 0 and up to 1, such as 0.95; got {limit}."
            )
    report = read_report(run)
    if report.get("smoke"):
        raise RecipeError(
            f"'{run}' is a smoke run: its model is random and its figures judge nothing. "
            "Run the recipe without --smoke first."
        )
    criteria = []
    if retain is not None:
        criteria.append(_retain(report, retain))
    if compute is not None:
        criteria.append(_compute(report, compute))
    return criteria


def _figure(report: Mapping[str, Any], *keys: str | int) -> float:
    found: Any = report
    try:
        for key in keys:
            found = found[key]
        return float(found)
    except (KeyError, TypeError, IndexError, ValueError):
        where = ".".join(map(str, keys))
        raise RunError(f"The report has no figure '{where}', so it cannot be judged.") from None


def _retain(report: Mapping[str, Any], limit: float) -> Criterion:
    low = _figure(report, "quality", "retention_ci95", 0)
    high = _figure(report, "quality", "retention_ci95", 1)
    point = _figure(report, "quality", "retention")
    examples = int(_figure(report, "quality", "examples"))
    met = low >= limit
    outcome = "met" if met else "undecided" if high >= limit else "not met"
    text = (
        f"retain  >= {limit:g}: {outcome}, {low:.4f} is the lower end of the 95 % interval "
        f"(retention {point:.4f}, {examples} rows)"
    )
    if outcome == "undecided" and point >= limit:
        text += f"; {_more_rows(point, low, high, examples, limit)}"
    return Criterion("retain", limit, low, met, text)


def _more_rows(point: float, low: float, high: float, examples: int, limit: float) -> str:
    from ..eval.compare import Interval, rows_needed

    needed = rows_needed(Interval(point, low, high, examples), limit)
    if needed is None:
        return "the figure is the limit itself, and no number of rows may settle it"
    return f"about {needed} test rows would settle it if the figure stays"


def _compute(report: Mapping[str, Any], limit: float) -> Criterion:
    ratio = _figure(report, "cost", "ratio", "flops")
    met = ratio <= limit
    # enough digits to see on which side of the limit it lies
    digits = next((n for n in (4, 6, 8) if round(ratio, n) != limit), 4)
    outcome = "met" if met else "not met"
    text = f"compute <= {limit:g}: {outcome}, {ratio:.{digits}f} of the teacher's FLOPs"
    return Criterion("compute", limit, ratio, met, text)
