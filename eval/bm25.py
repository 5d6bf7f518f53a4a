"""BM25: texts ranked by the words they share with a query, without any model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .bag_of_words import BagOfWords, document_frequency
from .errors import DataError, RunError
from .ranking import best_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

K1, B = 1.2, 0.75
"""Lucene's own defaults."""
BLOCK = 256
SETTINGS, WEIGHTS = "bm25.json", "bm25.safetensors"


class BM25:
    """An index of a collection, with every term's weight in every text worked out beforehand.

    Attributes:
        bag: The collection's terms.
        weights: What a term adds to a text's score where a query has it, (N, V) float32.
    """

    def __init__(self, bag: BagOfWords, weights: sparse.csr_array[Any, Any]) -> None:
        self.bag = bag
        self.weights = weights

    @classmethod
    def index(cls, texts: Sequence[str], k1: float = K1, b: float = B) -> BM25:
        """Indexes a collection of N texts.

        The weight of term t in text d is log(1 + (N − n_t + ½) / (n_t + ½)) · f / (f + k1 (1 − b +
        b |d| / average |d|)), f being how often t occurs in d, |d| the words of d and n_t how many
        texts have t: BM25 as Lucene computes it since version 8 (Kamphuis et al., "Which BM25 do
        you mean?", ECIR 2020). Words are taken as they are: no stemming and no list of stop words.

        Args:
            texts: The collection.
            k1: How soon a further occurrence of a term counts for less.
            b: How much long texts are discounted, 0 to 1.

        Raises:
            DataError: If there is no text, or no word in any of them.
        """
        bag = BagOfWords.of(texts)
        if not bag.places:
            raise DataError("BM25 needs texts with words, and the collection has none.")
        counts = bag.counts(texts)
        frequency = document_frequency(counts)
        rarity = np.log1p((len(texts) - frequency + 0.5) / (frequency + 0.5))
        lengths = np.asarray(counts.sum(axis=1), dtype=np.float64)
        discount = k1 * (1 - b + b * lengths / lengths.mean())
        row = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        occurs = counts.data
        weights = rarity[counts.indices] * occurs / (occurs + discount[row])
        filled = (weights.astype(np.float32), counts.indices, counts.indptr)
        return cls(bag, sparse.csr_array(filled, shape=counts.shape))

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """The score of every text for every query, (n, N); a word that is there twice counts so."""
        asked = self.bag.counts(queries).astype(np.float32)
        return np.asarray((asked @ self.weights.T).toarray(), dtype=np.float32)

    def top(
        self, queries: Sequence[str], k: int = 10, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.int64]:
        """The best texts of each query, best first; equal scores are ordered by row number.

        Args:
            queries: The queries, n of them.
            k: How many texts to find.
            progress: Called with the number of queries done, block by block.

        Returns:
            Row numbers, (n, min(k, N)).
        """
        found = [np.empty((0, min(k, self.weights.shape[0])), dtype=np.int64)]
        for start in range(0, len(queries), BLOCK):
            some = queries[start : start + BLOCK]
            found.append(best_rows(self.scores(some), k))
            if progress is not None:
                progress(len(some))
        return np.concatenate(found)

    def save(self, folder: Path) -> None:
        """Writes the index: its terms as JSON, its weights as safetensors."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        said = {"texts": self.weights.shape[0], "terms": list(self.bag.places)}
        (folder / SETTINGS).write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
        parts = {
            "weights": self.weights.data,
            "columns": self.weights.indices.astype(np.int64),
            "starts": self.weights.indptr.astype(np.int64),
        }
        save_file(parts, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> BM25:
        """Reads what `save` wrote.

        Raises:
            RunError: If it is not there, or its parts do not fit.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            said = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            parts = load_file(folder / WEIGHTS)
            bag = BagOfWords({term: place for place, term in enumerate(said["terms"])})
            weights = sparse.csr_array(
                (parts["weights"], parts["columns"], parts["starts"]),
                shape=(int(said["texts"]), len(bag.places)),
            )
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise RunError(f"'{folder}' holds no whole BM25 index ({error}).") from error
        return cls(bag, weights)
