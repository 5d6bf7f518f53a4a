"""The rows of a table of costs, written once for the terminal, the page and the model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import figures

Shown = Callable[[Any], str]
PRICE = "usd_per_million"


class CostRow(NamedTuple):
    """One figure of both models.

    Attributes:
        label: What it is.
        teacher: The teacher's, as it is shown.
        student: The student's.
        of: The key of `report_schema.Ratio` that compares the two, if one does.
    """

    label: str
    teacher: str
    student: str
    of: str | None


def _milliseconds(value: Any) -> str:
    return figures.digits(value, " ms")


def _usd(value: Any) -> str:
    return figures.digits(value, " USD")


_Row = tuple[str, str, Shown, str | None]
_SIZES: tuple[_Row, ...] = (
    ("parameters", "parameters", figures.count, "parameters"),
    ("weights on disk", "bytes", figures.size, "bytes"),
    ("latency, p50", "latency_ms_p50", _milliseconds, "latency"),
    ("latency, p95", "latency_ms_p95", _milliseconds, None),
)
_ROWS: tuple[_Row, ...] = (
    ("compute per row", "flops_per_example", figures.flops, "flops"),
    *_SIZES,
    ("throughput", "examples_per_s", lambda value: figures.digits(value, " rows/s"), None),
    ("peak memory", "peak_memory_bytes", figures.size, None),
    ("price of a million rows", PRICE, _usd, None),
)
_ANSWERS: tuple[_Row, ...] = (
    ("compute per answer", "flops_per_example", figures.flops, "flops"),
    ("– of it the prompt (prefill)", "answer.prefill_flops", figures.flops, None),
    ("– of it the answer (decode)", "answer.decode_flops", figures.flops, None),
    ("tokens written per answer", "answer.new_tokens", figures.digits, None),
    ("answers cut at the limit", "answer.unfinished", figures.whole, None),
    ("cache of keys and values", "answer.kv_cache_bytes", figures.size, None),
    *_SIZES,
    ("time to first token, p50", "ttft_ms_p50", _milliseconds, None),
    ("writing speed", "tokens_per_s", lambda value: figures.digits(value, " tokens/s"), None),
    ("throughput", "examples_per_s", lambda value: figures.digits(value, " answers/s"), None),
    ("peak memory", "peak_memory_bytes", figures.size, None),
    ("price of a million answers", PRICE, _usd, None),
)
"""Label, key of `report_schema.Side`, how it is written, and key of `report_schema.Ratio`."""


def unit(cost: Mapping[str, Any]) -> str:
    """What the costs are of: a row, or an answer in text."""
    return "answer" if any(cost[side].get("answer") for side in ("teacher", "student")) else "row"


def cost_rows(cost: Mapping[str, Any]) -> list[CostRow]:
    """The rows of a table of costs: the price is left out where the recipe says none."""
    priced = any(cost[side].get(PRICE) is not None for side in ("teacher", "student"))
    rows = _ANSWERS if unit(cost) == "answer" else _ROWS
    return [
        CostRow(
            label, shown(_figure(cost["teacher"], key)), shown(_figure(cost["student"], key)), of
        )
        for label, key, shown, of in rows
        if key != PRICE or priced
    ]


def _figure(side: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        side = (side or {}).get(part)  # type: ignore[assignment]  # the last one is the figure
    return side
