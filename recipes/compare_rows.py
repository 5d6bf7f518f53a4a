"""Whether runs were judged on the same test rows, and how they differ on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.compare import Interval, over_seeds
from ..eval.errors import PareError, RecipeError, RunError
from ..eval.metrics import Statistics, get_metric
from ..eval.resampling import resample

if TYPE_CHECKING:
    import pyarrow as pa

    from .compare import Run

DATA, EVALUATED = "stages/data", "stages/evaluate"
MOST_IN_PAIRS = 5
"""Up to so many runs each is compared with each other, more with the first."""


@dataclass(frozen=True)
class RunScores:
    """Per-row statistics of a run's models, in the order of the test rows.

    Attributes:
        teacher: Of the teacher.
        students: Of the students, one a training seed.
    """

    teacher: Statistics
    students: list[Statistics]


@dataclass(frozen=True)
class Difference:
    """The metric of one run's students less that of another's, paired.

    Attributes:
        run: The one.
        other: The other.
        interval: Of the difference.
    """

    run: str
    other: str
    interval: Interval


def check_same_rows(runs: Sequence[Run]) -> None:
    """Makes sure that all runs were judged on the same test rows.

    Data of one fingerprint are the same. Of other fingerprints (made by another version, or with
    other training rows) the test rows themselves are compared.

    Raises:
        RecipeError: If they were not, or it cannot be told.
    """
    first = runs[0]
    for run in runs[1:]:
        known = fingerprint(first.report)
        if known is not None and known == fingerprint(run.report):
            continue
        try:
            same = _rows_of(first.folder) == _rows_of(run.folder)
        except PareError as error:
            raise RecipeError(
                f"'{first.name}' and '{run.name}' were made from data of other fingerprints, and "
                f"whether their test rows are the same cannot be told: {error}"
            ) from None
        if not same:
            counts = [f"{one.report['quality']['examples']:,}" for one in (first, run)]
            raise RecipeError(
                f"'{first.name}' and '{run.name}' were judged on different test rows "
                f"({counts[0]} and {counts[1]}), so their quality cannot be compared. Run both "
                "recipes with the same data (data.source or data.files)."
            )


def fingerprint(report: Any) -> str | None:
    """Of a run's data stage."""
    for stage in report["stages"]:
        if stage.get("name") == "data":
            return stage.get("fingerprint") or None
    return None


class _Rows:
    """Test rows, what they are found in, and the names of the classes; equal where all are."""

    def __init__(self, tables: list[pa.Table], labels: list[str] | None) -> None:
        self.tables, self.labels = tables, labels

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Rows):
            return NotImplemented
        pairs = zip(self.tables, other.tables, strict=False)
        return (
            self.labels == other.labels
            and len(self.tables) == len(other.tables)
            and all(mine.equals(theirs) for mine, theirs in pairs)
        )

    __hash__ = None  # type: ignore[assignment]  # whole tables are no keys


def _rows_of(folder: Path) -> _Rows:
    import pyarrow as pa

    from ..eval.data import Data

    data = Data.open(folder / DATA)
    tables = []
    for name in ("test", "collection"):
        if name not in data.info["rows"]:
            continue
        path = data.folder / f"{name}.arrow"
        try:
            with pa.memory_map(str(path)) as source:
                tables.append(pa.ipc.open_stream(source).read_all())
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"'{path}' cannot be read ({error}).") from error
    return _Rows(tables, data.labels)


def run_scores(run: Run) -> RunScores:
    """Scores a run's answers again, from what its evaluation kept of each test row.

    Raises:
        RunError: If that is gone, or is not enough for the metric.
    """
    from ..eval.data import Data
    from .judged_rows import judged_rows

    quality = run.report["quality"]
    metric = str(quality["metric"])
    try:
        names = ["teacher", *(f"student-{entry['seed']}" for entry in quality["seeds"])]
        scores = judged_rows(run.folder / EVALUATED, Data.open(run.folder / DATA), names, metric)
    except (OSError, KeyError, ValueError, PareError) as error:
        raise RunError(f"of '{run.name}' no score of single rows can be read ({error})") from error
    teacher, *students = [one.statistics[metric] for one in scores]
    return RunScores(teacher, students)


def differences(
    names: Sequence[str], scores: Sequence[RunScores], metric: str, resamples: int
) -> list[Difference]:
    """Paired differences between runs, with 95 % intervals over the rows.

    The metric of several seeds is their mean, on the same draws of rows.
    """
    judge = get_metric(metric)
    pairs = list(combinations(range(len(scores)), 2))
    if len(scores) > MOST_IN_PAIRS:
        pairs = [pair for pair in pairs if pair[0] == 0]
    values = [float(np.mean([judge.value(student) for student in one.students])) for one in scores]
    arms = [student for one in scores for student in one.students]
    ends = np.cumsum([0, *(len(one.students) for one in scores)])
    drawn = resample(judge, arms, resamples=resamples)
    means = [drawn[:, ends[i] : ends[i + 1]].mean(axis=1) for i in range(len(scores))]
    rows, found = int(arms[0].shape[0]), []
    for first, second in pairs:
        low, high = np.quantile(means[second] - means[first], [0.025, 0.975])
        interval = Interval(values[second] - values[first], float(low), float(high), rows)
        found.append(Difference(names[second], names[first], interval))
    return found


def kept(scores: Sequence[RunScores], metric: str, resamples: int) -> list[Interval | None]:
    """What each run keeps of the first run's teacher; None where that teacher scores 0."""
    teacher = scores[0].teacher
    if not get_metric(metric).value(teacher) > 0:
        return [None] * len(scores)
    return [
        over_seeds(metric, one.students, teacher, resamples=resamples).retention for one in scores
    ]
