"""Tokenizers that differ: spans of the same bytes, merged distributions, sorted distances."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from paredown.distill.alignment import (
    Span,
    align_spans,
    byte_offsets,
    check_losses,
    chunked_uld,
    match_vocabularies,
    merge_spans,
    sorted_l1,
    uld,
)
from paredown.distill.heads import Head, LiveTeacher
from paredown.eval.errors import RecipeError, RunError

TEXTS = [
    "red running shoes under 80 dollars, size 42",
    "the blue brand is not what I want, naïve Straße",
    "running and running, under the red size",
] * 4


def byte_pairs(size: int, lowercase: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of so many tokens."""
    from tokenizers import normalizers

    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [text.lower() for text in TEXTS],
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def offsets(cuts: set[int], length: int) -> list[tuple[int, int]]:
    return list(pairwise([0, *sorted(cuts - {0, length}), length]))


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.sets(st.integers(0, n), max_size=n),
            st.sets(st.integers(0, n), max_size=n),
        )
    )
)
@settings(max_examples=100, deadline=None)
def test_spans_are_cut_wherever_both_sides_are(given: tuple[int, set[int], set[int]]) -> None:
    length, a, b = given
    s, t = offsets(a, length), offsets(b, length)
    spans = align_spans(s, t)
    assert len(spans) == len((a & b) - {0, length}) + 1
    for span in spans:
        assert s[span.student[0]][0] == t[span.teacher[0]][0]
        assert s[span.student[-1]][1] == t[span.teacher[-1]][1]
    assert [i for span in spans for i in span.student] == list(range(len(s)))
    assert [i for span in spans for i in span.teacher] == list(range(len(t)))


