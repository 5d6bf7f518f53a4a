"""How well a text answers: exact match, token F1, ROUGE-L and numbers, against the reference."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"\w+")
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
# a sign behind a word or digit is a hyphen
_NUMBER = re.compile(rf"(?:(?<!\w)[-+])?(?:{_WHOLE}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Texts:
    """What a language model is judged by: what it wrote, and the references, n of each."""

    texts: Sequence[str]
    references: Sequence[str]


def canonical(text: str) -> str:
    """What two texts share that say the same to the letter: NFC, no space around."""
    return unicodedata.normalize("NFC", text).strip()


def per_row(judge: Callable[[str, str], float], judged: Texts) -> Floats:
    """A judgement of each text with its reference, shape (n,)."""
    pairs = zip(judged.texts, judged.references, strict=True)
    return np.fromiter((judge(text, reference) for text, reference in pairs), np.float64)


def exact_match(judged: Texts) -> Floats:
    """1 where the text is the reference, both NFC and without space around them, shape (n,)."""
    return per_row(lambda text, reference: float(canonical(text) == canonical(reference)), judged)


def token_f1(judged: Texts) -> Floats:
    """F1 of the words that text and reference share, shape (n,).

    2 p r / (p + r), where p and r are the shared words (each as often as both have it) over the
    words of the text and of the reference, after SQuAD's normalisation: lower case (NFC), ASCII
    punctuation and the words a, an, the removed, split at white space. Two texts without a word
    left are equal (1); one without is not (0). Rajpurkar et al., arXiv 1606.05250.
    """
    return per_row(_token_f1, judged)


def rouge_l(judged: Texts) -> Floats:
    """ROUGE-L: the F-measure of the longest common subsequence of words, shape (n,).

    2 p r / (p + r), where p and r are the subsequence's length over the words of the text and of
    the reference. Words are runs of letters, digits and underscores, lower case (NFC), not
    stemmed. Two texts without a word are equal (1); one without is not (0). Lin, "ROUGE", 2004.
    """
    return per_row(_rouge_l, judged)


def numeric_match(judged: Texts) -> Floats:
    """1 where the last number in the text is the last in the reference, shape (n,).

    Equal within 1e-6 of the reference's size. Commas may group thousands. Where the reference has
    no number there is nothing to match: 0.
    """
    return per_row(_numeric_match, judged)


def _token_f1(text: str, reference: str) -> float:
    ours, theirs = _squad_words(text), _squad_words(reference)
    return _f1(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))


def _squad_words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFC", text).lower().translate(_PUNCTUATION)
    return _ARTICLES.sub(" ", plain).split()


def _rouge_l(text: str, reference: str) -> float:
    ours = _WORD.findall(unicodedata.normalize("NFC", text).lower())
    theirs = _WORD.findall(unicodedata.normalize("NFC", reference).lower())
    return _f1(common_subsequence(ours, theirs), len(ours), len(theirs))


def _f1(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs) if ours + theirs else 1.0


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    Bit-parallel (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004): a Python integer
    holds a row of the table, a bit for each word of the first sequence.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(first)) - 1
    row = every  # a 0 stands where the length grows
    for word in second:
        found = row & places.get(word, 0)
        row = ((row + found) | (row - found)) & every
    return len(first) - row.bit_count()


def _numeric_match(text: str, reference: str) -> float:
    ours, theirs = last_number(text), last_number(reference)
    if ours is None or theirs is None:
        return 0.0
    return float(ours == theirs or abs(ours - theirs) <= 1e-6 * abs(theirs))


def last_number(text: str) -> float | None:
    """The last number in a text, None where there is none.

    Examples:
        >>> last_number("12 of 1,250.5")
        1250.5
    """
    found = _NUMBER.findall(text)
    value = float(found[-1].replace(",", "")) if found else math.nan
    return value if math.isfinite(value) else None
