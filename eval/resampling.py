"""A metric on many draws of the test rows with replacement: what every interval is made of.

The bootstrap of Efron and Tibshirani (1993). All models are judged on the same draws, so what they
have in common cancels out of their ratio or difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from .metrics import Metric, Statistics
from .ranking import Floats, Rows

# Numbers held at a time for the draws (16 MB), so that memory hardly depends on rows, columns or
# resamples.
_CHUNK = 2**21
# How often a kind of row is drawn costs about as much as drawing this many rows.
_ROWS_A_KIND = 12


def resample(
    metric: Metric, arms: Sequence[Statistics], *, resamples: int = 10_000, seed: int = 0
) -> Floats:
    """A metric of several models on the same draws of rows with replacement.

    Rows on which all models have the same statistics are interchangeable: only how many of each
    kind are drawn matters. Where such kinds are few, their numbers are drawn at once, and the cost
    does not depend on the number of rows; otherwise the rows are.

    Args:
        metric: What the statistics are of.
        arms: Per-row statistics of each model, each of shape (n, k).
        resamples: Number of draws, R.
        seed: Of the draws.

    Returns:
        Values, shape (R, models).
    """
    rows = int(arms[0].shape[0])
    generator = np.random.default_rng(seed)
    first, inverse = _kinds(arms)
    columns: list[Any]
    if _ROWS_A_KIND * len(first) <= rows:
        step = max(1, _CHUNK // max(len(first), arms[0].shape[1]))
        counts = np.bincount(inverse, minlength=len(first))
        draws = _draw_kinds(generator, counts, resamples, step)
        columns = [arm[first] for arm in arms]
    else:
        step = max(1, _CHUNK // max(rows, arms[0].shape[1]))
        draws = _draw_rows(generator, rows, resamples, step)
        columns = list(arms)
    total = np.asarray(float(rows))
    values = np.empty((resamples, len(arms)))
    for start, weights in draws:
        for place, column in enumerate(columns):
            values[start : start + len(weights), place] = metric.reduce(weights @ column, total)
    return values


def _draw_kinds(
    generator: np.random.Generator, counts: Rows, resamples: int, step: int
) -> Iterator[tuple[int, Floats]]:
    """Yields chunks of how often each kind of row is drawn, shape (chunk, kinds)."""
    rows = int(counts.sum())
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.multinomial(rows, counts / rows, size=size)
        yield start, drawn.astype(np.float64)


def _draw_rows(
    generator: np.random.Generator, rows: int, resamples: int, step: int
) -> Iterator[tuple[int, Floats]]:
    """Yields chunks of how often each row is drawn, shape (chunk, n).

    Each draw is counted by itself: one draw's counters fit a processor's cache, a chunk's do not,
    and counting is then six times slower.
    """
    for start in range(0, resamples, step):
        weights = np.empty((min(step, resamples - start), rows))
        for row in weights:
            row[:] = np.bincount(generator.integers(0, rows, size=rows), minlength=rows)
        yield start, weights


def _kinds(arms: Sequence[Statistics]) -> tuple[Rows, Rows]:
    """The first row of each kind, and each row's kind; rows of a kind are equal in all arms."""
    table = np.hstack([_compact(arm) for arm in arms])
    _, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    return first.astype(np.int64), inverse.reshape(-1).astype(np.int64)


def _compact(statistics: Statistics) -> Floats:
    """A dense table with equal rows exactly where the statistics have equal rows.

    For a sparse array: columns and values of its entries, padded, so that macro-F1 over 77 classes
    takes 4 columns instead of 231.
    """
    if not sparse.issparse(statistics):
        return np.asarray(statistics)
    matrix = sparse.csr_array(statistics, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    sizes = np.diff(matrix.indptr)
    width = int(sizes.max(initial=0))
    table: npt.NDArray[np.float64] = np.full((matrix.shape[0], 2 * width), -1.0)
    row = np.repeat(np.arange(matrix.shape[0]), sizes)
    place = np.arange(len(row)) - np.repeat(matrix.indptr[:-1], sizes)
    table[row, place] = matrix.indices
    table[row, width + place] = matrix.data
    return table
