"""What a report says of cost, as rows of tables: both models, every timing, the run's ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from . import figures
from .cost_rows import cost_rows, unit
from .page import unbroken

RUNTIMES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO",
            "executorch": "ExecuTorch"}  # fmt: skip

Shown = Callable[[Any], str]


class Timings(NamedTuple):
    """The timings of one scenario as a table.

    Attributes:
        scenario: Its key in report.json.
        title: In words.
        columns: Heads; the first two are of text.
        rows: Cells.
    """

    scenario: str
    title: str
    columns: list[str]
    rows: list[list[str]]


def tiles(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The four figures that most readers came for."""
    quality, cost = report["quality"], report["cost"]
    teacher, student, ratio = cost["teacher"], cost["student"], cost["ratio"]
    metric, of = figures.metric_name(quality["metric"]), unit(cost)
    each = "an answer" if of == "answer" else "a row"

    def tile(name: str, value: str, note: str, missing: bool) -> dict[str, str]:
        if missing:
            return {"name": name, "value": figures.NOT_MEASURED, "note": ""}
        return {"name": name, "value": unbroken(value), "note": unbroken(note)}

    def change(key: str, shown: Any) -> str:
        return f"{shown(student[key])}, teacher {shown(teacher[key])}"

    def ms(value: Any) -> str:
        return figures.digits(value, " ms")

    return [
        tile(
            "Quality kept",
            figures.share(quality["retention"]),
            f"{metric} {figures.quality(quality['student'])}, "
            f"teacher {figures.quality(quality['teacher'])}",
            quality["retention"] is None,
        ),
        tile(
            "Compute",
            figures.times(ratio["flops"], "more", "less"),
            change("flops_per_example", figures.flops) + f" {each}",
            ratio["flops"] is None,
        ),
        tile(
            "Speed",
            figures.times(ratio["latency"], "slower", "faster"),
            change("latency_ms_p50", ms) + f" {each}",
            ratio["latency"] is None,
        ),
        tile(
            "Size",
            figures.times(ratio["bytes"], "larger", "smaller"),
            change("bytes", figures.size),
            ratio["bytes"] is None,
        ),
    ]


def both_models(cost: Mapping[str, Any]) -> list[list[str]]:
    """Teacher, student, ratio and change of each figure."""
    words = {"latency": ("slower", "faster"), "bytes": ("larger", "smaller")}
    rows = []
    for label, teacher, student, of in cost_rows(cost):
        row = [label, teacher, student]
        ratio = cost["ratio"].get(of) if of else None
        if of:
            row += [figures.share(ratio), figures.times(ratio, *words.get(of, ("more", "less")))]
        rows.append(row if of else [*row, "", ""])
    return rows


def _first_token(entry: Mapping[str, Any]) -> Any:
    return (entry.get("ttft") or {}).get("p50")


_TITLES = {
    "single_stream": "One {} after the other (SingleStream)",
    "offline": "In batches (Offline)",
    "server": "Arriving at random (Server)",
}
_TIMES = (("p50, ms", "p50"), ("p90", "p90"), ("p95", "p95"), ("p99", "p99"))
_SPEED = (("{}s/s", "examples_per_s"), ("Tokens/s", "tokens_per_s"))
_SHOWN: dict[str, tuple[tuple[str, str], ...]] = {
    "single_stream": (*_TIMES, ("Model alone", "model_p50"), ("First token", "ttft"), *_SPEED),
    "offline": (*_SPEED, ("A million {}s", "usd_per_million")),
    "server": (("{}s/s at most", "rate_per_s"), ("with p99 within, ms", "bound_ms"), *_TIMES),
}
_ALWAYS = {"p50", "p90", "p95", "p99", "examples_per_s", "rate_per_s", "bound_ms", "model_p50"}
"""Columns that are there though nothing was measured; others are left out."""
_BESIDE = (("Memory", "peak_memory_bytes"), ("Cold start, s", "cold_start_s"),
           ("Energy a {}", "energy_joules"))  # fmt: skip
_WRITTEN: dict[str, Shown] = {
    "peak_memory_bytes": figures.size,
    "energy_joules": figures.energy,
    "usd_per_million": figures.usd,
}


