"""The plots of a page, as figures of plotly.js: plain values that stand in the page as JSON.

What an axis upwards means stands above the plot, in the page: a phone has no width to spare for
it. Colours and fonts are names of the page's own (``var(--student)``); its script puts their values
in when it draws, in light, in dark and for print. Every figure of a plot stands in a table too.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import figures
from .plot import ticks

Chart = dict[str, Any]

_FIFTHS = (0, 0.2, 0.4, 0.6, 0.8, 1)
_ROW = 46  # pixels of a row of a `forest`: its name above, its interval below
_COLOURS = ("--export", "--series-1", "--series-2", "--baseline", "--series-3")
_SYMBOLS = ("diamond", "triangle-up", "triangle-down", "cross", "star")
_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")


def chart(
    data: Sequence[Mapping[str, Any]],
    *,
    height: int,
    xaxis: Mapping[str, Any],
    yaxis: Mapping[str, Any],
    margin: Mapping[str, int] | None = None,
    shapes: Sequence[Mapping[str, Any]] = (),
    annotations: Sequence[Mapping[str, Any]] = (),
    legend: bool = True,
) -> Chart:
    """A figure in the page's style; traces without a point are left out."""
    shown = [{"type": "scatter", "cliponaxis": False, **trace} for trace in data if trace.get("x")]
    named = [trace for trace in shown if trace.get("showlegend", True)]
    return {
        "data": shown,
        "layout": {
            "height": height,
            "margin": margin or {"l": 54, "r": 16, "t": 14, "b": 92 if legend else 56},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "var(--sans)", "size": 13, "color": "var(--ink)"},
            "hovermode": "closest",
            "dragmode": False,
            "hoverlabel": {
                "align": "left",
                "namelength": -1,
                "bgcolor": "var(--card)",
                "bordercolor": "var(--soft)",
                "font": {"family": "var(--sans)", "size": 13, "color": "var(--ink)"},
            },
            "showlegend": legend and len(named) > 1,
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0,
                       "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False,
                       "font": {"color": "var(--soft)", "size": 12.5}},
            "xaxis": dict(xaxis),
            "yaxis": dict(yaxis),
            "shapes": list(shapes),
            "annotations": list(annotations),
        },
    }  # fmt: skip


def axis(title: str = "", low: float | None = None, high: float | None = None) -> Chart:
    """A linear axis; without ends the plot finds them."""
    found: Chart = {
        "title": {"text": title, "font": {"color": "var(--soft)", "size": 12.5}, "standoff": 8},
        "fixedrange": True,
        "zeroline": False,
        "showline": False,
        "gridcolor": "var(--line)",
        "linecolor": "var(--soft)",
        "tickfont": {"color": "var(--soft)", "size": 12},
        "ticks": "outside",
        "ticklen": 5,
        "tickcolor": "rgba(0,0,0,0)",
        "ticklabeloverflow": "allow",  # the last one may stand in the margin
    }
    if low is not None and high is not None:
        found["range"] = [low, high]
    return found


def log_axis(
    title: str, low: float, high: float, values: Sequence[float], shown: Callable[[float], str]
) -> Chart:
    """A logarithmic axis between two positive ends, labelled at some values."""
    return {
        **axis(title, math.log10(low), math.log10(high)),
        "type": "log",
        "showgrid": False,
        "showline": True,
        "tickcolor": "var(--soft)",
        "tickvals": list(values),
        "ticktext": [shown(value) for value in values],
    }


def share_axis(title: str, low: float, high: float, values: Sequence[float]) -> Chart:
    """A linear axis of shares."""
    shown = {"tickvals": list(values), "ticktext": [f"{100 * value:.4g} %" for value in values]}
    return {**axis(title, low, high), **shown}


def label(
    text: str, x: float, y: float, colour: str = "var(--soft)", *, right: bool = False
) -> Chart:
    """A word at the upper end of the plot; ``x`` is its place (a logarithm on a log axis)."""
    return {
        "text": plain_text(text), "x": x, "y": y, "yref": "paper", "yanchor": "top",
        "xanchor": "right" if right else "left", "showarrow": False,
        "font": {"color": colour, "size": 12},
    }  # fmt: skip


