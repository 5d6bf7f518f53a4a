"""The drawings of a page that need no script, as SVG text without styles or references.

The front is drawn here for readers that run no scripts (a mail program, a preview of artefacts);
where scripts run, `front_chart.py` takes its place. Positions across are percentages and positions
down are pixels, so a drawing fills any width while its text keeps its size. Colours come from the
page's classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from . import figures

Kind = Literal["teacher", "student", "export", "baseline"]

HEIGHT = 392
TOP = 18
BOTTOM = 340
_LABEL_GAP = 17

_SHAPES: dict[Kind, str] = {
    "teacher": '<rect x="-6" y="-6" width="12" height="12" rx="2"/>',
    "student": '<circle r="7.5"/>',
    "export": '<path d="M0 -6.5 6.5 0 0 6.5 -6.5 0Z"/>',
    "baseline": '<circle r="5"/>',
}


@dataclass(frozen=True)
class Point:
    """One model in the plot.

    Attributes:
        name: Its label.
        kind: Decides shape and colour.
        compute: FLOPs over the teacher's.
        retention: Share of the teacher's metric.
        low: Lower end of the 95 % interval, if known.
        high: Upper end of it.
    """

    name: str
    kind: Kind
    compute: float
    retention: float
    low: float | None = None
    high: float | None = None

    @property
    def said(self) -> str:
        """All of it in words, for the tooltip and for screen readers."""
        text = (
            f"{self.name}: {figures.share(self.retention)} of the teacher's quality at "
            f"{figures.fine_share(self.compute)} of its compute"
        )
        if self.low is not None and self.high is not None:
            text += f", 95 % interval {figures.span([self.low, self.high])}"
        return text


@dataclass(frozen=True)
class Scale:
    """Maps quality to pixels down and cost, on a log scale, to percent across."""

    bottom: float
    top: float
    left: float
    right: float

    def y(self, quality: float) -> float:
        """Pixels down."""
        return BOTTOM - (quality - self.bottom) / (self.top - self.bottom) * (BOTTOM - TOP)

    def x(self, cost: float) -> float:
        """Percent across."""
        return 100 * math.log(cost / self.left) / math.log(self.right / self.left)


def quality_plot(
    points: Sequence[Point], retain: float | None = None, compute: float | None = None
) -> str:
    """Draws retention against compute, with the target's lines and the area that meets it.

    Args:
        points: The models; those whose compute is not above 0 are left out.
        retain: Least share of quality asked for; without a target, None.
        compute: Largest share of compute allowed; without a target, None.
    """
    shown = [point for point in points if point.compute > 0]
    scale = plot_scale(shown, retain, compute)
    parts = [
        f'<svg class="plot" width="100%" height="{HEIGHT}" role="group" '
        'aria-labelledby="plot-title plot-text">',
        '<title id="plot-title">Quality kept against compute spent</title>',
        f'<desc id="plot-text">{escape(front_text(shown, retain, compute))}</desc>',
        _target_area(scale, retain, compute) if retain and compute else "",
        _upright(scale, retain),
        _across(scale),
    ]
    labels = label_places(shown, scale)
    order: list[Kind] = ["baseline", "export", "teacher", "student"]
    for point in sorted(shown, key=lambda point: order.index(point.kind)):
        parts.append(_mark(point, scale, labels[shown.index(point)]))
    return "".join([*parts, "</svg>"])


def front_text(
    points: Sequence[Point], retain: float | None = None, compute: float | None = None
) -> str:
    """The plot in words."""
    text = "; ".join(point.said for point in points) + "."
    if retain and compute:
        text += f" The target is at least {figures.share(retain)} at no more than "
        text += f"{figures.share(compute)} of the compute."
    return text


def plot_scale(points: Sequence[Point], retain: float | None, compute: float | None) -> Scale:
    """A scale that holds all points and the target."""
    ends = [retain or 1.0, 1.0]
    for point in points:
        ends += [end for end in (point.retention, point.low, point.high) if end is not None]
    room = 0.08 * (max(ends) - min(ends)) or 0.05
    least = min([compute or 1.0, 1.0, *(point.compute for point in points)])
    most = max([1.0, *(point.compute for point in points)])
    return Scale(max(0.0, min(ends) - room), max(ends) + room, least / 1.7, most * 1.12)


def _target_area(scale: Scale, retain: float, compute: float) -> str:
    x, y = scale.x(compute), scale.y(retain)
    title = f"meets the target: {figures.share(retain)} kept at {figures.share(compute)} or less"
    return (
        f'<rect class="area" x="0" y="{TOP - 8}" width="{x:.2f}%" height="{y - TOP + 8:.1f}">'
        f"<title>{title}</title></rect>"
        f'<line class="goal" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<line class="goal" x1="{x:.2f}%" x2="{x:.2f}%" y1="{TOP - 8}" y2="{BOTTOM}"/>'
        f'<text class="goal-text" x="100%" y="{y + 15:.1f}" text-anchor="end">'
        f"keep {figures.share(retain, 0)}</text>"
        f'<text class="goal-text" x="{x:.2f}%" y="{BOTTOM + 38}" text-anchor="middle">'
        f"spend {figures.share(compute, 0)}</text>"
    )


def _upright(scale: Scale, without: float | None) -> str:
    """Lines across at round values, labelled but for the one that is labelled already."""
    parts = []
    for value in ticks(scale.bottom, scale.top):
        y = scale.y(value)
        if y > BOTTOM - 6:
            continue
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        if without is None or abs(y - scale.y(without)) > 1:
            parts.append(f'<text class="tick" x="0" y="{y - 4:.1f}">{rounded_share(value)}</text>')
    return "".join(parts)


def compute_share(value: float) -> str:
    """A share on a log scale: as many places as it takes to tell it from 0.

    Examples:
        >>> compute_share(0.2), compute_share(1e-5)
        ('20 %', '0.001 %')
    """
    return figures.share(value, max(0, -math.floor(math.log10(100 * value) + 1e-9)))


def rounded_share(value: float) -> str:
    """A share with a digit behind the point only where it has one."""
    return figures.share(value, 0 if abs(100 * value - round(100 * value)) < 1e-6 else 1)


def _across(scale: Scale) -> str:
    """The axis of compute."""
    parts = [f'<line class="axis" x1="0" x2="100%" y1="{BOTTOM}" y2="{BOTTOM}"/>']
    for value in spaced(scale):
        x = scale.x(value)
        parts.append(
            f'<line class="axis" x1="{x:.2f}%" x2="{x:.2f}%" y1="{BOTTOM}" y2="{BOTTOM + 5}"/>'
            f'<text class="tick" x="{x:.2f}%" y="{BOTTOM + 20}" text-anchor="middle">'
            f"{compute_share(value)}</text>"
        )
    return "".join(parts)


def spaced(scale: Scale) -> list[float]:
    """Round shares on the axis of compute that have room for their labels, on a phone too."""
    found: list[float] = []
    for value in reversed(shares(scale.left, scale.right)):
        if not found or scale.x(found[-1]) - scale.x(value) >= 18:  # percent of the width
            found.append(value)
    return found[::-1]


def ticks(low: float, high: float) -> list[float]:
    """About five round values between two."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def shares(low: float, high: float) -> list[float]:
    """1, 2 and 5 times each power of ten between two, the largest (1) included."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [factor * 10.0**power for power in exponents for factor in (1, 2, 5)]
    return [value for value in values if low * 1.02 <= value <= high]


def label_places(points: Sequence[Point], scale: Scale) -> list[float]:
    """Heights of the labels in pixels, pushed apart within each half of the plot."""
    places = [scale.y(point.retention) for point in points]
    for right in (False, True):
        group = [i for i, point in enumerate(points) if (scale.x(point.compute) > 55) == right]
        group.sort(key=lambda i: places[i])
        for above, below in pairwise(group):
            places[below] = max(places[below], places[above] + _LABEL_GAP)
        overflow = places[group[-1]] - (BOTTOM - 10) if group else 0.0
        if overflow > 0:
            limit = BOTTOM - 10.0
            for i in reversed(group):
                places[i] = min(places[i], limit)
                limit = places[i] - _LABEL_GAP
    return places


def _mark(point: Point, scale: Scale, label: float) -> str:
    x, y = scale.x(point.compute), scale.y(point.retention)
    side = -1 if x > 55 else 1
    down = label - y
    bar = ""
    if point.low is not None and point.high is not None:
        top, bottom = scale.y(point.high) - y, scale.y(point.low) - y
        bar = (
            f'<path class="whisker" d="M0 {top:.1f}V{bottom:.1f}M-5 {top:.1f}H5'
            f'M-5 {bottom:.1f}H5"/>'
        )
    leader = ""
    if abs(down) > 6:
        leader = f'<path class="leader" d="M{9 * side} 0L{17 * side} {down:.1f}"/>'
    anchor = "end" if side < 0 else "start"
    return (
        f'<svg x="{x:.2f}%" y="{y:.1f}" overflow="visible">'
        f'<g class="mark {point.kind}" role="img" tabindex="0" aria-label="{escape(point.said)}">'
        f"<title>{escape(point.said)}</title>{bar}{leader}{_SHAPES[point.kind]}"
        f'<text x="{20 * side}" y="{down + 4:.1f}" text-anchor="{anchor}">'
        f'<tspan class="name">{escape(point.name)}</tspan> '
        f'<tspan class="value">{figures.share(point.retention)}</tspan></text></g></svg>'
    )


def interval_bar(value: float, low: float, high: float, retain: float) -> str:
    """Draws retention and its interval on a line, with the target and the teacher (100 %)."""
    ends = [value, low, high, retain, 1.0]
    room = 0.12 * (max(ends) - min(ends)) or 0.05
    start, width = min(ends) - room, max(ends) - min(ends) + 2 * room

    def x(share: float) -> str:
        return f"{100 * (share - start) / width:.2f}%"

    said = (
        f"{figures.share(value)} kept, 95 % interval {figures.span([low, high])}; asked for "
        f"{figures.share(retain)}"
    )
    # The nearer of the two captions is written below, so that they never meet.
    crowded = abs(1.0 - retain) / width < 0.3
    return (
        f'<svg class="interval" width="100%" height="{84 if crowded else 64}" role="img" '
        f'aria-label="{said}">'
        f"<title>{said}</title>"
        '<line class="axis" x1="0" x2="100%" y1="42" y2="42"/>'
        f'<line class="goal" x1="{x(retain)}" x2="{x(retain)}" y1="22" y2="62"/>'
        f'<text class="goal-text" x="{x(retain)}" y="{78 if crowded else 14}" '
        f'text-anchor="middle">asked for {figures.share(retain, 0)}</text>'
        f'<line class="full" x1="{x(1)}" x2="{x(1)}" y1="22" y2="62"/>'
        f'<text class="tick" x="{x(1)}" y="14" text-anchor="middle">teacher 100 %</text>'
        f'<line class="band" x1="{x(low)}" x2="{x(high)}" y1="42" y2="42"/>'
        f'<circle class="dot" cx="{x(value)}" cy="42" r="8"/></svg>'
    )


def share_bar(share: float) -> str:
    """A thin bar filled to a share between 0 and 1; the figure stands beside it in the table."""
    filled = 100 * min(max(share, 0.0), 1.0)
    return (
        '<svg class="bar" width="100%" height="6" aria-hidden="true">'
        '<rect class="bar-back" width="100%" height="6" rx="3"/>'
        f'<rect class="bar-fill" width="{filled:.2f}%" height="6" rx="3"/></svg>'
    )
