"""The drawings of a sweep's page: quality against cost with intervals, and the front, as SVG.

Positions across are percentages and positions down are pixels, so a drawing fills any width while
its text keeps its size. Colours come from the page's classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from . import figures

HEIGHT, TOP, BOTTOM = 340, 18, 296
LEFT, RIGHT = 9.0, 97.0
"""Percent of the width that marks lie between."""


@dataclass(frozen=True)
class Mark:
    """One point of a sweep.

    Attributes:
        number: Its row in the table.
        cost: Above 0.
        kept: Share of the teacher's metric.
        interval: The ends of its 95 % interval, if known.
        said: All of it in words, for the tooltip and for screen readers.
        front: Whether no other point beats it.
    """

    number: int
    cost: float
    kept: float
    interval: tuple[float, float] | None
    said: str
    front: bool


@dataclass(frozen=True)
class _Scale:
    """Maps cost, by its logarithm, to percent across, and quality to pixels down."""

    costs: tuple[float, float]
    qualities: tuple[float, float]

    def x(self, cost: float) -> float:
        low, high = map(math.log, self.costs)
        return LEFT + (RIGHT - LEFT) * (math.log(cost) - low) / (high - low)

    def y(self, quality: float) -> float:
        low, high = self.qualities
        return BOTTOM - (BOTTOM - TOP) * (quality - low) / (high - low)


def front_plot(marks: Sequence[Mark], title: str, name: str, label: Callable[[float], str]) -> str:
    """Draws the points of a sweep with their intervals, and the line of its front.

    Args:
        marks: At least one.
        title: What is drawn, in words.
        name: Of the drawing's parts, unique on a page.
        label: Writes a cost on the axis.
    """
    scale = _scale(marks)
    said = "; ".join(mark.said for mark in marks)
    parts = [
        f'<svg class="plot" width="100%" height="{HEIGHT}" role="group" '
        f'aria-labelledby="{name}-title {name}-text">',
        f'<title id="{name}-title">{escape(title)}</title>',
        f'<desc id="{name}-text">{escape(said)}.</desc>',
        _upright(scale),
        _across(scale, label),
        _line(sorted((mark for mark in marks if mark.front), key=lambda mark: mark.cost), scale),
        *(_mark(mark, scale) for mark in sorted(marks, key=lambda mark: mark.front)),
    ]
    return "".join([*parts, "</svg>"])


def _scale(marks: Sequence[Mark]) -> _Scale:
    heights = [height for mark in marks for height in (mark.kept, *(mark.interval or ()))]
    costs = [mark.cost for mark in marks]
    room = 0.06 * (max(heights) - min(heights)) or 0.02
    return _Scale((min(costs) / 1.1, max(costs) * 1.1), (min(heights) - room, max(heights) + room))


def _upright(scale: _Scale) -> str:
    parts = []
    low, high = scale.qualities
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        y = scale.y(number * step)
        places = max(0, -math.floor(math.log10(100 * step) + 1e-9))
        parts.append(
            f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="0" y="{y - 4:.1f}">{figures.share(number * step, places)}'
            "</text>"
        )
    return "".join(parts)


def _across(scale: _Scale, label: Callable[[float], str]) -> str:
    """The axis of cost: 1, 2 and 5 times the powers of ten, or its ends where none lie between."""
    low, high = scale.costs
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in exponents for factor in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) < 2:
        ticks = [low * 1.1, high / 1.1] if high > low * 1.3 else [low * 1.1]
    parts = [f'<line class="axis" x1="0" x2="100%" y1="{BOTTOM}" y2="{BOTTOM}"/>']
    for tick in ticks:
        x = scale.x(tick)
        parts.append(
            f'<line class="axis" x1="{x:.2f}%" x2="{x:.2f}%" y1="{BOTTOM}" y2="{BOTTOM + 5}"/>'
            f'<text class="tick" x="{x:.2f}%" y="{BOTTOM + 20}" text-anchor="middle">'
            f"{escape(label(tick))}</text>"
        )
    return "".join(parts)


def _line(front: Sequence[Mark], scale: _Scale) -> str:
    """Steps: at a cost between two points, the quality is that of the cheaper one."""
    parts = []
    for left, right in pairwise(front):
        start, end = scale.x(left.cost), scale.x(right.cost)
        low, high = scale.y(left.kept), scale.y(right.kept)
        for x1, x2, y1, y2 in ((start, end, low, low), (end, end, low, high)):
            parts.append(
                f'<line class="front" x1="{x1:.2f}%" x2="{x2:.2f}%" y1="{y1:.1f}" y2="{y2:.1f}"/>'
            )
    return "".join(parts)


def _mark(mark: Mark, scale: _Scale) -> str:
    x, y = scale.x(mark.cost), scale.y(mark.kept)
    whisker = ""
    if mark.interval is not None:
        low, high = (scale.y(end) - y for end in mark.interval)
        whisker = (
            f'<path class="whisker" d="M0 {high:.1f}V{low:.1f}M-4 {high:.1f}H4M-4 {low:.1f}H4"/>'
        )
    # apart, where a point lies just below one of the front
    place = 'x="9" y="-7"' if mark.front else 'x="-9" y="14" text-anchor="end"'
    return (
        f'<svg x="{x:.2f}%" y="{y:.1f}" overflow="visible">'
        f'<g class="mark{" on" if mark.front else ""}" role="img" tabindex="0" '
        f'aria-label="{escape(mark.said)}"><title>{escape(mark.said)}</title>{whisker}'
        f'<circle r="{6 if mark.front else 4.5}"/>'
        f"<text {place}>{mark.number}</text></g></svg>"
    )
