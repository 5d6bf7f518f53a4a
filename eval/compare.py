"""How much of the teacher's quality a student keeps, how sure that is, and the verdict.

Retention is the student's metric over the teacher's, on the same test rows. Its interval comes from
a paired bootstrap (Efron and Tibshirani, 1993): rows are drawn with replacement, both models are
judged on the same draw, and the middle 95 % of the ratios is reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from .errors import RunError
from .metrics import Metric, Statistics, get_metric
from .ranking import Floats, Rows

# Numbers held at a time for the draws (16 MB), so that memory hardly depends on rows, columns or
# resamples.
_CHUNK = 2**21


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval over the test rows.

    Attributes:
        value: The figure itself.
        low: Lower end.
        high: Upper end.
        examples: Test rows it comes from.
    """

    value: float
    low: float
    high: float
    examples: int


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
    if 8 * len(first) <= rows:
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
    """Yields chunks of how often each row is drawn, shape (chunk, n)."""
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.integers(0, rows, size=(size, rows))
        drawn += np.arange(size)[:, None] * rows
        weights = np.bincount(drawn.ravel(), minlength=size * rows)
        yield start, weights.reshape(size, rows).astype(np.float64)


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


def verdict(
    retention: Interval, flops_ratio: float | None, target_retain: float, target_compute: float
) -> Verdict:
    """Whether a student meets its target: enough kept, at no more than so much compute.

    It passes if the lower end of the interval is at or above ``target_retain`` and the ratio of
    FLOPs at or below ``target_compute``; it fails if the upper end is below the one or the ratio
    above the other; otherwise there are too few rows to tell. The number of rows needed supposes
    that the figure stays and its interval narrows as 1 / sqrt(rows).

    Args:
        retention: Share of the teacher's metric kept.
        flops_ratio: Student's FLOPs over the teacher's; ``None`` if not measured.
        target_retain: Least share to keep.
        target_compute: Largest ratio of FLOPs.
    """
    quality, said, rows = _judge_quality(retention, target_retain)
    if flops_ratio is None or math.isnan(flops_ratio):
        compute, cost = "undecided", "Compute was not measured."
    else:
        compute = "pass" if flops_ratio <= target_compute else "fail"
        cost = (
            f"Compute is {_percent(flops_ratio)} of the teacher's, "
            f"{'within' if compute == 'pass' else 'above'} the {_percent(target_compute)} allowed."
        )
    if "fail" in (quality, compute):
        return Verdict("fail", [said, cost])
    if "undecided" in (quality, compute):
        return Verdict("undecided", [said, cost], rows)
    return Verdict("pass", [said, cost])


def _judge_quality(
    retention: Interval, target: float
) -> tuple[Literal["pass", "fail", "undecided"], str, int | None]:
    asked = f"the {_percent(target)} asked for"
    kept = (
        f"{_percent(retention.value)} of the teacher's quality is kept (95 % interval "
        f"{_percent(retention.low)} to {_percent(retention.high)})"
    )
    if retention.low >= target:
        return "pass", f"{kept}: the lower end reaches {asked}.", None
    if retention.high < target:
        return "fail", f"{kept}: even the upper end is below {asked}.", None
    rows = rows_needed(retention, target)
    if rows is None:
        advice = f"more test rows than the {retention.examples} there are may never settle it"
    else:
        outcome = "" if retention.value > target else ", as not met,"
        advice = (
            f"about {_about(rows):,} test rows instead of {retention.examples:,} would settle "
            f"it{outcome} if the figure stays"
        )
    return "undecided", f"{kept}, on both sides of {asked}: {advice}.", rows


def rows_needed(retention: Interval, target: float) -> int | None:
    """Rows at which the interval would lie on one side of the target, if the figure stays.

    ``None`` if the figure is the target itself, or the interval has no width to extrapolate.
    """
    room = abs(retention.value - target)
    above = retention.value > target
    width = retention.value - retention.low if above else retention.high - retention.value
    if room == 0 or not width > 0:
        return None
    return max(retention.examples + 1, math.ceil(retention.examples * (width / room) ** 2))


def _about(rows: int) -> int:
    """Rounds up to two digits, all that the extrapolation is worth."""
    unit: int = 10 ** max(0, len(str(rows)) - 2)
    return -(-rows // unit) * unit


def _percent(share: float) -> str:
    if math.isnan(share):
        return "not measured"
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + " %"
