"""Compares a finished run with criteria: the one line of a pipeline that decides on shipping."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..eval.errors import RecipeError, RunError
from .deployables import CHECKPOINT, Deployable, deployables, fastest
from .figures import number
from .report_schema import SCHEMA

Outcome = Literal["met", "not met", "undecided"]
MARGIN = 0.005
"""How much worse than the baseline, in the metric's own unit, is not worse by itself."""
RETAINED: dict[str, Outcome] = {"pass": "met", "fail": "not met", "undecided": "undecided"}
SMOKE = "; of a smoke run, whose random model judges nothing"


class Criterion(NamedTuple):
    """One criterion of a gate, measured.

    Attributes:
        name: ``retain``, ``compute``, ``latency-ms``, ``flip-rate``, ``size-mb`` or ``against``.
        limit: What was asked for.
        value: What is compared with it: the lower end of an interval, or the figure itself.
        outcome: ``undecided`` is too few rows to tell, and does not pass.
        text: One line saying all of it.
    """

    name: str
    limit: float
    value: float
    outcome: Outcome
    text: str

    @property
    def met(self) -> bool:
        """Whether it is enough."""
        return self.outcome == "met"


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


def damage(error: Exception) -> str:
    """What a report lacks that every report has, in words."""
    return (
        f"is damaged: it has no {error}" if isinstance(error, KeyError) else f"is damaged: {error}"
    )


def outcome_of(report: Mapping[str, Any]) -> tuple[str, list[str]]:
    """A report's verdict (``pass``, ``fail`` or ``undecided``) and its reasons."""
    return str(report["verdict"]), list(report["reasons"])


def gate(
    run: str | Path,
    *,
    retain: float | None = None,
    compute: float | None = None,
    latency_ms: float | None = None,
    flip_rate: float | None = None,
    size_mb: float | None = None,
    runtime: str | None = None,
    against: str | Path | None = None,
    margin: float | None = None,
    allow_smoke: bool = False,
    imports: Sequence[str] = (),
) -> list[Criterion]:
    """Measures a finished run against criteria.

    Args:
        run: The run's folder, or its report.json.
        retain: Least share of the teacher's metric, compared with the lower end of the interval: of
            what ``runtime`` is, if time or size are asked for too or it is named, else of the
            checkpoint.
        compute: Largest ratio of the student's FLOPs to the teacher's.
        latency_ms: Longest median of one row, in milliseconds, on ``runtime``.
        flip_rate: Largest share of decisions that an export may change; the worst one counts.
        size_mb: Most megabytes (millions of bytes) of weights, on ``runtime``.
        runtime: ``pytorch`` or a format of the run's exports; if None the fastest export that was
            timed, else the checkpoint.
        against: Another run over the same test rows, whose student this one must not be worse than.
        margin: How much lower the lower end of the metric's difference may lie; 0.005 if None.
        allow_smoke: Compare a smoke run's figures too. They judge nothing, and each line says so.
        imports: Modules to import first, where the metric of ``against`` is registered by one.

    Returns:
        Each criterion, in the order above.

    Raises:
        RecipeError: If no criterion is given, one cannot be, or the run was a smoke run.
        RunError: If a report cannot be used, or the runs do not have the same test rows.
    """
    bounds = {"latency-ms": latency_ms, "size-mb": size_mb}
    _check(retain, compute, flip_rate, bounds, against, margin, runtime)
    report = _judgeable(run, allow_smoke)
    bounded = any(limit is not None for limit in bounds.values())
    deployed = _deployed(report, runtime if bounded or runtime else CHECKPOINT)
    criteria = []
    if retain is not None:
        criteria.append(_retain(report, retain, deployed.runtime))
    if compute is not None:
        criteria.append(_compute(report, compute))
    if latency_ms is not None:
        criteria.append(_latency(deployed, latency_ms))
    if flip_rate is not None:
        criteria.append(_flip_rate(report, flip_rate))
    if size_mb is not None:
        criteria.append(_size(deployed, size_mb))
    if against is not None:
        from .gate_against import compared

        baseline = _judgeable(against, allow_smoke)
        allowed = MARGIN if margin is None else margin
        criteria.append(compared(run, report, against, baseline, margin=allowed, imports=imports))
    smoke = SMOKE if report.get("smoke") else ""
    return [found._replace(text=found.text + smoke) for found in criteria]


