"""What the terminal and the model card say of steps, seeds, slices, calibration and risk."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
from rich.console import Console

from paredown.recipes.attribution import priced
from paredown.recipes.model_card import model_card
from paredown.recipes.report import evidence, print_summary
from paredown.recipes.report_schema import RiskCoverage, Significance, Slice, Step
from paredown.recipes.statistics_report import (
    SHOWN,
    attribution_table,
    p_value,
    seeds_sentence,
    shown_slices,
    signed,
    slice_sentences,
)

Make = Callable[..., dict[str, Any]]


def step(name: str, before: str | None, value: float, **more: Any) -> dict[str, Any]:
    bare = dict.fromkeys(get_type_hints(Step))
    gap = {"difference": -0.01, "difference_ci95": [-0.02, 0.001]} if before else {}
    return {**bare, "name": name, "before": before, "value": value, "retention": value, **gap,
            **more}  # fmt: skip


def part(name: str, rows: int, difference: float | None, p: float | None = None) -> dict[str, Any]:
    ends = None if difference is None else [difference - 0.05, difference + 0.05]
    return {"by": "label", "name": name, "rows": rows, "teacher": 0.9,
            "student": 0.9 + (difference or 0), "difference": difference, "difference_ci95": ends,
            "p": p}  # fmt: skip


JUDGED: dict[str, Any] = {
    "attribution": [
        step("teacher", None, 1.0),
        step("student, distilled", "teacher", 0.98, p=0.04),
        step("export, onnx", "student, distilled", 0.98, p=1.0),
        step("export, [bold]onnx-int8[/x]", "student, distilled", 0.97, p=1e-5),
    ],
    "significance": {
        "both": 900, "teacher_alone": 40, "student_alone": 20, "neither": 52, "p": 0.01,
    },
    "calibration": [{"side": "teacher", "ece": 0.031, "shift": None, "bins": []}],
    "risk_coverage": [
        {"side": "student", "threshold": [0.1, 0.5, 0.9], "coverage": [1.0, 0.91, 0.3],
         "risk": [0.08, 0.05, 0.01], "aurc": 0.02, "out_of_scope": [1.0, 0.4, 0.1]},
    ],
}  # fmt: skip


def said(report: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_summary(report, Console(file=stream, width=140))
    return stream.getvalue()


def test_a_reader_sees_which_step_to_undo(make_report: Make) -> None:
    report = make_report(judged=JUDGED)
    columns, rows = attribution_table(report)
    assert columns[:2] == ["", "MRR@10"] and len(rows) == 4
    assert rows[0][2:5] == ["", "", ""] and rows[1][2:5] == [
        "−0.0100", "−0.0200 to +0.0010", "0.040",
    ]  # fmt: skip
    assert rows[2][0] == "export, onnx" and rows[3][4] == "< 0.001"
    assert rows[3][0] == "export, [bold]onnx-int8[/x] (from: student, distilled)"
    text = said(report)
    assert "Attribution" in text and "[bold]onnx-int8[/x]" in text
    for words in (
        "Significance: the teacher alone is right on 40 rows, the student alone on 20",
        "p = 0.010)",
        "Calibration: expected calibration error teacher 3.1 %.",
        "Risk: student, answering the surest 91.0 %: 5.0 % wrong instead of 8.0 %, and 40.0 % of",
    ):
        assert words in text


def test_a_report_without_statistics_says_nothing_of_them(make_report: Make) -> None:
    report = make_report()
    assert report["attribution"] == [] and report["significance"] is None
    for shown in (report, {key: value for key, value in report.items() if key != "attribution"}):
        text = said(shown)
        assert not [word for word in ("Attribution", "Calibration", "Risk:") if word in text]


def test_each_step_has_the_latency_of_its_own_runtime() -> None:
    made = [{"name": name, "contender": name, "latency_ms_p50": None}
            for name in ("base", "teacher", "student-0", "pruned", "export-onnx-int8")]  # fmt: skip
    sides = {"teacher": {"latency_ms_p50": 8.0}, "student": {"latency_ms_p50": 2.0}}
    found = priced(made, sides, [{"format": "onnx-int8", "latency_ms_p50": 0.5}])
    assert [step["latency_ms_p50"] for step in found] == [None, 8.0, 2.0, None, 0.5]
    assert all("contender" not in step for step in found)


def test_spreads_stand_beside_each_other(make_report: Make) -> None:
    quality = make_report()["quality"]
    assert seeds_sentence(quality) is None
    seeds = [{"seed": i, "student": 0.7, "retention": 0.98 + i / 100} for i in range(3)]
    several = {**quality, "seeds": seeds, "retention_std_seeds": 0.01}
    sentence = seeds_sentence(several)
    assert sentence is not None
    assert "3 training runs: standard deviation 1.00 percentage points" in sentence
    assert "98.0 %, 99.0 %, 100.0 %" in sentence and "± 1.16 percentage points" in sentence
    shown = evidence(make_report(quality=several))
    assert "mean of 3 training seeds, standard deviation 1.00 percentage points" in shown


def test_slices_that_lose_beyond_chance_are_named() -> None:
    parts = [part("a", 40, -0.1, 0.01), part("<b>", 60, -0.3, 0.001), part("c", 50, 0.2, 0.001)]
    (sentence,) = slice_sentences({"metric": "accuracy", "slices": parts})
    assert sentence.startswith("The student loses beyond chance (p < 0.05, adjusted by Holm over 3")
    assert sentence.index("label: <b> (−0.3000") < sentence.index("label: a (−0.1000")
    assert "label: c" not in sentence


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([part("a", 40, -0.02, 0.5), part("b", 9, None)],
         ["1 of 2 slices have fewer than 20 rows", "label: a (−0.0200", "none is told from chance",
          "About 250 of its rows would tell it from none"]),
        ([part("a", 40, -0.1), part("b", 40, 0.1)], ["label: a", "not adjusted for their number"]),
        ([part("a", 40, 0.0, 1.0)], ["On no slice that is compared does the student lose"]),
        ([part("b", 9, None)], ["1 of 1 slices have fewer than 20 rows"]),
    ],
)  # fmt: skip
def test_slices_that_rows_do_not_settle_are_told_so(parts: list[Any], words: list[str]) -> None:
    text = " ".join(slice_sentences({"metric": "accuracy", "slices": parts}))
    assert not [word for word in words if word not in text]


def test_no_slices_no_sentence_and_macro_f1_is_told_by_accuracy() -> None:
    assert slice_sentences({"metric": "macro_f1", "slices": []}) == []
    found = slice_sentences({"metric": "macro_f1", "slices": [part("a", 40, 0.0, 1.0)]}, 300)
    assert "judged by accuracy" in found[0] and "Of 300 classes the 200" in found[1]


def test_of_many_slices_those_that_lose_most_are_shown(make_report: Make) -> None:
    few = [part(f"s{i}", 30, -i / 100, 1.0) for i in range(SHOWN)]
    assert shown_slices(few) == few and shown_slices(None) == []
    many = [*few, part("worst", 30, -0.5, 0.1), part("tiny", 2, None)]
    shown = shown_slices(many)
    assert len(shown) == SHOWN and shown[0]["name"] == "worst" and many[-1] not in shown
    quality = {**make_report()["quality"], "metric": "accuracy", "slices": many}
    report = make_report(quality=quality)
    assert "label: worst, 30 rows (accuracy)" in said(report)
    assert "2 more slices in report.json" in said(report)
    assert "accuracy of label: worst (30 rows)" in model_card(report)


def test_differences_and_p_values_are_written_for_people() -> None:
    assert [signed(0), signed(None), signed(-0.00001)] == ["0.0000", "not measured", "0.0000"]
    assert [signed(0.25), signed(-0.25)] == ["+0.2500", "−0.2500"]
    assert [p_value(1), p_value(0.0009999), p_value(0.001)] == ["1.000", "< 0.001", "0.001"]


def test_the_keys_are_those_of_the_schema() -> None:
    assert set(JUDGED["significance"]) == set(get_type_hints(Significance))
    assert set(JUDGED["risk_coverage"][0]) == set(get_type_hints(RiskCoverage))
    assert set(part("a", 1, None)) == set(get_type_hints(Slice))