def plain_text(text: Any, *, wrap: bool = False) -> str:
    """Text that the plots' library shows as it is: it would read tags and entities in it.

    Args:
        text: Of anybody.
        wrap: Break lines, for a tooltip that must fit a phone.
    """
    from .page import visible

    lines = textwrap.wrap(visible(text), 40) if wrap else [" ".join(visible(text).split())]
    names = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    return "<br>".join("".join(names.get(char, char) for char in line) for line in lines)


def side_style(side: str, place: int) -> tuple[str, str, str]:
    """Colour, marker and dash of a side; ``place`` counts those that are neither of the two."""
    if side == "teacher":
        return "var(--teacher)", "square", "solid"
    if side == "student":
        return "var(--student)", "circle", "solid"
    place %= len(_COLOURS)
    return f"var({_COLOURS[place]})", _SYMBOLS[place], _DASHES[place]


def forest(rows: Sequence[tuple[str, float, Any, str]], title: str) -> Chart:
    """Differences with their intervals, one a row from the top, and the line of none.

    Args:
        rows: Name, difference, interval (or None), and all of it in words.
        title: Of the axis.
    """
    ends = [0.0]
    for _, value, interval, _ in rows:
        ends += [value, *(interval or ())]
    room = 0.1 * (max(ends) - min(ends)) or 0.01
    places = list(range(len(rows)))
    whiskers = [interval or [value, value] for _, value, interval, _ in rows]
    trace = {
        "mode": "markers",
        "x": [value for _, value, _, _ in rows],
        "y": places,
        "text": [plain_text(said, wrap=True) for *_, said in rows],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"size": 10, "color": [_sign_colour(row[2]) for row in rows]},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - row[1] for row, (_, high) in zip(rows, whiskers, strict=True)],
            "arrayminus": [row[1] - low for row, (low, _) in zip(rows, whiskers, strict=True)],
            "color": "var(--soft)",
            "thickness": 1.5,
            "width": 5,
        },
    }
    names = [
        {"text": plain_text(_short(row[0])), "xref": "paper", "x": 0, "xanchor": "left", "y": place,
         "yshift": 17, "showarrow": False, "font": {"size": 12.5}}
        for place, row in enumerate(rows)
    ]  # fmt: skip
    zero = {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "layer": "below",
            "line": {"color": "var(--teacher)", "width": 1.5}}  # fmt: skip
    low, high = min(ends) - room, max(ends) + room
    marks = ticks(low, high)
    across = {
        **axis(title, low, high),
        "tickvals": marks,
        "ticktext": [_signed(value) for value in marks],
    }
    return chart(
        [trace],
        height=_ROW * len(rows) + 62,
        margin={"l": 12, "r": 12, "t": 8, "b": 54},
        xaxis=across,
        yaxis={**axis("", len(rows) - 0.6, -0.75), "showticklabels": False, "showgrid": False},
        shapes=[zero],
        annotations=names,
        legend=False,
    )


def _signed(value: float) -> str:
    """A round difference with its sign; 0 has none."""
    return f"{value:+.4g}".replace("-", "\N{MINUS SIGN}") if abs(value) > 1e-12 else "0"


def _short(name: str) -> str:
    return name if len(name) <= 42 else name[:41].rstrip() + "…"


def _sign_colour(interval: Any) -> str:
    """Whether a difference is told from none by its interval."""
    if not interval or interval[0] <= 0 <= interval[1]:
        return "var(--baseline)"
    return "var(--fail)" if interval[1] < 0 else "var(--pass)"