def _check(
    retain: float | None,
    compute: float | None,
    flip_rate: float | None,
    bounds: Mapping[str, float | None],
    against: str | Path | None,
    margin: float | None,
    runtime: str | None,
) -> None:
    """Refuses criteria that cannot be, and options that have no effect."""
    given = [retain, compute, flip_rate, *bounds.values(), against]
    if all(one is None for one in given):
        raise RecipeError(
            "A gate needs a criterion: give --retain, --compute, --latency-ms, --flip-rate, "
            "--size-mb or --against."
        )
    for name, limit in (("retain", retain), ("compute", compute)):
        if limit is not None and not 0 < limit <= 1:
            raise RecipeError(
                f"--{name} is a share above 0 and up to 1, such as 0.95; got {limit}."
            )
    if flip_rate is not None and not 0 <= flip_rate <= 1:
        raise RecipeError(f"--flip-rate is a share from 0 to 1, such as 0.01; got {flip_rate}.")
    for name, limit in bounds.items():
        if limit is not None and not 0 < limit < float("inf"):
            raise RecipeError(f"--{name} is a number above 0, such as 5; got {limit}.")
    if margin is not None and not 0 <= margin < 1:
        raise RecipeError(f"--margin is a number from 0 to below 1, such as 0.005; got {margin}.")
    if margin is not None and against is None:
        raise RecipeError("--margin is for --against; give the baseline's run too, or drop it.")
    if runtime is not None and all(limit is None for limit in (retain, *bounds.values())):
        raise RecipeError(
            "--runtime says what --retain, --latency-ms and --size-mb are of; give one of them, or "
            "drop it."
        )


def _judgeable(run: str | Path, allow_smoke: bool) -> dict[str, Any]:
    report = read_report(run)
    if report.get("smoke") and not allow_smoke:
        raise RecipeError(
            f"'{run}' is a smoke run: its model is random and its figures judge nothing. "
            "Run the recipe without --smoke first, or say --allow-smoke to try a workflow out."
        )
    return report


def _figure(report: Mapping[str, Any], *keys: str | int) -> float:
    found: Any = report
    try:
        for key in keys:
            found = found[key]
    except (KeyError, TypeError, IndexError):
        found = None
    value = number(found)
    if value is None:
        where = ".".join(map(str, keys))
        raise RunError(f"The report has no figure '{where}', so it cannot be judged.")
    return value


def _retain(report: Mapping[str, Any], limit: float, runtime: str) -> Criterion:
    place: tuple[str | int, ...] = ("quality",)
    if runtime != CHECKPOINT:
        formats = [export.get("format") for export in report["exports"]]
        place = ("exports", formats.index(runtime))
    low = _figure(report, *place, "retention_ci95", 0)
    high = _figure(report, *place, "retention_ci95", 1)
    point = _figure(report, *place, "retention")
    examples = int(_figure(report, "quality", "examples"))
    from ..eval.compare import Interval
    from ..eval.noninferiority import non_inferiority, unseen

    judged = non_inferiority(Interval(point, low, high, examples), limit)  # as the verdict does
    outcome = RETAINED[judged.outcome]
    text = (
        f"retain  >= {limit:g}: {outcome}, {low:.4f} is the lower end of the 95 % interval "
        f"(retention {point:.4f}, {examples} rows, {_judged(report, runtime)})"
    )
    if outcome == "undecided" and low >= limit:
        text += f"; {unseen(limit)}"
    elif outcome == "undecided" and point >= limit:
        text += f"; {more_rows(point, low, high, examples, limit)}"
    return Criterion("retain", limit, low, outcome, text)


