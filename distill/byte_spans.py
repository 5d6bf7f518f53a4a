"""Two tokenisations of one text, row by row: the runs of tokens that cover the same bytes.

What `alignment.align_spans` does from offsets, done from ids: the bytes that each token spells are
looked up, their lengths are added up, and both sides are cut at the sums that both have. Nothing
is tokenised again, and a row takes a few numpy calls. A token that ends a text spells one byte that
no text has, so that the end of one side aligns with the end of the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.errors import RecipeError
from .logprob_mapping import TokenTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

END = b"\xff"
"""Stands for the end of a text: UTF-8 never has this byte."""
SPELL_ALL = ("byte-level", "sentencepiece")
"""The kinds of tokenizer whose tokens, one after the other, spell a text with its spaces."""


class ByteSpans:
    """Aligns the tokens of a student with those of a teacher that has another tokenizer."""

    def __init__(self, student: Any, teacher: Any) -> None:
        """Looks up what every token spells.

        Args:
            student: Its tokenizer, a fast one.
            teacher: The teacher's.

        Raises:
            RecipeError: If the tokens of one do not spell a text whole (WordPiece leaves out the
                spaces), or it has no token that ends a text.
        """
        self._student = _Side(student, "student")
        self._teacher = _Side(teacher, "teacher")

    def of(
        self, student: NDArray[np.int64], teacher: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The span of each token, counted from 0.

        A sentencepiece side may put a space in front of a text, which is then left out. Tokens
        that spell nothing (special ones) are in no span, and neither is what follows the first
        byte that differs: where one side was truncated, or normalises.

        Args:
            student: The student's ids of a text, (N,).
            teacher: The teacher's, (M,).

        Returns:
            Two ascending arrays, (N,) and (M,), but for −1 where a token is in no span.
        """
        s, t = self._student.text(student), self._teacher.text(teacher)
        if s[:1] != t[:1]:
            s = s[self._student.front(s) :]
            t = t[self._teacher.front(t) :]
        ends_s = self._student.ends(student, len(s))
        ends_t = self._teacher.ends(teacher, len(t))
        alike = _alike(s, t)
        # Sides that repeat an end have a token without bytes there.
        common = np.intersect1d(ends_s, ends_t)
        common = common[(common > 0) & (common <= alike)]
        return _owners(ends_s, common), _owners(ends_t, common)


class _Side:
    """What each id of a tokenizer spells."""

    def __init__(self, tokenizer: Any, side: str) -> None:
        table = TokenTable(tokenizer)
        if table.kind not in SPELL_ALL:
            raise RecipeError(
                f"distill.losses.uld: the {side}'s tokenizer is {table.kind}, whose tokens do not "
                "spell a text with its spaces; expected byte-level BPE or sentencepiece on both "
                "sides. Use another checkpoint, or cross_entropy on the teacher's texts."
            )
        if tokenizer.eos_token_id is None:
            raise RecipeError(
                f"distill.losses.uld: the {side}'s tokenizer has no token that ends a text; set "
                "eos_token."
            )
        self._spelled = table.spellings()
        self._spelled[int(tokenizer.eos_token_id)] = END
        self._sizes = np.fromiter(map(len, self._spelled), np.int64, len(self._spelled))
        self._spaced = table.kind == "sentencepiece"

    def text(self, ids: NDArray[np.int64]) -> bytes:
        """What the tokens spell, one after the other."""
        return b"".join(map(self._spelled.__getitem__, ids.tolist()))

    def front(self, text: bytes) -> int:
        """Bytes of the space that this kind of tokenizer puts in front."""
        return int(self._spaced and text[:1] == b" ")

    def ends(self, ids: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """The byte behind each token, given the bytes of the text without a front."""
        ends: NDArray[np.int64] = self._sizes[ids].cumsum()
        return ends - (ends[-1] - size) if len(ends) else ends


def _alike(a: bytes, b: bytes) -> int:
    """How many bytes both begin with."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    other = np.frombuffer(a, np.uint8, size) != np.frombuffer(b, np.uint8, size)
    return int(other.argmax())


def _owners(ends: NDArray[np.int64], common: NDArray[np.int64]) -> NDArray[np.int64]:
    """The span of each token, given the byte behind it and those where both sides are cut."""
    found: NDArray[np.int64] = np.searchsorted(common, ends).astype(np.int64)
    begins = np.concatenate([[0], ends[:-1]])[: len(ends)]
    found[(found >= len(common)) | (ends <= begins)] = -1
    return found
