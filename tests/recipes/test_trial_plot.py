"""Every trial of a search is drawn: quality against cost, as cut and after healing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from paredown.recipes.html import page
from paredown.recipes.report import search_rows
from paredown.recipes.trial_plot import trials_chart, trials_text

from .report_searches import search, trial
from .test_html import charts_of

Make = Callable[..., dict[str, Any]]


def trace(chart: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in chart["data"] if one["name"] == name]
    return dict(found)


def test_every_trial_is_drawn_as_cut_and_as_healed(make_report: Make) -> None:
    text = page(make_report(search=search()), [])
    assert text.index('data-chart="trials"') < text.index('aria-label="Search"')
    chart = charts_of(text)["trials"]
    assert trace(chart, "as cut")["y"] == [0.5, 0.2]
    assert trace(chart, "after its last round")["y"] == [0.65]
    assert trace(chart, "chosen, as cut")["y"] == [0.41]
    chosen = trace(chart, "chosen")
    assert (chosen["x"], chosen["y"]) == ([0.098], [0.75])
    assert chart["data"][-1]["name"] == "chosen"  # drawn over the others
    said = (
        "2 layers, FFN 96: agreement 0.4100 as cut, 0.7500 after 20 % of the training, at 9.8 % of "
        "the teacher's FLOPs, chosen"
    )
    assert said in trials_text(search())
    assert chosen["text"][0].replace("<br>", " ") == said
    healed = [one for one in chart["layout"]["shapes"] if one.get("layer") == "below"]
    assert [(line["y0"], line["y1"]) for line in healed] == [(0.41, 0.75), (0.5, 0.65)]
    goal = chart["layout"]["shapes"][-1]
    assert goal["x0"] == goal["x1"] == 0.1
    assert chart["layout"]["annotations"][0]["text"] == "budget 10.0 %"
    low, high = (10**end for end in chart["layout"]["xaxis"]["range"])
    assert low < 0.09 < 0.1 < high
    assert "9.5 %" in chart["layout"]["xaxis"]["ticktext"]


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
    assert said in text
    layout = charts_of(text)["trials"]["layout"]
    assert layout["xaxis"]["title"]["text"] == f"{axis} (log scale)"
    assert bool(layout["annotations"]) == (kind != "retain")  # quality is no cost
    columns, rows = search_rows(report["search"])
    assert len(rows) == 3 and len(columns) == len(rows[0])
    assert ("1.96 ms" in rows[0]) == (kind == "latency_ms")


def test_a_cost_that_was_not_measured_is_not_drawn(make_report: Make) -> None:
    report = make_report(search=search())
    for one in report["search"]["trials"]:
        one["measured"] = {}
    text = page(report, [])
    assert "trials" not in charts_of(text) and 'aria-label="Search"' in text
    report["search"]["trials"] = [trial("<b>one</b>", 0.02, [0.5], "flops", True)]
    chart = trials_chart(report["search"])
    assert chart is not None  # one point has an axis too
    assert chart["data"][0]["text"][0].startswith("&lt;b&gt;one&lt;/b&gt;: agreement")
