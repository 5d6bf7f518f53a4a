"""What a run itself cost, stage by stage, and how many queries pay for it.

A stage that was taken from an earlier run counts with what it took when it was made: without it
there would be no student. Figures are those of the stages' own records (``stage.json``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import figures

if TYPE_CHECKING:
    from .report_schema import Ledger, Spent
    from .schema import Recipe
    from .store import Folder

KEPT = (
    "seconds",
    "cores",
    "world_size",
    "flops",
    "energy_joules",
    "energy_source",
    "endpoint",
)
"""What of a stage's record the ledger reads."""
ASKED = "evaluate-teacher"
"""The stage in which an endpoint answers the test rows."""


def spent_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a stage's record that the ledger reads."""
    return {key: record[key] for key in KEPT if key in record}


def ledger_of(
    recipe: Recipe,
    folders: Mapping[str, Folder],
    trials: Sequence[Mapping[str, Any]],
    measurements: Sequence[Mapping[str, Any]],
    *,
    smoke: bool = False,
) -> Ledger:
    """Adds up what a run cost.

    Args:
        recipe: With the price of a core, and of an endpoint's tokens.
        folders: The run's stages by name.
        trials: The records (`spent_record`) of what a search made beside them.
        measurements: The timings, with prices.
        smoke: Whether the run's figures mean nothing.
    """
    price = recipe.evaluate.usd_per_hour
    stages = [_spent(name, [folder.record], price) for name, folder in folders.items()]
    records = [folder.record for folder in folders.values()]
    if trials:
        stages.append(_spent(f"search ({len(trials)} stages)", trials, price))
    total = _sum("total", stages)
    charged = _endpoint(recipe, records)
    teacher = _asked(recipe, folders)
    if teacher is None:
        teacher = _cheapest(measurements, "teacher")
    student = _cheapest(measurements, "student")
    count, reason = break_even(
        total["usd"], teacher, student, priced=price is not None, smoke=smoke
    )
    sources = {record.get("energy_source") for record in [*records, *trials]} - {None}
    return {
        "stages": stages,
        "total": total,
        "energy_source": "; ".join(sorted(map(str, sources))) or None,
        "endpoint_usd": charged,
        "teacher": teacher,
        "student": student,
        "break_even": count,
        "reason": reason,
    }


def break_even(
    total: float | None,
    teacher: float | None,
    student: float | None,
    *,
    priced: bool = True,
    smoke: bool = False,
) -> tuple[int | None, str]:
    """After how many queries the difference in price has paid for the run.

    Args:
        total: What the run cost, in US dollars.
        teacher: Price of a query.
        student: Price of a query.
        priced: Whether the recipe says what a core costs.
        smoke: Whether the figures mean nothing.

    Returns:
        The number of queries and an empty text; or None, and why there is none.

    Examples:
        >>> break_even(1.0, 3e-6, 1e-6)
        (500000, '')
    """
    if smoke:
        return None, "A smoke run's figures mean nothing."
    if not priced:
        return None, "No price is given: set evaluate.usd_per_hour, what an hour of a core costs."
    if student is None:
        return None, "How many rows a second the student answers was not measured."
    if teacher is None:
        return None, "What a query costs the teacher was neither measured here nor charged."
    if total is None:
        return None, "What some stages took is not known: an earlier version made them."
    if teacher <= student:
        prices = [figures.digits(1e6 * usd, " USD") for usd in (student, teacher)]
        return None, (
            f"The student saves nothing: a million queries cost it {prices[0]}, and the teacher "
            f"{prices[1]}."
        )
    count = total / (teacher - student)
    whole = round(count)  # not one query more for the last digit of a division
    return whole if math.isclose(count, whole, rel_tol=1e-9) else math.ceil(count), ""


def _spent(name: str, records: Sequence[Mapping[str, Any]], price: float | None) -> Spent:
    """One line: a stage, or several as one."""
    parts = [_one(name, record, price) for record in records]
    return parts[0] if len(parts) == 1 else _sum(name, parts)


def _one(name: str, record: Mapping[str, Any], price: float | None) -> Spent:
    usd, cores = None, record.get("cores")
    if price is not None and cores is not None:
        hours = record["seconds"] / 3600 * cores * record.get("world_size", 1)
        usd = hours * price + (record.get("endpoint") or {}).get("usd", 0.0)
    return {
        "name": name,
        "seconds": record["seconds"],
        "flops": record.get("flops"),
        "energy_joules": record.get("energy_joules"),
        "usd": usd,
    }


def _sum(name: str, parts: Sequence[Spent]) -> Spent:
    """What all parts took: null where one is not known, but for FLOPs, which only some have."""
    flops = [part["flops"] for part in parts if part["flops"] is not None]
    return {
        "name": name,
        "seconds": _whole([part["seconds"] for part in parts]),
        "flops": float(sum(flops)) if flops else None,
        "energy_joules": _whole([part["energy_joules"] for part in parts]),
        "usd": _whole([part["usd"] for part in parts]),
    }


def _whole(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known)) if len(known) == len(values) else None


def _charges(recipe: Recipe) -> bool:
    """Whether the recipe says what an endpoint charges: without prices its 0 means nothing."""
    endpoint = recipe.teacher.endpoint
    return endpoint is not None and any(
        usd is not None for usd in (endpoint.usd_per_million_input, endpoint.usd_per_million_output)
    )


def _endpoint(recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> float | None:
    """What an endpoint charged for all that was asked."""
    asked = [record["endpoint"]["usd"] for record in records if record.get("endpoint")]
    return float(sum(asked)) if asked and _charges(recipe) else None


def _asked(recipe: Recipe, folders: Mapping[str, Folder]) -> float | None:
    """What an endpoint charged for a test row."""
    summary = folders[ASKED].record.get("endpoint") if ASKED in folders else None
    if not summary or not summary["recorded"] or not _charges(recipe):
        return None
    return float(summary["usd"] / summary["recorded"])


def _cheapest(measurements: Sequence[Mapping[str, Any]], side: str) -> float | None:
    """The price of a query on the cheapest measured runtime of a side."""
    prices = [
        entry["usd_per_million"] / 1e6
        for entry in measurements
        if entry["side"] == side and entry.get("usd_per_million") is not None
    ]
    return min(prices, default=None)


def ledger_lines(ledger: Mapping[str, Any] | None) -> list[str]:
    """What a run cost and when it has paid, in sentences; none without a ledger."""
    if not ledger:
        return []
    total = ledger["total"]
    parts = [f"{figures.seconds(total['seconds'])} in {len(ledger['stages'])} stages"]
    if figures.number(total["flops"]) is not None:
        parts.append(f"{figures.flops(total['flops'])} of recording and training")
    parts.append(f"energy {figures.energy(total['energy_joules'])}")
    if figures.number(total["usd"]) is not None:
        parts.append(figures.digits(total["usd"], " USD"))
    if figures.number(ledger["endpoint_usd"]) is not None:
        parts.append(f"the endpoint's charges {figures.digits(ledger['endpoint_usd'], ' USD')}")
    lines = [f"Spent on this run: {', '.join(parts)}."]
    if figures.number(ledger["break_even"]) is None:
        return [*lines, f"When it has paid for itself: {ledger['reason']}"]
    prices = [figures.digits(1e6 * ledger[side], " USD") for side in ("teacher", "student")]
    return [
        *lines,
        f"Paid for after {figures.whole(ledger['break_even'])} queries (a million cost the teacher "
        f"{prices[0]} and the student {prices[1]}).",
    ]
