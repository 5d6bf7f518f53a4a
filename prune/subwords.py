"""Kinds of subword vocabularies: which tokens must stay together, and a model of those alone."""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.errors import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Spec = dict[str, Any]
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class Subwords(ABC):
    """A vocabulary of one kind, read from the content of a tokenizer.json.

    Args:
        spec: The whole file.
    """

    def __init__(self, spec: Spec) -> None:
        self.model: Spec = spec["model"]
        self.vocab: dict[str, int] = self.model["vocab"]

    def keep(self, counts: NDArray[np.int64], unknown: Iterable[str]) -> set[int]:
        """Ids to keep: those that occur, all single characters, and what these need.

        Args:
            counts: How often each id occurs in the texts.
            unknown: Words that no tokens could be found for.
        """
        occurring = set(np.flatnonzero(counts).tolist())
        tokens = {token for token, i in self.vocab.items() if i in occurring}
        tokens |= self.singles()
        return occurring | {self.vocab[token] for token in self.closed(tokens, unknown)}

    @abstractmethod
    def singles(self) -> set[str]:
        """The tokens that any text can be written with."""

    @abstractmethod
    def closed(self, tokens: set[str], unknown: Iterable[str]) -> set[str]:
        """The tokens with all that must stay for texts of them to be tokenised as before."""

    def smaller(self, place: dict[int, int]) -> Spec:
        """The ``model`` of a tokenizer.json with the kept tokens alone: old id → new id."""
        vocab = {token: place[i] for token, i in self.vocab.items() if i in place}
        return {**self.model, "vocab": dict(sorted(vocab.items(), key=lambda item: item[1]))}


class WordPiece(Subwords):
    """Longest match first (Schuster and Nakajima 2012, as in BERT)."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.prefix: str = self.model["continuing_subword_prefix"]
        self.limit: int = self.model["max_input_chars_per_word"]

    def _forms(self, token: str) -> list[str]:
        """The single characters that spell a token."""
        inside = token.startswith(self.prefix) and len(token) > len(self.prefix)
        body = token.removeprefix(self.prefix) if inside else token
        return [self.prefix + c if inside or n else c for n, c in enumerate(body)]

    def singles(self) -> set[str]:
        """All single characters; and tokens with a character that has no token by itself."""
        return {
            token
            for token in self.vocab
            if len(forms := self._forms(token)) == 1 or any(f not in self.vocab for f in forms)
        }

    def closed(self, tokens: set[str], unknown: Iterable[str]) -> set[str]:
        """Adds the matches made in a word before it was given up."""
        closed = set(tokens)
        for word in unknown:
            start = 0
            while start < len(word) <= self.limit:
                found = self._longest(word, start)
                if found is None:
                    break
                token, start = found
                closed.add(token)
        return closed

    def _longest(self, word: str, start: int) -> tuple[str, int] | None:
        for end in range(len(word), start, -1):
            token = (self.prefix if start else "") + word[start:end]
            if token in self.vocab:
                return token, end
        return None


class ByteLevelBPE(Subwords):
    """Merges of bytes by rank (Sennrich et al. 2016; on bytes as in GPT-2)."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.merges = [
            tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
            for merge in self.model["merges"]
        ]
        self.rank = {pair: rank for rank, pair in enumerate(self.merges)}

    def singles(self) -> set[str]:
        """All bytes."""
        return {token for token in self.vocab if len(token) == 1}

    def closed(self, tokens: set[str], unknown: Iterable[str]) -> set[str]:
        """Adds what is made on the way to each token."""
        closed = set(tokens)
        for token in tokens:
            parts = list(token)
            while len(parts) > 1:
                ranks = [
                    (self.rank[pair], place)
                    for place, pair in enumerate(itertools.pairwise(parts))
                    if pair in self.rank
                ]
                if not ranks:
                    break
                place = min(ranks)[1]
                parts[place : place + 2] = [parts[place] + parts[place + 1]]
                closed.add(parts[place])
        return closed

    def smaller(self, place: dict[int, int]) -> Spec:
        """Keeps the merges whose two parts and result are kept."""
        model = super().smaller(place)
        vocab = model["vocab"]
        model["merges"] = [
            [a, b] for a, b in self.merges if a in vocab and b in vocab and a + b in vocab
        ]
        return model


class Unigram(Subwords):
    """The most probable pieces (Kudo 2018, as SentencePiece has it).

    A text's best pieces are still the best among fewer. What stands for a character without a
    piece is scored 10 below the least probable piece, so one of these stays.
    """

    def __init__(self, spec: Spec) -> None:
        pieces = spec["model"]["vocab"]
        vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
        super().__init__({**spec, "model": {**spec["model"], "vocab": vocab}})
        self.scores = [score for _, score in pieces]

    def singles(self) -> set[str]:
        """Single characters, bytes, and pieces with a character that has no piece of its own."""
        return {
            piece
            for piece in self.vocab
            if len(piece) == 1 or _BYTE.fullmatch(piece) or any(c not in self.vocab for c in piece)
        }

    def closed(self, tokens: set[str], unknown: Iterable[str]) -> set[str]:
        """Adds the unknown piece, and a least probable one."""
        pieces = list(self.vocab)
        least = min(range(len(pieces)), key=lambda i: (self.scores[i], pieces[i] not in tokens))
        some = {pieces[least]}
        if self.model.get("unk_id") is not None:
            some.add(pieces[self.model["unk_id"]])
        return tokens | some

    def smaller(self, place: dict[int, int]) -> Spec:
        """The pieces that are kept with their scores, in the order of their new ids."""
        pieces = [(piece, self.scores[i]) for piece, i in self.vocab.items() if i in place]
        pieces.sort(key=lambda one: place[self.vocab[one[0]]])
        unknown = self.model.get("unk_id")
        return {
            **self.model,
            "vocab": [list(one) for one in pieces],
            "unk_id": None if unknown is None else place[unknown],
        }


def subwords_of(spec: Spec) -> Subwords:
    """The vocabulary of a tokenizer.json.

    Raises:
        RecipeError: If it is of a kind that cannot be cut.
    """
    model = spec["model"]
    kind = str(model.get("type"))
    if kind == "WordPiece":
        return WordPiece(spec)
    plain = not any(
        model.get(option)
        for option in (
            "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"
        )
    )  # fmt: skip
    if kind == "Unigram":
        return Unigram(spec)
    if kind == "BPE" and plain and _is_byte_level(spec.get("pre_tokenizer")):
        return ByteLevelBPE(spec)
    raise RecipeError(
        f"A vocabulary of kind {kind} cannot be cut yet; WordPiece, byte-level BPE and Unigram "
        "can. "
        "Leave `prune.vocabulary` out."
    )


def _is_byte_level(step: Spec | None) -> bool:
    if not step:
        return False
    return step["type"] == "ByteLevel" or any(map(_is_byte_level, step.get("pretokenizers", [])))
