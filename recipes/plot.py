"""The drawings of ``report.html``, as SVG text without styles, scripts or references.

Positions across are percentages and positions down are pixels, so a drawing fills any width while
its text keeps its size. Colours come from the page's classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from . import figures

Kind = Literal["teacher", "student", "export", "baseline"]

_HEIGHT = 392
_TOP = 18
_BOTTOM = 340
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
            f"{figures.share(self.compute)} of its compute"
        )
        if self.low is not None and self.high is not None:
            text += f", 95 % interval {figures.span([self.low, self.high])}"
        return text


@dataclass(frozen=True)
class TrialPoint:
    """One shape that a search tried.

    Attributes:
        cost: What the budget bounds, as measured; above 0.
        cut: Agreement with the teacher before any training.
        healed: After its last round of training; None where it was in none.
        said: All of it in words, for the tooltip and for screen readers.
        chosen: Whether the search ended with it.
    """

    cost: float
    cut: float
    healed: float | None
    said: str
    chosen: bool = False


@dataclass(frozen=True)
class _Scale:
    """Maps quality to pixels down and cost, on a log scale, to percent across."""

    bottom: float
    top: float
    left: float
    right: float

    def y(self, quality: float) -> float:
        return _BOTTOM - (quality - self.bottom) / (self.top - self.bottom) * (_BOTTOM - _TOP)

    def x(self, cost: float) -> float:
        return 100 * math.log(cost / self.left) / math.log(self.right / self.left)


def quality_plot(points: Sequence[Point], retain: float, compute: float) -> str:
    """Draws retention against compute, with the target's lines and the area that meets it.

    Args:
        points: The models; those whose compute is not above 0 are left out.
        retain: Least share of quality asked for.
        compute: Largest share of compute allowed.
    """
    shown = [point for point in points if point.compute > 0]
    scale = _scale(shown, retain, compute)
    parts = [
        f'<svg class="plot" width="100%" height="{_HEIGHT}" role="group" '
        'aria-labelledby="plot-title plot-text">',
        '<title id="plot-title">Quality kept against compute spent</title>',
        f'<desc id="plot-text">{escape("; ".join(point.said for point in shown))}. The target is '
        f"at least {figures.share(retain)} at no more than {figures.share(compute)} of the "
        "compute.</desc>",
        _target_area(scale, retain, compute),
        _upright(scale, _rounded_share, retain),
        _across(scale, _shares(scale.left, scale.right), lambda v: figures.share(v, int(v < 0.01))),
    ]
    labels = _label_places(shown, scale)
    order: list[Kind] = ["baseline", "export", "teacher", "student"]
    for point in sorted(shown, key=lambda point: order.index(point.kind)):
        parts.append(_mark(point, scale, labels[shown.index(point)]))
    return "".join([*parts, "</svg>"])


def _scale(points: Sequence[Point], retain: float, compute: float) -> _Scale:
    ends = [retain, 1.0]
    for point in points:
        ends += [end for end in (point.retention, point.low, point.high) if end is not None]
    room = 0.08 * (max(ends) - min(ends)) or 0.05
    least = min([compute, 1.0, *(point.compute for point in points)])
    most = max([1.0, *(point.compute for point in points)])
    return _Scale(max(0.0, min(ends) - room), max(ends) + room, least / 1.7, most * 1.12)


def _target_area(scale: _Scale, retain: float, compute: float) -> str:
    x, y = scale.x(compute), scale.y(retain)
    title = f"meets the target: {figures.share(retain)} kept at {figures.share(compute)} or less"
    return (
        f'<rect class="area" x="0" y="{_TOP - 8}" width="{x:.2f}%" height="{y - _TOP + 8:.1f}">'
        f"<title>{title}</title></rect>"
        f'<line class="goal" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<line class="goal" x1="{x:.2f}%" x2="{x:.2f}%" y1="{_TOP - 8}" y2="{_BOTTOM}"/>'
        f'<text class="goal-text" x="100%" y="{y + 15:.1f}" text-anchor="end">'
        f"keep {figures.share(retain, 0)}</text>"
        f'<text class="goal-text" x="{x:.2f}%" y="{_BOTTOM + 38}" text-anchor="middle">'
        f"spend {figures.share(compute, 0)}</text>"
    )


def _upright(scale: _Scale, label: Callable[[float], str], without: float | None = None) -> str:
    """Lines across at round values, labelled but for the one that is labelled already."""
    parts = []
    for value in _ticks(scale.bottom, scale.top):
        y = scale.y(value)
        if y > _BOTTOM - 6:
            continue
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        if without is None or abs(y - scale.y(without)) > 1:
            parts.append(f'<text class="tick" x="0" y="{y - 4:.1f}">{label(value)}</text>')
    return "".join(parts)


def _rounded_share(value: float) -> str:
    return figures.share(value, 0 if abs(100 * value - round(100 * value)) < 1e-6 else 1)


def _across(scale: _Scale, values: Sequence[float], label: Callable[[float], str]) -> str:
    """The axis of cost, with those values that have room."""
    parts = [f'<line class="axis" x1="0" x2="100%" y1="{_BOTTOM}" y2="{_BOTTOM}"/>']
    last = -100.0
    for value in values:
        x = scale.x(value)
        if x - last < 11:  # percent of the width: nearer than this, labels touch on a phone
            continue
        last = x
        parts.append(
            f'<line class="axis" x1="{x:.2f}%" x2="{x:.2f}%" y1="{_BOTTOM}" y2="{_BOTTOM + 5}"/>'
            f'<text class="tick" x="{x:.2f}%" y="{_BOTTOM + 20}" text-anchor="middle">'
            f"{label(value)}</text>"
        )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """About five round values between two."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _shares(low: float, high: float) -> list[float]:
    """1, 2 and 5 times each power of ten between two, the largest (1) included."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [factor * 10.0**power for power in exponents for factor in (1, 2, 5)]
    return [value for value in values if low * 1.02 <= value <= high]


def _label_places(points: Sequence[Point], scale: _Scale) -> list[float]:
    """Heights of the labels in pixels, pushed apart within each half of the plot."""
    places = [scale.y(point.retention) for point in points]
    for right in (False, True):
        group = [i for i, point in enumerate(points) if (scale.x(point.compute) > 55) == right]
        group.sort(key=lambda i: places[i])
        for above, below in pairwise(group):
            places[below] = max(places[below], places[above] + _LABEL_GAP)
        overflow = places[group[-1]] - (_BOTTOM - 10) if group else 0.0
        if overflow > 0:
            limit = _BOTTOM - 10.0
            for i in reversed(group):
                places[i] = min(places[i], limit)
                limit = places[i] - _LABEL_GAP
    return places


def _mark(point: Point, scale: _Scale, label: float) -> str:
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


def trials_plot(
    trials: Sequence[TrialPoint], bound: tuple[float, str] | None, label: Callable[[float], str]
) -> str:
    """Draws a search: agreement against cost, of each trial as cut and as healed.

    Args:
        trials: At least one.
        bound: The most a trial may cost, and its caption; None where cost is not bounded.
        label: Writes a cost on the axis.
    """
    heights = [h for t in trials for h in (t.cut, t.healed) if h is not None]
    costs = [trial.cost for trial in trials] + ([bound[0]] if bound else [])
    room = 0.08 * (max(heights) - min(heights)) or 0.05
    scale = _Scale(
        max(0.0, min(heights) - room), max(heights) + room, min(costs) / 1.06, max(costs) * 1.06
    )
    values = _shares(scale.left, scale.right)
    if len(values) < 3:  # trials of one budget cost nearly the same
        values = [value for value in _ticks(scale.left, scale.right) if value > 0]
    said = "; ".join(trial.said for trial in trials) + (f". {bound[1]}" if bound else "")
    parts = [
        f'<svg class="plot" width="100%" height="{_HEIGHT}" role="group" '
        'aria-labelledby="trials-title trials-text">',
        '<title id="trials-title">Trials: agreement with the teacher against cost</title>',
        f'<desc id="trials-text">{escape(said)}.</desc>',
        _upright(scale, lambda value: f"{value:.6g}"),
        _across(scale, values, label),
        _bound(scale, *bound) if bound else "",
        *(_trial(trial, scale) for trial in sorted(trials, key=lambda trial: trial.chosen)),
    ]
    return "".join([*parts, "</svg>"])


def _bound(scale: _Scale, value: float, caption: str) -> str:
    x = scale.x(value)
    return (
        f'<line class="goal" x1="{x:.2f}%" x2="{x:.2f}%" y1="{_TOP - 8}" y2="{_BOTTOM}"/>'
        f'<text class="goal-text" x="{x:.2f}%" y="{_BOTTOM + 38}" '
        f'text-anchor="{"end" if x > 80 else "middle"}">{escape(caption)}</text>'
    )


def _trial(trial: TrialPoint, scale: _Scale) -> str:
    x, y = scale.x(trial.cost), scale.y(trial.cut)
    healed = ""
    if trial.healed is not None:
        down = scale.y(trial.healed) - y
        healed = (
            f'<path d="M0 0V{down:.1f}"/>'
            f'<circle class="healed" cy="{down:.1f}" r="{7 if trial.chosen else 5}"/>'
        )
    return (
        f'<svg x="{x:.2f}%" y="{y:.1f}" overflow="visible">'
        f'<g class="mark trial{" chosen" if trial.chosen else ""}" role="img" tabindex="0" '
        f'aria-label="{escape(trial.said)}"><title>{escape(trial.said)}</title>'
        f'{healed}<circle class="cut" r="4.5"/></g></svg>'
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
