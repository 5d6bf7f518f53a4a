"""A server's tokens become the tokenizer's ids, and what cannot become one is counted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from paredown.distill.chat_answers import Answer, Entry
from paredown.distill.logprob_mapping import LogprobMapper, TokenTable
from paredown.eval.errors import RunError

TEXTS = [
    '{"category": "shoes", "colour": "red", "price": {"max": 80}}',
    "the quick brown fox jumps over the lazy dog again and again",
    "Größe 42, café, 你好 🙂 — naïve",
    "  two  spaces\nand\ta tab",
]
SPECIALS = ["<unk>", "<s>", "</s>"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIALS, initial_alphabet=sorted(alphabet)
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """Llama's kind: spaces are ▁, characters without a piece are bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    plain = [text for text in TEXTS if text.isascii()]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=[*SPECIALS, *bytes_])
    trained.train_from_iterator(plain * 4, trainer)
    # the bytes are pieces, not special tokens: the same vocabulary, made anew
    state = json.loads(trained.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in SPECIALS]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIALS)
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "sentencepiece": sentencepiece_bpe,
    "unigram": unigram,
    "wordpiece": word_piece,
}


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), **names)


@cache
def mapper_of(kind: str) -> LogprobMapper:
    return LogprobMapper(tokenizer_of(kind), 2)


def from_text(text: str, token_text: Callable[[int], Entry], ids: list[int], **k: Any) -> Answer:
    tokens = tuple((entry := token_text(i), entry) for i in ids)
    return Answer("k", text, "stop", None, None, 1, len(ids), tokens)


def vllm(tokenizer: PreTrainedTokenizerFast, log_prob: float = -0.5) -> Callable[[int], Entry]:
    """Each token decoded by itself, its bytes those of the text, whatever they were before."""
    return lambda i: Entry(tokenizer.decode([i], clean_up_tokenization_spaces=False), log_prob)


def raw(tokenizer: PreTrainedTokenizerFast, log_prob: float = -0.5) -> Callable[[int], Entry]:
    """The vocabulary's own strings."""
    return lambda i: Entry(tokenizer.convert_ids_to_tokens(i), log_prob)


def by_id(tokenizer: PreTrainedTokenizerFast, log_prob: float = -0.5) -> Callable[[int], Entry]:
    return lambda i: Entry(f"token_id:{i}", log_prob, b"anything")


@pytest.mark.parametrize("kind", KINDS)
def test_every_piece_is_found_by_the_string_in_the_vocabulary(kind: str) -> None:
    tokenizer, table = tokenizer_of(kind), TokenTable(tokenizer_of(kind))
    assert table.kind == ("sentencepiece" if kind == "unigram" else kind)
    for piece, token_id in tokenizer.get_vocab().items():
        assert table.id_of(Entry(f"token_id:{token_id}", 0.0)) == token_id
        found = table.id_of(Entry(piece, 0.0))
        # a string can be another token's spelling, which comes first ("Ġ" are two bytes of text)
        assert found == token_id or kind == "byte-level" or piece.startswith(("<0x", "▁")), piece


