"""Which rows an export carries to be run again elsewhere: of the training texts, never of the test.

A team ships the folder, so the rows must be none that it is judged by.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..eval.data import Data
from ..eval.splits import text_key
from ..eval.tasks import Task

ROWS = 64
WRITTEN_ROWS = 16
"""Of language models, whose answers take seconds each."""
LONGEST = 2000
"""Characters of a row: what is longer makes the folder large, and most of it is cut off."""
COLUMNS = {"class_logits": "text", "embedding": "query", "token_distribution": "prompt"}


def golden_rows(data: Data, task: Task, seed: int) -> list[dict[str, str]]:
    """Draws golden rows from the training and validation texts, the same for the same seed.

    Args:
        data: The rows; those of the test split are not opened.
        task: Says which column is the text.
        seed: Of the draw.

    Returns:
        Up to `ROWS` different rows, each with ``text`` and perhaps ``text_pair``. Where every text
        is longer than `LONGEST`, one of them is taken all the same.
    """
    column, wanted = COLUMNS[task.signal], ROWS
    if task.signal == "token_distribution":
        wanted = WRITTEN_ROWS
    splits = [data.split(name) for name in ("train", "validation") if data.info["rows"].get(name)]
    sizes = [len(rows) for rows in splits]
    some = min(sum(sizes), 8 * wanted)
    drawn = np.random.default_rng(seed).choice(sum(sizes), size=some, replace=False)
    found: dict[tuple[str, str], dict[str, str]] = {}
    long: dict[str, str] = {}
    for at in drawn.tolist():
        split = 0 if at < sizes[0] else 1
        row: dict[str, Any] = splits[split][at - (sizes[0] if split else 0)]
        one = {"text": str(row[column])}
        if row.get("text_pair") is not None:
            one["text_pair"] = str(row["text_pair"])
        if not one["text"].strip():
            continue
        if sum(map(len, one.values())) > LONGEST:
            long = long or one
            continue
        key = (text_key(one["text"]), text_key(one.get("text_pair", "")))
        found.setdefault(key, one)
        if len(found) == wanted:
            break
    return list(found.values()) or [long]
