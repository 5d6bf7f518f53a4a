"""A cut vocabulary writes the task's texts as before, and any other text somehow."""

from __future__ import annotations

import argparse
import collections
import email.message
import inspect
import json
import logging
import pathlib
import textwrap
import unittest
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paredown.eval.checkpoints import packaged_copy
from paredown.eval.errors import RecipeError, RunError
from paredown.eval.models import TextModel, load_tokenizer
from paredown.eval.tasks import get_task
from paredown.prune import prune_model
from paredown.prune.renumbering import renumbered
from paredown.prune.subwords import ByteLevelBPE, subwords_of
from paredown.prune.surgery import Cut, cut_backbone
from paredown.prune.vocabulary import (
    PrunedVocabulary,
    count_tokens,
    prove,
    prune_vocabulary,
    tokenization_change,
)

Make = Callable[..., TextModel]
TEXTS = [
    "how do I open a file?",
    "the bank closed my account",
    "Größe, café",
    "你好 🙂 [MASK]",
    "x",
]
OTHER = [
    "sort a list of dictionaries by key",
    "leading and trailing spaces",
    "how do I open a file?",
]
KINDS = ("bert", "roberta", "distilbert")
many = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", params=[*KINDS, "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    if request.param == "unigram":
        return unigram([*TEXTS, *OTHER] * 3, 80)
    make = request.getfixturevalue("tiny_model")
    found: PreTrainedTokenizerFast = make(request.param, get_task("retrieval")).tokenizer
    return found


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    found: list[int] = tokenizer(text)["input_ids"]
    return found


def word_piece(*tokens: str, **options: Any) -> PreTrainedTokenizerFast:
    vocab = {token: i for i, token in enumerate(["[UNK]", *tokens])}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", **options))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def unigram(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """SentencePiece's kind of tokenizer, as XLM-R has it, trained on texts."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=size, special_tokens=specials, unk_token="<unk>")
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="<mask>", **names)


def byte_pairs(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer, trained on texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


@many
@given(texts=st.lists(st.text(), min_size=1, max_size=5), other=st.text())
def test_texts_are_written_as_before_and_any_text_somehow(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], other: str
) -> None:
    found = prune_vocabulary(tokenizer, texts, size=len(tokenizer))
    place = {old: new for new, old in enumerate(found.kept)}
    for text in texts:
        assert [place[i] for i in ids(tokenizer, text)] == ids(found.tokenizer, text)
    before, after = ids(tokenizer, other), ids(found.tokenizer, other)
    assert max(after) < len(found.kept) == len(found.tokenizer)
    unknown = found.tokenizer.unk_token_id
    assert after.count(unknown) == before.count(tokenizer.unk_token_id)
    if unknown not in after:
        assert found.tokenizer.decode(after) == tokenizer.decode(before)


@many
@given(data=st.data())
def test_words_of_the_vocabulary_itself_are_written_as_before(
    tokenizer: PreTrainedTokenizerFast, data: st.DataObject
) -> None:
    """Texts made of the vocabulary's own pieces reach deep matches and long merges."""
    pieces = sorted(
        t.removeprefix("##").translate({0x120: " ", 0x2581: " "}) for t in tokenizer.get_vocab()
    )
    texts = st.lists(st.lists(st.sampled_from(pieces), max_size=6).map("".join), min_size=1)
    chosen = data.draw(texts)
    found = prune_vocabulary(tokenizer, chosen, size=len(tokenizer))
    assert found.change["identical_share"] == 1.0
    assert found.change["texts"] == len(chosen)


def test_specials_single_characters_and_bytes_stay(tokenizer: PreTrainedTokenizerFast) -> None:
    found = prune_vocabulary(tokenizer, ["x"], size=len(tokenizer))
    old, new = tokenizer.get_vocab(), found.tokenizer.get_vocab()
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    least = None
    if model["type"] == "Unigram":  # what is unknown is scored by it
        least = min(model["vocab"], key=lambda one: (one[1], one[0] not in "x"))[0]
    for token, i in old.items():
        single = len(token.removeprefix("##")) == 1 or i in tokenizer.all_special_ids
        assert (token in new) == (single or token == least)
    assert set(new) == {tokenizer.convert_ids_to_tokens(i) for i in found.kept}
    assert found.tokenizer.all_special_tokens == tokenizer.all_special_tokens
    assert found.tokenizer.model_input_names == tokenizer.model_input_names


