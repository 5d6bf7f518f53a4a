"""Holm's correction against statsmodels, by hand, and by what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.eval.holm import holm

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(P_VALUES)
def test_it_equals_statsmodels(values: list[float]) -> None:
    peer = pytest.importorskip("statsmodels.stats.multitest", reason="the `dev` extra")
    expected = peer.multipletests(values, method="holm")[1]
    assert holm(values) == pytest.approx(list(expected), abs=1e-15)


@given(P_VALUES)
def test_adjusted_values_keep_their_order_and_never_fall(values: list[float]) -> None:
    adjusted = [p for p in holm(values) if p is not None]
    assert all(1 >= after >= before for before, after in zip(values, adjusted, strict=True))
    ranked = [adjusted[place] for place in np.argsort(values, kind="stable")]
    assert ranked == sorted(ranked)
    assert min(adjusted) == pytest.approx(min(1.0, len(values) * min(values)))


def test_figures_by_hand_and_what_was_not_tested() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([None, 0.2, None]) == [None, 0.2, None]
    assert holm([]) == [] and holm([None]) == [None]
    assert holm([0.5, 0.5]) == [1.0, 1.0]


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="p values from 0 to 1"):
        holm([0.5, wrong])


def test_a_true_null_among_many_is_seldom_called() -> None:
    p_values = np.random.default_rng(0).random((2000, 20))
    called = [min(p for p in holm(row.tolist()) if p is not None) < 0.05 for row in p_values]
    assert 0.035 < np.mean(called) < 0.065
