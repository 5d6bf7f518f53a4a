"""Batches of rows of like length, so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def length_order(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Row numbers from the longest row to the shortest; equal lengths keep their order.

    The longest come first so that a batch that does not fit in memory fails at the start.
    """
    return np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")


def token_batches(
    lengths: Sequence[int] | NDArray[np.int64], batch_tokens: int
) -> Iterator[NDArray[np.int64]]:
    """Yields row numbers in batches, longest first, each at most ``batch_tokens`` when padded.

    A single row longer than the budget is a batch by itself.

    Args:
        lengths: Tokens of each row, (n,).
        batch_tokens: Rows × longest row of a batch, at most.
    """
    order = length_order(lengths)
    sizes = np.asarray(lengths, dtype=np.int64)[order]
    start = 0
    while start < len(order):
        longest = max(int(sizes[start]), 1)
        stop = start + max(batch_tokens // longest, 1)
        yield order[start:stop]
        start = stop
