"""What stands beside a run's timings: bytes, and the circumstances in which they were taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..eval.cost import artefact_bytes
from . import figures

BUSY = 0.2
"""Share of the processors beyond which a machine does not count as idle."""


def with_bytes(
    measurements: Sequence[dict[str, Any]], folders: Sequence[Path]
) -> list[dict[str, Any]]:
    """Adds to each timing the bytes of what was timed.

    Args:
        measurements: In every scenario, one of each engine, in the engines' order.
        folders: What each engine has loaded.
    """
    sizes = [artefact_bytes(folder) for folder in folders]
    return [
        entry | {"bytes": sizes[number % len(sizes)]} for number, entry in enumerate(measurements)
    ]


def timing_notes(measurements: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on a machine that was not idle, and on bounds that no rate met."""
    return [*_busy(measurements), *_unmet(measurements)]


def _busy(measurements: Sequence[Mapping[str, Any]]) -> list[str]:
    before = max((entry.get("busy_before") or 0.0 for entry in measurements), default=0.0)
    during = max((entry.get("busy_during") or 0.0 for entry in measurements), default=0.0)
    said = [f"{before:.0%} of its processors in use before"] if before > BUSY else []
    said += [f"{during:.0%} used by others meanwhile"] if during > BUSY else []
    if not said:
        return []
    return [
        f"The machine was not idle when latency was measured ({', '.join(said)}): times are longer "
        "than they need be, and do not repeat."
    ]


def _unmet(measurements: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"No rate of arrivals was found at which 99 % of rows are answered within "
        f"{figures.digits(entry['bound_ms'], ' ms')} by the {entry['side']} on {entry['runtime']} "
        f"{entry['precision']}."
        for entry in measurements
        if entry.get("rate_per_s") == 0
    ]
