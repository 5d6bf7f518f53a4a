"""The chunked loss against the plain one: same value, same gradients, no whole logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from paredown.distill import slopes
from paredown.distill.chunked import (
    TokenTerm,
    chunk_size,
    chunked_loss,
    chunked_terms,
)
from paredown.distill.divergences import DIVERGENCES, divergence
from paredown.distill.heads import Head, LiveTeacher
from paredown.distill.token_targets import Full, Sampled, Targets, TopK
from paredown.eval.errors import RecipeError

N, H, V = 11, 5, 17
OPTIONS: dict[str, list[dict[str, float]]] = {
    "forward_kl": [{}],
    "reverse_kl": [{}],
    "jsd": [{}, {"beta": 0.8}, {"beta": 0.0}, {"beta": 1.0}],
    "skewed_kl": [{}, {"alpha": 0.0}],
    "skewed_reverse_kl": [{}, {"alpha": 0.6}, {"alpha": 0.0}],
    "total_variation": [{}],
    "cross_entropy": [{}],
}
CASES = [
    (name, options, kind)
    for name, entry in DIVERGENCES.items()
    for options in OPTIONS[name]
    for kind in (entry.reads if not entry.needs_labels else ("none",))
]
cases = pytest.mark.parametrize(("name", "options", "kind"), CASES)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def targets_of(kind: str, width: int = V, rows: int = N) -> Targets | None:
    logits = draw(7, rows, width) * 2
    probs = logits.softmax(-1)
    if kind == "topk":
        top = probs.topk(4)
        return TopK(top.indices, top.values.log(), 1 - top.values.sum(-1))
    if kind == "sampled":
        counts = torch.from_numpy(
            np.random.default_rng(0).multinomial(9, np.full(6, 1 / 6), size=rows) / 9
        )
        return Sampled(probs.topk(6).indices, counts.float())
    return Full(logits) if kind == "full" else None


def labels_of(rows: int = N) -> Tensor:
    labels = torch.from_numpy(np.random.default_rng(3).integers(0, V, rows))
    labels[::4] = -100
    return labels


def student(dtype: torch.dtype = torch.float32, **more: Any) -> tuple[Tensor, Head]:
    """Hidden states and a head that want gradients."""
    hidden = draw(0, N, H, dtype=dtype).requires_grad_()
    weight = draw(1, V, H, dtype=dtype).requires_grad_()
    bias = draw(2, V, dtype=dtype).requires_grad_()
    return hidden, Head(weight, bias, **more)


def plain(
    hidden: Tensor,
    head: Head,
    terms: list[TokenTerm],
    targets: Targets | None,
    labels: Tensor,
    weights: Tensor,
    shared: int | None = None,
) -> Tensor:
    """The same from whole logits."""
    logits = head.logits(hidden)
    total = logits.new_zeros(())
    for term in terms:
        each = divergence(term.name, logits, targets, labels, shared, **term.options)
        counted = weights * (labels != -100) if term.needs_labels else weights
        total = total + term.weight * (each * counted).sum() / counted.sum().clamp(min=1e-9)
    return total


def gradients(loss: Tensor, hidden: Tensor, head: Head) -> list[Tensor]:
    inputs = [x for x in (hidden, head.weight, head.bias) if x is not None and x.requires_grad]
    return list(torch.autograd.grad(loss, inputs))


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        scale = other.float().abs().max().clamp(min=1e-3)
        assert ((one - other).float().abs().max() / scale).item() < tolerance


@cases
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("shared", [None, 12])
def test_chunked_equals_plain(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, float],
    kind: str,
    temperature: float,
    shared: int | None,
) -> None:
    if temperature != 1:
        if kind == "sampled" or name == "cross_entropy":
            pytest.skip("has no temperature")
        options = {**options, "temperature": temperature}
    terms, targets, labels = [TokenTerm(name, 0.7, options)], targets_of(kind), labels_of()
    weights = draw(5, N).abs()
    weights[4] = 0
    hidden, head = student(softcap=3.0, scale=0.8)
    expected = plain(hidden, head, terms, targets, labels, weights, shared)
    wanted = gradients(expected, hidden, head)
    for chunk, slab in (
        (1, 1000),
        (4, 20),
        (N, 5 * N),
        (100, 1),
    ):  # numbers of a slab: of 1 to 17 ids
        monkeypatch.setattr(slopes, "SLAB_NUMBERS", slab)
        found = chunked_loss(
            hidden, head, terms, targets, labels=labels, weights=weights, shared=shared, chunk=chunk
        )
        assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
        assert_same(gradients(found, hidden, head), wanted)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_terms_in_one_pass_in_each_precision(
    name: str, options: dict[str, float], kind: str, dtype: torch.dtype
) -> None:
    terms = [TokenTerm(name, 0.5, options), TokenTerm("cross_entropy", 0.5)]
    targets, labels, weights = targets_of(kind), labels_of(), torch.ones(N)
    hidden, head = student(dtype)
    found = chunked_loss(hidden, head, terms, targets, labels=labels, chunk=4)
    made = gradients(found, hidden, head)
    expected = plain(hidden, head, terms, targets, labels, weights)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert [g.dtype for g in made] == [dtype] * 3
    tolerance = 1e-5 if dtype == torch.float32 else 0.03  # two roundings to 2⁻⁹, and their sums
    assert_same(made, gradients(expected, hidden, head), tolerance)
    exact, whole = student()
    if dtype == torch.bfloat16:
        for x, y in zip(
            (exact, whole.weight, whole.bias), (hidden, head.weight, head.bias), strict=True
        ):
            assert x is not None and y is not None
            x.data = y.data.float()
        loss = chunked_loss(exact, whole, terms, targets, labels=labels)
        assert_same([g.float() for g in made], gradients(loss, exact, whole), 0.08)


@pytest.mark.parametrize("name", [n for n in DIVERGENCES if n != "cross_entropy"])
@pytest.mark.parametrize("width", [V, V - 4, V + 4])
def test_a_live_teacher_is_the_same_as_its_logits(name: str, width: int) -> None:
    teacher_hidden, weight = draw(8, N, 7), draw(9, width, 7).requires_grad_()
    teacher = Head(weight, draw(10, width), scale=0.5, softcap=5.0)
    terms = [TokenTerm(name), TokenTerm("jsd", 0.3, {"beta": 0.2}), TokenTerm("cross_entropy")]
    hidden, head = student()
    recorded = Full(teacher.logits(teacher_hidden).detach())
    labels = labels_of()
    live = chunked_loss(
        hidden, head, terms, LiveTeacher(teacher_hidden, teacher), labels=labels, chunk=3
    )
    read = chunked_loss(hidden, head, terms, recorded, labels=labels, chunk=5)
    assert live.item() == pytest.approx(read.item(), rel=1e-5)
    assert_same(gradients(live, hidden, head), gradients(read, hidden, head))
    assert weight.grad is None


@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 4), st.integers(2, 20))
@settings(max_examples=30, deadline=None)
def test_any_shape(seed: int, rows: int, width: int, vocabulary: int) -> None:
    hidden = draw(seed, rows, width).requires_grad_()
    head = Head(draw(seed + 1, vocabulary, width).requires_grad_())
    targets = Full(draw(seed + 2, rows, vocabulary))
    terms = [TokenTerm("reverse_kl")]
    labels = torch.full((rows,), -100)
    expected = plain(hidden, head, terms, targets, labels, torch.ones(rows))
    found = chunked_loss(hidden, head, terms, targets, chunk=1 + seed % 4)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    assert_same(gradients(found, hidden, head), gradients(expected, hidden, head), 1e-4)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("empty", ["masked", "no rows", "not a number"])
def test_nothing_that_counts_gives_0_and_no_nan(
    name: str, options: dict[str, float], kind: str, dtype: torch.dtype, empty: str
) -> None:
    hidden, head = student(dtype)
    targets, labels, weights = targets_of(kind), labels_of(), torch.zeros(N)
    if empty == "no rows":
        hidden = hidden.detach()[:0].requires_grad_()
        targets, labels, weights = targets_of(kind, rows=0), labels[:0], weights[:0]
    if empty == "not a number":
        hidden = torch.full_like(hidden, torch.nan, requires_grad=True)
    terms = [TokenTerm(name, 1.0, options), TokenTerm("cross_entropy")]
    loss = chunked_loss(hidden, head, terms, targets, labels=labels, weights=weights)
    assert loss.item() == 0
    for gradient in gradients(loss, hidden, head):
        assert gradient.abs().sum().item() == 0


def test_labels_that_are_none_give_0_and_no_nan() -> None:
    hidden, head = student()
    none = torch.full((N,), -100)
    loss = chunked_loss(hidden, head, [TokenTerm("cross_entropy")], labels=none)
    assert loss.item() == 0
    assert all(g.abs().sum() == 0 for g in gradients(loss, hidden, head))


def test_each_term_is_told_apart() -> None:
    hidden, head = student()
    terms = [TokenTerm("forward_kl", 0.25), TokenTerm("cross_entropy", 0.5)]
    total, each = chunked_terms(hidden, head, terms, targets_of("full"), labels=labels_of())
    assert total.item() == pytest.approx(0.25 * each[0].item() + 0.5 * each[1].item())
    assert not each.requires_grad
    for term, value in zip(terms, each, strict=True):
        alone = chunked_loss(
            hidden, head, [TokenTerm(term.name)], targets_of("full"), labels=labels_of()
        )
        assert alone.item() == pytest.approx(value.item())


def test_parts_of_a_batch_with_its_divisor_add_up_to_the_batch() -> None:
    hidden, head = student()
    terms = [TokenTerm("forward_kl"), TokenTerm("reverse_kl", 2.0)]
    targets, weights = targets_of("full"), draw(5, N).abs()
    assert isinstance(targets, Full)
    whole = chunked_loss(hidden, head, terms, targets, weights=weights)
    wanted = gradients(whole, hidden, head)
    parts = [
        chunked_loss(
            hidden[a:b], head, terms, targets[a:b], weights=weights[a:b], divisor=weights.sum()
        )
        for a, b in ((0, 3), (3, N))
    ]
    assert sum(p.item() for p in parts) == pytest.approx(whole.item())
    assert_same(gradients(parts[0] + parts[1], hidden, head), wanted)


def test_a_factor_on_the_loss_is_on_its_gradients() -> None:
    hidden, head = student()
    terms, targets = [TokenTerm("forward_kl")], targets_of("topk")
    once = gradients(chunked_loss(hidden, head, terms, targets), hidden, head)
    scaled = gradients(chunked_loss(hidden, head, terms, targets) / 8, hidden, head)
    assert_same([8 * g for g in scaled], once)
    loss = chunked_loss(hidden, head, terms, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        loss.backward()


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_what_wants_no_gradient_gets_none(frozen: str) -> None:
    hidden, head = student()
    if frozen == "hidden":
        hidden = hidden.detach()
    else:
        head = Head(head.weight.detach())
    terms, targets = [TokenTerm("forward_kl")], targets_of("full")
    expected = plain(hidden, head, terms, targets, labels_of(), torch.ones(N))
    found = chunked_loss(hidden, head, terms, targets, chunk=4)
    assert_same(gradients(found, hidden, head), gradients(expected, hidden, head))


def test_without_gradients_only_the_value_is_made() -> None:
    hidden, head = student()
    terms, targets = [TokenTerm("jsd"), TokenTerm("cross_entropy")], targets_of("full")
    expected = chunked_loss(hidden, head, terms, targets, labels=labels_of()).item()
    with torch.no_grad(), Products() as products:
        found = chunked_loss(hidden, head, terms, targets, labels=labels_of(), chunk=N)
    assert products.count == 1  # the logits
    assert found.item() == pytest.approx(expected, rel=1e-5) and not found.requires_grad


class Products(TorchDispatchMode):
    """Counts matrix products, and keeps the size of the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        self.count += name in ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor) and one.untyped_storage().nbytes() == one.nbytes:
                self.largest = max(self.largest, one.numel())
        return out


