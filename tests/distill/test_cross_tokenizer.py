"""Universal logit distillation from records: spans by bytes, distances of a top-k, gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.distill.alignment import align_spans, byte_offsets, sorted_l1
from paredown.distill.byte_spans import ByteSpans
from paredown.distill.cross_tokenizer import (
    TokenSpans,
    UldTerm,
    recorded_uld,
    sorted_topk_l1,
)
from paredown.distill.examples import Examples
from paredown.distill.heads import Head
from paredown.distill.language import token_terms
from paredown.distill.language_rows import BLANK, LanguageRows
from paredown.distill.token_encoding import get_encoding
from paredown.distill.token_recording import TokenOutputsWriter
from paredown.distill.token_targets import Full, Sampled, TopK
from paredown.eval.byte_pairs import train_byte_pairs
from paredown.eval.dialogues import Example
from paredown.eval.errors import RecipeError

TEXTS = [
    "red running shoes under 80 dollars, size 42",
    "the blue brand is not what I want, naïve Straße 東京 🙂",
    "running and running, under the red size",
] * 4
SMALL, LARGE = train_byte_pairs(TEXTS, 270, 64), train_byte_pairs(TEXTS, 340, 64)


def ids(tokenizer: Any, text: str) -> np.ndarray[Any, Any]:
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)


def ended(tokenizer: Any, text: str) -> np.ndarray[Any, Any]:
    return np.append(ids(tokenizer, text), tokenizer.eos_token_id)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


@given(st.text(st.characters(codec="ascii", exclude_characters="\x00<>"), max_size=40))
@settings(max_examples=60, deadline=None)
def test_spans_by_bytes_are_those_by_offsets(text: str) -> None:
    found = ByteSpans(SMALL, LARGE).of(ids(SMALL, text), ids(LARGE, text))
    offsets = [
        byte_offsets(
            text, t(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        )
        for t in (SMALL, LARGE)
    ]
    spans = align_spans(*offsets)
    for side, owners in zip(("student", "teacher"), found, strict=True):
        expected = [number for number, span in enumerate(spans) for _ in getattr(span, side)]
        assert owners.tolist() == expected


@pytest.mark.parametrize("text", TEXTS[:3])
def test_each_span_spells_the_same_on_both_sides(text: str) -> None:
    s, t = ended(SMALL, text), ended(LARGE, text)
    of_s, of_t = ByteSpans(SMALL, LARGE).of(s, t)
    assert of_s.max() == of_t.max() > 3
    for number in range(of_s.max() + 1):
        ours, theirs = SMALL.decode(s[of_s == number]), LARGE.decode(t[of_t == number])
        assert ours == theirs
    assert of_s[-1] == of_t[-1] == of_s.max()  # the end of one is the end of the other
    assert (of_s[:-1] < of_s[-1]).all()


def test_what_is_truncated_or_differs_is_in_no_span() -> None:
    spans = ByteSpans(SMALL, LARGE)
    text = TEXTS[0]
    s, t = ids(SMALL, text)[:-3], ended(LARGE, text)
    of_s, of_t = spans.of(s, t)
    assert of_s.max() == of_t.max() >= 0 and of_t[-1] == -1
    of_s, of_t = spans.of(ended(SMALL, "red size"), ended(LARGE, "red sock"))
    shared = SMALL.decode(ended(SMALL, "red size")[of_s >= 0])
    assert "red size".startswith(shared) and "red sock".startswith(shared) and of_s[-1] == -1
    of_s, of_t = spans.of(ids(SMALL, "xyz"), ids(LARGE, "abc"))
    assert (of_s == -1).all() and (of_t == -1).all()
    nothing = np.empty(0, dtype=np.int64)
    of_s, of_t = spans.of(nothing, ids(LARGE, "abc"))
    assert of_s.tolist() == [] and (of_t == -1).all()


def test_special_tokens_within_a_text_are_in_no_span() -> None:
    bos = SMALL.bos_token_id
    s = np.insert(ended(SMALL, "red size"), 1, bos)
    of_s, of_t = ByteSpans(SMALL, LARGE).of(s, ended(LARGE, "red size"))
    assert of_s[1] == -1 and (np.delete(of_s, 1) >= 0).all() and (of_t >= 0).all()


def sentencepiece(merges: list[tuple[str, str]]) -> Any:
    """A tokenizer that puts a space in front of each text, as Llama 2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["</s>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens += [a + b for a, b in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_the_space_that_sentencepiece_puts_in_front_is_left_out() -> None:
    other = sentencepiece([("r", "e"), ("▁", "re"), ("▁", "s")])
    s, t = ended(SMALL, "red size"), ended(other, "red size")
    assert other.convert_ids_to_tokens(t.tolist())[0] == "▁re"
    of_s, of_t = ByteSpans(SMALL, other).of(s, t)
    assert (of_s >= 0).all() and (of_t >= 0).all() and of_s.max() > 2
    of_s, of_t = ByteSpans(other, SMALL).of(t, s)
    assert (of_s >= 0).all() and (of_t >= 0).all()
    alone = sentencepiece([])  # the space is a token of its own
    of_s, of_t = ByteSpans(alone, SMALL).of(ended(alone, "red size"), s)
    assert of_s[0] == -1 and (of_s[1:] >= 0).all() and (of_t >= 0).all()


def test_tokenizers_that_do_not_spell_a_text_are_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "red": 1}, unk_token="[UNK]"))
    words = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="[UNK]")
    with pytest.raises(RecipeError, match="the teacher's tokenizer is wordpiece"):
        ByteSpans(SMALL, words)
    endless = train_byte_pairs(TEXTS, 270, 64)
    endless.eos_token = None
    with pytest.raises(RecipeError, match="the student's tokenizer has no token that ends"):
        ByteSpans(endless, LARGE)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_top_k_is_never_farther_than_the_whole(v: int, u: int, k: int, seed: int) -> None:
    q, p = (draw(seed, 3, v) * 2).softmax(-1), (draw(seed + 1, 3, u) * 2).softmax(-1)
    k = min(k, u)
    largest = p.topk(k).values
    part = sorted_topk_l1(q, largest, 1 - largest.sum(-1))
    whole = sorted_l1(q, p)
    assert (part <= whole + 1e-5).all()
    if k == u and v <= u:
        torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)
    mixed = largest[:, torch.randperm(k)]
    torch.testing.assert_close(sorted_topk_l1(q, mixed, 1 - largest.sum(-1)), part)


