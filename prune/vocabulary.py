"""Vocabulary pruning: keep what the task's texts use, and prove that nothing else changed.

Kept are the tokens that occur in the texts, all special and added tokens, and all single
characters (bytes, for byte-level BPE), so that any text can still be written. The set is closed so
that the texts are tokenised as before, up to renumbering:

- WordPiece takes the longest token that matches at each place. Among fewer tokens the longest one
  is still there if it was used; so words keep their tokens. A word that became [UNK] was given up
  after some matches: these are kept too, or other matches might spell the word after all.
- BPE applies the merge of lowest rank, again and again. A token arises inside a word by the merges
  that make it by itself, since a merge across its border would have swallowed it. These are kept
  for every kept token, in their order, with the tokens they make.
- Unigram takes the most probable pieces; those of the texts are still the most probable among
  fewer. The score of an unknown character hangs on the least probable piece, so one such stays.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from ..eval.errors import RecipeError, RunError
from .renumbering import renumbered
from .subwords import WordPiece, subwords_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

BLOCK = 1024


class TokenizationChange(TypedDict):
    """How texts are tokenised after a cut, compared with before.

    Attributes:
        texts: How many there were.
        identical_share: Share of texts with the same tokens.
        tokens_before: Mean tokens per text, specials included, untruncated.
        tokens_after: The same with the new tokenizer.
    """

    texts: int
    identical_share: float
    tokens_before: float
    tokens_after: float


@dataclass(frozen=True)
class PrunedVocabulary:
    """A cut vocabulary.

    Attributes:
        kept: Old token ids, ascending; the place in the list is the new id.
        tokenizer: In the new numbering.
        change: On the texts it was made for; all of them are tokenised identically.
    """

    kept: list[int]
    tokenizer: PreTrainedTokenizerFast
    change: TokenizationChange


def prune_vocabulary(
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str],
    *,
    size: int,
    prompts: Iterable[str] = (),
    also: Iterable[int] = (),
) -> PrunedVocabulary:
    """Cuts a tokenizer down to what texts use, and proves that they are tokenised as before.

    Args:
        tokenizer: WordPiece, byte-level BPE or Unigram; is not changed.
        texts: Are streamed, twice; an iterator is kept in a temporary file meanwhile.
        size: Rows of the model's embedding.
        prompts: What the model puts in front of texts; each text is read bare and behind each.
        also: Ids to keep in any case, such as the config's special ids.

    Raises:
        RecipeError: If the kind of tokenizer is not known, or nothing would be dropped.
        RunError: If the proof fails.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    subwords = subwords_of(spec)
    fronts = sorted({"", *prompts})
    with _Replay(texts) as replay:
        used = count_tokens(tokenizer, replay, fronts, size)
        if not used.any():
            raise RecipeError("A vocabulary is cut to texts, and there are none.")
        unknown: set[str] = set()
        if isinstance(subwords, WordPiece):
            unknown = _unknown_words(tokenizer, spec, replay, fronts)
        kept = subwords.keep(used, unknown)
        kept |= set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
        kept |= {int(i) for i in also}
        ids = sorted(i for i in kept if 0 <= i < size)
        if len(ids) >= size:
            raise RecipeError(
                f"Cutting the vocabulary has no effect: the texts use all {size} tokens. "
                "Leave `prune.vocabulary` out."
            )
        smaller = renumbered(tokenizer, ids)
        change = prove(tokenizer, smaller, ids, replay, fronts)
    return PrunedVocabulary(ids, smaller, change)


def count_tokens(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], fronts: Sequence[str], size: int
) -> NDArray[np.int64]:
    """Counts tokens, streaming: (size,) int64. Texts are not truncated."""
    counts = np.zeros(size, dtype=np.int64)
    for block in _blocks(texts, fronts):
        ids = [i for one in _encode(tokenizer, block) for i in one]
        if ids and max(ids) >= size:
            raise RunError(
                f"The tokenizer gives id {max(ids)}, and the model has {size} embeddings: they do "
                "not belong together."
            )
        counts += np.bincount(ids, minlength=size)
    return counts