@pytest.fixture
def large() -> Iterator[tuple[Tensor, Head, LiveTeacher]]:
    """A batch whose logits would be larger than anything else."""
    hidden = draw(0, 256, 8).requires_grad_()
    head = Head(draw(1, 500, 8).requires_grad_())
    yield hidden, head, LiveTeacher(draw(2, 256, 8), Head(draw(3, 500, 8)))


def test_whole_logits_never_exist_and_each_chunk_has_four_products(
    large: tuple[Tensor, Head, LiveTeacher],
) -> None:
    hidden, head, teacher = large
    terms = [TokenTerm("forward_kl"), TokenTerm("cross_entropy")]
    with Products() as products:
        loss = chunked_loss(
            hidden, head, terms, teacher, labels=torch.zeros(256, dtype=torch.long), chunk=16
        )
        loss.backward()
    assert products.count == 4 * 16
    assert products.largest <= max(16 * 500, 500 * 8)


def test_under_autocast_the_products_are_bf16_and_gradients_in_the_parameters_dtype() -> None:
    hidden, head = student()
    terms, targets = [TokenTerm("forward_kl")], targets_of("full")
    exact = gradients(chunked_loss(hidden, head, terms, targets), hidden, head)
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_loss(hidden, head, terms, targets)
    found = gradients(loss, hidden, head)
    assert {g.dtype for g in found} == {torch.float32}
    assert_same(found, exact, 0.08)
    assert any(not torch.equal(a, b) for a, b in zip(found, exact, strict=True))