def _judged(report: Mapping[str, Any], runtime: str) -> str:
    """What a share that is kept is of; of several seeds also what the first, handed out, keeps."""
    seeds = list((report.get("quality") or {}).get("seeds") or ())
    if runtime != CHECKPOINT or len(seeds) < 2:
        return runtime
    first = number(seeds[0].get("retention"))
    kept = "not known" if first is None else f"{first:.4f}"
    return f"{runtime}, mean of {len(seeds)} seeds, of the first {kept}"


def by_interval(low: float, high: float, limit: float) -> Outcome:
    """Whether an interval lies above a limit, below it, or on both sides."""
    return "met" if low >= limit else "undecided" if high >= limit else "not met"


def more_rows(point: float, low: float, high: float, examples: int, limit: float) -> str:
    """About how many rows would settle what is undecided, in words."""
    from ..eval.compare import Interval, rows_needed

    needed = rows_needed(Interval(point, low, high, examples), limit)
    if needed is None:
        return "the figure is the limit itself, and no number of rows may settle it"
    return f"about {needed} test rows would settle it if the figure stays"


def _at_most(name: str, label: str, limit: float, value: float, unit: str, of: str) -> Criterion:
    """A figure that must not be above a limit; exact, so there is nothing to be undecided."""
    # enough digits to see on which side of the limit it lies
    digits = next((n for n in (4, 6, 8) if round(value, n) != limit), 4)
    outcome: Outcome = "met" if value <= limit else "not met"
    text = f"{label:<7} <= {limit:g}{unit}: {outcome}, {value:.{digits}f}{unit}{of}"
    return Criterion(name, limit, value, outcome, text)


def _compute(report: Mapping[str, Any], limit: float) -> Criterion:
    ratio = _figure(report, "cost", "ratio", "flops")
    return _at_most("compute", "compute", limit, ratio, "", " of the teacher's FLOPs")


def _deployed(report: Mapping[str, Any], runtime: str | None) -> Deployable:
    if runtime is None:
        return fastest(report)
    found = {one.runtime: one for one in deployables(report)}
    if runtime not in found:
        raise RecipeError(f"--runtime {runtime}: the run has {', '.join(found)}.")
    return found[runtime]


def _latency(deployed: Deployable, limit: float) -> Criterion:
    if deployed.latency_ms is None:
        raise RunError(
            f"The report has no time of {deployed.runtime}, so --latency-ms cannot be judged. Run "
            "the recipe with evaluate.latency_rows above 0, or name another --runtime."
        )
    of = f" at the median of one row ({deployed.runtime}, one thread)"
    return _at_most("latency-ms", "latency", limit, deployed.latency_ms, " ms", of)


def _size(deployed: Deployable, limit: float) -> Criterion:
    if deployed.bytes is None:
        raise RunError(f"The report has no size of {deployed.runtime}, so it cannot be judged.")
    of = f" of weights ({deployed.runtime})"
    return _at_most("size-mb", "size", limit, deployed.bytes / 1e6, " MB", of)


def _flip_rate(report: Mapping[str, Any], limit: float) -> Criterion:
    exports = report.get("exports") or ()
    if not exports:
        raise RunError(
            "The report has no export, so --flip-rate cannot be judged. Add formats to the recipe, "
            "as in export: [onnx]."
        )
    rates = {
        str(export.get("format")): _figure(report, "exports", place, "flip_rate")
        for place, export in enumerate(exports)
    }
    worst = max(rates, key=lambda fmt: rates[fmt])
    of = f" of the decisions are other than the student's ({worst}, the most of {len(rates)})"
    return _at_most("flip-rate", "flips", limit, rates[worst], "", of)
