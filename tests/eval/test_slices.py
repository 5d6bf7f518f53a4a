"""Slices: paired differences, Holm over all of them, and rows too few to compare."""

from __future__ import annotations

import numpy as np
import pytest

from paredown.eval.compare import paired_difference
from paredown.eval.holm import holm
from paredown.eval.mcnemar import mcnemar
from paredown.eval.metrics import METRICS
from paredown.eval.slices import SMALLEST, judge_slices, kinds_of_rows

MEAN = METRICS["accuracy"]


def test_rows_are_told_apart_by_value_and_rows_without_one_are_not() -> None:
    kinds = kinds_of_rows(["b", "a", "", "b"])
    assert {name: rows.tolist() for name, rows in kinds.items()} == {"a": [1], "b": [0, 3]}
    assert list(kinds_of_rows(["b", "a"], ["b", "c", "a"])) == ["b", "a"]
    assert kinds_of_rows(["", ""]) == {} and kinds_of_rows([]) == {}


def test_of_many_values_the_most_frequent_are_told_apart() -> None:
    values = ["c"] * 3 + ["a"] + ["b"] * 2 + ["d"]
    assert list(kinds_of_rows(values, most=2)) == ["b", "c"]
    assert list(kinds_of_rows(values, most=3)) == ["a", "b", "c"]


def test_one_kind_pays_for_the_rest() -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat(["fine", "hurt", "tiny"], [300, 100, SMALLEST - 1])
    teacher = rng.random(len(kinds)) < 0.95
    student = teacher & ~((kinds == "hurt") & (rng.random(len(kinds)) < 0.2))
    arms = [side.astype(float)[:, None] for side in (student, teacher)]
    sides = {"kind": kinds_of_rows(kinds.tolist()), "all": {"all": np.arange(len(kinds))}}
    found = judge_slices(MEAN, sides, [arms[0]], arms[1], (student, teacher), resamples=500)
    fine, hurt, tiny, whole = found
    assert [(one.by, one.name, one.rows) for one in found] == [
        ("kind", "fine", 300), ("kind", "hurt", 100), ("kind", "tiny", 19), ("all", "all", 419),
    ]  # fmt: skip
    rows = kinds == "hurt"
    assert hurt.difference == paired_difference(MEAN, [arms[0][rows]], arms[1][rows], resamples=500)
    assert hurt.student == pytest.approx(student[rows].mean()) and hurt.difference.high < 0
    raw = [mcnemar(student[kinds == k], teacher[kinds == k]).p for k in ("fine", "hurt")]
    assert [fine.p, hurt.p, whole.p] == holm([*raw, mcnemar(student, teacher).p])
    assert hurt.p is not None and hurt.p < 0.01 and fine.p == 1.0
    assert tiny.difference is None and tiny.p is None and 0 < tiny.teacher <= 1


def test_degrees_have_intervals_and_no_p_and_seeds_are_averaged() -> None:
    rng = np.random.default_rng(1)
    teacher, students = rng.random((50, 1)), [rng.random((50, 1)) for _ in range(2)]
    (found,) = judge_slices(MEAN, {"k": {"a": np.arange(50)}}, students, teacher, resamples=100)
    assert found.p is None and found.difference is not None
    assert found.student == pytest.approx(np.mean(students))
    assert found.difference.value == pytest.approx(found.student - found.teacher)


def test_no_slices_are_no_slices() -> None:
    assert judge_slices(MEAN, {"k": {}}, [np.ones((3, 1))], np.ones((3, 1))) == []
