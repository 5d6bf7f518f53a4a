"""Teachers that are not asked, because what they said is on file already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.errors import DataError, RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = {"class_logits": ("logits", "scores", "label"), "embedding": ("embedding",)}
SMALLEST = 1e-7  # a probability of 0 has no logarithm


def recorded_values(
    rows: Sequence[Mapping[str, Any]], kind: str, labels: Sequence[str] | None, where: str
) -> NDArray[np.float32]:
    """Turns recorded answers into the signal they stand for.

    Args:
        rows: Rows of a recorded file.
        kind: ``logits`` (one number a class), ``scores`` (probabilities), ``label`` (the class the
            teacher chose: probability 1) or ``embedding``.
        labels: The task's classes, in order.
        where: The file, for errors.

    Returns:
        (n, W) float32: logits (logarithms of probabilities) or embeddings.

    Raises:
        DataError: For a label that is not known, numbers of another width, or none at all.
    """
    if kind == "label":
        number = {name: i for i, name in enumerate(labels or [])}
        out = np.full((len(rows), len(number)), np.log(SMALLEST), dtype=np.float32)
        for i, row in enumerate(rows):
            if str(row[kind]) not in number:
                raise DataError(
                    f"{where}, row {i + 1}: the teacher's label '{row[kind]}' is none of the "
                    "task's classes."
                )
            out[i, number[str(row[kind])]] = 0.0
        return out
    answers = [_numbers(row[kind]) for row in rows]
    lengths = {len(answer) for answer in answers}
    width = len(labels) if labels is not None else max(lengths, default=0)
    if lengths - {width} or not width:
        raise DataError(
            f"{where}: each row's {kind} must be {width or 'some'} numbers, "
            f"found rows of {sorted(lengths)}."
        )
    out = np.asarray(answers, dtype=np.float32)
    if not np.isfinite(out).all():
        raise DataError(f"{where}: {kind} has values that are not finite numbers.")
    if kind == "scores":
        if (out < 0).any() or not (out.sum(1) > 0).all():
            raise DataError(
                f"{where}: scores are probabilities, but a row has some below 0, or nothing above."
            )
        out = np.log(np.maximum(out / out.sum(1, keepdims=True), SMALLEST))
    return out


def _numbers(cell: Any) -> list[float]:
    """A list of numbers, which a CSV file holds as text; anything else has none."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except json.JSONDecodeError:
            return []
    if not isinstance(cell, list) or not all(isinstance(x, int | float) for x in cell):
        return []
    return cell


def recorded_kind(columns: Sequence[str], signal: str, where: str) -> str:
    """Finds which answers a recorded file has.

    Raises:
        RecipeError: If it has none that fits the signal.
    """
    for kind in KINDS[signal]:
        if kind in columns:
            return kind
    raise RecipeError(
        f"{where}: a recorded teacher for {signal} needs a column {' or '.join(KINDS[signal])}; "
        f"the file has {', '.join(columns)}."
    )
