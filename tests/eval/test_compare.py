"""The bootstrap against a plain one row by row, its edge cases, and the verdict."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from paredown.eval import resampling
from paredown.eval.compare import (
    Interval,
    over_seeds,
    paired_bootstrap,
    paired_difference,
    rows_needed,
    verdict,
)
from paredown.eval.errors import RunError
from paredown.eval.metrics import METRICS, score_decisions, score_top
from paredown.eval.ranking import Floats

MEAN = METRICS["mrr@10"]


def plain_bootstrap(student: Floats, teacher: Floats, resamples: int) -> tuple[float, float]:
    """Interval of mean(student) / mean(teacher), drawing rows one resample at a time."""
    rng = np.random.default_rng(99)
    ratios = []
    for _ in range(resamples):
        rows = rng.integers(0, len(teacher), len(teacher))
        ratios.append(student[rows].mean() / teacher[rows].mean())
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def decisions(labels: np.ndarray, right: float, classes: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    guess = rng.integers(0, classes, len(labels))
    return np.where(rng.random(len(labels)) < right, labels, guess)


@pytest.mark.parametrize("few_values", [True, False])
def test_interval_of_a_mean_equals_the_plain_bootstrap(few_values: bool) -> None:
    rng = np.random.default_rng(1)
    teacher = rng.integers(1, 4, 400) / 3 if few_values else rng.random(400)
    student = np.where(rng.random(400) < 0.8, teacher, rng.permutation(teacher) * 0.8)
    found = paired_bootstrap(MEAN, student[:, None], teacher[:, None])
    low, high = plain_bootstrap(student, teacher, 10_000)
    assert found.value == pytest.approx(student.mean() / teacher.mean(), rel=1e-12)
    assert found.low == pytest.approx(low, abs=0.003)
    assert found.high == pytest.approx(high, abs=0.003)
    assert found.examples == 400


def test_interval_of_macro_f1_equals_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 5, 300)
    students, teachers = decisions(labels, 0.7, 5, 3), decisions(labels, 0.9, 5, 4)
    found = paired_bootstrap(
        "macro_f1",
        score_decisions(students, labels, 5).statistics["macro_f1"],
        score_decisions(teachers, labels, 5).statistics["macro_f1"],
    )
    ratios = []
    for _ in range(1500):
        rows = rng.integers(0, 300, 300)
        one = score_decisions(students[rows], labels[rows], 5).value("macro_f1")
        ratios.append(one / score_decisions(teachers[rows], labels[rows], 5).value("macro_f1"))
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)


def test_sparse_and_dense_statistics_give_the_same_resamples() -> None:
    labels = np.random.default_rng(0).integers(0, 6, 100)
    metric = METRICS["macro_f1"]
    thin = [
        score_decisions(decisions(labels, right, 6, seed), labels, 6).statistics["macro_f1"]
        for seed, right in ((1, 0.5), (2, 0.9))
    ]
    thick = [sparse.csr_array(arm).toarray() for arm in thin]
    one = resampling.resample(metric, thin, resamples=200)
    assert np.allclose(one, resampling.resample(metric, thick, resamples=200))


def test_resamples_equal_the_metric_of_the_rows_drawn() -> None:
    rng = np.random.default_rng(5)
    values = rng.random((7, 1))
    found = resampling.resample(MEAN, [values], resamples=50, seed=11)
    drawn = np.random.default_rng(11).integers(0, 7, size=(50, 7))
    assert np.allclose(found[:, 0], values[drawn, 0].mean(axis=1))


def test_kinds_of_rows_give_the_same_distribution_as_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    arms = [rng.integers(0, 2, (500, 1)).astype(float) for _ in range(2)]
    kinds = resampling.resample(MEAN, arms, resamples=20_000)
    monkeypatch.setattr(resampling, "_kinds", lambda arms: (np.arange(500), np.arange(500)))
    rows = resampling.resample(MEAN, arms, resamples=20_000)
    assert np.allclose(kinds.mean(axis=0), rows.mean(axis=0), atol=0.001)
    assert np.allclose(np.cov(kinds.T), np.cov(rows.T), atol=2e-5)


@pytest.mark.parametrize("spread", [2, 10**6])
def test_same_seed_same_interval_whatever_the_chunks(
    monkeypatch: pytest.MonkeyPatch, spread: int
) -> None:
    rng = np.random.default_rng(0)
    arms = [rng.integers(0, spread, (101, 1)) / spread + 0.1 for _ in range(2)]
    whole = resampling.resample(MEAN, arms, resamples=333, seed=4)
    monkeypatch.setattr(resampling, "_CHUNK", 900)
    assert (resampling.resample(MEAN, arms, resamples=333, seed=4) == whole).all()
    assert (resampling.resample(MEAN, arms, resamples=333, seed=5) != whole).any()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
@settings(deadline=None, max_examples=60)
def test_interval_brackets_the_figure_or_the_teacher_is_refused(
    pairs: list[tuple[int, int]],
) -> None:
    student, teacher = (np.array(side, dtype=float)[:, None] for side in zip(*pairs, strict=True))
    if teacher.sum() == 0:
        with pytest.raises(RunError, match="no share of it"):
            paired_bootstrap(MEAN, student, teacher, resamples=200)
        return
    found = paired_bootstrap(MEAN, student, teacher, resamples=200)
    assert np.isfinite([found.value, found.low, found.high]).all()
    assert found.low <= found.high
    if (student == teacher).all():
        assert found.low == found.high == found.value == 1.0


def test_one_row_ties_and_all_wrong() -> None:
    one = np.array([[0.5]])
    assert paired_bootstrap(MEAN, one, one) == Interval(1.0, 1.0, 1.0, 1)
    same = np.full((30, 1), 0.25)
    assert paired_bootstrap(MEAN, same * 2, same) == Interval(2.0, 2.0, 2.0, 30)
    assert paired_bootstrap(MEAN, same * 0, same) == Interval(0.0, 0.0, 0.0, 30)


def test_a_draw_on_which_the_teacher_scores_nothing_is_left_out() -> None:
    teacher = np.array([[1.0], [0.0], [0.0]])
    found = paired_bootstrap(MEAN, teacher, teacher, resamples=500)
    assert (found.low, found.high) == (1.0, 1.0)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(RunError, match="teacher's mrr@10 is 0 on 3 test rows"):
        paired_bootstrap("mrr@10", np.ones((3, 1)), np.zeros((3, 1)))
    with pytest.raises(RunError, match=r"\(2, 1\) and \(3, 1\)"):
        paired_bootstrap("mrr@10", np.ones((2, 1)), np.ones((3, 1)))
    with pytest.raises(RunError, match="at least one"):
        paired_bootstrap("mrr@10", np.ones((0, 1)), np.ones((0, 1)))


def test_seeds_report_the_spread_over_rows_and_over_seeds_apart() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.integers(0, 2, (1000, 1)).astype(float)
    students = [np.where(rng.random((1000, 1)) < share, teacher, 0) for share in (0.9, 0.8, 0.7)]
    found = over_seeds(MEAN, students, teacher)
    each = [float(s.mean() / teacher.mean()) for s in students]
    assert found.each == pytest.approx(each)
    assert found.retention.value == pytest.approx(np.mean(each))
    assert found.std == pytest.approx(np.std(each, ddof=1))
    assert found.retention.low < np.mean(each) < found.retention.high
    alone = over_seeds(MEAN, students[:1], teacher)
    assert alone.std is None
    assert alone.retention == paired_bootstrap(MEAN, students[0], teacher)


def test_ten_thousand_resamples_of_two_thousand_rows_take_under_two_seconds() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 77, 2000)
    arms = [
        score_decisions(decisions(labels, right, 77, seed), labels, 77).statistics["macro_f1"]
        for seed, right in ((1, 0.9), (2, 0.93))
    ]
    graded = [rng.random((2000, 1)) for _ in range(2)]
    for metric, pair in (("macro_f1", arms), ("ndcg@10", graded)):
        start = time.process_time()
        paired_bootstrap(metric, pair[0], pair[1])
        assert time.process_time() - start < 2.0


def test_many_rows_with_few_different_statistics_are_cheap() -> None:
    top = np.random.default_rng(0).integers(0, 12, (2, 100_000, 1))
    arms = [score_top(part, [[1]] * 100_000, metrics=["recall@1"]) for part in top]
    start = time.process_time()
    paired_bootstrap("recall@1", *(arm.statistics["recall@1"] for arm in arms))
    assert time.process_time() - start < 2.0


def test_a_difference_is_paired_and_that_of_the_mean_over_seeds() -> None:
    rng = np.random.default_rng(3)
    other = rng.random((400, 1))
    near = [other + rng.normal(0.02, 0.01, (400, 1)) for _ in range(2)]
    found = paired_difference(MEAN, near[:1], other)
    gaps = (near[0] - other)[:, 0]
    half = 1.96 * gaps.std(ddof=1) / np.sqrt(400)
    assert found.value == pytest.approx(gaps.mean()) and found.examples == 400
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)
    both = paired_difference(MEAN, near, other)
    assert both.value == pytest.approx(np.mean([n.mean() for n in near]) - other.mean())
    assert both.high - both.low < found.high - found.low
    assert paired_difference(MEAN, [other], other) == Interval(0.0, 0.0, 0.0, 400)


def test_a_difference_from_nothing_is_one() -> None:
    nothing, all_right = np.zeros((50, 1)), np.ones((50, 1))
    assert paired_difference(MEAN, [all_right], nothing) == Interval(1.0, 1.0, 1.0, 50)
    with pytest.raises(RunError, match="same rows"):
        paired_difference(MEAN, [all_right], nothing[:3])


def test_a_hundred_thousand_rows_take_seconds() -> None:
    rng = np.random.default_rng(0)
    right = [(rng.random((100_000, 1)) < share).astype(float) for share in (0.9, 0.92)]
    graded = [rng.random((100_000, 1)) for _ in range(2)]
    for pair, resamples, limit in ((right, 10_000, 2.0), (graded, 500, 3.0)):  # 60 s for 10,000
        start = time.process_time()
        paired_bootstrap(MEAN, pair[0], pair[1], resamples=resamples)
        assert time.process_time() - start < limit


@pytest.mark.parametrize(
    ("retention", "compute", "outcome"),
    [
        (Interval(0.98, 0.95, 1.0, 100), 0.7, "pass"),
        (Interval(0.98, 0.9499, 1.0, 100), 0.2, "undecided"),
        (Interval(0.94, 0.9, 0.96, 100), 0.2, "undecided"),
        (Interval(0.92, 0.9, 0.9499, 100), 0.2, "fail"),
        (Interval(0.99, 0.98, 1.0, 100), 0.71, "fail"),
        (Interval(0.98, 0.94, 1.0, 100), 0.71, "fail"),
        (Interval(0.99, 0.98, 1.0, 100), None, "undecided"),
        (Interval(0.92, 0.9, 0.93, 100), None, "fail"),
    ],
)
def test_verdict(retention: Interval, compute: float | None, outcome: str) -> None:
    found = verdict(retention, compute, 0.95, 0.7)
    assert found.outcome == outcome
    assert len(found.reasons) == 2
    if compute is None:
        assert "not measured" in found.reasons[1]


def test_rows_needed_follow_the_square_root_law() -> None:
    assert rows_needed(Interval(0.96, 0.94, 0.98, 1000), 0.95) == 4000
    assert rows_needed(Interval(0.94, 0.92, 0.98, 1000), 0.95) == 16000
    assert rows_needed(Interval(0.95, 0.92, 0.98, 1000), 0.95) is None
    found = verdict(Interval(0.96, 0.94, 0.98, 1000), 0.2, 0.95, 0.7)
    assert found.rows_needed == 4000
    assert "about 4,000 test rows instead of 1,000" in found.reasons[0]


def test_rows_needed_really_settle_it() -> None:
    rng = np.random.default_rng(12)

    def draw(rows: int) -> Interval:
        teacher = (rng.random((rows, 1)) < 0.9).astype(float)
        student = np.where(rng.random((rows, 1)) < 0.97, teacher, 0)
        return paired_bootstrap(MEAN, student, teacher)

    few = draw(300)
    needed = rows_needed(few, 0.95)
    assert needed is not None
    assert draw(2 * needed).low > 0.95