def test_byte_level_pieces_are_found_by_their_bytes() -> None:
    tokenizer, table = tokenizer_of("byte-level"), TokenTable(tokenizer_of("byte-level"))
    alphabet = {chr(b): b for b in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    alphabet |= {"Ġ": 32, "Ċ": 10, "ĉ": 9}
    tested = 0
    for piece, token_id in tokenizer.get_vocab().items():
        if piece not in SPECIALS and all(c in alphabet for c in piece):
            spelling = bytes(alphabet[c] for c in piece)
            assert table.id_of(Entry("shown somehow", 0.0, spelling)) == token_id
            tested += 1
    assert tested > 250


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_in_bytes_comes_back_as_the_ids_it_was(text: str) -> None:
    tokenizer, mapper = tokenizer_of("byte-level"), mapper_of("byte-level")
    ids = tokenizer.encode(text)
    data, at, entries = text.encode(), 0, []
    for piece in tokenizer.convert_ids_to_tokens(ids):  # one character is one byte of the text
        entries.append(Entry("?", -0.5, data[at : at + len(piece)]))
        at += len(piece)
    assert at == len(data)
    tokens = tuple((entry, entry) for entry in entries)
    mapped = mapper.map(Answer("k", text, "stop", None, None, 1, 1, tokens))
    assert mapped is not None and list(mapped.ids) == ids
    assert mapped.unmapped == 0


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_decoded_token_by_token_comes_back_or_is_refused(text: str) -> None:
    tokenizer = tokenizer_of("byte-level")
    ids = tokenizer.encode(text)
    mapped = LogprobMapper(tokenizer, 2).map(from_text(text, vllm(tokenizer), ids))
    assert mapped is None or list(mapped.ids) == ids
    assert mapped is not None or "\ufffd" in text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spelling", [vllm, raw, by_id])
@pytest.mark.parametrize("text", ["the red shoes", "lazy dog, again", "a fox", '{"max": 80}'])
def test_ids_survive_each_way_a_server_spells_them(kind: str, spelling: Any, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text, add_special_tokens=False)
    answer = from_text(tokenizer.decode(ids), spelling(tokenizer), ids)
    mapped = LogprobMapper(tokenizer, 2).map(answer)
    if mapped is None:
        # SentencePiece decoded token by token loses its spaces: refused, never mapped wrongly
        assert (kind, spelling) in {("sentencepiece", vllm), ("unigram", vllm)}
    else:
        assert tokenizer.decode(mapped.ids).strip() == tokenizer.decode(ids).strip()
        assert spelling is vllm or list(mapped.ids) == ids


def test_characters_cut_in_two_are_taken_from_the_text() -> None:
    tokenizer = tokenizer_of("byte-level")
    text = "a 龍 b"  # not in the training texts: three tokens that each decode to "\ufffd"
    ids = tokenizer.encode(text)
    assert any("\ufffd" in tokenizer.decode([i]) for i in ids)
    mapped = LogprobMapper(tokenizer, 2).map(from_text(text, vllm(tokenizer), ids))
    assert mapped is not None and list(mapped.ids) == ids
    other = from_text("a 龍 c", vllm(tokenizer), ids)
    mapper = LogprobMapper(tokenizer, 2)
    assert mapper.map(other) is None and mapper.refused.total() == 1


def test_a_replacement_character_names_no_token() -> None:
    tokenizer = tokenizer_of("byte-level")
    tokenizer.encode("\ufffd")
    assert TokenTable(tokenizer).id_of(Entry("\ufffd", -1.0)) is None
    assert TokenTable(tokenizer).id_of(Entry("\ufffd", -1.0, b"\xe9")) is not None


def test_a_piece_comes_before_the_byte_that_spells_the_same() -> None:
    tokenizer = tokenizer_of("sentencepiece")
    vocabulary = tokenizer.get_vocab()
    table = TokenTable(tokenizer)
    assert "a" in vocabulary and "<0x61>" in vocabulary
    assert table.id_of(Entry("a", 0.0)) == vocabulary["a"]
    assert table.id_of(Entry("?", 0.0, b"\xe9")) == vocabulary["<0xE9>"]
    assert table.id_of(Entry(" the", 0.0)) == vocabulary.get("▁the")


def test_two_tokens_of_one_spelling_are_neither() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁a": 0, " a": 1, "b": 2}, unk_token="b"))
    tokenizer.decoder = decoders.Metaspace()
    table = TokenTable(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert table.kind == "sentencepiece"
    assert table.id_of(Entry(" a", 0.0)) is None
    assert table.id_of(Entry("b", 0.0)) == 2


@pytest.mark.parametrize("seed", range(5))
def test_targets_are_the_distribution_the_server_had(seed: int) -> None:
    tokenizer = tokenizer_of("byte-level")
    random = np.random.default_rng(seed)
    ids = tokenizer.encode("the red shoes")
    k = 4
    logits = random.normal(size=(len(ids), len(tokenizer))) * 3
    logits[:, SPECIALS.index("<unk>")] = -30
    logits[:, 200:] -= 30  # tokens that are no text by themselves
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    spell = by_id(tokenizer)
    tokens = []
    for position, chosen in enumerate(ids):
        top = np.argsort(-logs[position])[:k]
        entries = [Entry(spell(int(i)).text, float(logs[position, i])) for i in (chosen, *top)]
        tokens.append(tuple(entries))
    answer = Answer("k", "the red shoes", "stop", None, None, 1, 1, tuple(tokens))
    mapper = LogprobMapper(tokenizer, k)
    mapped = mapper.map(answer)
    assert mapped is not None and list(mapped.ids) == ids
    targets = mapped.targets
    assert targets.ids.shape == targets.log_probs.shape == (len(ids), k + 1)
    for position, chosen in enumerate(ids):
        row = targets.ids[position].tolist()
        assert len(set(row)) == k + 1
        real = targets.log_probs[position] > -math.inf
        expected = {int(i) for i in np.argsort(-logs[position])[:k]} | {chosen}
        assert {i for i, there in zip(row, real, strict=True) if there} == expected
        for i, value in zip(row, targets.log_probs[position].tolist(), strict=True):
            assert value == pytest.approx(logs[position, i]) or value == -math.inf
        left = 1 - sum(math.exp(logs[position, i]) for i in expected)
        assert targets.rest[position].item() == pytest.approx(left, abs=1e-6)
    assert mapper.unmapped == 0


def test_mass_without_an_id_is_in_the_rest_and_reported() -> None:
    tokenizer = tokenizer_of("byte-level")
    (i,) = tokenizer.encode("a")
    token = (
        Entry("a", math.log(0.5)),
        Entry("a", math.log(0.5)),
        Entry("\ufffd", math.log(0.2)),
        Entry("no such token", math.log(0.1)),
        Entry("b", math.log(0.05)),
    )
    mapper = LogprobMapper(tokenizer, 4)
    mapped = mapper.map(Answer("k", "a", "stop", None, None, 1, 1, (token,)))
    assert mapped is not None
    assert mapped.ids == (i,)
    assert mapped.unmapped == mapper.unmapped == pytest.approx(0.3)
    assert mapped.targets.rest.tolist() == pytest.approx([0.45])
    known = mapped.targets.log_probs[0].exp()
    assert known.sort(descending=True).values.tolist() == pytest.approx([0.5, 0.05, 0, 0, 0])
    with pytest.raises(RunError, match=r"30\.0%.*teacher\.tokenizer"):
        mapper.check()
    mapper.check(most_unmapped=0.5)


def test_a_chosen_token_whose_probability_is_not_told_is_in_the_rest() -> None:
    tokenizer = tokenizer_of("byte-level")
    token = (Entry("a", -9999.0), Entry("b", math.log(0.75)))
    mapped = LogprobMapper(tokenizer, 1).map(Answer("k", "a", None, None, None, 1, 1, (token,)))
    assert mapped is not None
    assert mapped.targets.rest.tolist() == pytest.approx([0.25])
    assert torch.isinf(mapped.targets.log_probs).sum() == 1


@pytest.mark.parametrize("end", ["</s>", ""])
def test_an_end_token_may_follow_the_text(end: str) -> None:
    tokenizer = tokenizer_of("byte-level")
    ids = tokenizer.encode("a fox")
    answer = from_text("a fox", vllm(tokenizer), ids)
    last = (Entry(end, -0.1), Entry(end, -0.1))
    assert answer.tokens is not None
    answer = Answer("k", "a fox", "stop", None, None, 1, 1, (*answer.tokens, last))
    mapped = LogprobMapper(tokenizer, 2).map(answer)
    assert mapped is not None
    assert list(mapped.ids) == ids + ([tokenizer.eos_token_id] if end else [])


@pytest.mark.parametrize(
    ("text", "tokens", "reason"),
    [
        ("a", None, "no log-probabilities"),
        ("", (), "no log-probabilities"),
        ("ab", ((Entry("a", -0.1),),), "do not spell"),
        ("qqq", ((Entry("qqq", -0.1),),), "not the tokenizer's"),
        ("a", ((Entry("a", -0.1), Entry("b", -0.1), Entry("c", -0.1)),), "more than 1"),
        ("a", ((Entry("token_id:99999", -0.1),),), "not the tokenizer's"),
    ],
)
def test_what_cannot_be_mapped_is_refused_with_its_reason(
    text: str, tokens: Any, reason: str
) -> None:
    mapper = LogprobMapper(tokenizer_of("byte-level"), 2)
    assert mapper.map(Answer("k", text, "stop", None, None, 1, 1, tokens)) is None
    ((said, count),) = mapper.refused.items()
    assert reason in said and count == 1
    with pytest.raises(RunError, match=r"cannot be matched.*teacher\.tokenizer"):
        mapper.check()


def test_another_models_tokenizer_is_noticed() -> None:
    theirs, ours = tokenizer_of("byte-level"), tokenizer_of("unigram")
    mapper = LogprobMapper(ours, 2)
    for text in TEXTS:
        mapper.map(from_text(text, vllm(theirs), theirs.encode(text)))
    with pytest.raises(RunError, match="vocabularies cannot be matched: of 4 answers"):
        mapper.check()


def test_more_columns_than_tokens_are_not_made() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    mapper = LogprobMapper(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 20)
    mapped = mapper.map(Answer("k", "a", None, None, None, 1, 1, ((Entry("a", -0.1),),)))
    assert mapped is not None and mapped.targets.ids.tolist() == [[0, 1]]


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(RunError, match=r"teacher\.tokenizer"):
        TokenTable(object())  # type: ignore[arg-type]
