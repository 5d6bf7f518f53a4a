"""Shows a sweep: ``sweep.json`` for programs, ``sweep.html`` for people, and the terminal's table.

The page needs no network, no script and no other file; names and errors in it are escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..eval.errors import RunError
from . import figures
from .html import machine, visible
from .sweep_plot import Mark, front_plot
from .sweep_points import COLUMNS, FRONTS, advice, runtimes, sweep_rows
from .whole_files import write_whole

if TYPE_CHECKING:
    from rich.console import Console

JSON, PAGE = "sweep.json", "sweep.html"


def write_sweep(sweep: Mapping[str, Any], folder: Path) -> None:
    """Writes ``sweep.html`` and ``sweep.json`` into a sweep's folder, each whole or not at all.

    Raises:
        RunError: If they cannot be written.
    """
    data = json.dumps(sweep, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        for name, text in ((PAGE, page(sweep)), (JSON, data)):
            write_whole(text, folder / name, errors="backslashreplace")
    except OSError as error:
        raise RunError(
            f"Cannot write '{folder / JSON}': {error.strerror or error}. The points are kept; run "
            "the same command again."
        ) from error


def page(sweep: Mapping[str, Any]) -> str:
    """The page of a sweep as text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    source = resources.files(__package__).joinpath(PAGE).read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style is not None, f"{PAGE} has a style block"
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        visible=visible, share=figures.share, quality=figures.quality, whole=figures.whole,
        metric_name=figures.metric_name,
    )  # fmt: skip
    return environment.from_string(source).render(
        sweep=sweep,
        style_hash=digest,
        advice=advice(sweep),
        plots=[{**plot, "drawing": Markup(plot["drawing"])} for plot in _plots(sweep)],
        columns=COLUMNS,
        rows=sweep_rows(sweep),
        failed=[point for point in sweep["points"] if point["error"] is not None],
        machine=machine(sweep["environment"]),
    )


def _plots(sweep: Mapping[str, Any]) -> list[dict[str, str]]:
    """The drawings of a page: one a front on which there is a point."""
    metric = figures.metric_name(str(sweep["metric"]))
    timed = runtimes(sweep["points"])
    shown: dict[str, tuple[str, str, str, Callable[[float], str]]] = {
        "flops": (
            "On the test rows, against FLOPs",
            "Share of the teacher’s FLOPs a row",
            "retention_ci95",
            lambda cost: f"{100 * cost:.3g} %",
        ),
        "latency": (
            "On the test rows, against time",
            f"Median milliseconds of a row, one thread, {timed}",
            "retention_ci95",
            lambda cost: f"{cost:.3g} ms",
        ),
        "validation": (
            "On the validation rows, against FLOPs",
            "FLOPs a row",
            "validation_ci95",
            figures.flops,
        ),
    }
    found = []
    for name, (title, axis, interval, label) in shown.items():
        marks = _marks(sweep, name, interval, label)
        if marks:
            drawing = front_plot(marks, f"{title}: share of the teacher’s {metric}", name, label)
            found.append({"title": title, "axis": axis, "drawing": drawing})
    return found


def _marks(
    sweep: Mapping[str, Any], name: str, interval: str, label: Callable[[float], str]
) -> list[Mark]:
    cost, quality = FRONTS[name]
    marks = []
    for number, row in enumerate(sweep["points"], 1):
        spent, kept = figures.number(row[cost]), figures.number(row[quality])
        if spent is None or kept is None or spent <= 0:
            continue
        ends = row[interval]
        said = f"{number}, {row['name']}: {figures.share(kept)} kept at {label(spent)}"
        if ends:
            said += f", 95 % interval {figures.span(ends)}"
        front = name in row["fronts"]
        said += ", on the front" if front else ""
        pair = (ends[0], ends[1]) if ends else None
        marks.append(Mark(number, spent, kept, pair, visible(said), front))
    return marks


def print_sweep(sweep: Mapping[str, Any], console: Console) -> None:
    """Prints a sweep's table, what failed, and what to know before a point is picked."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=f"Sweep of {sweep['name']}", title_justify="left")
    for place, column in enumerate(COLUMNS):
        words = place in (1, len(COLUMNS) - 1)
        justify: Any = "left" if words else "right"
        table.add_column(column, justify=justify, no_wrap=not words, overflow="fold")
    for row in sweep_rows(sweep):
        table.add_row(*(Text(visible(cell)) for cell in row))  # names may hold rich's markup
    if table.row_count:
        console.print(table)
    for point in sweep["points"]:
        if point["error"] is not None:
            console.print(Text(f"Failed: {point['name']}. {visible(point['error'])}"))
    for sentence in [*sweep["same"], *advice(sweep)]:
        console.print(Text(visible(sentence)))
