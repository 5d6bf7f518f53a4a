"""Shows a comparison of runs: a page like a run's own, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..eval.errors import RunError
from . import figures, plot
from .charts import Chart, forest
from .compare import Comparison, Entry, recipe_differences
from .cost_rows import unit
from .front_chart import front_chart
from .html import MARKS, machine
from .page import render, unbroken, visible
from .page_quality import sign
from .report import OUTCOMES, headline
from .whole_files import write_whole

if TYPE_CHECKING:
    from rich.console import Console


def write_comparison(found: Comparison, path: Path) -> None:
    """Writes the page of a comparison, whole or not at all.

    Raises:
        RunError: If it cannot be written.
    """
    try:
        write_whole(comparison_page(found), path)
    except OSError as error:
        raise RunError(f"Cannot write '{path}': {error.strerror or error}.") from error


def comparison_page(found: Comparison) -> str:
    """The page of a comparison as text."""
    from markupsafe import Markup

    places, (retain, compute) = _points(found), _target(found)
    of = unit(found.entries[0].run.report["cost"])
    drawn = len(places) > 1
    runs = [entry.run for entry in found.entries]
    return render(
        "compare.html",
        _charts(found, places, of) if drawn or found.differences else {},
        metric=figures.metric_name(found.metric),
        unit=of,
        examples=found.examples,
        names=[run.name for run in runs],
        task=runs[0].report["task"],
        verdicts=[_verdict(entry) for entry in found.entries],
        front=Markup(plot.quality_plot(places, retain, compute)) if drawn else "",
        front_text=plot.front_text(places, retain, compute),
        target=retain is not None,
        columns=columns(found),
        rows=rows(found),
        differences=difference_rows(found),
        exports=_exports(found),
        recipe=recipe_differences(runs),
        machines=[[run.name, machine(run.report.get("environment") or {})] for run in runs],
        notes=found.notes,
    )


def _verdict(entry: Entry) -> dict[str, Any]:
    report = entry.run.report
    smoke = report["smoke"]
    return {
        "name": entry.run.name,
        "outcome": "smoke" if smoke else report["verdict"],
        "word": "Smoke run, not judged" if smoke else OUTCOMES[report["verdict"]],
        "mark": "·" if smoke else MARKS[report["verdict"]],
        "headline": unbroken(headline(report)),
    }


def _target(found: Comparison) -> tuple[float | None, float | None]:
    """The target, where all runs have one and the same."""
    asked = {
        (entry.run.report["target"]["retain"], entry.run.report["target"]["compute"])
        for entry in found.entries
    }
    return next(iter(asked)) if len(asked) == 1 else (None, None)


def _points(found: Comparison) -> list[plot.Point]:
    first = found.entries[0].run
    points = [plot.Point(f"teacher of {visible(first.name)}", "teacher", 1.0, 1.0)]
    for entry in found.entries:
        if entry.kept is not None and entry.compute:
            low, high = entry.interval or (None, None)
            points.append(
                plot.Point(visible(entry.run.name), "student", entry.compute, entry.kept, low, high)
            )
    return points


def _charts(found: Comparison, places: list[plot.Point], of: str) -> dict[str, Chart]:
    charts = {}
    if len(places) > 1:
        charts["front"] = front_chart(places, *_target(found), unit=of)
    metric = figures.metric_name(found.metric)
    bars = [
        (
            f"{one.run} less {one.other}",
            one.interval.value,
            [one.interval.low, one.interval.high],
            f"{one.run} less {one.other}: {figures.signed(one.interval.value)} {metric}, 95 % "
            f"interval {figures.signed_span([one.interval.low, one.interval.high])}",
        )
        for one in found.differences
    ]
    if bars:
        charts["differences"] = forest(bars, f"{metric}, difference between runs")
    return charts


def columns(found: Comparison) -> list[str]:
    """Heads of the table of runs."""
    return ["Run", "Verdict", figures.metric_name(found.metric), "Kept", "95 % interval", "Compute",
            f"FLOPs per {unit(found.entries[0].run.report['cost'])}", "Parameters", "Size", "p50",
            "p95", "Run took"]  # fmt: skip


def rows(found: Comparison) -> list[list[str]]:
    """The table of runs."""
    return [
        [
            entry.run.name,
            _verdict(entry)["word"],
            figures.quality(entry.run.report["quality"]["student"]),
            figures.share(entry.kept),
            figures.span(entry.interval),
            figures.fine_share(entry.compute),
            *_costs(entry.run.report["cost"]["student"]),
            figures.seconds(_taken(entry.run.report)),
        ]
        for entry in found.entries
    ]


def _costs(side: Mapping[str, Any]) -> list[str]:
    return [
        figures.flops(side.get("flops_per_example")),
        figures.count(side.get("parameters")),
        figures.size(side.get("bytes")),
        figures.digits(side.get("latency_ms_p50"), " ms"),
        figures.digits(side.get("latency_ms_p95"), " ms"),
    ]


def _taken(report: Mapping[str, Any]) -> float | None:
    """Seconds of all stages when they were made; None where one was not measured."""
    found = [figures.number(stage.get("seconds")) for stage in report["stages"]]
    known = [value for value in found if value is not None]
    return sum(known) if known and len(known) == len(found) else None


def difference_rows(found: Comparison) -> list[dict[str, str]]:
    """Paired differences between runs."""
    return [
        {
            "run": one.run,
            "other": one.other,
            "value": figures.signed(one.interval.value),
            "interval": figures.signed_span([one.interval.low, one.interval.high]),
            "sign": sign([one.interval.low, one.interval.high]),
        }
        for one in found.differences
    ]


def _exports(found: Comparison) -> list[list[str]]:
    return [
        [
            entry.run.name,
            str(export.get("format")),
            figures.size(export.get("bytes")),
            figures.quality(export.get("metric")),
            figures.share(export.get("flip_rate"), 2),
            figures.digits(export.get("latency_ms_p50"), " ms"),
        ]
        for entry in found.entries
        for export in entry.run.report["exports"]
    ]


def print_comparison(found: Comparison, console: Console) -> None:
    """Prints the table of runs, their differences and the notes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    shown = (0, 2, 3, 4, 5, 9)  # what 80 columns have room for
    for place, number in enumerate(shown):
        table.add_column(columns(found)[number], justify="right" if place else "left")
    table.add_column("verdict")
    for entry, row in zip(found.entries, rows(found), strict=True):
        report = entry.run.report
        outcome = "not judged" if report["smoke"] else str(report["verdict"])
        table.add_row(*(Text(row[number]) for number in shown), Text(outcome))
    console.print(table)
    metric = figures.metric_name(found.metric)
    for one in difference_rows(found):
        console.print(
            Text(
                f"{one['run']} less {one['other']}: {one['value']} {metric} "
                f"(95 % interval {one['interval']}, {figures.whole(found.examples)} rows)"
            )
        )
    for note in found.notes:
        console.print(Text(f"Note: {note}"))
