"""The trials of a search in words and as points of its plot: what each costs, and how it agrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import figures
from .plot import TrialPoint


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
        found.append(TrialPoint(cost, scores[0] or 0.0, healed, said, bool(trial["chosen"])))
    return found