def timings(measurements: Sequence[Mapping[str, Any]], of: str) -> list[Timings]:
    """Every timing, one table a scenario; columns in which nothing was measured are left out.

    Args:
        measurements: Of the report.
        of: ``row`` or ``answer``.
    """
    names = dict.fromkeys(str(entry.get("scenario", "")) for entry in measurements)
    known = [name for name in _TITLES if name in names]
    found = []
    for name in [*known, *(name for name in names if name not in _TITLES)]:
        entries = [
            {**entry, "ttft": _first_token(entry)}
            for entry in measurements
            if str(entry.get("scenario", "")) == name
        ]
        every = (*_SHOWN.get(name, _SHOWN["single_stream"]), *_BESIDE)
        used = [(head.format(of).capitalize() if head.startswith("{}") else head.format(of), key)
                for head, key in every
                if key in _ALWAYS or any(e.get(key) is not None for e in entries)]  # fmt: skip
        rows = [
            [
                str(entry.get("side", "")),
                f"{RUNTIMES.get(entry.get('runtime', ''), entry.get('runtime', ''))} "
                f"{entry.get('precision', '')}",
                str(entry.get("threads", "")),
                str(entry.get("batch", "")),
                *(_WRITTEN.get(key, figures.digits)(entry.get(key)) for _, key in used),
            ]
            for entry in entries
        ]
        columns = ["Model", "Runtime", "Threads", "Batch", *(head for head, _ in used)]
        found.append(Timings(name, _TITLES.get(name, name).format(of), columns, rows))
    return found


def energy_line(measurements: Sequence[Mapping[str, Any]]) -> str:
    """Where energy was read, or that it was not."""
    read = [m for m in measurements if m.get("energy_joules") is not None]
    sources = sorted({str(m["energy_source"]) for m in read if m.get("energy_source")})
    if read:
        return f"Energy was read from counters ({', '.join(sources) or 'not named'})."
    return "Energy was not measured: no counter was read, and it is not guessed from a wattage."


def ledger_rows(ledger: Mapping[str, Any]) -> list[list[str]]:
    """What each stage took, and the total."""
    spent = [*ledger["stages"], {**(ledger.get("total") or {}), "name": "in all"}]
    return [
        [
            str(entry["name"]),
            figures.seconds(entry.get("seconds")),
            figures.flops(entry.get("flops")),
            figures.energy(entry.get("energy_joules")),
            figures.usd(entry.get("usd")),
        ]
        for entry in spent
    ]


def ledger_lines(ledger: Mapping[str, Any], of: str) -> list[str]:
    """Prices and the break-even, in sentences."""
    lines = []
    even = figures.number(ledger.get("break_even"))
    if even is not None:
        lines.append(
            f"The student has paid for the run after {figures.whole(even)} queries: from then on "
            "every query saves."
        )
    elif ledger.get("reason"):
        lines.append(f"No break-even: {ledger['reason']}")
    teacher, student = (figures.number(ledger.get(side)) for side in ("teacher", "student"))
    if teacher is not None and student is not None:
        lines.append(
            f"The price of a million queries, on the cheapest runtime that was measured: teacher "
            f"{figures.usd(1e6 * teacher)}, student {figures.usd(1e6 * student)}."
        )
    if figures.number(ledger.get("endpoint_usd")) is not None:
        lines.append(f"Endpoints charged {figures.usd(ledger['endpoint_usd'])} of the total.")
    return lines


def stage_rows(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Time, memory and fingerprint of each stage."""
    longest = max([figures.number(stage.get("seconds")) or 0.0 for stage in stages], default=0.0)
    rows = []
    for stage in stages:
        taken = figures.number(stage.get("seconds"))
        rows.append(
            {
                "name": stage["name"],
                "seconds": taken,
                "share": taken / longest if taken is not None and longest else 0.0,
                "cached": bool(stage.get("cached")),
                "peak": stage.get("peak_memory_bytes"),
                "processes": stage.get("world_size"),
                "fingerprint": str(stage.get("fingerprint", ""))[:12],
            }
        )
    return rows
