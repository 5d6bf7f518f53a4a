"""Divergences against formulas written independently, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from paredown.distill.divergences import (
    DIVERGENCES,
    divergence,
    get_divergence,
    resolve_options,
)
from paredown.distill.token_targets import Full, Sampled, Targets, TopK
from paredown.eval.errors import RecipeError

seeds = st.integers(0, 2**16)
quick = settings(max_examples=25, deadline=None)
TEACHERS: list[tuple[str, dict[str, float]]] = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {}),
    ("jsd", {"beta": 0.9}),
    ("jsd", {"beta": 0.0}),
    ("jsd", {"beta": 1.0}),
    ("skewed_kl", {}),
    ("skewed_kl", {"alpha": 0.7}),
    ("skewed_kl", {"alpha": 0.0}),
    ("skewed_reverse_kl", {}),
    ("skewed_reverse_kl", {"alpha": 0.7}),
    ("skewed_reverse_kl", {"alpha": 0.0}),
    ("total_variation", {}),
]
every = pytest.mark.parametrize(("name", "options"), TEACHERS)


def draw(seed: int, *shape: int, scale: float = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float() * scale


def topk(logits: torch.Tensor, k: int) -> TopK:
    probs = logits.double().softmax(-1)
    top = probs.topk(k)
    rest = probs.scatter(-1, top.indices, 0).sum(-1)
    return TopK(top.indices, top.values.log().float(), rest.float())


def sampled(logits: torch.Tensor, draws: int, seed: int = 0) -> Sampled:
    """All ids as places, with the share of the draws that fell on each."""
    rng = np.random.default_rng(seed)
    p = logits.double().softmax(-1).numpy()
    counts = np.stack([rng.multinomial(draws, row / row.sum()) for row in p])
    ids = torch.arange(p.shape[1]).expand(len(p), -1)
    return Sampled(ids, torch.from_numpy(counts / draws).float())


def formula(name: str, p: np.ndarray, q: np.ndarray, **options: float) -> np.ndarray:
    """Every divergence written out with probabilities, in float64, (N,)."""

    def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(a > 0, a * np.log(a / b), 0.0).sum(-1)

    alpha, beta = options.get("alpha", 0.1), options.get("beta", 0.5)
    if name == "jsd" and beta in (0, 1):
        return kl(p, q) if beta == 0 else kl(q, p)
    if name == "jsd":
        m = beta * p + (1 - beta) * q
        return beta * kl(p, m) + (1 - beta) * kl(q, m)
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "skewed_kl": lambda: kl(p, alpha * p + (1 - alpha) * q),
        "skewed_reverse_kl": lambda: kl(q, (1 - alpha) * p + alpha * q),
        "total_variation": lambda: np.abs(p - q).sum(-1) / 2,
    }[name]()


def probabilities(logits: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    out: np.ndarray = softmax(logits.double().numpy() / temperature, axis=-1)
    return out


def spread(targets: TopK, q: np.ndarray) -> np.ndarray:
    """The teacher that a top-k stands for: its ids, and the rest spread as the student's tail."""
    p = np.zeros_like(q)
    for n in range(len(q)):
        ids = targets.ids[n].numpy()
        known = np.exp(targets.log_probs[n].double().numpy())
        tail = q[n].copy()
        tail[ids] = 0
        p[n] = float(targets.rest[n]) * tail / tail.sum() if tail.sum() else 0
        p[n, ids] = known
    return p / p.sum(-1, keepdims=True)


@every
@given(seeds, st.integers(1, 4), st.integers(2, 9), st.sampled_from([0.5, 1.0, 3.0]))
@quick
def test_value_is_the_formula(
    name: str, options: dict[str, float], seed: int, rows: int, width: int, temperature: float
) -> None:
    s, t = draw(seed, rows, width), draw(seed + 1, rows, width)
    found = divergence(name, s, Full(t), temperature=temperature, **options)
    p, q = probabilities(t, temperature), probabilities(s, temperature)
    expected = formula(name, p, q, **options) * temperature**2
    assert found.numpy() == pytest.approx(expected, rel=1e-4, abs=3e-6)
    assert found.shape == (rows,)


@every
@given(seeds, st.integers(3, 9), st.sampled_from([0.5, 1.0, 3.0]), st.booleans())
@quick
def test_zero_at_equality(
    name: str, options: dict[str, float], seed: int, width: int, temperature: float, all_of: bool
) -> None:
    x = draw(seed, 3, width)
    k = width if all_of else 2
    for targets in (Full(x), Full(x.log_softmax(-1)), topk(x, k)):
        found = divergence(name, x, targets, temperature=temperature, **options)
        assert found.numpy() == pytest.approx(0, abs=1e-5)


