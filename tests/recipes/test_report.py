"""What report.json holds, and its table in the terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from rich.console import Console

from paredown.recipes import figures
from paredown.recipes.report import plain, print_summary, write_report
from paredown.recipes.report_schema import SCHEMA, Cost, Quality, Ratio, Report, Side

Make = Callable[..., dict[str, Any]]


def said(report: dict[str, Any]) -> str:
    """The summary as a narrow terminal without colours shows it."""
    stream = io.StringIO()
    print_summary(report, Console(file=stream, width=100))
    return stream.getvalue()


def test_report_has_exactly_the_keys_of_its_schema(make_report: Make) -> None:
    report = make_report()
    assert set(report) == set(get_type_hints(Report))
    assert set(report["quality"]) == set(get_type_hints(Quality))
    assert set(report["cost"]) == set(get_type_hints(Cost))
    assert set(report["cost"]["student"]) == set(get_type_hints(Side))
    assert set(report["cost"]["ratio"]) == set(get_type_hints(Ratio))
    assert report["schema"] == SCHEMA == 1


def test_report_adds_ratios_and_the_verdict(make_report: Make) -> None:
    report = make_report()
    assert report["cost"]["ratio"]["flops"] == pytest.approx(110.8 / 612)
    assert report["cost"]["ratio"]["latency"] == pytest.approx(1.9 / 7.81)
    assert report["quality_to_compute"] == pytest.approx(0.9859 / (110.8 / 612))
    assert report["verdict"] == "pass"
    assert len(report["reasons"]) == 2
    student = {**report["cost"]["student"], "flops_per_example": 500_000_000}
    assert make_report(student=student)["verdict"] == "fail"


def test_what_was_not_measured_is_null_and_undecided(make_report: Make) -> None:
    student = dict.fromkeys(make_report()["cost"]["student"])
    report = make_report(student=student)
    assert set(report["cost"]["ratio"].values()) == {None}
    assert report["quality_to_compute"] is None
    assert report["verdict"] == "undecided"
    quality = {**make_report()["quality"], "retention": None, "retention_ci95": None}
    assert make_report(quality=quality)["verdict"] == "undecided"


def test_a_smoke_run_is_never_judged(make_report: Make) -> None:
    report = make_report(smoke=True)
    assert report["verdict"] == "undecided"
    assert "smoke" in report["reasons"][0]


def test_report_is_written_whole_as_plain_json(make_report: Make, tmp_path: Path) -> None:
    quality = {**make_report()["quality"], "teacher": np.float64(0.5), "student": float("nan")}
    report = make_report(quality=quality, notes=["Grüße"])
    write_report(report, tmp_path / "report.json")
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == report
    assert "NaN" not in text
    assert report["quality"]["student"] is None
    with pytest.raises(TypeError, match="got object"):
        plain({"a": object()})


def test_summary_says_the_verdict_first(make_report: Make) -> None:
    text = said(make_report())
    assert text.split()[:2] == ["Target", "met"]
    assert "The student keeps 98.6 % of the teacher's MRR@10 at 18.1 % of its compute." in text
    assert "(95 % interval 97.4 to 99.7 %, 2,012 test rows)" in text
    assert "pruned, before distillation (MRR@10)" in text
    assert "not measured" in text  # the student's peak memory
    assert "onnx-int8" in text


def test_summary_of_a_bare_smoke_run(bare_report: dict[str, Any]) -> None:
    text = said(bare_report)
    assert text.split()[:2] == ["Smoke", "run,"]
    assert "was not measured." in text
    assert "0.0000" not in text


def test_names_are_not_taken_for_markup(make_report: Make) -> None:
    assert "[bold]x[/nothing]" in said(make_report(exports=[{"format": "[bold]x[/nothing]"}]))


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf"), "words", True, [1, 2]])
def test_no_figure_is_ever_made_of_nothing(missing: Any) -> None:
    for write in (
        figures.digits,
        figures.count,
        figures.flops,
        figures.size,
        figures.share,
        figures.quality,
        figures.seconds,
        figures.whole,
        figures.points,
    ):
        assert write(missing) == "not measured"
    assert figures.times(missing, "more", "less") == "not measured"
    assert figures.span([missing, 1.0]) == "not measured"


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (figures.digits(0), "0"),
        (figures.digits(0.01234), "0.0123"),
        (figures.digits(99.96), "100"),
        (figures.digits(1234.5), "1,234"),
        (figures.digits(-3.14159), "-3.14"),
        (figures.size(999), "999 B"),
        (figures.size(90_868_376), "90.9 MB"),
        (figures.flops(612_000_000), "612 MFLOP"),
        (figures.count(0), "0"),
        (figures.seconds(0), "0.0 s"),
        (figures.seconds(59.97), "1 min 0 s"),
        (figures.seconds(3725), "1 h 2 min"),
        (figures.times(0.5, "more", "less"), "2.0 times less"),
        (figures.times(1.2, "more", "less"), "1.20 times more"),
        (figures.times(1.0, "more", "less"), "the same"),
        (figures.times(0, "more", "less"), "not measured"),
        (figures.metric_name("recall@10"), "recall@10"),
    ],
)
def test_figures_are_written_for_people(found: str, wanted: str) -> None:
    assert found == wanted