def reliability_chart(sides: Sequence[Mapping[str, Any]]) -> Chart | None:
    """How often each side is right (up) against how sure it says it is (across)."""
    traces, others = [], 0
    for side in sides:
        bins = [b for b in side["bins"] if b["rows"] and figures.number(b["confidence"]) is not None
                and figures.number(b["accuracy"]) is not None]  # fmt: skip
        colour, symbol, dash = side_style(side["side"], others)
        others += side["side"] not in ("teacher", "student")
        most = max([b["rows"] for b in bins], default=1)
        traces.append(
            {
                "name": plain_text(side["side"]),
                "mode": "lines+markers",
                "x": [b["confidence"] for b in bins],
                "y": [b["accuracy"] for b in bins],
                "text": [
                    f"{plain_text(side['side'])}: says {figures.share(b['confidence'])}<br>"
                    f"is right in {figures.share(b['accuracy'])}<br>"
                    f"of {figures.whole(b['rows'])} rows"
                    for b in bins
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": colour, "dash": dash, "width": 1.5},
                "marker": {
                    "color": colour,
                    "symbol": symbol,
                    "size": [5 + 11 * math.sqrt(b["rows"] / most) for b in bins],
                    "opacity": 0.85,
                },
            }
        )
    if not any(trace["x"] for trace in traces):
        return None
    even = {"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "layer": "below",
            "line": {"color": "var(--pass)", "dash": "dash", "width": 1.25}}  # fmt: skip
    return chart(
        traces,
        height=420,
        xaxis=share_axis("Probability of the class that wins", 0, 1.02, _FIFTHS),
        yaxis=share_axis("", -0.02, 1.03, _FIFTHS),
        shapes=[even],
    )


def risk_chart(sides: Sequence[Mapping[str, Any]], key: str = "risk") -> Chart | None:
    """Wrong answers (or rows out of scope that are answered) against the share answered.

    Args:
        sides: Of ``risk_coverage``.
        key: ``risk`` or ``out_of_scope``.
    """
    traces, others = [], 0
    for side in sides:
        colour, _, dash = side_style(side["side"], others)
        others += side["side"] not in ("teacher", "student")
        if not side.get(key):
            continue
        rows = thinned(list(zip(side["coverage"], side[key], side["threshold"], strict=True)))
        what = "wrong" if key == "risk" else "of the rows out of scope answered"
        traces.append(
            {
                "name": plain_text(side["side"]),
                "mode": "lines",
                "x": [row[0] for row in rows],
                "y": [row[1] for row in rows],
                "text": [
                    f"{plain_text(side['side'])}, above {figures.share(limit)}:<br>"
                    f"{figures.share(covered)} answered<br>{figures.share(value, 2)} {what}"
                    for covered, value, limit in rows
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": colour, "dash": dash, "width": 2},
            }
        )
    if not any(trace["x"] for trace in traces):
        return None
    most = 1.06 * max([value for trace in traces for value in trace["y"]]) or 0.01
    return chart(
        traces,
        height=380,
        xaxis=share_axis("Share of the test rows answered", 0, 1.02, _FIFTHS),
        yaxis=share_axis("", -0.01 * most, most, ticks(0, most)),
    )


def thinned(rows: list[Any], most: int = 200) -> list[Any]:
    """At most so many of some rows, evenly, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def break_even_chart(ledger: Mapping[str, Any]) -> Chart | None:
    """Money spent by the number of queries: the teacher's price, and the run's with the student's.

    None where no break-even was found.
    """
    even, spent = figures.number(ledger.get("break_even")), _usd(ledger.get("total"))
    teacher, student = (figures.number(ledger.get(side)) for side in ("teacher", "student"))
    if not even or spent is None or teacher is None or student is None:
        return None
    queries = [0.0, even / 2, even, 1.5 * even, 2 * even]
    traces = []
    for name, first, each in (("teacher", 0.0, teacher), ("student", spent, student)):
        colour, _, _ = side_style(name, 0)
        said = "the run and the student" if name == "student" else "the teacher"
        traces.append(
            {
                "name": said,
                "mode": "lines",
                "x": queries,
                "y": [first + each * count for count in queries],
                "text": [
                    f"{said}, {figures.count(count)} queries:<br>"
                    f"{figures.usd(first + each * count)}"
                    for count in queries
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": colour, "width": 2},
            }
        )
    line = {"type": "line", "x0": even, "x1": even, "yref": "paper", "y0": 0, "y1": 1,
            "line": {"color": "var(--pass)", "dash": "dash", "width": 1.25}}  # fmt: skip
    return chart(
        traces,
        height=340,
        xaxis={**axis("Queries"), "rangemode": "tozero", "tickformat": ".3~s", "nticks": 6},
        yaxis={**axis(), "rangemode": "tozero"},
        shapes=[line],
        annotations=[label("paid for", even, 1, "var(--pass)", right=True)],
    )


def _usd(spent: Any) -> float | None:
    return figures.number((spent or {}).get("usd"))
