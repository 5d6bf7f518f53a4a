"""Losses against formulas written independently, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from paredown.distill.losses import (
    LOSSES,
    Loss,
    contrastive,
    cross_entropy,
    embedding_cosine,
    embedding_mse,
    get_loss,
    hidden_mse,
    kl,
    register_loss,
    similarity_kl,
)
from paredown.eval.errors import RecipeError

seeds = st.integers(0, 2**16)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float() * 2


def unit(x: torch.Tensor) -> np.ndarray:
    array = x.double().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


@given(seeds, st.integers(1, 6), st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_divergences_are_zero_at_equality(seed: int, rows: int, width: int) -> None:
    x = draw(seed, rows, width)
    assert kl(x, x, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert embedding_cosine(x, x).item() == pytest.approx(0, abs=1e-6)
    assert embedding_mse(x, x).item() == 0
    assert similarity_kl(x, x).item() == pytest.approx(0, abs=1e-5)
    assert hidden_mse(x[None], x[None], torch.ones(1, rows)).item() == 0


@given(seeds, st.integers(1, 6), st.integers(2, 9), st.floats(0.5, 4))
@settings(max_examples=30, deadline=None)
def test_kl_is_the_formula(seed: int, rows: int, width: int, temperature: float) -> None:
    s, t = draw(seed, rows, width), draw(seed + 1, rows, width)
    p = softmax(t.double().numpy() / temperature, axis=1)
    q = softmax(s.double().numpy() / temperature, axis=1)
    expected = (p * np.log(p / q)).sum(1).mean() * temperature**2
    assert kl(s, t, temperature).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(seeds, st.integers(3, 7), st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_similarity_kl_is_the_formula(seed: int, rows: int, width: int) -> None:
    s, t = draw(seed, rows, width), draw(seed + 1, rows, width)
    anchors = draw(seed + 2, 5, width)
    a, b, c = unit(s), unit(t), unit(anchors)
    p, q = softmax(b @ c.T / 0.1, axis=1), softmax(a @ c.T / 0.1, axis=1)
    expected = (p * np.log(p / q)).sum(1).mean()
    found = similarity_kl(s, t, anchors, temperature=0.1).item()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    total = 0.0
    for i in range(rows):  # without anchors a row is compared with the others, not with itself
        others = [j for j in range(rows) if j != i]
        p, q = softmax(b[i] @ b[others].T / 0.1), softmax(a[i] @ b[others].T / 0.1)
        total += float((p * np.log(p / q)).sum())
    found = similarity_kl(s, t, temperature=0.1).item()
    assert found == pytest.approx(total / rows, rel=1e-3, abs=1e-5)


@given(seeds, st.integers(1, 6), st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_embedding_losses_are_the_formulas(seed: int, rows: int, width: int) -> None:
    s, t = draw(seed, rows, width), draw(seed + 1, rows, width)
    cosine = 1 - (unit(s) * unit(t)).sum(1).mean()
    assert embedding_cosine(s, t).item() == pytest.approx(cosine, abs=1e-5)
    distance = ((s.double() - t.double()) ** 2).sum(1).mean().item()
    assert embedding_mse(s, t).item() == pytest.approx(distance, rel=1e-5)
    similarity = unit(s) @ unit(t).T / 0.05
    expected = -np.diag(log_softmax(similarity, axis=1)).mean()
    assert contrastive(s, t).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_cross_entropy_leaves_out_rows_without_a_label() -> None:
    logits = draw(0, 4, 3)
    labels = torch.tensor([0, -1, 2, -1])
    expected = -log_softmax(logits.double().numpy(), axis=1)[[0, 2], [0, 2]].mean()
    assert cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_no_label_at_all_gives_zero_and_no_nan() -> None:
    logits = draw(0, 3, 4).requires_grad_()
    loss = cross_entropy(logits, torch.full((3,), -1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and torch.equal(logits.grad, torch.zeros_like(logits))


def test_every_token_masked_gives_zero_and_no_nan() -> None:
    states = draw(0, 2, 3, 4)
    assert hidden_mse(states, states + 1, torch.zeros(2, 3)).item() == 0


def test_hidden_mse_does_not_look_at_padding() -> None:
    s, t = draw(0, 1, 3, 4), draw(1, 1, 3, 4)
    mask = torch.tensor([[1, 1, 0]])
    changed = t.clone()
    changed[0, 2] = 1e3
    assert hidden_mse(s, t, mask).item() == hidden_mse(s, changed, mask).item()
    expected = ((s[0, :2].double() - t[0, :2].double()) ** 2).mean().item()
    assert hidden_mse(s, t, mask).item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_too_small_to_compare_gives_zero() -> None:
    for rows in (1, 2):
        x = draw(0, rows, 4).requires_grad_()
        loss = similarity_kl(x, draw(1, rows, 4))
        loss.backward()
        assert loss.item() == 0


def test_half_precision_inputs_are_computed_in_float32() -> None:
    s, t = draw(0, 4, 8), draw(1, 4, 8)
    half = kl(s.bfloat16(), t.bfloat16())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(kl(s.bfloat16().float(), t.bfloat16().float()).item())


def test_an_unknown_loss_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'embedding_cosine'"):
        get_loss("embeding_cosine", "embedding")


def test_a_loss_of_another_signal_is_refused_with_those_that_fit() -> None:
    with pytest.raises(RecipeError, match="not defined for embedding; choose from contrastive"):
        get_loss("kl", "embedding")


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(RecipeError, match="exists already"):
        register_loss(Loss("kl", embedding_mse, ("embedding",), "values"))
    assert LOSSES["kl"].function is kl
