"""Prompts with their completions as tokens on disk: what is read, and what of it is learned."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..eval.dialogues import Example


class Examples:
    """Many examples in one flat file of ids and one of marks, mapped into memory.

    Attributes:
        lengths: Tokens of each example, (n,).
        learned: Tokens of each that are learned, (n,).
        truncated: How many lost the end of their completion to the maximum length.
    """

    def __init__(self, examples: Iterable[Example], folder: Path) -> None:
        """Writes the examples, one after the other, into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        lengths, learned, self.truncated = [], [], 0
        with (folder / "ids.bin").open("wb") as ids, (folder / "marks.bin").open("wb") as marks:
            for example in examples:
                lengths.append(len(example.ids))
                learned.append(sum(example.mask))
                self.truncated += example.truncated
                ids.write(np.asarray(example.ids, dtype=np.int32).tobytes())
                marks.write(np.asarray(example.mask, dtype=np.int8).tobytes())
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.learned = np.asarray(learned, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        some = bool(self._starts[-1])
        self._ids = np.memmap(folder / "ids.bin", np.int32, "r") if some else np.empty(0, np.int32)
        self._marks = (
            np.memmap(folder / "marks.bin", np.int8, "r") if some else np.empty(0, np.int8)
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids, (T,), and which of them are learned, (T,)."""
        part = slice(int(self._starts[row]), int(self._starts[row + 1]))
        return self._ids[part].astype(np.int64), self._marks[part].astype(bool)
