"""Whether some kinds of rows pay for the rest: both models on the rows of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .compare import paired_difference
from .holm import holm
from .intervals import Interval
from .mcnemar import mcnemar
from .metrics import Metric, Statistics
from .ranking import Rows

SMALLEST = 20
"""Rows that a slice needs to be compared. With fewer an interval says little: McNemar's test tells
no fewer than six losses from chance, which is a third of 20 rows."""
MOST = 200
"""Slices of one column at most. A column of more values names rows, not kinds of rows."""
SLICED_BY = {"macro_f1": "accuracy"}
"""Metrics that say nothing of some of the rows, and what is said instead: macro-F1 of the rows of
one class counts every class that one of them is taken for as a class of which none is right."""


@dataclass(frozen=True)
class Slice:
    """Both models on the rows of one kind.

    Attributes:
        by: The column.
        name: Its value on these rows.
        rows: How many there are.
        teacher: The metric of the teacher.
        student: That of the student, the mean where there are several seeds.
        difference: Student less teacher with its paired interval; None under `SMALLEST` rows.
        p: Of McNemar's exact test, adjusted by Holm over all slices of all columns; None where rows
            are not right or wrong, or too few.
    """

    by: str
    name: str
    rows: int
    teacher: float
    student: float
    difference: Interval | None = None
    p: float | None = None


def kinds_of_rows(
    values: Sequence[str], order: Sequence[str] | None = None, most: int = MOST
) -> dict[str, Rows]:
    """Row numbers by value, the ``most`` frequent values alone; an empty value is none.

    Args:
        values: One a row.
        order: Of the values; as they sort if not given.
        most: Values to tell apart.
    """
    counts = Counter(value for value in values if value)
    place = {name: i for i, name in enumerate(sorted(counts) if order is None else order)}
    kept = sorted(counts, key=lambda name: (-counts[name], place[name]))[:most]
    array = np.asarray(values, dtype=object)
    return {name: np.flatnonzero(array == name) for name in sorted(kept, key=place.__getitem__)}


def judge_slices(
    metric: Metric,
    kinds: Mapping[str, Mapping[str, Rows]],
    students: Sequence[Statistics],
    teacher: Statistics,
    right: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Slice]:
    """Compares student and teacher on each kind of rows.

    Args:
        metric: What the statistics are of.
        kinds: By column, each value's row numbers.
        students: Per-row statistics of the students of all seeds, each (n, k).
        teacher: Those of the teacher.
        right: Whether the first student's decision is right, and the teacher's, (n,) each; None
            where rows are not right or wrong.
        resamples: Draws of an interval.
        seed: Of the draws.
    """
    found = []
    for by, parts in kinds.items():
        for name, rows in parts.items():
            own, others = [student[rows] for student in students], teacher[rows]
            one = Slice(
                by,
                name,
                len(rows),
                teacher=metric.value(others),
                student=float(np.mean([metric.value(student) for student in own])),
            )
            if len(rows) >= SMALLEST:
                options = {"resamples": resamples, "seed": seed}
                difference = paired_difference(metric, own, others, **options)
                p = None if right is None else mcnemar(right[0][rows], right[1][rows]).p
                one = replace(one, difference=difference, p=p)
            found.append(one)
    adjusted = holm([one.p for one in found])
    return [replace(one, p=p) for one, p in zip(found, adjusted, strict=True)]