def test_equal_lists_have_no_distance_whatever_their_order() -> None:
    p = draw(0, 4, 9).softmax(-1)
    largest = p.topk(5).values
    found = sorted_topk_l1(p[:, torch.randperm(9)], largest, 1 - largest.sum(-1))
    assert found.abs().max() < 1e-6


N, M, V, U, H = 7, 6, 11, 13, 5
OF_S = torch.tensor([0, 0, 1, -1, 2, 2, 3])
OF_T = torch.tensor([0, 1, 1, 2, 3, -1])


def case(kind: str, k: int = U) -> tuple[Any, ...]:
    """A student's states, head and labels, a teacher's targets, and their spans."""
    hidden, weight = draw(1, N, H).requires_grad_(), draw(2, V, H).requires_grad_()
    labels = torch.tensor([3, 1, 4, 1, 5, 9, 2])
    taken = torch.tensor([3, 0, 8, 12, 7, 7])
    logits = draw(3, M, U) * 2
    targets: Any = Full(logits)
    if kind == "topk":
        log_p = logits.log_softmax(-1)
        # ascending: the order on disk is not that of size
        values, places = log_p.topk(k)
        values, places = values.flip(-1), places.flip(-1)
        targets = TopK(places, values, 1 - values.exp().sum(-1))
    return hidden, weight, labels, logits, targets, TokenSpans(OF_S, OF_T, taken)