def prove(
    old: PreTrainedTokenizerFast,
    new: PreTrainedTokenizerFast,
    kept: Sequence[int],
    texts: Iterable[str],
    fronts: Sequence[str] = ("",),
) -> TokenizationChange:
    """Tokenises texts before and after a cut and compares.

    Args:
        old: Before.
        new: After.
        kept: Old ids in the order of the new ones.
        texts: Are streamed.
        fronts: What is put in front of each text.

    Raises:
        RunError: If any text is tokenised differently, beyond the renumbering.
    """
    place = {old_id: new_id for new_id, old_id in enumerate(kept)}
    count = tokens = 0
    for block in _blocks(texts, fronts):
        pairs = zip(block, _encode(old, block), _encode(new, block), strict=True)
        for text, before, after in pairs:
            if [place.get(i, -1) for i in before] != after:
                raise RunError(
                    f"The cut vocabulary tokenises {text[:80]!r} differently. The tokenizer does "
                    "more than its kind is known for; leave `prune.vocabulary` out."
                )
            count, tokens = count + 1, tokens + len(before)
    mean = tokens / max(count, 1)
    return TokenizationChange(
        texts=count, identical_share=1.0, tokens_before=mean, tokens_after=mean
    )


def tokenization_change(
    old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast, texts: Iterable[str]
) -> TokenizationChange:
    """How other texts than those a vocabulary was cut to are tokenised after the cut.

    Args:
        old: Before.
        new: After.
        texts: Are streamed; tokenised as they are, without prompts or truncation.
    """
    names = new.get_vocab()
    place = {i: names.get(token, -1) for token, i in old.get_vocab().items()}
    count = same = tokens_before = tokens_after = 0
    for block in _blocks(texts, ("",)):
        for before, after in zip(_encode(old, block), _encode(new, block), strict=True):
            count += 1
            same += [place[i] for i in before] == after
            tokens_before += len(before)
            tokens_after += len(after)
    total = max(count, 1)
    return TokenizationChange(
        texts=count,
        identical_share=same / total if count else 1.0,
        tokens_before=tokens_before / total,
        tokens_after=tokens_after / total,
    )


def _encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(
        list(texts), truncation=False, padding=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    return found


def _blocks(texts: Iterable[str], fronts: Sequence[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for text in texts:
        block += [front + text for front in fronts]
        if len(block) >= BLOCK:
            yield block
            block = []
    if block:
        yield block


class _Replay:
    """Texts that can be read again: what is given, or a temporary file of an iterator's."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self._once = iter(texts) is texts
        self._file: Any = None

    def __enter__(self) -> _Replay:
        if self._once:
            self._file = tempfile.TemporaryFile("w+", encoding="utf-8")
            for text in self._texts:
                self._file.write(json.dumps(text) + "\n")
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[str]:
        if not self._once:
            yield from self._texts
            return
        self._file.seek(0)
        for line in self._file:
            yield json.loads(line)


def _unknown_words(
    tokenizer: PreTrainedTokenizerFast,
    spec: dict[str, Any],
    texts: Iterable[str],
    fronts: Sequence[str],
) -> set[str]:
    """The words of those texts that have an unknown one."""
    unknown = spec["model"]["vocab"].get(spec["model"]["unk_token"])
    backend: Any = tokenizer.backend_tokenizer
    words: set[str] = set()
    for block in _blocks(texts, fronts):
        for text, ids in zip(block, _encode(tokenizer, block), strict=True):
            if unknown in ids:
                clean = backend.normalizer.normalize_str(text) if backend.normalizer else text
                split = backend.pre_tokenizer
                words |= {w for w, _ in split.pre_tokenize_str(clean)} if split else {clean}
    return words
