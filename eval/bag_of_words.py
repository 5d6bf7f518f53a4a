"""Texts as counts of their words: what BM25 and TF-IDF are made of."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORD = re.compile(r"\w\w+")
"""Two or more letters, digits or underscores, as scikit-learn and bm25s have it."""


def terms(text: str, longest: int = 1) -> Iterator[str]:
    """The words of a text in lower case, and runs of them up to a length.

    Examples:
        >>> list(terms("Open a file, open it", 2))
        ['open', 'file', 'open', 'it', 'open file', 'file open', 'open it']
    """
    words = WORD.findall(text.lower())
    yield from words
    for length in range(2, longest + 1):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])


class BagOfWords:
    """Numbers the terms of some texts, and counts them in others.

    Attributes:
        places: The number of each term.
        longest: Words of a term, at most.
    """

    def __init__(self, places: Mapping[str, int], longest: int = 1) -> None:
        self.places = dict(places)
        self.longest = longest

    @classmethod
    def of(cls, texts: Iterable[str], longest: int = 1) -> BagOfWords:
        """The terms that occur in some texts, in order of the alphabet."""
        found: set[str] = set()
        for text in texts:
            found.update(terms(text, longest))
        return cls({term: place for place, term in enumerate(sorted(found))}, longest)

    def counts(self, texts: Iterable[str]) -> sparse.csr_array[Any, Any]:
        """How often each term occurs in each text, (n, V) float64; other terms are left out."""
        columns, values, starts = array("q"), array("q"), array("q", [0])
        for text in texts:
            found = Counter(terms(text, self.longest))
            row = sorted(
                (self.places[term], count) for term, count in found.items() if term in self.places
            )
            columns.extend(place for place, _ in row)
            values.extend(count for _, count in row)
            starts.append(len(columns))
        parts = [np.frombuffer(part, dtype=np.int64) for part in (values, columns, starts)]
        shape = (len(starts) - 1, len(self.places))
        return sparse.csr_array((parts[0].astype(np.float64), parts[1], parts[2]), shape=shape)


def document_frequency(counts: sparse.csr_array[Any, Any]) -> NDArray[np.float64]:
    """In how many texts each term occurs, given their counts (n, V); shape (V,)."""
    return np.bincount(counts.indices, minlength=counts.shape[1]).astype(np.float64)
