"""What of a run can be deployed: the checkpoint and every export, each with its size and speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .figures import number

CHECKPOINT = "pytorch"
"""How the student's own checkpoint is called among the runtimes."""


class Deployable(NamedTuple):
    """One form of the student.

    Attributes:
        runtime: ``pytorch`` for the checkpoint, else the format.
        bytes: Of its weights; None where it was not measured.
        latency_ms: Median milliseconds of one row, one thread; None where it was not measured.
    """

    runtime: str
    bytes: float | None
    latency_ms: float | None


def deployables(report: Mapping[str, Any]) -> list[Deployable]:
    """The checkpoint of a report's student, then its exports."""
    student = report.get("cost", {}).get("student") or {}
    checkpoint = Deployable(
        CHECKPOINT, number(student.get("bytes")), number(student.get("latency_ms_p50"))
    )
    exports = [
        Deployable(
            str(export.get("format")),
            number(export.get("bytes")),
            number(export.get("latency_ms_p50")),
        )
        for export in report.get("exports") or ()
    ]
    return [checkpoint, *exports]


def fastest(report: Mapping[str, Any]) -> Deployable:
    """The export with the lowest median that was timed; the checkpoint where none was."""
    checkpoint, *exports = deployables(report)
    timed = [export for export in exports if export.latency_ms is not None]
    return min(timed, key=lambda export: export.latency_ms or 0.0, default=checkpoint)
