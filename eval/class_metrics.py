"""How decisions between classes are judged, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from .ranking import Floats, Rows


@dataclass(frozen=True)
class Decided:
    """What a classifier is judged by: its decisions and the labels (n,), and how many classes."""

    decisions: Rows
    labels: Rows
    classes: int


def correct(judged: Decided) -> Floats:
    """1 where the decision is the label, shape (n,)."""
    return np.asarray(judged.decisions == judged.labels, dtype=np.float64)


def class_counts(judged: Decided) -> sparse.csr_array[Any, Any]:
    """True positives, false positives and false negatives of each class, shape (n, 3C).

    Sparse: a row has one entry if it is right and two if it is wrong, whatever C is.
    """
    n, classes = len(judged.labels), judged.classes
    right = judged.decisions == judged.labels
    rows = np.arange(n)
    wrong = rows[~right]
    row = np.concatenate([rows[right], wrong, wrong])
    column = np.concatenate(
        [
            judged.labels[right],
            classes + judged.decisions[~right],
            2 * classes + judged.labels[~right],
        ]
    )
    return sparse.csr_array((np.ones(len(row)), (row, column)), shape=(n, 3 * classes))


def macro_f1(sums: Floats, counts: Floats) -> Floats:
    """Mean over classes of 2 tp / (2 tp + fp + fn): sums (…, 3C) -> (…,).

    A class that neither the labels nor the decisions hold (no tp, fp or fn) is left out of the
    mean, as scikit-learn's ``f1_score(average="macro")`` does when it is given no labels. In a
    resample the same holds for the rows drawn.
    """
    classes = sums.shape[-1] // 3
    hits = 2 * sums[..., :classes]
    total = hits + sums[..., classes : 2 * classes] + sums[..., 2 * classes :]
    present = total > 0
    scores = np.divide(hits, total, out=np.zeros_like(hits), where=present)
    return np.asarray(scores.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1))
