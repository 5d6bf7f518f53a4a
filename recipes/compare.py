"""Compares finished runs: who keeps how much at what cost, and whether the difference is real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..eval.errors import RecipeError, RunError
from . import compare_rows, figures
from .gate import damage, read_report


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: How it is called among the others.
        folder: Where it lies.
        report: The content of its ``report.json``.
    """

    name: str
    folder: Path
    report: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A run beside the others.

    Attributes:
        run: The run.
        kept: Share of the metric of the first run's teacher.
        interval: Its 95 % interval over the rows, if known.
        compute: Its FLOPs over those of the first run's teacher.
    """

    run: Run
    kept: float | None
    interval: list[float] | None
    compute: float | None


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        metric: By which all runs are judged.
        examples: Test rows.
        entries: One a run, in the order given.
        differences: Between runs, paired by the rows; empty where single rows have no score.
        notes: Sentences a reader should know.
    """

    metric: str
    examples: int
    entries: list[Entry]
    differences: list[compare_rows.Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Compares finished runs over the same test rows.

    Args:
        runs: Their folders, at least two.

    Raises:
        RecipeError: If they are not of one task, metric and set of test rows.
        RunError: If one is not finished, damaged, or of a newer paredown.
    """
    opened = open_runs(runs)
    _check_alike(opened)
    compare_rows.check_same_rows(opened)
    metric = str(opened[0].report["quality"]["metric"])
    resamples = (opened[0].report["recipe"].get("evaluate") or {}).get("resamples") or 10_000
    notes = []
    try:
        scores = [compare_rows.run_scores(run) for run in opened]
    except RunError as error:
        notes.append(
            f"Differences between runs were not measured: {error}. What each keeps is told as its "
            "own report has it, of its own teacher's."
        )
        entries = [_as_reported(run, opened[0]) for run in opened]
        found = []
    else:
        found = compare_rows.differences([r.name for r in opened], scores, metric, resamples)
        kept = compare_rows.kept(scores, metric, resamples)
        entries = [
            _entry(run, opened[0], None if one is None else one.value,
                   None if one is None else [one.low, one.high])
            for run, one in zip(opened, kept, strict=True)
        ]  # fmt: skip
    return Comparison(
        metric=metric,
        examples=int(opened[0].report["quality"]["examples"]),
        entries=entries,
        differences=found,
        notes=[*notes, *_notes(opened)],
    )


def open_runs(runs: Sequence[str | Path]) -> list[Run]:
    """Reads the reports of runs and names each.

    Raises:
        RecipeError: If there are fewer than two, or one is given twice.
        RunError: As `gate.read_report`.
    """
    if len(runs) < 2:
        raise RecipeError(f"A comparison needs at least two runs, got {len(runs)}.")
    reports = [read_report(run) for run in runs]
    folders = [Path(run) if Path(run).is_dir() else Path(run).parent for run in runs]
    places = [folder.resolve() for folder in folders]
    for place, count in Counter(places).items():
        if count > 1:
            raise RecipeError(f"The run '{place.name}' is given {count} times; give each once.")
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    for name, report in zip(names, reports, strict=True):
        _check_whole(name, report)
    return [Run(*parts) for parts in zip(names, folders, reports, strict=True)]


def _check_whole(name: str, report: dict[str, Any]) -> None:
    """A report that lacks what every report has was damaged."""
    try:
        report["quality"]["metric"], report["quality"]["examples"], report["quality"]["seeds"]
        report["cost"]["ratio"]["flops"], report["cost"]["teacher"], report["cost"]["student"]
        report["target"]["retain"], report["target"]["compute"]
        report["stages"], report["recipe"]["name"], report["task"], report["verdict"]
    except (KeyError, TypeError) as error:
        raise RunError(f"The report of '{name}' {damage(error)}. Run the recipe again.") from None


def _check_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for what, one, other in (
            ("task", first.report["task"], run.report["task"]),
            ("metric", first.report["quality"]["metric"], run.report["quality"]["metric"]),
        ):
            if one != other:
                advice = " Give both recipes one target.metric." if what == "metric" else ""
                raise RecipeError(
                    f"'{first.name}' and '{run.name}' cannot be compared: the {what} of the one "
                    f"is {one}, of the other {other}.{advice}"
                )


def _flops(run: Run, side: str) -> float | None:
    return figures.number(run.report["cost"][side].get("flops_per_example"))


def _entry(run: Run, first: Run, kept: float | None, interval: list[float] | None) -> Entry:
    spent, base = _flops(run, "student"), _flops(first, "teacher")
    return Entry(run, kept, interval, spent / base if spent is not None and base else None)


def _as_reported(run: Run, first: Run) -> Entry:
    quality = run.report["quality"]
    return _entry(run, first, figures.number(quality["retention"]), quality["retention_ci95"])


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    first = runs[0].report
    others = [run for run in runs[1:] if run.report["quality"]["teacher"]
              != first["quality"]["teacher"]]  # fmt: skip
    if others:
        names = ", ".join(f"'{run.name}'" for run in others)
        notes.append(
            f"Not all teachers are the same: those of {names} score differently. The yardstick is "
            f"the teacher of '{runs[0].name}'; each verdict is over the run's own teacher."
        )
    machines = {_machine(run.report) for run in runs}
    if len(machines) > 1:
        notes.append("The runs were timed on different machines: latencies do not compare.")
    if any(run.report["smoke"] for run in runs):
        notes.append(
            "Smoke runs are among them: their models are random, their figures mean nothing."
        )
    return notes


def _machine(report: dict[str, Any]) -> tuple[Any, ...]:
    found = report.get("environment") or {}
    return tuple(found.get(key) for key in ("processor", "cores"))


def recipe_differences(runs: Sequence[Run]) -> list[list[str]]:
    """Keys of the resolved recipes that are not the same in all runs: key, then a value a run."""
    flat = [_flat(run.report["recipe"]) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [[key, *(one.get(key, "–") for one in flat)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Dotted keys with their values as text."""
    if isinstance(value, dict) and value:
        return {
            inner: said
            for key, item in value.items()
            for inner, said in _flat(item, f"{name}.{key}" if name else str(key)).items()
        }
    if isinstance(value, list):
        return {name: ", ".join(map(str, value)) or "–"}
    return {name: "–" if value is None or value == {} else str(value)}
