"""How much of the teacher's quality a student keeps, how sure that is, and the verdict.

Retention is the student's metric over the teacher's, on the same test rows. Its interval comes from
a paired bootstrap (Efron and Tibshirani, 1993): rows are drawn with replacement, both models are
judged on the same draw, and the middle 95 % of the ratios is reported. A difference is less the
one and the other, over the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .errors import RunError
from .intervals import Interval, percent, rows_needed
from .metrics import Metric, Statistics, get_metric
from .noninferiority import non_inferiority
from .resampling import resample

__all__ = [
    "Interval",
    "Seeds",
    "Verdict",
    "over_seeds",
    "paired_bootstrap",
    "paired_difference",
    "rows_needed",
    "verdict",
]


@dataclass(frozen=True)
class Seeds:
    """Retention over students that differ only in their training seed.

    Attributes:
        retention: Mean over the seeds; its interval is over the rows, the students being fixed.
        each: Retention of each student.
        std: Standard deviation over the seeds (n - 1 below), ``None`` for a single seed.
    """

    retention: Interval
    each: list[float]
    std: float | None


@dataclass(frozen=True)
class Verdict:
    """Whether the target was met.

    Attributes:
        outcome: ``undecided`` is too few rows to tell (or a figure that was not measured).
        reasons: One sentence for quality and one for compute.
        rows_needed: For an undecided one, about how many test rows would settle it.
    """

    outcome: Literal["pass", "fail", "undecided"]
    reasons: list[str]
    rows_needed: int | None = None


def paired_bootstrap(
    metric: Metric | str,
    student: Statistics,
    teacher: Statistics,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Retention of one student with its 95 % interval.

    Args:
        metric: What the statistics are of.
        student: Per-row statistics, shape (n, k).
        teacher: The same for the teacher, on the same rows in the same order.
        resamples: Draws of n rows with replacement.
        seed: The same seed gives the same interval.

    Raises:
        RunError: If the shapes differ, there are no rows, or the teacher's metric is 0.
    """
    return over_seeds(metric, [student], teacher, resamples=resamples, seed=seed).retention


def over_seeds(
    metric: Metric | str,
    students: Sequence[Statistics],
    teacher: Statistics,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Seeds:
    """Mean retention over students of several seeds, with the spread over rows and seeds apart.

    Every student is judged on the same draws, so the interval of the mean is paired too. A draw on
    which the teacher scores 0 has no ratio and is left out.

    Raises:
        RunError: As `paired_bootstrap`.
    """
    metric = get_metric(metric) if isinstance(metric, str) else metric
    rows = _check(metric, students, teacher)
    teachers = metric.value(teacher)
    if not teachers > 0:
        raise RunError(
            f"The teacher's {metric.name} is {teachers:g} on {rows} test rows, so no share of it "
            "can be kept. Check the teacher, the columns and the labels before distilling."
        )
    each = [metric.value(student) / teachers for student in students]
    values = resample(metric, [*students, teacher], resamples=resamples, seed=seed)
    usable = values[:, -1] > 0
    ratios = values[usable, :-1].mean(axis=1) / values[usable, -1]
    low, high = np.quantile(ratios, [0.025, 0.975]) if len(ratios) else (math.nan, math.nan)
    return Seeds(
        retention=Interval(float(np.mean(each)), float(low), float(high), rows),
        each=each,
        std=float(np.std(each, ddof=1)) if len(each) > 1 else None,
    )


def paired_difference(
    metric: Metric | str,
    models: Sequence[Statistics],
    other: Statistics,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A metric less that of another model, with its 95 % interval.

    Args:
        metric: What the statistics are of.
        models: Per-row statistics of one model, or of several whose mean is compared (the students
            of several seeds), each of shape (n, k).
        other: Those of the model they are compared with, on the same rows in the same order.
        resamples: Draws of n rows with replacement.
        seed: The same seed gives the same interval.

    Raises:
        RunError: If the shapes differ or there are no rows.
    """
    metric = get_metric(metric) if isinstance(metric, str) else metric
    rows = _check(metric, models, other)
    found = float(np.mean([metric.value(model) for model in models])) - metric.value(other)
    values = resample(metric, [*models, other], resamples=resamples, seed=seed)
    low, high = np.quantile(values[:, :-1].mean(axis=1) - values[:, -1], [0.025, 0.975])
    return Interval(found, float(low), float(high), rows)


def _check(metric: Metric, students: Sequence[Statistics], teacher: Statistics) -> int:
    shape = teacher.shape
    for student in students:
        if student.shape != shape or len(shape) != 2:
            raise RunError(
                f"Expected statistics of {metric.name} for the same rows from student and teacher, "
                f"got shapes {student.shape} and {shape}; score both on one test set."
            )
    if not students or not shape[0]:
        raise RunError(
            f"Expected at least one student and one test row, got {len(students)} and {shape[0]}."
        )
    return int(shape[0])


def verdict(
    retention: Interval, flops_ratio: float | None, target_retain: float, target_compute: float
) -> Verdict:
    """Whether a student meets its target: enough kept, at no more than so much compute.

    It passes if the lower end of the interval is at or above ``target_retain`` and the ratio of
    FLOPs at or below ``target_compute``; it fails if the upper end is below the one or the ratio
    above the other; otherwise there are too few rows to tell. `non_inferiority` has the rule and
    the words.

    Args:
        retention: Share of the teacher's metric kept.
        flops_ratio: Student's FLOPs over the teacher's; ``None`` if not measured.
        target_retain: Least share to keep.
        target_compute: Largest ratio of FLOPs.
    """
    quality = non_inferiority(retention, target_retain)
    if flops_ratio is None or math.isnan(flops_ratio):
        compute, cost = "undecided", "Compute was not measured."
    else:
        compute = "pass" if flops_ratio <= target_compute else "fail"
        cost = (
            f"Compute is {percent(flops_ratio)} of the teacher's, "
            f"{'within' if compute == 'pass' else 'above'} the {percent(target_compute)} allowed."
        )
    reasons = [quality.sentence, cost]
    if "fail" in (quality.outcome, compute):
        return Verdict("fail", reasons)
    if "undecided" in (quality.outcome, compute):
        return Verdict("undecided", reasons, quality.rows_needed)
    return Verdict("pass", reasons)
