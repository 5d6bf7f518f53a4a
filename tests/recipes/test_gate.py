"""A gate compares the lower end of the interval, and says what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.errors import RecipeError, RunError
from paredown.recipes.gate import gate, outcome_of, read_report
from paredown.recipes.report_schema import SCHEMA

REPORT: dict[str, Any] = {
    "schema": SCHEMA,
    "smoke": False,
    "verdict": "pass",
    "reasons": ["kept"],
    "quality": {"retention": 0.97, "retention_ci95": [0.955, 0.985], "examples": 2000},
    "cost": {"ratio": {"flops": 0.19}},
}

Write = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Write:
    def write(**changes: Any) -> Path:
        (tmp_path / "report.json").write_text(json.dumps({**REPORT, **changes}), encoding="utf-8")
        return tmp_path

    return write


def test_criteria_that_are_met(run: Write) -> None:
    criteria = gate(run(), retain=0.95, compute=0.2)
    assert [(c.name, c.met) for c in criteria] == [("retain", True), ("compute", True)]
    assert "0.9550 is the lower end of the 95 % interval" in criteria[0].text
    assert "0.1900 of the teacher's FLOPs" in criteria[1].text


@pytest.mark.parametrize(
    ("low", "flops", "met"),
    [(0.95, 0.2, [True, True]), (0.9499, 0.2, [False, True]), (0.95, 0.2001, [True, False])],
)
def test_the_limits_themselves_are_met(
    run: Write, low: float, flops: float, met: list[bool]
) -> None:
    quality = {**REPORT["quality"], "retention_ci95": [low, 0.99]}
    folder = run(quality=quality, cost={"ratio": {"flops": flops}})
    assert [c.met for c in gate(folder, retain=0.95, compute=0.2)] == met


def test_one_criterion_is_enough_and_the_report_file_can_be_named(run: Write) -> None:
    (criterion,) = gate(run() / "report.json", compute=0.1)
    assert not criterion.met


def test_too_few_rows_to_tell_says_how_many_would_do(run: Write) -> None:
    (criterion,) = gate(run(), retain=0.96)
    assert not criterion.met
    # the interval reaches 0.015 below the figure, and 0.01 would do: (0.015 / 0.01)² times 2000
    assert ": undecided, 0.9550 is the lower end" in criterion.text
    assert "about 4500 test rows would settle it" in criterion.text


def test_an_interval_that_reaches_the_limit_is_undecided_as_in_the_verdict(run: Write) -> None:
    """The figure is 0.97, between 0.955 and 0.985."""
    (inside,), (above,) = gate(run(), retain=0.98), gate(run(), retain=0.99)
    assert not inside.met and ": undecided, " in inside.text and "would settle" not in inside.text
    assert not above.met and ": not met, " in above.text


def test_a_ratio_just_above_the_limit_shows_that_it_is(run: Write) -> None:
    (criterion,) = gate(run(cost={"ratio": {"flops": 0.19002}}), compute=0.19)
    assert not criterion.met
    assert "not met, 0.190020 of the teacher's FLOPs" in criterion.text


def test_a_figure_on_the_limit_cannot_be_settled(run: Write) -> None:
    (criterion,) = gate(run(), retain=0.97)
    assert "no number of rows may settle it" in criterion.text


def test_a_gate_without_criteria_is_refused(run: Write) -> None:
    with pytest.raises(RecipeError, match="needs a criterion"):
        gate(run())


@pytest.mark.parametrize("limit", [0, -1, 1.5, 95, float("nan")])
def test_a_criterion_is_a_share(run: Write, limit: float) -> None:
    with pytest.raises(RecipeError, match="--retain is a share"):
        gate(run(), retain=limit)


def test_a_smoke_run_is_not_judged(run: Write) -> None:
    with pytest.raises(RecipeError, match="smoke run"):
        gate(run(smoke=True), retain=0.95)


@pytest.mark.parametrize(
    "changes",
    [
        {"quality": {"retention": None, "retention_ci95": None, "examples": 0}},
        {"quality": {}},
        {"quality": {**REPORT["quality"], "retention_ci95": []}},
    ],
)
def test_a_figure_that_was_not_measured_is_no_pass(run: Write, changes: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"no figure 'quality\.retention"):
        gate(run(**changes), retain=0.5)


def test_a_report_of_a_newer_version_is_refused(run: Write) -> None:
    with pytest.raises(RunError, match=f"schema {SCHEMA + 1}.*newer"):
        read_report(run(schema=SCHEMA + 1))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": "1"}'])
def test_a_damaged_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=r"damaged|not a paredown report"):
        read_report(tmp_path)


def test_a_missing_run_and_an_unfinished_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"There is no run.*Name a run's folder"):
        read_report(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"There is no report.*Name a run's folder"):
        read_report(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(RunError, match="not finished"):
        read_report(tmp_path)


def test_the_outcome_of_a_report(run: Write) -> None:
    assert outcome_of(read_report(run())) == ("pass", ["kept"])


def test_few_rows_without_a_loss_do_not_pass_the_gate_either(run: Write) -> None:
    few = {"retention": 1.0, "retention_ci95": [1.0, 1.0], "examples": 20}
    (criterion,) = gate(run(quality=few), retain=0.95)
    assert (
        not criterion.met and "even without a single loss it takes 72 test rows" in criterion.text
    )


def test_what_is_fast_enough_must_be_what_is_good_enough(run: Write) -> None:
    """The checkpoint keeps enough and is slow; the export is fast and keeps too little."""
    export = {"format": "onnx-int8", "retention": 0.8, "retention_ci95": [0.78, 0.82]}
    export |= {"bytes": 5e6, "latency_ms_p50": 2.0}
    cost = {**REPORT["cost"], "student": {"bytes": 2e7, "latency_ms_p50": 20.0}}
    folder = run(exports=[export], cost=cost)
    kept, fast = gate(folder, retain=0.95, latency_ms=5)
    assert fast.met and not kept.met and "2000 rows, onnx-int8)" in kept.text
    kept, fast = gate(folder, retain=0.95, latency_ms=5, runtime="pytorch")
    assert kept.met and not fast.met
    (kept,) = gate(folder, retain=0.95)
    assert kept.met and "2000 rows, pytorch)" in kept.text
    (kept,) = gate(folder, retain=0.95, runtime="onnx-int8")
    assert not kept.met
    with pytest.raises(RecipeError, match="--runtime onnx: the run has pytorch, onnx-int8"):
        gate(folder, retain=0.95, runtime="onnx")


def test_of_several_seeds_the_first_is_said_beside_their_mean(run: Write) -> None:
    seeds = [{"seed": 0, "student": 0.5, "retention": 0.93}, {"seed": 1, "retention": 1.01}]
    (kept,) = gate(run(quality={**REPORT["quality"], "seeds": seeds}), retain=0.95)
    assert kept.met and "mean of 2 seeds, of the first 0.9300)" in kept.text