def plain(
    hidden: Any, weight: Any, labels: Any, logits: Any, spans: Any, k: int, temperature: float
) -> torch.Tensor:
    """The sum over spans in float64, one token at a time, from the formulas alone."""
    q = ((hidden.double() @ weight.double().T) / temperature).softmax(-1)
    p = (logits.double() / temperature).softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for number in range(4):
        lists = []
        for probabilities, of, tokens in (
            (q, spans.student, labels),
            (p, spans.teacher, spans.taken),
        ):
            places = [i for i in range(len(of)) if of[i] == number]
            before = 1.0
            for i in places[:-1]:
                before = before * probabilities[i, tokens[i]]
            lists.append((probabilities[places[-1]] * before).sort(descending=True).values)
        ours, theirs = lists
        for i in range(k):
            total = total + abs((ours[i] if i < V else 0.0) - (theirs[i] if i < U else 0.0))
        total = total + abs(ours[k:].sum() - theirs[k:].sum())
    return total


@pytest.mark.parametrize(
    ("kind", "k", "temperature"), [("full", U, 1.0), ("full", U, 2.0), ("topk", 4, 1.0)]
)
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_value_and_gradient_are_the_formulas(
    kind: str, k: int, temperature: float, chunk: int
) -> None:
    hidden, weight, labels, logits, targets, spans = case(kind, k)
    if kind == "topk":  # every token that the teacher took before a span's last is recorded
        spans = TokenSpans(OF_S, OF_T, spans.taken.clone())
        spans.taken[1] = targets.ids[1, 0]
    found = recorded_uld(
        hidden, Head(weight), labels, targets, spans, temperature=temperature, chunk=chunk
    )
    found.backward()
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = plain(h, w, labels, logits, spans, k, temperature) / 4
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(hidden.grad.double(), h.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight.grad.double(), w.grad, rtol=1e-4, atol=1e-6)
    assert hidden.grad[3].abs().max() == 0  # in no span


def test_a_span_whose_earlier_token_is_not_recorded_is_left_out() -> None:
    hidden, weight, labels, _, targets, spans = case("topk", 4)
    outside = next(i for i in range(U) if i not in targets.ids[1].tolist())
    spans.taken[1] = outside
    found = recorded_uld(hidden, Head(weight), labels, targets, spans)
    found.backward()
    assert hidden.grad is not None and hidden.grad[2].abs().max() == 0
    assert hidden.grad[0].abs().max() > 0
    others = TokenSpans(
        torch.tensor([0, 0, -1, -1, 1, 1, 2]), torch.tensor([0, -1, -1, 1, 2, -1]), spans.taken
    )
    again = recorded_uld(hidden, Head(weight), labels, targets, others)
    assert found.item() == pytest.approx(again.item(), rel=1e-6)


def test_the_sum_is_divided_by_what_is_said() -> None:
    hidden, weight, labels, _, targets, spans = case("full")
    mean = recorded_uld(hidden, Head(weight), labels, targets, spans)
    part = recorded_uld(hidden, Head(weight), labels, targets, spans, divisor=torch.tensor(28))
    assert part.item() == pytest.approx(mean.item() * 4 / 28, rel=1e-5)


def test_in_bf16_it_is_the_same_to_its_rounding() -> None:
    hidden, weight, labels, _, targets, spans = case("full")
    exact = recorded_uld(hidden, Head(weight), labels, targets, spans)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = recorded_uld(hidden, Head(weight), labels, targets, spans)
    found.backward()
    assert found.dtype == torch.float32 and found.item() == pytest.approx(exact.item(), rel=0.05)
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_without_spans_it_is_0_and_no_nan() -> None:
    hidden, weight, labels, _, targets, _ = case("topk", 4)
    none = TokenSpans(torch.full((N,), -1), torch.full((M,), -1), torch.zeros(M, dtype=torch.long))
    found = recorded_uld(hidden, Head(weight), labels, targets, none)
    found.backward()
    assert found.item() == 0 and hidden.grad is not None and hidden.grad.abs().max() == 0
    assert weight.grad is not None and weight.grad.abs().max() == 0  # all processes have one
    empty = torch.empty(0, dtype=torch.long)
    nothing = TokenSpans(empty, empty, empty)
    value = recorded_uld(hidden[:0], Head(weight), labels[:0], targets[0:0], nothing)
    assert value.item() == 0