@given(st.text(min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_spans_of_real_tokenizers_cover_any_text(text: str) -> None:
    sides = []
    for tokenizer in TOKENIZERS:
        row = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        sides.append(byte_offsets(text, row["offset_mapping"]))
    spans = align_spans(*sides)
    encoded = text.encode("utf-8")
    reached = 0
    for span in spans:
        first, last = sides[0][span.student[0]][0], sides[0][span.student[-1]][1]
        assert first == sides[1][span.teacher[0]][0] == reached
        assert last == sides[1][span.teacher[-1]][1]
        encoded[first:last].decode("utf-8")  # no character is cut in two
        reached = last
    assert reached == len(encoded)


TOKENIZERS = [byte_pairs(258), byte_pairs(330)]


def test_spaces_left_out_and_special_tokens_and_a_truncated_side() -> None:
    student = [(0, 0), (0, 3), (4, 8), (8, 8)]  # <s> red [space left out] shoe </s>
    teacher = [(0, 3), (3, 6), (6, 8), (8, 9)]  # red, " sh", oe, s
    assert align_spans(student, teacher) == [Span((1,), (0,)), Span((2,), (1, 2))]
    assert align_spans([(0, 2)], [(0, 3)]) == []
    assert align_spans([], [(0, 3)]) == [] == align_spans([(0, 0)], [(0, 0)])


def test_parts_of_a_character_stay_together() -> None:
    assert byte_offsets("é🙂a", [(0, 1), (1, 2), (1, 2), (2, 3)]) == [
        (0, 2),
        (2, 6),
        (2, 6),
        (6, 7),
    ]
    parts = [(0, 4), (0, 4), (4, 5)]
    assert align_spans(parts, [(0, 4), (4, 5)]) == [Span((0, 1), (0,)), Span((2,), (1,))]
    assert align_spans(parts, parts) == [Span((0, 1), (0, 1)), Span((2,), (2,))]


def test_offsets_that_run_backwards_are_refused() -> None:
    with pytest.raises(RunError, match="teacher's token 1 covers bytes 0 to 2"):
        align_spans([(0, 5)], [(2, 5), (0, 2)])


def test_a_merged_span_is_the_joint_probability_of_its_tokens() -> None:
    logits, ids = draw(0, 4, 6), torch.tensor([3, 1, 5, 2])
    p = logits.double().softmax(-1)
    merged = merge_spans(logits, ids, [(0,), (1, 2, 3)])
    assert torch.allclose(merged[0], p[0].float())
    joint = p[1, 1] * p[2, 5] * p[3]
    assert torch.allclose(merged[1], joint.float(), rtol=1e-4)
    assert merged[1, 2].item() == pytest.approx((p[1, 1] * p[2, 5] * p[3, 2]).item(), rel=1e-4)


@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_sorted_distance_is_the_formula_and_forgets_the_order(seed: int, a: int, b: int) -> None:
    s, t = draw(seed, 2, a).softmax(-1), draw(seed + 1, 2, b).softmax(-1)
    width = max(a, b)
    expected = []
    for x, y in zip(s.double().numpy(), t.double().numpy(), strict=True):
        x = np.concatenate([-np.sort(-x), np.zeros(width - a)])
        y = np.concatenate([-np.sort(-y), np.zeros(width - b)])
        expected.append(np.abs(x - y).sum())
    assert sorted_l1(s, t).numpy() == pytest.approx(np.array(expected), abs=1e-6)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(b))
    assert torch.equal(sorted_l1(s, t[:, order]), sorted_l1(s, t))
    assert sorted_l1(s, s).abs().max() == 0


def test_uld_is_0_for_the_same_tokens_and_distributions_and_above_it_else() -> None:
    logits, ids = draw(0, 3, 5), torch.tensor([0, 1, 2])
    spans = align_spans([(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)])
    wider = torch.cat([logits, torch.full((3, 4), -1e9)], -1)
    assert uld(logits, ids, wider, ids, spans, 2.0).abs().max() < 1e-6
    assert uld(logits, ids, draw(1, 3, 8), ids, spans).min() > 0.01


@pytest.mark.parametrize("chunk", [1, 3, 100, None])
def test_chunked_uld_equals_plain_in_value_and_gradient(chunk: int | None) -> None:
    hidden, weight = draw(0, 7, 4).requires_grad_(), draw(1, 9, 4).requires_grad_()
    teacher = LiveTeacher(draw(2, 5, 3), Head(draw(3, 12, 3).requires_grad_()))
    ids_s, ids_t = torch.tensor([1, 2, 3, 4, 5, 6, 7]), torch.tensor([0, 11, 3, 4, 2])
    spans = [Span((0,), (0, 1)), Span((1, 2, 3), (2,)), Span((5, 6), (3, 4))]
    whole = uld(hidden @ weight.T, ids_s, teacher.head.logits(teacher.hidden), ids_t, spans, 1.5)
    wanted = torch.autograd.grad(whole.mean(), [hidden, weight])
    found = chunked_uld(
        hidden, Head(weight), ids_s, teacher, ids_t, spans, temperature=1.5, chunk=chunk
    )
    assert found.item() == pytest.approx(whole.mean().item(), rel=1e-5)
    for one, other in zip(torch.autograd.grad(found, [hidden, weight]), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert wanted[0][4].abs().max() == 0  # in no span


def test_uld_without_spans_is_0_and_no_nan() -> None:
    hidden = draw(0, 2, 4).to(torch.bfloat16).requires_grad_()
    teacher = LiveTeacher(draw(2, 2, 3), Head(draw(3, 12, 3)))
    ids = torch.tensor([1, 2])
    loss = chunked_uld(hidden, Head(draw(1, 9, 4).to(torch.bfloat16)), ids, teacher, ids, [])
    loss.backward()
    assert loss.item() == 0 and hidden.grad is not None and hidden.grad.abs().sum() == 0


def test_one_tokenizer_matches_itself_with_tokens_added_to_either() -> None:
    one, other = byte_pairs(300), byte_pairs(300)
    assert match_vocabularies(one, other) == match_vocabularies(other, one)
    assert match_vocabularies(one, other).identical
    assert match_vocabularies(one, other).shared == len(one)
    other.add_special_tokens({"additional_special_tokens": ["<think>"]})
    found = match_vocabularies(one, other)
    assert found.identical and found.shared == len(one) == len(other) - 1


def test_vocabularies_that_differ_say_in_what() -> None:
    small, large = byte_pairs(280), byte_pairs(300)
    found = match_vocabularies(small, large)
    assert not found.identical and found.shared == 0 and "only the teacher has" in found.reason
    found = match_vocabularies(small, byte_pairs(280, lowercase=True))
    assert not found.identical and "split" in found.reason
    small.add_tokens(["<a>"])
    other = byte_pairs(280)
    other.add_tokens(["<b>", "<a>"])
    assert "'<a>' is 280 for the student and 281" in match_vocabularies(small, other).reason


def test_losses_that_cannot_work_across_tokenizers_are_refused_and_uld_within_one() -> None:
    differ = match_vocabularies(byte_pairs(280), byte_pairs(300))
    check_losses(["uld", "cross_entropy"], differ)
    with pytest.raises(RecipeError, match=r"'jsd' compares .* only the teacher has .* 'uld'"):
        check_losses(["cross_entropy", "jsd"], differ)
    same = match_vocabularies(byte_pairs(280), byte_pairs(280))
    check_losses(["jsd", "cross_entropy"], same)
    with pytest.raises(RecipeError, match="Use forward_kl"):
        check_losses(["uld"], same)
