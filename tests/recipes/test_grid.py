"""A grid: values read as overrides are, everything wrong told at once, names that fit a folder."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.eval.errors import RecipeError
from paredown.recipes import cli
from paredown.recipes.api import check
from paredown.recipes.cli_sweep import spread
from paredown.recipes.grid import (
    LONGEST_NAME,
    _names,
    as_text,
    axis_text,
    check_axes,
    check_distinct,
    grid_points,
    parse_grid,
)
from paredown.recipes.resolving import resolve
from paredown.recipes.yaml_source import parse_value

PAGE = (Path(__file__).parents[2] / "docs" / "sweep.md").read_text(encoding="utf-8")
SCALARS = ["1", "-3", "0.25", "3e-4", "task", "null", "true", "no", " 2 ", "1_000", "~"]
WRITTEN = st.sampled_from([*SCALARS, "[0, 5]", "[]", "{a: 1, b: [2]}", "'a, b'", '"x\\ny"'])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@given(st.lists(WRITTEN, min_size=1, max_size=5))
def test_values_are_read_as_those_of_overrides(texts: list[str]) -> None:
    (found,) = parse_grid(["prune.layers=" + ",".join(texts)]).values()
    assert found == [parse_value(text) for text in texts]


@given(st.lists(st.integers() | st.booleans() | st.none() | st.lists(st.integers()), min_size=1))
def test_an_axis_that_is_written_out_is_read_again(values: list[Any]) -> None:
    assert parse_grid([axis_text("a.b", values)]) == {"a.b": values}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["prune.layers"], "not of the form key=value,value"),
        (["=1,2"], "not of the form"),
        (["seed=1,2", "seed=3,4"], "seed is given twice"),
        (["seed=1,2,"], "not YAML"),
        (["seed=1,,2"], "not YAML"),
        (["seed=1]"], "not YAML"),
        (["seed=[1,2"], "not YAML"),
        (["name={a"], "not YAML"),
    ],
)
def test_a_text_that_is_no_axis_is_refused(texts: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_grid(texts)


def test_everything_wrong_with_a_grid_comes_together() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_grid(["prune.layers", "seed=1,,2"])
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("axes", "overrides", "said"),
    [
        ({}, [], "a sweep needs an axis"),
        ({"seed": [1]}, [], "seed has 1 value, and an axis needs two"),
        ({"seed": []}, [], "seed has no values"),
        ({"seed": [1, 2, 1]}, [], "seed=1 stands there twice"),
        ({"prune.layers": [[0, 1], [0, 1]]}, [], r"prune.layers=\[0, 1\] stands there twice"),
        ({"prune": [None, {}], "prune.layers": [1, 2]}, [], "prune.layers is a part of prune"),
        ({"prune.layers": [1, 2]}, ["prune.layers=3"], "override prune.layers=3 has no effect"),
        ({"prune": [None, {}]}, ["prune.layers=3"], "override prune.layers=3 has no effect"),
        ({"seed": [1, Path()]}, [], "expected a value that a recipe can hold"),
    ],
)
def test_an_axis_without_effect_is_refused(
    axes: dict[str, list[Any]], overrides: list[str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        check_axes(axes, overrides)


def test_true_and_one_are_two_values() -> None:
    check_axes({"symmetric": [True, 1]}, ["symmetrical=1"])  # what a key may hold, the schema says


def test_the_points_are_the_cross_product_in_order() -> None:
    axes = {"prune.layers": [1, [0, 5]], "prune.intermediate_size": [64, 128]}
    points = grid_points("search_query", axes, ["seed=4"])
    assert [point.name for point in points] == [
        "layers-1_intermediate_size-64",
        "layers-1_intermediate_size-128",
        "layers-0+5_intermediate_size-64",
        "layers-0+5_intermediate_size-128",
    ]
    assert points[3].values == {"prune.layers": [0, 5], "prune.intermediate_size": 128}
    prune = points[3].recipe.prune
    assert prune is not None and (prune.layers, prune.intermediate_size) == ([0, 5], 128)
    assert all(point.recipe.seed == 4 for point in points)


def test_a_budget_frees_the_sizes_of_the_file() -> None:
    for point in grid_points("query_intent", {"budget.flops": [0.05, 0.1]}):
        assert point.recipe.prune is not None and point.recipe.prune.sizes == {}
        assert point.recipe.budget is not None
        assert point.recipe.budget.flops == point.values["budget.flops"]


def test_unknown_keys_and_wrong_values_of_all_points_come_together() -> None:
    axes = {"prune.layerz": [1, 2], "prune.intermediate_size": [64, -1]}
    with pytest.raises(RecipeError) as caught:
        grid_points("search_query", axes)
    head, *lines = str(caught.value).splitlines()
    assert head == "4 of the grid's 4 points are no recipes:"
    assert sum("Did you mean 'layers'" in line for line in lines) == 2
    assert sum("prune.intermediate_size" in line for line in lines) == 1
    with pytest.raises(RecipeError, match=r"^Unknown recipe"):
        grid_points("serch_query", {"seed": [1, 2]})


@pytest.mark.parametrize(("key", "values"), [("target.retain", [0.9, 0.95]), ("name", ["a", "b"])])
def test_an_axis_that_changes_no_student_is_refused(key: str, values: list[Any]) -> None:
    points = grid_points("search_query", {key: values})
    with pytest.raises(RecipeError, match=f"{key} without effect"):
        check_distinct(points)


def test_a_default_written_out_is_no_other_point() -> None:
    axes = {"distill.texts": [None, ["queries", "collection"]]}
    points = [replace(p, recipe=resolve(p.recipe)) for p in grid_points("search_query", axes)]
    with pytest.raises(RecipeError, match=r"distill\.texts without effect"):
        check_distinct(points)


@settings(max_examples=30, deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=6, unique_by=lambda v: json.dumps(v)))
def test_names_fit_every_file_system(values: list[Any]) -> None:
    names = _names([{"distill.arguments": value} for value in values])
    assert len({name.lower() for name in names}) == len(values)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name) and len(name) <= LONGEST_NAME


def test_equal_last_parts_are_told_apart_by_their_sections() -> None:
    (name, *_) = _names([{"capture.precision": "fp32", "distill.precision": "bf16"}])
    assert name == "capture.precision-fp32_distill.precision-bf16"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["r", "--grid", "a=1", "b=2"], ["r", "--grid", "a=1", "--grid", "b=2"]),
        (["--grid", "a=1", "--out", "x", "seed=1"], ["--grid", "a=1", "--out", "x", "seed=1"]),
        (["--grid", "a=1", "-h"], ["--grid", "a=1", "-h"]),
        (["r", "--grid"], ["r", "--grid"]),
        (["r", "--grid", "--smoke"], ["r", "--smoke"]),
        ([], []),
    ],
)
def test_the_grid_takes_every_word_up_to_the_next_option(
    words: list[str], found: list[str]
) -> None:
    assert spread(words) == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search_query"], "a sweep needs an axis"),
        (["search_query", "--grid"], "grid"),
        (["search_query", "--grid", "prune.layerz=1,2"], "Did you mean 'layers'"),
        (["search_query", "--grid", "seed=1,2", "--processes", "0"], "--processes: expected 1"),
        (
            ["search_query", "--grid", "budget.latency_ms=1,2", "--processes", "2"],
            "a busy machine tells none",
        ),
        (
            ["search_query", "budget.processes=2", "--grid", "budget.flops=0.1,0.2"],
            "budget.processes 2: the points of a sweep",
        ),
    ],
)
def test_a_wrong_sweep_exits_with_2_and_runs_nothing(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_sweeps_of_the_page_are_sweeps() -> None:
    block = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)[0]
    lines = [line.split("  #")[0] for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        words = spread(shlex.split(line)[2:])
        grid = [word for before, word in pairwise(words) if before == "--grid"]
        overrides = [w for w in words[1:] if "=" in w and w not in grid]
        axes = parse_grid(grid)
        check_axes(axes, overrides)
        points = grid_points(words[0], axes, overrides)
        assert all(check(point.recipe) for point in points)
        assert len(points) >= 2


def test_a_value_is_written_as_an_override_reads_it() -> None:
    text = as_text("data.columns", {"text": ["a", "ü, b"]})
    assert parse_value(text.partition("=")[2]) == {"text": ["a", "ü, b"]}