def test_it_saves_and_reloads_and_names_no_folder(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    found = prune_vocabulary(tokenizer, TEXTS, size=len(tokenizer))
    found.tokenizer.save_pretrained(tmp_path / "one")
    again = load_tokenizer(tmp_path / "one")
    prove(tokenizer, again, found.kept, TEXTS)
    second = prune_vocabulary(tokenizer, TEXTS, size=len(tokenizer))
    second.tokenizer.save_pretrained(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        content = path.read_bytes()
        assert content == (tmp_path / "two" / path.name).read_bytes()
        assert b"/tmp" not in content


def test_the_original_is_not_changed(tokenizer: PreTrainedTokenizerFast) -> None:
    before = tokenizer.backend_tokenizer.to_str()
    prune_vocabulary(tokenizer, TEXTS, size=len(tokenizer))
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_outputs_on_the_texts_are_unchanged(kind: str, task: str, tiny_model: Make) -> None:
    model = tiny_model(kind, get_task(task))
    pruned = prune_model(model, TEXTS, vocabulary="task")
    assert pruned.index_map.keys() == {"vocabulary"}
    for role in ("text", "query"):
        before, after = model.predict(TEXTS, role=role), pruned.model.predict(TEXTS, role=role)
        assert np.abs(before - after).max() <= 1e-6
    facts = pruned.facts["vocabulary"]
    assert facts["kept"] == pruned.model.config.vocab_size < facts["of"]
    assert facts["training_identical"] is True
    assert pruned.facts["parameters"]["after"] < pruned.facts["parameters"]["before"]


def test_a_prompt_is_written_as_before(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    assert model.encoding.prompts == {"query": "find: "}
    used = count_tokens(model.tokenizer, ["x"], ["", "find: "], model.config.vocab_size)
    pruned = prune_model(model, ["x"], vocabulary="task")
    assert set(np.flatnonzero(used).tolist()) <= set(pruned.index_map["vocabulary"])


def test_an_iterator_of_texts_is_enough(tokenizer: PreTrainedTokenizerFast) -> None:
    def once() -> Iterator[str]:
        yield from [*TEXTS, "two\nlines", "\ud7ff"]

    found = prune_vocabulary(tokenizer, once(), size=len(tokenizer))
    again = prune_vocabulary(tokenizer, list(once()), size=len(tokenizer))
    assert found.kept == again.kept
    assert found.change == again.change


def test_an_unknown_word_stays_unknown() -> None:
    """In full "abc" matches and "##x" does not; without "abc", "ab" and "##cx" would."""
    tokenizer = word_piece("a", "b", "##b", "##c", "ab", "abc", "##cx", "c")
    assert ids(tokenizer, "abcx") == [0]
    found = prune_vocabulary(tokenizer, ["abcx"], size=len(tokenizer))
    assert ids(found.tokenizer, "abcx") == [found.tokenizer.unk_token_id]
    kept = [tokenizer.convert_ids_to_tokens(i) for i in found.kept]
    assert "abc" in kept and "ab" not in kept


def test_a_word_too_long_is_unknown_before_and_after() -> None:
    tokenizer = word_piece("a", "##a", "aaa", "aa", max_input_chars_per_word=5)
    assert ids(tokenizer, "aaaaaa") == [0]
    found = prune_vocabulary(tokenizer, ["aaaaaa aa"], size=len(tokenizer))
    assert len(ids(found.tokenizer, "aaaaaa")) == 1
    assert "aaa" not in found.tokenizer.get_vocab()


def test_a_character_without_a_token_of_its_own_keeps_its_words() -> None:
    tokenizer = word_piece("f", "##a", "faq", "fa", "##qa")
    found = prune_vocabulary(tokenizer, ["f"], size=len(tokenizer))
    assert {"faq", "##qa"} <= set(found.tokenizer.get_vocab())
    assert "fa" not in found.tokenizer.get_vocab()


def test_merges_on_the_way_to_a_token_stay(tiny_model: Make) -> None:
    tokenizer = tiny_model("roberta", get_task("retrieval")).tokenizer
    subwords = subwords_of(json.loads(tokenizer.backend_tokenizer.to_str()))
    assert isinstance(subwords, ByteLevelBPE)
    longest = max(subwords.vocab, key=lambda t: (len(t), t) if not t.startswith("<") else (0, t))
    closed = subwords.closed({longest}, ())
    assert longest in closed and len(closed) > 1
    for token in closed - {longest}:
        assert token in longest


def test_other_texts_are_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    found = prune_vocabulary(tokenizer, TEXTS, size=len(tokenizer))
    change = tokenization_change(tokenizer, found.tokenizer, OTHER)
    assert change["texts"] == 3
    assert change["identical_share"] == pytest.approx(1 / 3)
    assert change["tokens_before"] == pytest.approx(
        np.mean([len(ids(tokenizer, text)) for text in OTHER])
    )
    assert change["tokens_after"] > change["tokens_before"]
    same = tokenization_change(tokenizer, tokenizer, OTHER)
    assert same["identical_share"] == 1.0 and same["tokens_before"] == same["tokens_after"]
    assert tokenization_change(tokenizer, tokenizer, [])["texts"] == 0


def test_long_texts_are_read_to_their_end(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    assert model.encoding.max_length == 24
    found = prune_model(model, ["x " * 60 + "account"], vocabulary="task")
    assert "account" in found.model.tokenizer.get_vocab() or "accoun" in str(
        found.model.tokenizer.tokenize("account")
    )
    assert found.model.tokenizer.tokenize("account") == model.tokenizer.tokenize("account")


def test_the_proof_finds_a_difference(tokenizer: PreTrainedTokenizerFast) -> None:
    found = prune_vocabulary(tokenizer, ["x"], size=len(tokenizer))
    with pytest.raises(RunError, match="differently"):
        prove(tokenizer, found.tokenizer, found.kept, ["how do I open a file?"])


def test_a_cut_without_effect_is_refused() -> None:
    tokenizer = word_piece("a", "##a", "b")
    with pytest.raises(RecipeError, match="no effect"):
        prune_vocabulary(tokenizer, ["a b"], size=len(tokenizer))


def test_no_texts_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RecipeError, match="there are none"):
        prune_vocabulary(tokenizer, [], size=len(tokenizer))


def test_a_model_with_fewer_embeddings_than_tokens_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(RunError, match="embeddings"):
        prune_vocabulary(tokenizer, TEXTS, size=6)


def test_embeddings_beyond_the_tokenizer_go(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    model.backbone.resize_token_embeddings(len(model.tokenizer) + 24)
    torch.manual_seed(0)
    pruned = prune_model(model, TEXTS, vocabulary="task")
    assert max(pruned.index_map["vocabulary"]) < len(model.tokenizer)


@pytest.mark.parametrize("kind", ["WordLevel", "BPE"])
def test_other_kinds_are_refused_by_name(kind: str) -> None:
    model = {
        "WordLevel": lambda: models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"),
        "BPE": lambda: models.BPE({"<unk>": 0, "a": 1}, []),
    }[kind]()
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    with pytest.raises(RecipeError, match=f"{kind}.*WordPiece"):
        prune_vocabulary(tokenizer, ["a"], size=3)


def test_renumbering_follows_the_order_given(tokenizer: PreTrainedTokenizerFast) -> None:
    kept = [i for i in range(len(tokenizer)) if i < 10 or i % 2]
    smaller = renumbered(tokenizer, kept)
    for new, old in enumerate(kept):
        assert smaller.convert_ids_to_tokens(new) == tokenizer.convert_ids_to_tokens(old)


def test_an_unknown_character_costs_what_it_did() -> None:
    """Without the least probable piece, "q" + "bc" would beat "qb" + "c"."""
    pieces = [("<unk>", 0.0), ("qb", -8.0), ("b", -3.0), ("c", -9.0), ("bc", -3.0), ("rare", -20.0)]
    pieces += [("r", -15.0), ("a", -3.0), ("e", -3.0)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(pieces, 0)), unk_token="<unk>"
    )
    assert tokenizer.tokenize("qbc") == ["qb", "c"]
    found = prune_vocabulary(tokenizer, ["qbc"], size=len(tokenizer))
    assert found.tokenizer.tokenize("qbc") == ["qb", "c"]
    assert "rare" in found.tokenizer.get_vocab()
    assert found.tokenizer.tokenize("z") == tokenizer.tokenize("z")


def docstrings() -> list[str]:
    """Real text that every Python brings: docstrings of the standard library."""
    modules = (argparse, collections, email.message, json, logging, pathlib, textwrap, unittest)
    found = [inspect.getdoc(o) for m in modules for o in [m, *vars(m).values()] if callable(o)]
    return sorted({line.strip() for text in found if text for line in text.splitlines()} - {""})


REAL = docstrings()
TRAIN, HELD_OUT = REAL[::2], REAL[1::2]


@pytest.fixture(scope="module", params=["MiniLM", "byte-level BPE", "Unigram"])
def real(request: pytest.FixtureRequest) -> tuple[PreTrainedTokenizerFast, PrunedVocabulary]:
    """A tokenizer of real size, and its cut to real text."""
    if request.param == "MiniLM":
        folder = packaged_copy("sentence-transformers/all-MiniLM-L6-v2")
        if folder is None:
            pytest.skip("the packaged MiniLM is not installed (extra: demo)")
        tokenizer = load_tokenizer(folder)
    else:
        tokenizer = (unigram if request.param == "Unigram" else byte_pairs)(REAL, 1200)
    return tokenizer, prune_vocabulary(tokenizer, TRAIN, size=len(tokenizer))


def test_real_text_is_written_as_before(
    real: tuple[PreTrainedTokenizerFast, PrunedVocabulary],
) -> None:
    tokenizer, found = real
    assert len(found.kept) < len(tokenizer)
    place = {old: new for new, old in enumerate(found.kept)}
    for text in TRAIN:
        assert [place[i] for i in ids(tokenizer, text)] == ids(found.tokenizer, text)
    change = tokenization_change(tokenizer, found.tokenizer, HELD_OUT)
    assert 0 < change["identical_share"] < 1
    assert change["tokens_before"] < change["tokens_after"] < 1.5 * change["tokens_before"]


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40) | st.lists(st.sampled_from(REAL), max_size=3).map("".join))
def test_any_text_is_written_and_read_back_as_before(
    real: tuple[PreTrainedTokenizerFast, PrunedVocabulary], text: str
) -> None:
    tokenizer, found = real
    before, after = ids(tokenizer, text), ids(found.tokenizer, text)
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in before:
        assert found.tokenizer.decode(after) == tokenizer.decode(before)
    if unknown is not None:
        assert after.count(found.tokenizer.unk_token_id) == before.count(unknown)


def test_a_language_model_answers_real_text_as_before(
    real: tuple[PreTrainedTokenizerFast, PrunedVocabulary],
) -> None:
    """Embedding, tied head, special ids and the generation config follow the new numbering."""
    tokenizer, found = real
    end = tokenizer.eos_token_id or tokenizer.sep_token_id
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, initializer_range=0.25, tie_word_embeddings=True,
        eos_token_id=end, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    small = cut_backbone(model, Cut(vocabulary=found.kept))
    new_end = found.tokenizer.eos_token_id or found.tokenizer.sep_token_id
    assert small.config.eos_token_id == small.generation_config.eos_token_id == new_end
    with torch.no_grad():
        for text in TRAIN[:20]:
            whole = model(torch.tensor([ids(tokenizer, text)])).logits[..., found.kept]
            cut = small(torch.tensor([ids(found.tokenizer, text)])).logits
            assert (whole - cut).abs().max() <= 1e-6
