"""Searches as a report has them."""

from __future__ import annotations

from typing import Any


def trial(name: str, cost: float, agreement: list[float], kind: str, chosen: bool) -> Any:
    costs = {"flops": cost, "parameters": cost, "bytes": cost, kind: cost}
    return {
        "name": name,
        "sizes": {"layers": 2},
        "predicted": costs,
        "measured": costs,
        "agreement": agreement,
        "metric": agreement,
        "retention": agreement,
        "interval": None,
        "chosen": chosen,
        "out": None if chosen else "agreement",
    }


def search(kind: str = "flops", value: float = 0.1, scale: float = 1.0) -> dict[str, Any]:
    return {
        "budget": {kind: value},
        "healed": [0.0, 0.08, 0.2],
        "chosen": "2 layers, FFN 96",
        "rows": 2000,
        "trials": [
            trial("2 layers, FFN 96", 0.098 * scale, [0.41, 0.7, 0.75], kind, True),
            trial("3 layers, FFN 64", 0.095 * scale, [0.5, 0.65], kind, False),
            trial("4 layers, FFN 8", 0.09 * scale, [0.2], kind, False),
        ],
    }
