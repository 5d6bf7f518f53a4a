"""What the evaluation makes of single rows: significance, calibration, risk, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.calibration import calibration_error, confidence, reliability
from ..eval.mcnemar import mcnemar
from ..eval.metrics import Metric, Scores, get_metric
from ..eval.selective import answered_share, risk_coverage
from ..eval.slices import SLICED_BY, Slice, judge_slices, kinds_of_rows
from .contenders import Contender, TestRows
from .schema import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

Floats = Mapping[str, "NDArray[np.float64]"]


def right_rows(metric: Metric, score: Scores) -> NDArray[np.bool_] | None:
    """Which rows a model gets right, (n,); None where the metric is of degrees."""
    if metric.right_or_wrong:
        return np.asarray(score.statistics[metric.name][:, 0] == 1)
    return score.right if metric.signal == "class_logits" else None


def shown_sides(contenders: Sequence[Contender]) -> dict[str, str]:
    """Sides of the report by contender: teacher, student (the first seed's), each export."""
    found: dict[str, str] = {}
    for contender in contenders:
        if contender.side == "student" and "student" not in found.values():
            found[contender.name] = "student"
        elif contender.side == "export":
            found[contender.name] = str(contender.fmt)
        elif contender.side == "teacher" and contender.fmt is None:
            found[contender.name] = "teacher"
    return found


def significance(metric: Metric, teacher: Scores, student: Scores) -> dict[str, Any]:
    """Rows by which of the two gets them right, and McNemar's exact test.

    Where the metric is of degrees, a row is right whose decision is: its top answer, its text.
    """
    rows = [right_rows(metric, score) for score in (teacher, student)]
    first, second = (
        score.right if found is None else found
        for found, score in zip(rows, (teacher, student), strict=True)
    )
    found = mcnemar(first, second)
    return {
        "both": found.both,
        "teacher_alone": found.first,
        "student_alone": found.second,
        "neither": found.neither,
        "p": found.p,
    }


def calibration(scores: Mapping[str, Scores], sides: Mapping[str, str]) -> list[dict[str, Any]]:
    """Reliability bins and calibration error of each side that gives probabilities."""
    student = next(scores[name] for name, side in sides.items() if side == "student")
    found = []
    for name, side in sides.items():
        said = scores[name].confidence
        if said is None:
            continue
        bins = reliability(said, scores[name].right)
        shift = None
        if side not in ("teacher", "student") and student.confidence is not None:
            shift = float(np.mean(said - student.confidence))
        entry = {"side": side, "ece": calibration_error(bins), "shift": shift}
        found.append({**entry, "bins": [vars(one) for one in bins]})
    return found


def risk(
    scores: Mapping[str, Scores], sides: Mapping[str, str], outside: Floats
) -> list[dict[str, Any]]:
    """Risk against coverage of each side that gives probabilities.

    Args:
        scores: On the test rows, by contender.
        sides: Which of them are told.
        outside: Confidences on rows out of scope, by contender; empty where there are none.
    """
    found = []
    for name, side in sides.items():
        said = scores[name].confidence
        if said is None:
            continue
        curve = risk_coverage(said, scores[name].right)
        rest = answered_share(outside[name], curve.threshold).tolist() if name in outside else None
        found.append(
            {
                "side": side,
                "threshold": curve.threshold.tolist(),
                "coverage": curve.coverage.tolist(),
                "risk": curve.risk.tolist(),
                "aurc": curve.aurc,
                "out_of_scope": rest,
            }
        )
    return found


def outside_confidences(
    rows: TestRows,
    contenders: Sequence[Contender],
    texts: tuple[list[str], list[str] | None] | None,
) -> dict[str, NDArray[np.float64]]:
    """How sure each side is of the rows out of scope; a recorded teacher was not asked for them."""
    if texts is None:
        return {}
    sides = shown_sides(contenders)
    asked = [c for c in contenders if c.name in sides and not c.recorded]
    return {c.name: confidence(rows.answers(c, *texts)) for c in asked}


def slices(
    recipe: Recipe,
    metric: Metric,
    contenders: Sequence[Contender],
    scores: Mapping[str, Scores],
    columns: Mapping[str, Sequence[str]],
    order: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """Student and teacher on the rows of each value of each column.

    Args:
        recipe: For resamples and seed.
        metric: The target's.
        contenders: Teacher and students among them.
        scores: By contender.
        columns: By column, a value a test row.
        order: Of the values of some columns; others sort.
    """
    judge = get_metric(SLICED_BY.get(metric.name, metric.name))
    students = [scores[c.name] for c in contenders if c.side == "student"]
    right = [right_rows(judge, score) for score in (students[0], scores["teacher"])]
    found = judge_slices(
        judge,
        {name: kinds_of_rows(values, order.get(name)) for name, values in columns.items()},
        [student.statistics[judge.name] for student in students],
        scores["teacher"].statistics[judge.name],
        None if right[0] is None or right[1] is None else (right[0], right[1]),
        resamples=recipe.evaluate.resamples,
        seed=recipe.seed,
    )
    return [_plain(one) for one in found]


def _plain(one: Slice) -> dict[str, Any]:
    """A slice as `report_schema.Slice` has it."""
    gap = one.difference
    return {
        "by": one.by,
        "name": one.name,
        "rows": one.rows,
        "teacher": one.teacher,
        "student": one.student,
        "difference": None if gap is None else gap.value,
        "difference_ci95": None if gap is None else [gap.low, gap.high],
        "p": one.p,
    }