@every
@given(seeds, st.integers(1, 6))
@quick
def test_topk_is_the_full_divergence_from_the_tail_spread_by_the_student(
    name: str, options: dict[str, float], seed: int, k: int
) -> None:
    s, t = draw(seed, 3, 7), draw(seed + 1, 3, 7)
    q = probabilities(s)
    targets = topk(t, k)
    expected = formula(name, spread(targets, q), q, **options)
    found = divergence(name, s, targets, **options).numpy()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    if not name.startswith("total"):
        assert (found <= formula(name, probabilities(t), q, **options) + 1e-5).all()


@every
def test_topk_gradient_is_that_from_a_fixed_teacher_with_that_tail(
    name: str, options: dict[str, float]
) -> None:
    for temperature in (1.0, 2.0):
        s = draw(0, 4, 9).requires_grad_()
        targets = topk(draw(1, 4, 9), 3)
        fixed = torch.from_numpy(spread(targets, probabilities(s.detach()))).float().log()
        (one,) = torch.autograd.grad(
            divergence(name, s, targets, temperature=temperature, **options).sum(), s
        )
        (other,) = torch.autograd.grad(
            divergence(name, s, Full(fixed), temperature=temperature, **options).sum(), s
        )
        assert torch.allclose(one, other, atol=2e-5)


@every
@given(seeds)
@quick
def test_permuting_the_vocabulary_changes_nothing(
    name: str, options: dict[str, float], seed: int
) -> None:
    s, t = draw(seed, 3, 8), draw(seed + 1, 3, 8)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(8))
    back = torch.argsort(order)
    whole = divergence(name, s, Full(t), **options)
    assert torch.allclose(
        divergence(name, s[:, order], Full(t[:, order]), **options), whole, atol=1e-5
    )
    some = topk(t, 3)
    moved = TopK(back[some.ids], some.log_probs, some.rest)
    before = divergence(name, s, some, **options)
    assert torch.allclose(divergence(name, s[:, order], moved, **options), before, atol=1e-5)


def test_jsd_tends_to_the_kls_at_its_ends() -> None:
    s, t = draw(0, 3, 6).double(), draw(1, 3, 6).double()
    forward, reverse = divergence("forward_kl", s, Full(t)), divergence("reverse_kl", s, Full(t))
    near = divergence("jsd", s, Full(t), beta=1e-3) / 1e-3
    assert near.numpy() == pytest.approx(forward.numpy(), rel=0.02)
    near = divergence("jsd", s, Full(t), beta=1 - 1e-3) / 1e-3
    assert near.numpy() == pytest.approx(reverse.numpy(), rel=0.02)
    assert torch.equal(divergence("jsd", s, Full(t), beta=0.0), forward)
    assert torch.equal(divergence("jsd", s, Full(t), beta=1.0), reverse)


def test_cross_entropy_is_the_formula_and_0_without_a_label() -> None:
    s, labels = draw(0, 4, 6), torch.tensor([2, -100, 5, 0])
    found = divergence("cross_entropy", s, labels=labels)
    q = probabilities(s)
    assert found.tolist() == pytest.approx(
        [-np.log(q[0, 2]), 0, -np.log(q[2, 5]), -np.log(q[3, 0])]
    )


def gradient(student: torch.Tensor, targets: Targets) -> torch.Tensor:
    s = student.clone().requires_grad_()
    (found,) = torch.autograd.grad(divergence("forward_kl", s, targets).sum(), s)
    return found


def test_the_mean_gradient_of_draws_is_the_full_one_and_a_renormalised_topk_is_not() -> None:
    s, t = draw(0, 1, 12), draw(1, 1, 12)
    full = gradient(s, Full(t))
    trials, draws = 4000, 12
    targets = sampled(t.expand(trials, -1), draws)
    each = gradient(s.expand(trials, -1), targets)
    error = each.std(0) / trials**0.5
    assert ((each.mean(0) - full[0]).abs() < 4 * error + 1e-6).all()
    some = topk(t, 4)
    share = some.log_probs.log_softmax(-1)
    cut = gradient(s, TopK(some.ids, share, torch.zeros(1)))
    assert (cut - full).abs().max() > 20 * error.max()


