"""What a run found: puts ``report.json`` together, and shows it in the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import figures
from .answer_report import recorded_lines
from .cost_rows import cost_rows
from .ledger import ledger_lines
from .report_schema import (
    SCHEMA,
    Cost,
    Data,
    Difference,
    Export,
    Ledger,
    Mask,
    Measurement,
    Quality,
    Ratio,
    Recorded,
    Report,
    Search,
    Side,
    Stage,
    Target,
    Vocabulary,
)
from .statistics_report import (
    attribution_table,
    shown_slices,
    slice_metric,
    slice_name,
    statistics_lines,
)
from .trial_plot import cost_kind

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


MOST_DIFFERING = 200
"""Rows that both models decide differently, in a report."""


def build_report(
    *,
    recipe: Mapping[str, Any],
    command: str,
    smoke: bool,
    quality: Quality,
    teacher: Side,
    student: Side,
    measurements: Sequence[Measurement],
    exports: Sequence[Export],
    stages: Sequence[Stage],
    data: Data,
    environment: Mapping[str, Any],
    vocabulary: Vocabulary | None = None,
    mask: Mask | None = None,
    differing: Sequence[Difference] = (),
    notes: Sequence[str] = (),
    search: Search | None = None,
    recorded: Recorded | None = None,
    judged: Mapping[str, Any] | None = None,
    ledger: Ledger | None = None,
) -> Report:
    """Puts a report together: adds ratios, quality to compute and the verdict.

    Args:
        recipe: The resolved recipe as plain values; names the task and the target.
        command: What to type to get this report.
        smoke: Whether it was a smoke run, which is never judged.
        quality: How well both models do.
        teacher: What the teacher costs.
        student: What the student costs.
        measurements: Every timing.
        exports: Every exported student.
        stages: Every stage, in order.
        data: Rows, and dropped rows.
        environment: Machine and versions.
        vocabulary: What cutting it changed, if it was cut.
        mask: Which weights are zero, if some were set so.
        differing: Rows that both models decide differently; the first 200 are kept.
        notes: Sentences a reader should know.
        search: How the student's shape was found, where the recipe has a budget.
        recorded: What a language model teacher was recorded to say (generation).
        judged: Further statistics of the test rows, by their key in `Report`: ``attribution``,
            ``significance``, ``calibration``, ``risk_coverage``.
        ledger: What the run itself cost.
    """
    judged = judged or {}
    asked = recipe.get("target") or {}
    target = Target(
        metric=quality["metric"],
        retain=float(asked.get("retain", 0.95)),
        compute=float(asked.get("compute", 0.70)),
    )
    ratio = _ratios(teacher, student)
    outcome, reasons, rows = _judge(quality, ratio["flops"], target, smoke)
    kept, spent = figures.number(quality["retention"]), ratio["flops"]
    report = Report(
        schema=SCHEMA,
        name=str(recipe["name"]),
        command=command,
        smoke=smoke,
        recipe=dict(recipe),
        task=str(recipe["task"]),
        target=target,
        verdict=outcome,
        reasons=reasons,
        rows_needed=rows,
        quality=quality,
        cost=Cost(teacher=teacher, student=student, ratio=ratio),
        quality_to_compute=kept / spent if kept is not None and spent else None,
        measurements=list(measurements),
        exports=list(exports),
        stages=list(stages),
        vocabulary=vocabulary,
        mask=mask,
        data=data,
        environment=dict(environment),
        differing=list(differing)[:MOST_DIFFERING],
        notes=list(notes),
        search=search,
        recorded=recorded,
        attribution=list(judged.get("attribution", [])),
        significance=judged.get("significance"),
        calibration=list(judged.get("calibration", [])),
        risk_coverage=list(judged.get("risk_coverage", [])),
        ledger=ledger,
    )
    cleaned: Report = plain(report)
    return cleaned


def _ratios(teacher: Side, student: Side) -> Ratio:
    def over(key: str) -> float | None:
        above, below = figures.number(student.get(key)), figures.number(teacher.get(key))
        return above / below if above is not None and below else None

    return Ratio(
        flops=over("flops_per_example"),
        parameters=over("parameters"),
        bytes=over("bytes"),
        latency=over("latency_ms_p50"),
    )


def _judge(
    quality: Quality, compute: float | None, target: Target, smoke: bool
) -> tuple[Literal["pass", "fail", "undecided"], list[str], int | None]:
    if smoke:
        return "undecided", ["A smoke run is not judged: its models are tiny and random."], None
    kept, ends = figures.number(quality["retention"]), quality["retention_ci95"]
    if kept is None or ends is None:
        return "undecided", ["Retention was not measured."], None
    from ..eval.compare import Interval, verdict

    found = verdict(
        Interval(kept, ends[0], ends[1], quality["examples"]),
        compute,
        target["retain"],
        target["compute"],
    )
    return found.outcome, found.reasons, found.rows_needed


def plain(value: Any) -> Any:
    """Turns arrays, tuples, paths and numpy numbers into JSON's types; NaN and infinity into null.

    Raises:
        TypeError: If a value has no JSON form.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return figures.number(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"A report holds JSON's types only, got {type(value).__name__}: {value!r}.")


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Writes ``report.json``, whole or not at all."""
    text = json.dumps(plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def headline(report: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    quality, compute = report["quality"], figures.number(report["cost"]["ratio"]["flops"])
    metric = figures.metric_name(quality["metric"])
    if figures.number(quality["retention"]) is None:
        return f"How much of the teacher's {metric} the student keeps was not measured."
    spent = (
        "compute not measured" if compute is None else f"{figures.share(compute)} of its compute"
    )
    return (
        f"The student keeps {figures.share(quality['retention'])} of the teacher's {metric} at "
        f"{spent}."
    )


def evidence(report: Mapping[str, Any]) -> str:
    """What the headline rests on: interval, rows, seeds."""
    quality = report["quality"]
    parts = [f"95 % interval {figures.span(quality['retention_ci95'])}"]
    parts.append(f"{figures.whole(quality['examples'])} test rows")
    if len(quality["seeds"]) > 1:
        spread = figures.points(quality["retention_std_seeds"])
        parts.append(
            f"mean of {len(quality['seeds'])} training seeds, standard deviation {spread} between "
            "them"
        )
    return ", ".join(parts)


def mask_sentence(report: Mapping[str, Any]) -> str | None:
    """What a mask set to zero and that it saves nothing, with the figures; None without a mask."""
    mask = report.get("mask")
    if not mask:
        return None
    places = 0 if abs(100 * mask["zeros"] - round(100 * mask["zeros"])) < 0.05 else 1
    pattern = mask["pattern"] if isinstance(mask["pattern"], str) else "unstructured"
    size = " → ".join(figures.size(mask["bytes"][side]) for side in ("teacher", "student"))
    times = [figures.digits(mask["latency_ms_p50"][side], " ms") for side in ("teacher", "student")]
    known = figures.NOT_MEASURED not in times
    took = f"{' → '.join(times)}, measured" if known else f"latency {figures.NOT_MEASURED}"
    opening = (
        f"{figures.share(mask['zeros'], places)} of the weights of {mask['maps']} linear maps are "
        f"zero ({mask['method']}, {pattern}). "
        "A dense runtime multiplies by zeros as by any number: "
    )
    if mask["cut"]:
        return f"{opening}of what the student saves ({size}; {took}), they save nothing."
    return f"{opening}no smaller ({size}) and no faster ({took})."


OUTCOMES = {"pass": "Target met", "fail": "Target not met", "undecided": "Undecided"}
"""The verdicts in words."""

_COLOURS = {"pass": "green", "fail": "red", "undecided": "yellow"}


def print_summary(report: Mapping[str, Any], console: Console) -> None:
    """Prints a run's result: the verdict first, then quality, cost and exports.

    Args:
        report: The content of ``report.json``.
        console: Where to; without a terminal, colours are left out.
    """
    from rich.text import Text

    colour = _COLOURS[report["verdict"]]
    word = "Smoke run, not judged" if report["smoke"] else OUTCOMES[report["verdict"]]
    console.print()
    console.print(Text.assemble((word, f"bold {colour}"), f"  {report['name']}"))
    console.print(Text(headline(report)))
    console.print(Text(f"({evidence(report)})", "dim"))
    console.print()
    console.print(_quality_table(report["quality"]))
    console.print(_cost_table(report["cost"]))
    if (said := mask_sentence(report)) is not None:
        console.print(Text(f"Mask: {said}\n"))
    if report["exports"]:
        console.print(_export_table(report["exports"], report["quality"]["metric"]))
    if report.get("attribution"):
        console.print(_table("Attribution", *attribution_table(report)))
    if report.get("search"):
        console.print(_search_table(report["search"]))
    for name, line in statistics_lines(report):
        console.print(Text(f"{name}: {line}"))
    for line in ledger_lines(report.get("ledger")):
        console.print(Text(line))
    for line in recorded_lines(report.get("recorded")):
        console.print(Text(f"Recorded: {line}"))
    for note in report["notes"]:
        console.print(Text(f"Note: {note}"))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: names may hold rich's markup
    return table


def kept_share(pair: Mapping[str, Any]) -> str:
    """Student over teacher as it is shown; nothing where less is better, and none is kept."""
    if not pair.get("higher_is_better", True):
        return ""
    teacher, student = figures.number(pair["teacher"]), figures.number(pair["student"])
    return figures.share(student / teacher if student is not None and teacher else None)


def _quality_table(quality: Mapping[str, Any]) -> Table:
    rows = []
    for name, pair in quality["metrics"].items():
        values = [figures.quality(pair[side]) for side in ("teacher", "student")]
        rows.append([figures.metric_name(name), *values, kept_share(pair)])
    by = figures.metric_name(slice_metric(quality["metric"]))
    for part in shown_slices(quality.get("slices")):
        name = f"{slice_name(part)}, {part['rows']:,} rows ({by})"
        values = [figures.quality(part[side]) for side in ("teacher", "student")]
        rows.append([f"– {name}", *values, kept_share(part)])
    hidden = len(quality.get("slices") or ()) - len(shown_slices(quality.get("slices")))
    if hidden:
        rows.append([f"– {hidden} more slices in report.json", "", "", ""])
    for baseline in quality["baselines"]:
        rows.append(
            [
                f"{baseline['name']} ({figures.metric_name(quality['metric'])})",
                "",
                figures.quality(baseline["value"]),
                figures.share(baseline["retention"]),
            ]
        )
    return _table("Quality", ["", "teacher", "student", "kept"], rows)


def _cost_table(cost: Mapping[str, Any]) -> Table:
    ratio = cost["ratio"]
    rows = [
        [row.label, row.teacher, row.student, figures.share(ratio[row.of]) if row.of else ""]
        for row in cost_rows(cost)
    ]
    return _table("Cost (PyTorch fp32, one thread)", ["", "teacher", "student", "ratio"], rows)


def _export_table(exports: Sequence[Mapping[str, Any]], metric: str) -> Table:
    rows = [
        [
            export["format"],
            figures.size(export.get("bytes")),
            figures.quality(export.get("metric")),
            figures.share(export.get("retention")),
            figures.share(export.get("flip_rate"), 2),
            figures.digits(export.get("latency_ms_p50"), " ms"),
        ]
        for export in exports
    ]
    columns = ["", "size", figures.metric_name(metric), "kept", "flips", "p50"]
    return _table("Exports", columns, rows)


def search_rows(search: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The trials of a search as columns and rows, those that got furthest first."""
    kind = cost_kind(search)
    rounds = ["as cut", *(f"{share:.0%} trained" for share in search["healed"][1:])]
    kept = "retain" in search["budget"]  # then the interval decides
    columns = ["shape", f"{kind.name} predicted", "saved", *rounds, "metric kept"]
    columns += ["95 % interval", ""] if kept else [""]
    trials = sorted(
        search["trials"],
        key=lambda t: (not t["chosen"], -len(t["agreement"]), -t["agreement"][-1]),
    )
    rows = []
    for trial in trials:
        scores = [figures.quality(score) for score in trial["agreement"]]
        scores += [""] * (len(rounds) - len(scores))
        rows.append(
            [
                trial["name"],
                kind.shown(trial["predicted"].get(kind.key)),
                kind.shown(trial["measured"].get(kind.key)),
                *scores,
                figures.share(trial["retention"][-1]),
                *([figures.span(trial.get("interval"))] if kept else []),
                "chosen" if trial["chosen"] else "",
            ]
        )
    return columns, rows


def _search_table(search: Mapping[str, Any]) -> Table:
    columns, rows = search_rows(search)
    return _table(f"Search: agreement with the teacher on {search['rows']} rows", columns, rows)
