"""Risk against coverage: by its definition, in every order of equals, thinned, and out of scope."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.eval.errors import RunError
from paredown.eval.selective import answered_share, risk_coverage

ROWS = st.lists(st.tuples(st.sampled_from([0.2, 0.4, 0.5, 0.9, 1.0]), st.booleans()), min_size=1)


@given(ROWS)
def test_each_point_is_what_answering_from_its_threshold_on_gives(
    rows: list[tuple[float, bool]],
) -> None:
    said, right = (np.array(column) for column in zip(*rows, strict=True))
    found = risk_coverage(said, right)
    assert found.threshold.tolist() == sorted(set(said.tolist()))
    for threshold, coverage, risk in zip(found.threshold, found.coverage, found.risk, strict=True):
        answered = said >= threshold
        assert coverage == pytest.approx(answered.mean())
        assert risk == pytest.approx(1 - right[answered].mean())
    assert found.coverage[0] == 1 and found.risk[0] == pytest.approx(1 - right.mean())
    assert 0 <= found.aurc <= 1


@given(st.lists(st.tuples(st.sampled_from([0.3, 0.6]), st.booleans()), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_the_area_is_the_mean_over_all_orders_of_equals(rows: list[tuple[float, bool]]) -> None:
    areas = []
    for order in itertools.permutations(rows):
        if [said for said, _ in order] == sorted((said for said, _ in rows), reverse=True):
            wrong = np.cumsum([not right for _, right in order])
            areas.append(np.mean(wrong / np.arange(1, len(rows) + 1)))
    said, right = zip(*rows, strict=True)
    assert risk_coverage(said, right).aurc == pytest.approx(np.mean(areas))


def test_the_area_of_a_perfect_order_is_small_and_of_none_the_error() -> None:
    right = np.arange(100) < 80
    said = np.linspace(1, 0.5, 100)
    best, worst = risk_coverage(said, right).aurc, risk_coverage(said[::-1], right).aurc
    assert best < 0.03 < 0.2 < worst
    assert risk_coverage(np.full(100, 0.7), right).aurc == pytest.approx(0.2)
    assert risk_coverage([0.7], [True]).aurc == 0.0


def test_a_long_curve_is_thinned_and_keeps_both_ends() -> None:
    rng = np.random.default_rng(0)
    said, right = rng.random(5000), rng.random(5000) < 0.8
    whole, thin = risk_coverage(said, right, points=5000), risk_coverage(said, right)
    assert len(whole.threshold) == 5000 and len(thin.threshold) == 100
    assert thin.threshold[[0, -1]].tolist() == whole.threshold[[0, -1]].tolist()
    assert thin.aurc == whole.aurc and set(thin.risk) <= set(whole.risk)
    assert (np.diff(thin.coverage) < 0).all() and np.diff(thin.coverage).min() > -0.02


def test_rows_out_of_scope_are_counted_where_they_are_still_answered() -> None:
    assert answered_share([0.2, 0.5, 0.9], [0.0, 0.5, 0.6, 0.95]).tolist() == pytest.approx(
        [1, 2 / 3, 1 / 3, 0]
    )


def test_no_rows_have_no_curve() -> None:
    with pytest.raises(RunError, match="at least one row"):
        risk_coverage([], [])