def test_draws_value_is_a_divergence_from_the_draws() -> None:
    t = draw(1, 2, 6)
    targets = sampled(t, 10)
    w = targets.weights.double().numpy()
    s = draw(0, 2, 6)
    found = divergence("forward_kl", s, targets)
    assert found.numpy() == pytest.approx(formula("forward_kl", w, probabilities(s)), rel=1e-4)
    equal = divergence("forward_kl", targets.weights.clamp(min=1e-20).log(), targets)
    assert equal.numpy() == pytest.approx(0, abs=1e-5)


@every
def test_logits_of_different_width_are_compared_over_the_ids_both_have(
    name: str, options: dict[str, float]
) -> None:
    s, t = draw(0, 3, 6), draw(1, 3, 9)
    narrow = divergence(name, s, Full(t[:, :6]), **options)
    assert torch.equal(divergence(name, s, Full(t), **options), narrow)
    assert torch.equal(
        divergence(name, t, Full(s), **options), divergence(name, t[:, :6], Full(s), **options)
    )
    fewer = divergence(name, s, Full(t), shared=4, **options)
    assert torch.equal(fewer, divergence(name, s[:, :4], Full(t[:, :4]), **options))
    some = topk(t, 9)  # ids 6 to 8 are none of the student's: left out, the rest renormalised
    assert torch.allclose(divergence(name, s, some, **options), narrow, atol=1e-4)


def test_draws_on_ids_the_student_lacks_are_left_out() -> None:
    s = draw(0, 2, 3)
    targets = Sampled(torch.tensor([[0, 7], [8, 9]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    found = divergence("forward_kl", s, targets)
    assert found.tolist() == pytest.approx([-np.log(probabilities(s)[0, 0]), 0], rel=1e-5)
    assert gradient(s, targets)[1].abs().max() == 0


def test_padding_of_a_topk_counts_for_nothing() -> None:
    s, some = draw(0, 2, 6), topk(draw(1, 2, 6), 2)
    padded = TopK(
        torch.cat([some.ids, some.ids[:, :1], torch.full((2, 1), 5)], -1),
        torch.cat([some.log_probs, torch.full((2, 2), -torch.inf)], -1),
        some.rest,
    )
    for name in ("forward_kl", "reverse_kl", "jsd", "total_variation"):
        assert torch.allclose(divergence(name, s, padded), divergence(name, s, some), atol=1e-6)
    nothing = TopK(some.ids, torch.full((2, 2), -torch.inf), torch.ones(2))
    assert divergence("forward_kl", s, nothing).numpy() == pytest.approx(0, abs=1e-6)


@every
def test_values_and_gradients_are_finite_where_the_teacher_rules_ids_out(
    name: str, options: dict[str, float]
) -> None:
    t = draw(1, 2, 6)
    t[:, 3] = -torch.inf
    sure = TopK(torch.tensor([[1], [2]]), torch.zeros(2, 1), torch.zeros(2))
    for targets in (Full(t), sure):
        s = draw(0, 2, 6).requires_grad_()
        found = divergence(name, s, targets, **options)
        found.sum().backward()
        assert found.isfinite().all() and s.grad is not None and s.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: get_divergence("foward_kl"), "Did you mean 'forward_kl'"),
        (lambda: resolve_options("jsd", {"betta": 0.1}), "Did you mean 'beta'"),
        (lambda: resolve_options("cross_entropy", {"beta": 0.1}), "It has: none"),
        (lambda: resolve_options("jsd", {"beta": 1.1}), "0 to 1"),
        (lambda: resolve_options("skewed_kl", {"alpha": 1.0}), "compared with itself"),
        (lambda: resolve_options("forward_kl", {"temperature": 0.0}), "above 0"),
        (lambda: ask("reverse_kl"), "Use forward_kl"),
        (lambda: ask("forward_kl", temperature=2.0), "draws at temperature 1"),
        (lambda: divergence("forward_kl", torch.zeros(1, 3)), "needs a teacher's targets"),
        (lambda: divergence("cross_entropy", torch.zeros(1, 3)), "needs labels"),
        (
            lambda: divergence("cross_entropy", torch.zeros(1, 3), labels=torch.tensor([3])),
            "The label 3 is no token",
        ),
    ],
)
def test_what_is_not_defined_is_refused_with_what_to_do(call: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        call()


def ask(name: str, **options: float) -> torch.Tensor:
    return divergence(name, draw(0, 1, 4), sampled(draw(1, 1, 4), 5), **options)


def test_all_of_the_table_is_tested() -> None:
    assert {name for name, _ in TEACHERS} | {"cross_entropy"} == set(DIVERGENCES)
