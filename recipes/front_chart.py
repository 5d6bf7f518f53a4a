"""The plot of quality against compute, with intervals and the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import figures
from .charts import Chart, chart, label, log_axis, plain_text, share_axis
from .plot import (
    BOTTOM,
    TOP,
    Kind,
    Point,
    Scale,
    compute_share,
    label_places,
    plot_scale,
    rounded_share,
    spaced,
    ticks,
)

_MARKS: dict[Kind, tuple[str, int]] = {
    "baseline": ("circle", 9),
    "export": ("diamond-open", 11),
    "teacher": ("square", 11),
    "student": ("circle", 14),
}
"""Symbol and size, in the order they are drawn: the student lies above."""


def front_chart(
    points: Sequence[Point],
    retain: float | None = None,
    compute: float | None = None,
    *,
    unit: str = "row",
) -> Chart:
    """Draws the same as `plot.quality_plot`.

    Args:
        points: The models; those whose compute is not above 0 are left out.
        retain: Least share of quality asked for; without a target, None.
        compute: Largest share of compute allowed; without a target, None.
        unit: What compute is of: a row or an answer.
    """
    shown = [point for point in points if point.compute > 0]
    scale = plot_scale(shown, retain, compute)
    traces = [_trace(kind, [point for point in shown if point.kind == kind]) for kind in _MARKS]
    places = label_places(shown, scale)
    notes = [_name(point, scale, place) for point, place in zip(shown, places, strict=True)]
    if sum(point.kind == "student" for point in shown) > 1:
        notes = [{**note, "name": "wide"} for note in notes]
    shapes: list[dict[str, Any]] = []
    if retain and compute:
        shapes = _target(scale, retain, compute)
        notes.append(
            {**label(f"keep {rounded_share(retain)}", 1, 0, "var(--pass)", right=True),
             "xref": "paper", "yref": "y", "y": retain, "yanchor": "top"}
        )  # fmt: skip
        notes.append(label(f"spend {rounded_share(compute)}", math.log10(compute), 1,
                           "var(--pass)", right=True))  # fmt: skip
    quality = [v for v in ticks(scale.bottom, scale.top) if scale.bottom <= v <= scale.top]
    return chart(
        traces,
        height=BOTTOM + 58,
        # the plot's inside is as high as the scale that labels are placed by
        margin={"l": 54, "r": 20, "t": TOP, "b": 58},
        xaxis=log_axis(
            f"Share of the teacher’s compute (FLOPs {'an' if unit == 'answer' else 'a'} {unit}, "
            "log scale)",
            scale.left, scale.right, spaced(scale), compute_share,
        ),
        yaxis=share_axis("", scale.bottom, scale.top, quality),
        shapes=shapes,
        annotations=notes,
        legend=False,  # the page has a key that explains the target too
    )  # fmt: skip


def _trace(kind: Kind, points: Sequence[Point]) -> dict[str, Any]:
    symbol, size = _MARKS[kind]
    colour = f"var(--{kind})"
    ends = [
        (p.retention if p.low is None else p.low, p.retention if p.high is None else p.high)
        for p in points
    ]
    return {
        "name": kind,
        "mode": "markers",
        "x": [point.compute for point in points],
        "y": [point.retention for point in points],
        "text": [plain_text(point.said, wrap=True) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "symbol": symbol,
            "size": size,
            "color": colour,
            "line": {"width": 2 if symbol.endswith("open") else 0},
        },
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [high - p.retention for p, (_, high) in zip(points, ends, strict=True)],
            "arrayminus": [p.retention - low for p, (low, _) in zip(points, ends, strict=True)],
            "color": colour,
            "thickness": 1.75,
            "width": 5,
            "visible": any(low != high for low, high in ends),
        },
    }


def _name(point: Point, scale: Scale, place: float) -> dict[str, Any]:
    """The name beside a point, as many pixels off as keeps it from the others'."""
    right = scale.x(point.compute) > 55
    return {
        # the page's script leaves out what a phone has no room for
        "name": "always" if point.kind == "student" else "wide",
        "text": f"{plain_text(point.name)} {figures.share(point.retention)}",
        "x": math.log10(point.compute),
        "y": point.retention,
        "ax": -18 if right else 18,
        "ay": place - scale.y(point.retention),
        "xanchor": "right" if right else "left",
        "showarrow": True,
        "arrowhead": 0,
        "arrowwidth": 1,
        "arrowcolor": "var(--baseline)",
        "standoff": 8,
        "bgcolor": "var(--veil)",
        "borderpad": 1,
    }


def _target(scale: Scale, retain: float, compute: float) -> list[dict[str, Any]]:
    """The area that meets the target, and its two sides."""
    goal = {"color": "var(--pass)", "dash": "dash", "width": 1.25}
    return [
        {"type": "rect", "layer": "below", "x0": scale.left, "x1": compute, "y0": retain,
         "y1": scale.top, "fillcolor": "var(--area)", "line": {"width": 0}},
        {"type": "line", "layer": "below", "x0": scale.left, "x1": scale.right, "y0": retain,
         "y1": retain, "line": goal},
        {"type": "line", "layer": "below", "x0": compute, "x1": compute, "y0": scale.bottom,
         "y1": scale.top, "line": goal},
    ]  # fmt: skip