def test_what_has_no_order_is_refused() -> None:
    hidden, weight, labels, _, targets, spans = case("topk", 4)
    draws = Sampled(targets.ids, torch.full((M, 4), 0.25))
    with pytest.raises(RecipeError, match=r"set capture\.encoding to topk or full"):
        recorded_uld(hidden, Head(weight), labels, draws, spans)
    with pytest.raises(RecipeError, match=r"uld\.temperature: .* capture\.encoding to full"):
        recorded_uld(hidden, Head(weight), labels, targets, spans, temperature=2.0)


def test_terms_say_what_is_wrong_with_them() -> None:
    found = token_terms({"uld": {"weight": 2, "temperature": 1.5}, "cross_entropy": 1.0})
    assert found[0] == UldTerm(2.0, 1.5) and found[1].name == "cross_entropy"
    for options, message in (
        ({"temperature": 0}, "uld.temperature must be above 0"),
        ({"weight": -1}, "uld.weight must be above 0"),
        ({"weight": math.inf}, "uld.weight must be above 0"),
        ({"beta": 0.5}, "'uld' has no option 'beta'"),
    ):
        with pytest.raises(RecipeError, match=message):
            token_terms({"uld": options})


def test_turns_are_cut_where_each_ends() -> None:
    turns = ["red size", "the blue brand"]
    s = np.concatenate([ended(SMALL, turn) for turn in turns])
    t = np.concatenate([ended(LARGE, turn) for turn in turns])
    of_s, of_t = ByteSpans(SMALL, LARGE).of(s, t)
    ends_s, ends_t = of_s[s == SMALL.eos_token_id], of_t[t == LARGE.eos_token_id]
    assert len(ends_s) == 2 and ends_s.tolist() == ends_t.tolist()
    assert (np.bincount(of_s)[ends_s] == 1).all() and (np.bincount(of_t)[ends_t] == 1).all()


def test_a_batch_counts_its_rows_spans_on(tmp_path: Path) -> None:
    texts = ["red size", "", "the blue brand"]
    rows = [[5, *ended(SMALL, text)] for text in texts]
    examples = Examples(
        [Example(row, [0] + [1] * (len(row) - 1), False) for row in rows], tmp_path / "rows"
    )
    writer = TokenOutputsWriter(
        tmp_path / "out", identity={}, encoding=get_encoding({"encoding": "topk", "k": 3}, 340)
    )
    for i, text in enumerate(texts):
        ids = [7, 8, *ended(LARGE, text)]
        logits = draw(i, len(ids) - 2, 340)
        writer.add(writer.record(ids, [(2, len(ids))], key=str(i), logits=logits))
    outputs = writer.finish({"train": [0, 1, 2]})
    data = LanguageRows(examples, 0, outputs.rows("train"), outputs, spans=ByteSpans(SMALL, LARGE))
    batch = data.collate([0, 1, 2])
    learned = sum(len(row) - 1 for row in rows)
    assert len(batch["student_spans"]) == learned
    for side, number in ((batch["student_spans"], learned), (batch["teacher_spans"], None)):
        assert (side.diff() >= 0).all() and side[0] == 0 and number in (None, len(side))
    assert batch["student_spans"].max() == batch["teacher_spans"].max()
    assert batch["teacher_ids"].tolist() == [i for text in texts for i in ended(LARGE, text)]
    alone = [data.collate([row])["student_spans"].max().item() + 1 for row in range(3)]
    assert batch["student_spans"].max() + 1 == sum(alone) and alone[1] == 1  # the end
    assert data.aligned([0, 1, 2]) == 1
    filled = data.collate([0, BLANK, 1, 2, BLANK])
    for name in ("student_spans", "teacher_spans", "teacher_ids", "teacher_topk_ids"):
        assert torch.equal(filled[name], batch[name])
    empty = data.collate([BLANK])
    assert len(empty["student_spans"]) == len(empty["teacher_ids"]) == 0
    assert empty["teacher_topk_ids"].shape == (0, 3)