def test_targets_are_left_as_they_were() -> None:
    hidden, head = student()
    full = targets_of("full")
    assert isinstance(full, Full)
    before = full.logits.clone()
    chunked_loss(
        hidden, head, [TokenTerm("reverse_kl", 1.0, {"temperature": 2.0})], full
    ).backward()
    assert torch.equal(full.logits, before)


def test_chunks_are_chosen_by_the_vocabulary() -> None:
    assert chunk_size(151_936) == 288
    assert chunk_size(32_000) > 500
    assert chunk_size(10) == 4096 and chunk_size(10_000_000) == 64


@pytest.mark.parametrize(
    ("terms", "more", "says"),
    [
        ([], {}, "at least one loss"),
        ([("forward_kl", {})], {}, "needs a teacher"),
        ([("cross_entropy", {})], {}, "needs labels"),
        ([("reverse_kl", {})], {"teacher": targets_of("sampled")}, "not defined on sampled"),
        (
            [("forward_kl", {})],
            {"teacher": targets_of("full", rows=3)},
            "11 positions and the teacher 3",
        ),
        ([("cross_entropy", {})], {"labels": torch.full((N,), V)}, "no token of the student"),
        ([("cross_entropy", {})], {"labels": labels_of(), "chunk": 0}, "at least 1 position"),
    ],
)
def test_what_cannot_be_computed_is_refused(terms: Any, more: dict[str, Any], says: str) -> None:
    hidden, head = student()
    made = [TokenTerm(name, 1.0, options) for name, options in terms]
    with pytest.raises(RecipeError, match=says):
        chunked_loss(hidden, head, made, more.pop("teacher", None), **more)


def test_a_term_of_no_weight_or_an_unknown_name_is_refused() -> None:
    with pytest.raises(RecipeError, match="Leave the loss out"):
        TokenTerm("forward_kl", 0.0)
    with pytest.raises(RecipeError, match="Did you mean 'jsd'"):
        TokenTerm("jsdd")
