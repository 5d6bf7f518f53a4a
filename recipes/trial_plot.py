"""The trials of a search in words and as a plot: what each costs, and how it agrees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import figures
from .charts import Chart, axis, chart, label, log_axis, plain_text
from .plot import shares, ticks

HEIGHT = 400


@dataclass(frozen=True)
class TrialPoint:
    """One shape that a search tried.

    Attributes:
        cost: What the budget bounds, as measured; above 0.
        cut: Agreement with the teacher before any training.
        healed: After its last round of training; None where it was in none.
        said: All of it in words.
        chosen: Whether the search ended with it.
    """

    cost: float
    cut: float
    healed: float | None
    said: str
    chosen: bool = False


@dataclass(frozen=True)
class CostKind:
    """What the cost of a trial is given in.

    Attributes:
        key: Of a trial's ``predicted`` and ``measured``.
        name: Short, for a table.
        axis: In full, for an axis.
        unit: Behind a figure; empty for shares of the teacher's cost.
    """

    key: str
    name: str
    axis: str
    unit: str = ""

    def shown(self, value: Any) -> str:
        """A figure of this kind."""
        return figures.digits(value, f" {self.unit}") if self.unit else figures.share(value)

    def tick(self, value: float) -> str:
        """A round figure of this kind, with as many digits as it has."""
        return f"{value:.4g} {self.unit}" if self.unit else f"{100 * value:.4g} %"

    def said(self, value: Any) -> str:
        """A figure of this kind in a sentence."""
        text = self.shown(value)
        if self.unit:
            return f"{text} a {'row' if self.key == 'latency_ms' else 'million rows'}"
        return f"{text} of the teacher's {self.name}"


_KINDS = {
    kind.key: kind
    for kind in (
        CostKind("flops", "FLOPs", "Share of the teacher’s FLOPs a row"),
        CostKind("parameters", "parameters", "Share of the teacher’s parameters"),
        CostKind("bytes", "bytes", "Share of the bytes of the teacher’s weights"),
        CostKind("latency_ms", "time", "Milliseconds a row", "ms"),
        CostKind("usd_per_million", "price", "USD a million rows", "USD"),
    )
}


def cost_kind(search: Mapping[str, Any]) -> CostKind:
    """What the budget bounds; FLOPs where it asks for quality instead."""
    return _KINDS.get(next(iter(search["budget"]), ""), _KINDS["flops"])


def bound(search: Mapping[str, Any]) -> tuple[float, str] | None:
    """The most a trial may cost, and that in words; None where the budget asks for quality."""
    kind = cost_kind(search)
    value = figures.number(search["budget"].get(kind.key))
    return None if value is None else (value, f"budget {kind.shown(value)}")


def trial_points(search: Mapping[str, Any]) -> list[TrialPoint]:
    """Every trial whose cost was measured and that was scored."""
    kind, found = cost_kind(search), []
    for trial in search["trials"]:
        cost = figures.number(trial["measured"].get(kind.key))
        scores = [figures.number(score) for score in trial["agreement"]]
        if cost is None or cost <= 0 or not scores or None in scores:
            continue
        said = f"{trial['name']}: agreement {figures.quality(scores[0])} as cut"
        if len(scores) > 1:
            trained = figures.share(search["healed"][len(scores) - 1], 0)
            said += f", {figures.quality(scores[-1])} after {trained} of the training"
        said += f", at {kind.said(cost)}" + (", chosen" if trial["chosen"] else "")
        healed = scores[-1] if len(scores) > 1 else None
        chosen = bool(trial["chosen"])
        found.append(TrialPoint(cost, scores[0] or 0.0, healed, said, chosen))
    return found


def trials_text(search: Mapping[str, Any]) -> str:
    """The plot of a search in words."""
    limit = bound(search)
    said = "; ".join(point.said for point in trial_points(search))
    return f"{said}. The {limit[1]}." if limit else f"{said}."


def trials_chart(search: Mapping[str, Any]) -> Chart | None:
    """Agreement against cost of each trial, as cut and as healed; None without a measured cost."""
    points, limit, kind = trial_points(search), bound(search), cost_kind(search)
    if not points:
        return None
    costs = [point.cost for point in points] + ([limit[0]] if limit else [])
    low, high = min(costs) / 1.06, max(costs) * 1.06
    values = shares(low, high)
    if len(values) < 3:  # trials of one budget cost nearly the same
        values = [value for value in ticks(low, high) if value > 0]
    lines: list[dict[str, Any]] = [
        {"type": "line", "x0": p.cost, "x1": p.cost, "y0": p.cut, "y1": p.healed,
         "layer": "below", "line": {"width": 2 if p.chosen else 1, "color": _colour(p)}}
        for p in points if p.healed is not None
    ]  # fmt: skip
    notes = []
    if limit:
        lines.append(
            {"type": "line", "x0": limit[0], "x1": limit[0], "yref": "paper", "y0": 0, "y1": 1,
             "line": {"dash": "dash", "width": 1.25, "color": "var(--pass)"}}
        )  # fmt: skip
        notes.append(label(limit[1], math.log10(limit[0]), 1, "var(--pass)", right=True))
    return chart(
        [
            _marks([p for p in points if not p.chosen], "as cut", False),
            _marks([p for p in points if not p.chosen], "after its last round", True),
            _marks([p for p in points if p.chosen], "chosen, as cut", False),
            _marks([p for p in points if p.chosen], "chosen", True),
        ],
        height=HEIGHT,
        xaxis=log_axis(f"{kind.axis} (log scale)", low, high, values, kind.tick),
        yaxis=axis(),
        shapes=lines,
        annotations=notes,
    )


def _colour(point: TrialPoint) -> str:
    return "var(--student)" if point.chosen else "var(--baseline)"


def _marks(points: list[TrialPoint], name: str, healed: bool) -> dict[str, Any]:
    """One trace: the points as cut (hollow) or as healed."""
    shown = [point for point in points if not healed or point.healed is not None]
    chosen = any(point.chosen for point in shown)
    colour = "var(--student)" if chosen else "var(--baseline)"
    return {
        "name": name,
        "mode": "markers",
        "x": [point.cost for point in shown],
        "y": [point.healed if healed else point.cut for point in shown],
        "text": [plain_text(point.said, wrap=True) for point in shown],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "size": (13 if chosen else 10) if healed else 9,
            "symbol": "circle" if healed else "circle-open",
            "color": colour,
        },
    }
