"""A cut vocabulary writes the task's texts as before, and any other text somehow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paredown.eval.errors import RecipeError, RunError
from paredown.eval.models import TextModel, load_tokenizer
from paredown.eval.tasks import get_task
from paredown.prune import prune_model
from paredown.prune.renumbering import renumbered
from paredown.prune.subwords import ByteLevelBPE, subwords_of
from paredown.prune.vocabulary import (
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


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
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
    pieces = sorted(t.removeprefix("##").replace("Ġ", " ") for t in tokenizer.get_vocab())
    texts = st.lists(st.lists(st.sampled_from(pieces), max_size=6).map("".join), min_size=1)
    chosen = data.draw(texts)
    found = prune_vocabulary(tokenizer, chosen, size=len(tokenizer))
    assert found.change["identical_share"] == 1.0
    assert found.change["texts"] == len(chosen)


def test_specials_single_characters_and_bytes_stay(tokenizer: PreTrainedTokenizerFast) -> None:
    found = prune_vocabulary(tokenizer, ["x"], size=len(tokenizer))
    old, new = tokenizer.get_vocab(), found.tokenizer.get_vocab()
    for token, i in old.items():
        single = len(token.removeprefix("##")) == 1 or i in tokenizer.all_special_ids
        assert (token in new) == single
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


@pytest.mark.parametrize("kind", ["Unigram", "WordLevel", "BPE"])
def test_other_kinds_are_refused_by_name(kind: str) -> None:
    model = {
        "Unigram": lambda: models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], 0),
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
