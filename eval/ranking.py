"""Finding the best texts of a collection for each query, and judging the order they come in.

The functions that judge return one value per query in float64; a mean over queries is the metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import DataError, RunError

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_QUERY_BLOCK = 256
_COLLECTION_BLOCK = 8192
_ROW_BITS = np.uint64(32)
_ROW_MASK = np.uint64(0xFFFFFFFF)


def top_rows(
    queries: npt.NDArray[np.floating],
    collection: npt.NDArray[np.floating],
    k: int = 10,
    block: int = _COLLECTION_BLOCK,
) -> Rows:
    """Finds the ``k`` texts with the largest dot product with each query, best first.

    The embeddings are taken as given: normalised ones make this the cosine. Equal scores are
    ordered by row number, so the answer never depends on the sort. Memory is bounded by the blocks
    (a few times 256 * ``block`` numbers), whatever the sizes of queries and collection, and both
    may be memory-mapped.

    Args:
        queries: Embeddings of the queries, shape (n, d).
        collection: Embeddings of the texts, shape (N, d).
        k: How many texts to find; fewer come back when the collection is smaller.
        block: Texts compared at a time.

    Returns:
        Row numbers in the collection, shape (n, min(k, N)).

    Raises:
        RunError: If the widths differ, the collection is empty, or an embedding is not finite.
    """
    if queries.ndim != 2 or collection.ndim != 2 or queries.shape[1] != collection.shape[1]:
        raise RunError(
            f"Queries and collection must be matrices of one width, got shapes {queries.shape} and "
            f"{collection.shape}. Embed both with models that share a space."
        )
    if not len(collection):
        raise RunError("The collection is empty, so no query can be answered; check `data`.")
    if k < 1 or block < 1:
        raise RunError(f"k and block must be at least 1, got k={k} and block={block}.")
    depth = min(k, len(collection))
    found = np.empty((len(queries), depth), dtype=np.int64)
    for start in range(0, len(queries), _QUERY_BLOCK):
        part = np.asarray(queries[start : start + _QUERY_BLOCK], dtype=np.float32)
        best = np.empty((len(part), 0), dtype=np.uint64)
        for first in range(0, len(collection), block):
            texts = np.asarray(collection[first : first + block], dtype=np.float32)
            best = _best(np.hstack([best, _keys(part @ texts.T, first)]), depth)
        order = np.sort(best, axis=1)[:, ::-1]
        found[start : start + len(part)] = _ROW_MASK - (order & _ROW_MASK)
    return found


def best_rows(scores: npt.NDArray[np.floating], k: int = 10) -> Rows:
    """The ``k`` largest scores of each row, largest first; equal ones are ordered by column.

    Args:
        scores: The score of every text for every query, shape (n, N).
        k: How many to find; fewer come back when there are fewer texts.

    Returns:
        Column numbers, shape (n, min(k, N)).

    Raises:
        RunError: If a score is not finite, or there is no text.
    """
    if scores.ndim != 2 or not scores.shape[1] or k < 1:
        raise RunError(f"Expected scores (queries, texts) and k of at least 1, got {scores.shape}.")
    keys = _best(_keys(np.asarray(scores, dtype=np.float32), 0), min(k, scores.shape[1]))
    return (_ROW_MASK - (np.sort(keys, axis=1)[:, ::-1] & _ROW_MASK)).astype(np.int64)


def _keys(scores: npt.NDArray[np.float32], first: int) -> npt.NDArray[np.uint64]:
    """Packs score and row into one integer whose order is score, then lowest row number."""
    if not np.isfinite(scores).all():
        raise RunError("Some embeddings hold NaN or infinity; the model that made them diverged.")
    bits = (scores + np.float32(0)).view(np.uint32)  # the sum turns -0.0 into 0.0
    # IEEE floats sort as integers once negative ones are inverted and positive ones raised.
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    rows = np.arange(first, first + scores.shape[1], dtype=np.uint64)
    return (bits.astype(np.uint64) << _ROW_BITS) | (_ROW_MASK - rows)


def _best(keys: npt.NDArray[np.uint64], k: int) -> npt.NDArray[np.uint64]:
    """Keeps the ``k`` largest keys of each row, in no particular order."""
    if keys.shape[1] <= k:
        return keys
    return np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]


@dataclass(frozen=True)
class Ranking:
    """What a model's order of texts is judged by.

    Attributes:
        grades: Grade of the text at each position, 0 where it is not relevant, shape (n, depth).
        ideal: Grades of the relevant texts, largest first, padded with 0, shape (n, depth).
        relevant: Number of relevant texts of each query, at least 1, shape (n,).
    """

    grades: Floats
    ideal: Floats
    relevant: Floats


def rank(
    top: npt.NDArray[np.integer],
    relevant: Sequence[Sequence[int]],
    grades: Sequence[Sequence[int]] | None = None,
    depth: int | None = None,
) -> Ranking:
    """Looks the texts a model found up among the relevant ones.

    A grade of 0 or below means judged and not relevant, as in TREC's files; a text named twice
    for one query keeps its largest grade.

    Args:
        top: Row numbers found for each query, best first, shape (n, positions).
        relevant: Row numbers of the texts that answer each query.
        grades: How well each of them does; 1 each if not given.
        depth: Positions that are judged; those of ``top`` if not given.

    Raises:
        DataError: If a query has no relevant text, or its grades are of another number.
    """
    n = len(top)
    if len(relevant) != n or (grades is not None and len(grades) != n):
        raise DataError(
            f"Expected relevant texts (and grades) for each of {n} queries, got {len(relevant)}"
            + (f" and {len(grades)}." if grades is not None else ".")
        )
    depth = top.shape[1] if depth is None else depth
    sizes = np.fromiter((len(rows) for rows in relevant), dtype=np.int64, count=n)
    query = np.repeat(np.arange(n), sizes)
    rows = _flat(relevant)
    given = np.ones(len(rows)) if grades is None else _flat(grades).astype(np.float64)
    if len(given) != len(rows):
        raise DataError(
            f"Expected one grade for each of {len(rows)} relevant texts, got {len(given)}."
        )
    keep = given > 0
    query, rows, given = query[keep], rows[keep], given[keep]
    # Sorted by query, row and falling grade, so that the first of equal pairs is the best graded.
    order = np.lexsort((-given, rows, query))
    query, rows, given = query[order], rows[order], given[order]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (query[1:] != query[:-1]) | (rows[1:] != rows[:-1])
    query, rows, given = query[first], rows[first], given[first]
    counts = np.bincount(query, minlength=n)
    if n and not counts.all():
        raise DataError(
            f"Query {int(np.argmin(counts))} of the test rows has no relevant text; drop such rows."
        )
    return Ranking(
        grades=_grades_found(top[:, :depth], query, rows, given),
        ideal=_ideal(query, given, counts, depth),
        relevant=counts.astype(np.float64),
    )


def _flat(lists: Sequence[Sequence[int]]) -> Rows:
    parts = [np.asarray(part, dtype=np.int64) for part in lists]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _grades_found(top: npt.NDArray[np.integer], query: Rows, rows: Rows, grades: Floats) -> Floats:
    """Grades at each position, from (query, row) pairs sorted by query and row."""
    found = np.zeros(top.shape)
    if not top.size or not rows.size:
        return found
    width = max(int(top.max()), int(rows.max())) + 1
    pairs = query * width + rows
    wanted = np.arange(len(top))[:, None] * width + top
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    hit = pairs[place] == wanted
    found[hit] = grades[place[hit]]
    return found


def _ideal(query: Rows, grades: Floats, counts: Rows, depth: int) -> Floats:
    ideal = np.zeros((len(counts), depth))
    order = np.lexsort((-grades, query))
    position = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    keep = position < depth
    ideal[query[order][keep], position[keep]] = grades[order][keep]
    return ideal


def reciprocal_rank(ranking: Ranking, depth: int) -> Floats:
    """1 / the position of the first relevant text, 0 if none is within ``depth``; shape (n,)."""
    hits = ranking.grades[:, :depth] > 0
    first = hits.argmax(axis=1)
    return np.where(hits.any(axis=1), 1.0 / (first + 1), 0.0)


def recall(ranking: Ranking, depth: int) -> Floats:
    """Share of a query's relevant texts within ``depth``, as trec_eval has it; shape (n,)."""
    return np.asarray((ranking.grades[:, :depth] > 0).sum(axis=1) / ranking.relevant)


def ndcg(ranking: Ranking, depth: int) -> Floats:
    """Discounted gain over the best possible one: sum of grade_i / log2(i + 1), i from 1.

    The gain is the grade itself (Järvelin and Kekäläinen, 2002), as in trec_eval, BEIR and
    scikit-learn, not 2^grade - 1. Shape (n,).
    """
    discount = 1.0 / np.log2(np.arange(2, depth + 2))

    def gain(grades: Floats) -> Floats:
        part = grades[:, :depth]
        return np.asarray(part @ discount[: part.shape[1]])

    return gain(ranking.grades) / gain(ranking.ideal)
