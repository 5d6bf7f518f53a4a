"""The front of a sweep, and its page: plain data, no script, nothing that is not escaped."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from paredown.recipes.api import check
from paredown.recipes.grid import Point, grid_points
from paredown.recipes.stage_score import Score
from paredown.recipes.sweep_page import page, print_sweep
from paredown.recipes.sweep_points import Made, pareto, sweep_content

FIGURE = st.none() | st.floats(0, 10, allow_nan=False).map(lambda value: round(value, 1))


@given(st.lists(st.tuples(FIGURE, FIGURE), max_size=12))
def test_a_point_is_on_the_front_if_none_beats_it(pairs: list[Any]) -> None:
    def beaten(cost: float, quality: float) -> bool:
        return any(
            c is not None
            and q is not None
            and c <= cost
            and q >= quality
            and (c < cost or q > quality)
            for c, q in pairs
        )

    expected = [
        index
        for index, (cost, quality) in enumerate(pairs)
        if cost is not None and quality is not None and not beaten(cost, quality)
    ]
    assert pareto(pairs) == expected


def report(kept: float, flops: float, latency: float | None = 2.0) -> dict[str, Any]:
    exports = [{"format": "onnx", "bytes": 2e6, "flip_rate": 0.0, "latency_ms_p50": latency}]
    return {
        "verdict": "pass",
        "quality": {
            "teacher": 0.8,
            "student": 0.8 * kept,
            "retention": kept,
            "retention_ci95": [kept - 0.01, kept + 0.01],
            "examples": 1234,
        },
        "cost": {
            "ratio": {"flops": flops},
            "student": {"flops_per_example": 1e9 * flops, "parameters": 10, "bytes": 3e6},
        },
        "exports": exports,
        "environment": {"processor": "A <b>processor</b>", "cores": 2},
    }


def score(metric: float, flops: float) -> Score:
    return Score(np.asarray([0.5, 1.0]), metric, 0.8, flops, 1, 1, (0.9, 1.0))


def points(values: list[Any], key: str = "prune.layers") -> list[Point]:
    return grid_points("search_query", {key: values})


@pytest.fixture
def sweep() -> dict[str, Any]:
    """Three points, one of which failed with an error that means harm."""
    found = points([1, 2, 3])
    made = {
        found[0].name: Made(None, score(0.6, 1e6), report(0.9, 0.1), "a"),
        found[1].name: Made(None, score(0.7, 2e6), report(0.89, 0.2, 3.0), "b"),
        found[2].name: Made("<script>alert(1)</script> \x1b[31m\u202e"),
    }
    axes = {"prune.layers": [1, 2, 3]}
    return sweep_content(found, made, axes, command="paredown sweep <x>", smoke=False)


def test_a_sweep_is_plain_data_with_stable_keys(sweep: dict[str, Any]) -> None:
    assert json.loads(json.dumps(sweep, allow_nan=False)) == sweep
    assert list(sweep) == [
        "schema", "name", "task", "command", "smoke", "metric", "teacher", "examples", "axes",
        "points", "failed", "same", "environment",
    ]  # fmt: skip
    first, second, failed = sweep["points"]
    assert list(first) == [
        "name", "values", "error", "student", "retention", "retention_ci95", "flops_ratio",
        "flops_per_example", "parameters", "bytes", "latency_ms", "runtime",
        "validation_retention", "validation_ci95", "validation_agreement", "validation_flops",
        "verdict", "fronts",
    ]  # fmt: skip
    assert first["fronts"] == ["flops", "latency", "validation"]
    assert second["fronts"] == ["validation"]  # dearer and worse on test rows, better on validation
    assert (first["runtime"], first["latency_ms"], first["bytes"]) == ("onnx", 2.0, 2e6)
    assert first["validation_agreement"] == 0.75
    assert failed["error"] and failed["fronts"] == [] and failed["retention"] is None
    assert sweep["failed"] == 1 and sweep["examples"] == 1234 and sweep["same"] == []


def test_the_page_draws_every_front_and_needs_nothing(sweep: dict[str, Any]) -> None:
    text = page(sweep)
    assert text.count('<svg class="plot"') == 3
    assert not re.search(r"<script|<img|<link|src=|url\(|@import|http(?!-equiv)", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "\x1b" not in text
    assert "\u202e" not in text and "A &lt;b&gt;processor&lt;/b&gt;" in text
    assert "judge it on fresh rows" in text
    assert len(set(re.findall(r'id="([^"]+)"', text))) == len(re.findall(r'id="([^"]+)"', text))
    drawn = re.findall(r'aria-label="(\d), layers-\d: [^"]+"', text)
    assert sorted(drawn) == ["1"] * 3 + ["2"] * 3


def test_figures_that_were_not_measured_are_drawn_nowhere() -> None:
    found = points([1, 2])
    bare = report(0.9, 0.1, None)
    bare["quality"] |= {"retention": None, "retention_ci95": None}
    made = {point.name: Made(None, None, bare, point.name) for point in found}
    sweep = sweep_content(found, made, {"prune.layers": [1, 2]}, command="", smoke=False)
    text = page(sweep)
    assert "<svg" not in text and "not measured" in text
    assert "no score on validation rows" in text
    everything = {point.name: Made("no") for point in found}
    none = sweep_content(found, everything, {"prune.layers": [1, 2]}, command="", smoke=False)
    assert none["failed"] == 2 and none["teacher"] is None and "Failed" in page(none)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(1e-6, 1.0), st.floats(1e-3, 1e4)), min_size=1)
)
def test_any_figures_are_drawn_within_the_page(figures: list[tuple[float, float, float]]) -> None:
    recipe = check("search_query")
    found = [Point(f"seed-{i}", {"seed": i}, recipe) for i in range(len(figures))]
    made = {
        point.name: Made(None, score(kept, 1e9 * flops), report(kept, flops, latency), point.name)
        for point, (kept, flops, latency) in zip(found, figures, strict=True)
    }
    axes = {"seed": list(range(len(found)))}
    text = page(sweep_content(found, made, axes, command="", smoke=False))
    for x in re.findall(r'<svg x="([0-9.-]+)%"', text):
        assert 0 <= float(x) <= 100
    assert not re.search(r"\b(nan|inf)\b", text)


def test_points_with_one_student_are_told_unless_only_the_export_differs() -> None:
    axes = {"prune.intermediate_size": [250, 252]}
    found = points([250, 252], "prune.intermediate_size")
    made = {point.name: Made(None, None, report(0.9, 0.1), "same") for point in found}
    (said,) = sweep_content(found, made, axes, command="", smoke=False)["same"]
    assert "intermediate_size-250 and intermediate_size-252 are the same student" in said
    assert not sweep_content(found, made, axes, command="", smoke=True)["same"]
    exports = {"export": [["onnx"], ["onnx", "onnx-int8"]]}
    found = points(exports["export"], "export")
    made = {point.name: Made(None, None, report(0.9, 0.1), "same") for point in found}
    assert not sweep_content(found, made, exports, command="", smoke=False)["same"]


def test_the_terminal_shows_what_the_page_does(sweep: dict[str, Any]) -> None:
    console = Console(width=200, record=True, quiet=False, file=None, highlight=False)
    with console.capture() as caught:
        print_sweep(sweep, console)
    shown = caught.get()
    assert "layers-1" in shown and "90.0 %" in shown and "flops, latency, validation" in shown
    assert "Failed: layers-3" in shown and "\x1b[31m" not in shown
    assert "judge it on fresh rows" in shown.replace("\n", " ")
