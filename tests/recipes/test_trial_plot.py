"""Every trial of a search is drawn: quality against cost, as cut and after healing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from paredown.recipes.html import page
from paredown.recipes.report import search_rows

Make = Callable[..., dict[str, Any]]


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


def drawn(report: dict[str, Any]) -> str:
    text = page(report, [])
    start = text.index('aria-labelledby="trials-title')
    assert start < text.index('aria-label="Search"')  # above the table
    return text[start : text.index("<figcaption>", start)]


def test_every_trial_is_drawn_as_cut_and_as_healed(make_report: Make) -> None:
    plot = drawn(make_report(search=search()))
    assert plot.count('<circle class="cut"') == 3
    assert plot.count('<circle class="healed"') == plot.count('<path d="M0 0V-') == 2
    assert plot.count('class="mark trial chosen"') == 1
    said = (
        "2 layers, FFN 96: agreement 0.4100 as cut, 0.7500 after 20 % of the training, at 9.8 % of "
        "the teacher&#x27;s FLOPs, chosen"
    )
    assert f'aria-label="{said}"><title>{said}</title>' in plot
    assert "4 layers, FFN 8: agreement 0.2000 as cut, at 9.0 % of" in plot
    assert "budget 10.0 %</text>" in plot and ">9.5 %</text>" in plot
    places = [float(x) for x in re.findall(r'<svg x="([\d.]+)%"', plot)]
    assert places[-1] == max(places)  # the chosen one, at 9.8 %, is drawn over the others
    line = re.search(r'class="goal" x1="([\d.]+)%"', plot)
    assert line is not None and places[-1] < float(line[1]) < 100


@pytest.mark.parametrize(
    ("kind", "value", "axis", "said"),
    [
        ("latency_ms", 2.0, "Milliseconds a row", "at 1.96 ms a row, chosen"),
        ("usd_per_million", 2.0, "USD a million rows", "at 1.96 USD a million rows"),
        ("bytes", 0.1, "Share of the bytes of the teacher’s weights", "9.8 % of the teacher"),
        ("retain", 0.95, "Share of the teacher’s FLOPs a row", "9.8 % of the teacher"),
    ],
)
def test_cost_is_drawn_in_what_the_budget_bounds(
    kind: str, value: float, axis: str, said: str, make_report: Make
) -> None:
    report = make_report(search=search(kind, value, 20.0 if value == 2.0 else 1.0))
    text = page(report, [])
    assert f"{axis} (log scale)" in text and said in text
    assert ('class="goal"' in drawn(report)) == (kind != "retain")  # quality is no cost
    columns, rows = search_rows(report["search"])
    assert len(rows) == 3 and len(columns) == len(rows[0])
    assert ("1.96 ms" in rows[0]) == (kind == "latency_ms")


def test_a_cost_that_was_not_measured_is_not_drawn(make_report: Make) -> None:
    report = make_report(search=search())
    for one in report["search"]["trials"]:
        one["measured"] = {}
    text = page(report, [])
    assert "trials-title" not in text and 'aria-label="Search"' in text
    report["search"]["trials"] = [trial("<b>one</b>", 0.02, [0.5], "flops", True)]
    assert "&lt;b&gt;one&lt;/b&gt;: agreement" in drawn(report)  # one point has an axis too
