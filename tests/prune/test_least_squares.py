"""Least squares from streamed moments, against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paredown.prune.least_squares import (
    Moments,
    positive_inverse,
    positive_solve,
    solve,
    symmetric,
)


def data(rows: int = 400) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    features = torch.randn(rows, 6) + 3
    target = features @ torch.randn(6, 4) + torch.randn(rows, 4) * 0.1 - 2
    return features, target, torch.rand(rows) + 0.1


def gathered(*parts: slice) -> Moments:
    moments = Moments(6, 4)
    features, target, weight = data()
    for part in parts:
        moments.add(features[part], target[part], weight[part])
    return moments


def test_moments_do_not_depend_on_the_batches() -> None:
    whole = gathered(slice(None))
    parts = gathered(slice(0, 1), slice(1, 1), slice(1, 300), slice(300, None))
    assert whole.tokens == parts.tokens == 400
    for a, b in zip(whole.covariances(), parts.covariances(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_moments_are_the_weighted_ones() -> None:
    features, target, weight = (t.double().numpy() for t in data())
    covariance, cross = gathered(slice(None)).covariances()
    np.testing.assert_allclose(
        covariance, np.cov(features.T, aweights=weight, ddof=0), rtol=1e-4, atol=1e-4
    )
    expected = np.cov(features.T, target.T, aweights=weight, ddof=0)[:6, 6:]
    np.testing.assert_allclose(cross, expected, rtol=1e-4, atol=1e-4)


def test_moments_are_the_same_within_autocast() -> None:
    """Hooks add to them within a forward pass in bf16."""
    plain, found = Moments(6, 4), Moments(6, 4)
    rows = data()
    plain.add(*rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.add(*rows)
    for a, b in zip(plain.covariances(), found.covariances(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("keep", [[0, 1, 2, 3, 4, 5], [1, 4]])
def test_the_solution_is_that_of_least_squares(
    keep: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paredown.prune.least_squares.RIDGE", 0.0)
    features, target, weight = (t.double().numpy() for t in data())
    found, intercept = solve(gathered(slice(None)), keep, np.zeros((4, len(keep))))
    root = np.sqrt(weight)[:, None]
    wide = np.concatenate([features[:, keep], np.ones((len(features), 1))], 1)
    expected = np.linalg.lstsq(root * wide, root * target, rcond=None)[0]
    np.testing.assert_allclose(found.T, expected[:-1], atol=1e-3)
    np.testing.assert_allclose(intercept, expected[-1], atol=1e-2)


def test_a_feature_that_never_varies_keeps_its_weight() -> None:
    moments = Moments(2, 1)
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    moments.add(features, features[:, :1] * 3, torch.ones(3))
    found, _ = solve(moments, [0, 1], np.array([[0.5, 7.0]]))
    assert found[0, 1] == pytest.approx(7.0)


def test_one_token_changes_little() -> None:
    moments = Moments(6, 4)
    features, target, weight = data()
    moments.add(features[:1], target[:1], weight[:1])
    start = np.ones((4, 6))
    found, intercept = solve(moments, range(6), start)
    np.testing.assert_allclose(found, start, atol=1e-4)
    assert np.isfinite(intercept).all()


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("keep", [range(40), range(5, 39)])
def test_rows_fewer_than_features_give_what_their_moments_give(
    intercept: bool, keep: range
) -> None:
    torch.manual_seed(0)
    features, target = torch.randn(30, 40) @ torch.randn(40, 40) + 2, torch.randn(30, 3)
    features[:, 7] = 0.5  # never varies
    weight, start = torch.rand(30) + 0.1, np.ones((3, len(keep)))

    def moments() -> Moments:
        found = Moments(40, 3)
        for part in (slice(0, 11), slice(11, None)):
            found.add(features[part], target[part], weight[part])
        return found

    few, summed = moments(), moments()
    summed.covariances()
    assert few.rows is not None and summed.rows is None
    found, expected = (solve(one, keep, start, intercept=intercept) for one in (few, summed))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


def test_a_symmetric_product_is_made_of_blocks() -> None:
    for size in (1, 3, 17):
        values = torch.randn(50, size, dtype=torch.float64)
        torch.testing.assert_close(symmetric(values, values), values.T @ values)


def test_a_matrix_that_is_not_positive_is_solved_all_the_same() -> None:
    matrix = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    right = torch.tensor([[2.0], [3.0]], dtype=torch.float64)
    assert positive_solve(matrix, right).flatten().tolist() == [3.0, 2.0]
    assert torch.equal(positive_inverse(matrix), matrix)
