"""The claim that enough is kept: pass, fail, or too few rows, in words that can be checked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.eval.compare import Interval, paired_bootstrap, paired_difference
from paredown.eval.intervals import least_rows, rows_needed
from paredown.eval.noninferiority import non_inferiority


def test_a_claim_is_said_with_its_margin_interval_and_rows() -> None:
    found = non_inferiority(Interval(0.984, 0.976, 0.991, 2000), 0.97)
    assert found.outcome == "pass" and found.rows_needed is None
    assert found.sentence == (
        "Keeps at least 97 % of the teacher's quality: 98.4 %, 95 % interval 97.6–99.1 %, "
        "n = 2,000."
    )
    worse = non_inferiority(Interval(0.95, 0.94, 0.96, 2000), 0.97)
    assert worse.outcome == "fail"
    assert worse.sentence.startswith("Does not keep 97 % of") and "upper end" in worse.sentence


def test_too_few_rows_are_said_with_the_number_needed() -> None:
    found = non_inferiority(Interval(0.98, 0.96, 0.995, 500), 0.97)
    assert (found.outcome, found.rows_needed) == ("undecided", 2000)
    assert "about 2,000 test rows instead of 500 would settle it if" in found.sentence
    below = non_inferiority(Interval(0.96, 0.94, 0.98, 500), 0.97)
    assert "would settle it, as not kept, if" in below.sentence
    on_it = non_inferiority(Interval(0.97, 0.96, 0.98, 500), 0.97)
    assert on_it.rows_needed is None and "may never settle it" in on_it.sentence


def test_a_few_rows_without_a_loss_are_no_evidence() -> None:
    same = np.ones((20, 1))
    found = non_inferiority(paired_bootstrap("mrr@10", same, same), 0.95)
    assert (found.outcome, found.rows_needed) == ("undecided", 72)
    assert "even without a single loss it takes 72 test rows" in found.sentence
    many = np.ones((72, 1))
    assert non_inferiority(paired_bootstrap("mrr@10", many, many), 0.95).outcome == "pass"


@pytest.mark.parametrize("retain", [0.5, 0.9, 0.95, 0.97, 0.99, 0.999])
def test_least_rows_are_clopper_and_pearsons(retain: float) -> None:
    from scipy.stats import binomtest

    rows = least_rows(retain)
    assert rows is not None
    for count, shown in ((rows, True), (rows - 1, False)):
        upper = binomtest(0, count).proportion_ci(0.95, method="exact").high
        assert (upper <= 1 - retain) == shown


def test_no_number_of_rows_shows_that_nothing_is_ever_lost() -> None:
    assert least_rows(1.0) is None
    alike = non_inferiority(Interval(1.0, 1.0, 1.0, 10**6), 1.0)
    assert (alike.outcome, alike.rows_needed) == ("undecided", None)
    assert "no number of rows without a loss" in alike.sentence
    assert non_inferiority(Interval(1.01, 1.0, 1.02, 500), 1.0).outcome == "pass"


@given(
    st.floats(0.5, 1.1), st.floats(0, 0.2), st.floats(0, 0.2),
    st.integers(1, 10**6), st.floats(0.5, 0.999),
)  # fmt: skip
def test_every_interval_gets_one_verdict_that_follows_its_ends(
    value: float, below: float, above: float, rows: int, retain: float
) -> None:
    interval = Interval(value, value - below, value + above, rows)
    found = non_inferiority(interval, retain)
    if found.outcome == "pass":
        few = rows < (least_rows(retain) or 0)
        assert interval.low - few * (1 - 0.025 ** (1 / rows)) >= retain
    elif found.outcome == "fail":
        assert interval.high < retain
    elif found.rows_needed is not None:
        assert found.rows_needed > rows and found.rows_needed >= (least_rows(retain) or 0)
    assert f"n = {rows:,}" in found.sentence


def test_what_lies_beside_the_claim_is_never_written_as_the_claim() -> None:
    said = non_inferiority(Interval(0.98, 0.96996, 0.99, 5000), 0.97).sentence
    assert "interval 96.996–99 %" in said


def test_rows_needed_are_those_of_a_difference_and_of_a_slice_too() -> None:
    rng = np.random.default_rng(4)

    def slice_of(rows: int) -> Interval:
        teacher = (rng.random((rows, 1)) < 0.9).astype(float)
        student = np.where(rng.random((rows, 1)) < 0.94, teacher, 0)
        return paired_difference("mrr@10", [student], teacher)

    few = Interval(-0.05, -0.11, 0.01, 40)
    needed = rows_needed(few, 0.0)
    assert needed == 58
    assert slice_of(4 * needed).high < 0
