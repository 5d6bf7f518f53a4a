"""Several runs beside each other: paired on the same rows, and refused on others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.eval.errors import RecipeError, RunError
from paredown.recipes.cli import main
from paredown.recipes.compare import compare, recipe_differences
from paredown.recipes.compare_page import comparison_page

from .run_pairs import made_up_comparison, run_folder
from .test_html import Page

Make = Callable[..., dict[str, Any]]

ROWS = 400
LABELS = np.arange(ROWS) % 3


def decisions(wrong: int, start: int = 0) -> list[int]:
    """The labels, but for so many rows from one on."""
    found = LABELS.copy()
    found[start : start + wrong] = (found[start : start + wrong] + 1) % 3
    return [int(one) for one in found]


@pytest.fixture
def runs(tmp_path: Path, make_report: Make) -> tuple[Path, Path]:
    labels, teacher = [int(label) for label in LABELS], decisions(20)
    one = run_folder(tmp_path / "one", make_report, labels, teacher, [decisions(30)])
    two = run_folder(tmp_path / "two", make_report, labels, teacher, [decisions(38), decisions(42)])
    return one, two


def test_runs_over_the_same_rows_are_compared_in_pairs(runs: tuple[Path, Path]) -> None:
    found = compare(runs)
    assert [entry.run.name for entry in found.entries] == ["one", "two"]
    assert (found.metric, found.examples) == ("accuracy", ROWS)
    (one,) = found.differences
    assert (one.run, one.other) == ("two", "one")
    # the mean of two seeds, 38 and 42 rows wrong, less 30 rows wrong
    assert one.interval.value == pytest.approx(-10 / ROWS)
    assert one.interval.low < -10 / ROWS < one.interval.high < 0
    assert found.entries[0].kept == pytest.approx(370 / 380)
    assert found.entries[1].kept == pytest.approx(360 / 380)
    low, high = found.entries[0].interval or (0.0, 0.0)
    assert low < 370 / 380 < high
    assert not found.notes


def test_the_interval_is_of_pairs_and_not_of_two_samples(tmp_path: Path, make_report: Make) -> None:
    labels, teacher = [int(label) for label in LABELS], decisions(0)
    same = decisions(100)
    folders = [
        run_folder(tmp_path / name, make_report, labels, teacher, [same]) for name in ("a", "b")
    ]
    (one,) = compare(folders).differences
    assert (one.interval.value, one.interval.low, one.interval.high) == (0, 0, 0)


def test_rows_of_another_fingerprint_are_compared_one_by_one(
    tmp_path: Path, make_report: Make
) -> None:
    labels, teacher = [int(label) for label in LABELS], decisions(20)
    arguments: Any = (make_report, labels, teacher, [decisions(30)])
    first = run_folder(tmp_path / "a", *arguments)
    same = run_folder(tmp_path / "b", *arguments, fingerprint="other")
    assert len(compare([first, same]).differences) == 1
    texts = [f"another text {place}" for place in range(ROWS)]
    other = run_folder(tmp_path / "c", *arguments, fingerprint="other", texts=texts)
    with pytest.raises(RecipeError, match="'a' and 'c' were judged on different test rows"):
        compare([first, other])
    (same / "stages" / "data" / "test.arrow").unlink()
    with pytest.raises(RecipeError, match="whether their test rows are the same cannot be told"):
        compare([first, same])


def test_a_run_without_its_stages_is_told_as_reported(runs: tuple[Path, Path]) -> None:
    (runs[1] / "stages" / "evaluate" / "scores.arrow").unlink()
    found = compare(runs)
    assert found.differences == []
    assert "Differences between runs were not measured: of 'two'" in found.notes[0]
    report = json.loads((runs[0] / "report.json").read_text())
    assert found.entries[0].kept == report["quality"]["retention"]
    assert "Not measured." in comparison_page(found)


def change(folder: Path, **values: Any) -> None:
    path = folder / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"task": "retrieval"}, "the task of the one is classification, of the other retrieval"),
        ({"schema": 99}, "has schema 99, made by a newer paredown"),
        ({"quality": {"metric": "accuracy"}}, "is damaged: it has no 'examples'"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_message(
    values: dict[str, Any], said: str, runs: tuple[Path, Path]
) -> None:
    change(runs[1], **values)
    with pytest.raises((RecipeError, RunError), match=said):
        compare(runs)


def test_another_metric_an_unfinished_run_and_one_run_are_refused(
    runs: tuple[Path, Path],
) -> None:
    one, two = runs
    with pytest.raises(RecipeError, match="at least two runs, got 1"):
        compare([one])
    with pytest.raises(RecipeError, match="'one' is given 2 times"):
        compare([one, two, one / "report.json"])
    with pytest.raises(RecipeError, match="There is no run"):
        compare([one, one / "nothing" / "here"])
    quality = json.loads((two / "report.json").read_text())["quality"]
    change(two, quality={**quality, "metric": "macro_f1"})
    with pytest.raises(RecipeError, match=r"of the other macro_f1\. Give both recipes one target"):
        compare(runs)
    (two / "report.json").unlink()
    with pytest.raises(RunError, match="The run is not finished"):
        compare(runs)


def test_other_teachers_and_machines_are_said(runs: tuple[Path, Path]) -> None:
    report = json.loads((runs[1] / "report.json").read_text())
    change(
        runs[1],
        quality={**report["quality"], "teacher": 0.9},
        environment={"processor": "Another", "cores": 64},
    )
    notes = " ".join(compare(runs).notes)
    assert "those of 'two' score differently" in notes and "'one'" in notes
    assert "on different machines" in notes


def test_the_page_of_several_runs(make_report: Make) -> None:
    found = made_up_comparison(make_report)
    text = comparison_page(found)
    shown = Page(text)
    assert len(shown.ids) == len(set(shown.ids))
    assert "3 runs over the same 3,080 test rows" in shown.text
    for words in ("query_intent-int8", "Target met", "−0.0120", "prune.layers", "A note."):
        assert words in shown.text
    keys = [row[0] for row in recipe_differences([entry.run for entry in found.entries])]
    assert keys == ["prune.layers"]


def test_the_command_writes_a_page_and_prints_a_table(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out.html"
    assert main(["compare", *map(str, runs), "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "two less one: −0.0250 accuracy" in printed
    assert printed.splitlines()[-1] == f"Comparison: {page}"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["compare", str(runs[0])]) == 2
    assert "at least two runs" in capsys.readouterr().err
    assert main(["compare", *map(str, runs), "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "no" / "x.html")]) == 2
