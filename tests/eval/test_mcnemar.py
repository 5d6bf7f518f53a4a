"""McNemar's exact test against statsmodels, against scipy, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from paredown.eval.errors import RunError
from paredown.eval.mcnemar import Discordance, mcnemar


def rows(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(1, 1)] * both + [(1, 0)] * first + [(0, 1)] * second + [(0, 0)] * neither
    table = np.random.default_rng(0).permutation(np.array(pairs, dtype=int).reshape(-1, 2))
    return table[:, 0], table[:, 1]


@given(*[st.integers(0, 60)] * 4)
@settings(deadline=None, max_examples=80)
def test_it_is_the_two_sided_binomial_test_of_the_rows_that_one_alone_gets_right(
    both: int, first: int, second: int, neither: int
) -> None:
    found = mcnemar(*rows(both, first, second, neither))
    assert found == Discordance(both, first, second, neither, found.p)
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert found.p == pytest.approx(expected, rel=1e-9, abs=1e-300)
    back = mcnemar(*rows(both, second, first, neither))
    assert back.p == found.p


@pytest.mark.parametrize("table", [(50, 9, 2, 5), (0, 0, 0, 3), (7, 1, 0, 0), (1000, 80, 120, 9)])
def test_it_equals_statsmodels(table: tuple[int, int, int, int]) -> None:
    peer = pytest.importorskip("statsmodels.stats.contingency_tables", reason="the `dev` extra")
    both, first, second, neither = table
    expected = peer.mcnemar([[both, first], [second, neither]], exact=True).pvalue
    assert mcnemar(*rows(*table)).p == pytest.approx(expected, rel=1e-12)


def test_figures_by_hand() -> None:
    # 2 (1 + 11 + 55) / 2^11 of 9 against 2, and 2 / 2^6 of 6 against none
    assert mcnemar(*rows(3, 9, 2, 1)).p == pytest.approx(134 / 2048)
    assert mcnemar(*rows(0, 6, 0, 14)).p == pytest.approx(2 / 64)
    assert mcnemar(*rows(5, 0, 0, 5)).p == 1.0
    assert mcnemar([], []) == Discordance(0, 0, 0, 0, 1.0)


def test_what_is_no_decision_on_the_same_rows_is_refused() -> None:
    with pytest.raises(RunError, match="same rows"):
        mcnemar([1, 0], [1, 0, 1])
    with pytest.raises(RunError, match="not degrees"):
        mcnemar([0.5, 1], [1, 0])
