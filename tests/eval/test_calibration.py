"""Calibration error against an independent formula, its bins, and its edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.eval.calibration import calibration_error, confidence, reliability
from paredown.eval.errors import RunError
from paredown.eval.metrics import score_classes, score_decisions

ROWS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80)


def plain_error(confidences: list[float], right: list[bool], bins: int) -> float:
    """ECE row by row: |sum of (right - confidence)| of each bin, over all rows."""
    total = 0.0
    for i in range(bins):
        low, high, last = i / bins, (i + 1) / bins, i == bins - 1
        inside = [
            hit - said
            for said, hit in zip(confidences, right, strict=True)
            if low <= said and (said < high or (last and said <= high))
        ]
        total += abs(sum(inside))
    return total / len(confidences)


@given(ROWS, st.integers(1, 20))
def test_the_error_equals_an_independent_formula(rows: list[tuple[float, bool]], bins: int) -> None:
    said, right = (list(column) for column in zip(*rows, strict=True))
    found = reliability(said, right, bins)
    assert calibration_error(found) == pytest.approx(plain_error(said, right, bins), abs=1e-12)
    assert sum(one.rows for one in found) == len(rows) and len(found) == bins
    assert [one.low for one in found[1:]] == [one.high for one in found[:-1]]
    for one in found:
        assert (one.confidence is None) == (one.accuracy is None) == (one.rows == 0)
        if one.confidence is not None:
            assert one.low - 1e-12 <= one.confidence <= one.high + 1e-12


def test_edges_belong_to_the_bin_above_and_one_to_the_last() -> None:
    found = reliability([0.0, 0.25, 0.5, 1.0], [0, 0, 1, 1], 4)
    assert [one.rows for one in found] == [1, 1, 1, 1]
    assert (found[0].low, found[-1].high) == (0.0, 1.0)


def test_a_classifier_that_knows_how_sure_it_is_has_hardly_any_error() -> None:
    rng = np.random.default_rng(0)
    said = rng.uniform(0.2, 1, 200_000)
    assert calibration_error(reliability(said, rng.random(200_000) < said)) < 0.01
    boastful = np.full(1000, 0.99)
    assert calibration_error(reliability(boastful, np.arange(1000) < 600)) == pytest.approx(0.39)


def test_confidence_is_softmaxs_largest_however_large_the_logits() -> None:
    logits = np.array([[0.0, 0.0], [1000.0, 0.0], [-5.0, 1.0], [3.0, 3.0]], dtype=np.float32)
    assert confidence(logits) == pytest.approx([0.5, 1.0, 1 / (1 + np.exp(-6)), 0.5])
    scores = score_classes(logits, [0, 0, 0, 0])
    assert scores.confidence is not None and (scores.confidence == confidence(logits)).all()
    assert scores.right.tolist() == [True, True, False, True]
    assert score_decisions([0, 1], [0, 0], 2).confidence is None


def test_what_is_no_confidence_is_refused() -> None:
    for said, right in (([], []), ([0.5], [1, 0])):
        with pytest.raises(RunError, match="at least one row"):
            reliability(said, right)
    for wrong in (1.01, -0.1, float("nan")):
        with pytest.raises(RunError, match="probability from 0 to 1"):
            reliability([wrong], [1])
