"""A server's log-probabilities as targets: its tokens, texts or bytes, mapped to a tokenizer's ids.

A server names tokens by what they spell, a loss by their ids. The table between them is built from
the tokenizer's vocabulary: byte-level BPE, SentencePiece (``▁``, ``<0xNN>``) and WordPiece. What
maps to no id, or to more than one, is part of the rest of its position, and its mass is reported.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..eval.errors import RunError
from .chat_answers import Answer, Entry
from .token_targets import TopK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# vLLM's spelling where a request says `return_tokens_as_token_ids`: the id itself
_TOKEN_ID = re.compile(r"token_id:(\d+)")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"
# what a decoder writes for bytes that are no text: many tokens look like it, so it names none
_NO_TEXT = "\ufffd".encode()
# servers send −9999 for a token outside the largest ones they keep
UNKNOWN = -9000.0


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's), reversed."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in shown}
    hidden = (byte for byte in range(256) if byte not in shown)
    return alphabet | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """A tokenizer's component and all that it is made of, flat."""
    if isinstance(part, dict):
        yield part
        for inner in ("decoders", "pretokenizers"):
            for each in part.get(inner, ()):
                yield from _parts(each)


class TokenTable:
    """From what a token spells to its id.

    Attributes:
        size: Ids of the vocabulary.
        special: Ids of special tokens, which spell nothing.
        kind: ``byte-level``, ``sentencepiece``, ``wordpiece`` or ``plain``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Builds the table.

        Args:
            tokenizer: A fast tokenizer.

        Raises:
            RunError: If it is not a fast one.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise RunError(
                f"The tokenizer of class {type(tokenizer).__name__} has no vocabulary to read the "
                "server's log-probabilities with; name one with a tokenizer.json in "
                "teacher.tokenizer."
            )
        parts = json.loads(backend.to_str())
        self.kind = _kind(parts)
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        added = {i: t for i, t in backend.get_added_tokens_decoder().items()}
        self.size = max(vocabulary.values(), default=-1) + 1
        self.special = frozenset(i for i, token in added.items() if token.special)
        self._raw = vocabulary
        self._added = frozenset(added)
        # for each spelling the ids in order of rank: a piece, a token added later, a lone byte
        ranked: dict[bytes, dict[int, list[int]]] = {}
        for piece, token_id in vocabulary.items():
            rank, spelling = 1, piece.encode()
            if token_id not in added:
                rank, spelling = self._spelling(piece)
            ranked.setdefault(spelling, {}).setdefault(rank, []).append(token_id)
        self._ids: dict[bytes, int | None] = {}
        for spelling, ranks in ranked.items():
            best = ranks[min(ranks)]
            self._ids[spelling] = best[0] if len(best) == 1 else None

    def spellings(self) -> list[bytes]:
        """What each id spells, (size,); nothing for special tokens and for ids without a token."""
        found = [b""] * self.size
        for piece, token_id in self._raw.items():
            if token_id not in self.special:
                plain = token_id in self._added
                found[token_id] = piece.encode() if plain else self._spelling(piece)[1]
        return found

    def _spelling(self, piece: str) -> tuple[int, bytes]:
        if self.kind == "byte-level":
            if all(c in _ALPHABET for c in piece):
                return 0, bytes(_ALPHABET[c] for c in piece)
        elif self.kind == "sentencepiece":
            if byte := _BYTE.fullmatch(piece):
                return 2, bytes([int(byte[1], 16)])
            return 0, piece.replace(_SPACE, " ").encode()
        return 0, piece.encode()

    def id_of(self, entry: Entry) -> int | None:
        """The id of a token as a server spells it; None where there is none, or not one alone."""
        if named := _TOKEN_ID.fullmatch(entry.text):
            return int(named[1]) if int(named[1]) < self.size else None
        spelling = _spelled(entry)
        if _NO_TEXT in spelling or not spelling:
            return None
        if spelling in self._ids:
            return self._ids[spelling]
        # servers that hand over the vocabulary's own strings ("Ġthe", "▁the", "<0xE4>")
        if entry.text in self._raw:
            return self._raw[entry.text]
        if self.kind == "wordpiece":  # the space before a word is not in its piece
            return self._ids.get(spelling.removeprefix(b" "))
        return None

    def unclear(self, entry: Entry) -> bool:
        """Whether a token is one of several that the server spells the same."""
        spelling = _spelled(entry)
        return _NO_TEXT in spelling or (spelling in self._ids and self._ids[spelling] is None)


def _spelled(entry: Entry) -> bytes:
    return entry.text.encode("utf-8", "surrogatepass") if entry.raw is None else entry.raw


_ALPHABET = _byte_alphabet()


def _kind(parts: dict[str, Any]) -> str:
    components = [*_parts(parts.get("decoder")), *_parts(parts.get("pre_tokenizer"))]
    types = {component.get("type") for component in components}
    model = parts["model"]
    if "ByteLevel" in types:
        return "byte-level"
    if model.get("type") == "WordPiece":
        return "wordpiece"
    if model.get("type") == "Unigram" or model.get("byte_fallback") or "Metaspace" in types:
        return "sentencepiece"
    return "plain"


@dataclass(frozen=True)
class MappedAnswer:
    """A completion in the tokenizer's ids, and what the teacher said at each.

    Attributes:
        key: The row.
        ids: The completion, (N,), an end token included where the server gave it.
        targets: At each of these positions, before its token was known, (N, K).
        unmapped: The mean over the positions of the mass listed by the server that has no id.
    """

    key: str
    ids: tuple[int, ...]
    targets: TopK
    unmapped: float


class LogprobMapper:
    """Maps answers, and keeps count of what could not be mapped.

    Attributes:
        table: From spellings to ids.
        columns: K of the targets: the largest, the chosen token beside them.
        rows: Answers mapped.
        refused: Answers that could not be, by reason.
        positions: Tokens of the answers mapped.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, top_logprobs: int) -> None:
        """Builds the table.

        Args:
            tokenizer: The teacher's, fast.
            top_logprobs: How many log-probabilities a token were asked for.
        """
        self.tokenizer = tokenizer
        self.table = TokenTable(tokenizer)
        self.columns = min(top_logprobs + 1, self.table.size)
        self.rows = self.positions = 0
        self.refused: Counter[str] = Counter()
        self._unmapped = 0.0

    @property
    def unmapped(self) -> float:
        """The share of the teacher's mass that was listed and has no id, over all positions."""
        return self._unmapped / self.positions if self.positions else 0.0

    def map(self, answer: Answer) -> MappedAnswer | None:
        """Maps one answer; None (and counted in ``refused``) where its ids are not certain.

        They are certain when they decode to the answer's text. A token that no spelling tells
        apart is taken from the tokenizer's own reading of the text where all others agree with it.
        """
        mapped = self._mapped(answer)
        if isinstance(mapped, str):
            self.refused[mapped] += 1
            return None
        self.rows += 1
        self.positions += len(mapped.ids)
        self._unmapped += mapped.unmapped * len(mapped.ids)
        return mapped

    def _mapped(self, answer: Answer) -> MappedAnswer | str:
        """An answer mapped, or the reason why it cannot be."""
        tokens = list(answer.tokens or ())
        while tokens and not tokens[-1][0].text:  # an end token, sent as the nothing it spells
            tokens.pop()
        if not tokens:
            return "no log-probabilities"
        ids = self._chosen(answer, tokens)
        if ids is None:
            return "a token of the answer is not the tokenizer's"
        if not self._spells(ids, answer.text):
            return "the tokens do not spell the answer"
        columns = [self._position(chosen, token) for chosen, token in zip(ids, tokens, strict=True)]
        if any(mass + lost > 1.01 for *_, mass, lost in columns):
            return "probabilities that sum to more than 1"
        targets = TopK(
            torch.tensor([c[0] for c in columns], dtype=torch.int64),
            torch.tensor([c[1] for c in columns], dtype=torch.float32),
            torch.tensor([max(0.0, 1.0 - c[2]) for c in columns], dtype=torch.float32),
        )
        unmapped = sum(lost for *_, lost in columns) / len(columns)
        return MappedAnswer(answer.key, tuple(ids), targets, unmapped)

    def _chosen(self, answer: Answer, tokens: Sequence[Sequence[Entry]]) -> list[int] | None:
        ids = [self.table.id_of(token[0]) for token in tokens]
        if None not in ids:
            return [i for i in ids if i is not None]
        unknown = [token[0] for i, token in zip(ids, tokens, strict=True) if i is None]
        if not all(self.table.unclear(entry) for entry in unknown):
            return None
        own: list[int] = self.tokenizer.encode(answer.text, add_special_tokens=False)
        end = ids[len(own) :]
        if len(own) > len(ids) or any(i not in self.table.special for i in end):
            return None
        if any(i is not None and i != j for i, j in zip(ids, own, strict=False)):
            return None
        return own + [i for i in end if i is not None]

    def _spells(self, ids: Sequence[int], text: str) -> bool:
        kept = [i for i in ids if i not in self.table.special]
        for clean in (False, True):
            read = str(self.tokenizer.decode(kept, clean_up_tokenization_spaces=clean))
            # templates and servers differ in the one space before a first word
            if read == text or read.removeprefix(" ") == text.removeprefix(" "):
                return True
        return False

    def _position(
        self, chosen: int, token: Sequence[Entry]
    ) -> tuple[list[int], list[float], float, float]:
        """One position: ids and log-probabilities, (K,) each, their mass, and the mass lost."""
        first, *others = token
        found = {chosen: first.log_prob} if first.log_prob > UNKNOWN else {}
        lost = 0.0
        for entry in sorted(others, key=lambda e: -e.log_prob):
            if entry.log_prob <= UNKNOWN:
                continue
            same = (entry.text, entry.raw) == (first.text, first.raw)
            if same and abs(entry.log_prob - first.log_prob) < 1e-3:
                continue  # the chosen token stands among the largest too
            token_id = self.table.id_of(entry)
            if token_id is None or token_id in found:
                lost += math.exp(entry.log_prob)
            else:
                found[token_id] = entry.log_prob
        best = sorted(found.items(), key=lambda item: -item[1])[: self.columns]
        ids, log_probs = [i for i, _ in best], [value for _, value in best]
        mass = sum(math.exp(value) for value in log_probs)
        spare = (i for i in range(self.table.size) if i not in found)
        while len(ids) < self.columns:  # ids stay distinct; −inf says that they mean nothing
            ids.append(next(spare))
            log_probs.append(-math.inf)
        return ids, log_probs, mass, lost

    def check(self, most_unmapped: float = 0.05) -> None:
        """Refuses a tokenizer that is evidently not the teacher's.

        Args:
            most_unmapped: The largest share of the mass that may have no id.

        Raises:
            RunError: If no answer was mapped, more were refused than mapped, or too much mass is
                unmapped.
        """
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in self.refused.most_common())
        refused = sum(self.refused.values())
        todo = (
            "Set teacher.tokenizer to the tokenizer of the model that the server runs; with vLLM, "
            "teacher.endpoint.extra_body: {return_tokens_as_token_ids: true} names tokens by "
            "their ids."
        )
        if refused > self.rows or not self.rows:
            raise RunError(
                f"The vocabularies cannot be matched: of {self.rows + refused:,} answers with "
                f"log-probabilities, {refused:,} have tokens that teacher.tokenizer does not read "
                f"as their text ({reasons or 'there are no answers'}). {todo}"
            )
        if self.unmapped > most_unmapped:
            raise RunError(
                f"{self.unmapped:.1%} of the teacher's probability fell on tokens that "
                f"teacher.tokenizer does not have (at most {most_unmapped:.0%} is accepted). {todo}"
            )
