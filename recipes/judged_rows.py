"""What an evaluation kept of each test row, judged by a metric again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..eval.data import Data
from ..eval.errors import RunError
from ..eval.metrics import Scores, get_metric, score_decisions, score_texts, score_top
from ..eval.tasks import get_task

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

DECISIONS = "scores.arrow"
"""A column a contender: its best answers to each row (n, at most 10), best first."""
ANSWERS = "answers.arrow"
"""A column a contender: what it wrote for each row."""


def judged_rows(
    evaluated: Path, data: Data, names: Sequence[str], metric: str | None = None
) -> list[Scores]:
    """Scores contenders once more, without a model.

    Args:
        evaluated: Folder of the stage ``evaluate``.
        data: Whose test rows they are.
        names: Of the contenders, as ``teacher`` or ``student-0``.
        metric: The only one to compute; every one of the task if None.

    Raises:
        RunError: If a file or a contender is missing, or the rows are others.
    """
    signal = get_task(data.info["task"]).signal
    only = None
    if metric is not None:
        get_metric(metric, signal)
        only = [metric]
    rows = data.split("test")
    found = []
    for name in names:
        if signal == "token_distribution":
            texts = _column(evaluated / ANSWERS, name, len(rows)).to_pylist()
            found.append(score_texts(texts, rows["completion"][:], only))
        elif signal == "class_logits":
            top = kept_decisions(evaluated, name, len(rows))
            found.append(score_decisions(top, rows["label"][:], len(data.labels or ()), only))
        else:
            top = kept_decisions(evaluated, name, len(rows))
            found.append(score_top(top, rows["relevant"][:], rows["grades"][:], only))
    return found


def kept_decisions(evaluated: Path, name: str, rows: int) -> NDArray[np.int64]:
    """A contender's best answers to each of so many test rows, (n, at most 10), best first."""
    values = _column(evaluated / DECISIONS, name, rows)
    flat = values.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(rows, -1), dtype=np.int64)


def _column(path: Path, name: str, rows: int) -> pa.ChunkedArray:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"'{path}' cannot be read ({error}). Run the recipe again with this paredown."
        ) from None
    if name not in table.column_names:
        raise RunError(f"'{path}' has no '{name}'. Run the recipe again with this paredown.")
    if len(table) != rows:
        raise RunError(f"'{path}' has {len(table)} rows, the test rows are {rows}.")
    return table[name]
