"""Whether a run's student is not worse than another run's, on the same test rows.

Non-inferiority by a paired bootstrap: rows are drawn with replacement, both students are judged on
the same draw, and the lower end of the middle 95 % of the differences must not lie below a margin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..eval.errors import RunError
from .gate import Criterion, by_interval, more_rows

if TYPE_CHECKING:
    from ..eval.data import Data
    from ..eval.metrics import Statistics

RESAMPLES = 10_000


def compared(
    run: str | Path,
    report: Mapping[str, Any],
    against: str | Path,
    baseline: Mapping[str, Any],
    *,
    margin: float,
    imports: Sequence[str] = (),
) -> Criterion:
    """Compares a run with a baseline by the run's metric.

    Of a run with several seeds, the mean over its students counts.

    Args:
        run: The run's folder, or its report.json.
        report: Of the run.
        against: The baseline's folder, or its report.json.
        baseline: Its report.
        margin: How much lower the lower end of the difference may lie.
        imports: Modules to import first.

    Raises:
        RunError: If the runs were not scored on the same test rows, or a stage is not there.
    """
    import numpy as np

    from ..eval.data import Data
    from ..eval.intervals import Interval, seen
    from ..eval.metrics import get_metric
    from ..eval.noninferiority import unseen
    from ..eval.resampling import resample
    from .extensions import import_extensions

    import_extensions(imports)
    if report.get("task") != baseline.get("task"):
        raise RunError(
            f"'{run}' is a run of {report.get('task')} and '{against}' one of "
            f"{baseline.get('task')}; only runs over the same test rows can be compared."
        )
    folders = [_folder(run), _folder(against)]
    data = [Data.open(_stage(folder, "data")) for folder in folders]
    _same_rows(run, against, data)
    name = str((report.get("quality") or {}).get("metric"))
    metric = get_metric(name)
    mine, theirs = (
        _statistics(_stage(folder, "evaluate"), rows, name)
        for folder, rows in zip(folders, data, strict=True)
    )
    ours, base = (float(np.mean([metric.value(s) for s in side])) for side in (mine, theirs))
    drawn = resample(metric, [*mine, *theirs], resamples=RESAMPLES)
    apart = drawn[:, : len(mine)].mean(axis=1) - drawn[:, len(mine) :].mean(axis=1)
    low, high = (float(end) for end in np.quantile(apart, [0.025, 0.975]))
    rows, limit = int(mine[0].shape[0]), 0.0 - margin
    outcome = by_interval(low, high, limit)
    found = Interval(1 + ours - base, 1 + low, 1 + high, rows)
    too_few = outcome == "met" and not seen(found, 1 - margin)
    if too_few and not _one_evaluation(*folders):
        outcome = "undecided"
    text = (
        f"against >= {limit:g}: {outcome}, {low:+.4f} is the lower end of the 95 % interval of "
        f"the difference in {name} ({ours:.4f} less the baseline's {base:.4f}, {rows} rows)"
    )
    if too_few and outcome == "undecided":
        text += f"; {unseen(1 - margin)}"
    elif outcome == "undecided" and ours - base >= limit:
        text += f"; {more_rows(ours - base, low, high, rows, limit)}"
    return Criterion("against", limit, low, outcome, text)


def _folder(run: str | Path) -> Path:
    path = Path(run)
    return path if path.is_dir() else path.parent


def _one_evaluation(mine: Path, theirs: Path) -> bool:
    """Whether both runs share an evaluation: its student is the same, and not worse than itself."""
    marks = [run / "stages" / "evaluate" / "stage.json" for run in (mine, theirs)]
    try:
        first, second = (json.loads(mark.read_text(encoding="utf-8")) for mark in marks)
        return bool(first["fingerprint"] == second["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):  # then their rows alone tell
        return False


def _stage(run: Path, name: str) -> Path:
    path = run / "stages" / name
    if not path.is_dir():
        raise RunError(
            f"'{run}' has no stages/{name}, so what it decided of each test row is not known. "
            "Keep a run's folder with stages/data and stages/evaluate, links followed."
        )
    return path


def _same_rows(run: str | Path, against: str | Path, data: Sequence[Data]) -> None:
    """Makes sure that both runs were scored on one set of rows, in one order."""
    if data[0].info["fingerprint"] == data[1].info["fingerprint"]:
        return
    mine, theirs = map(_identity, data)
    if mine != theirs:
        raise RunError(
            f"'{run}' and '{against}' were scored on different test rows "
            f"({data[0].info['fingerprint'][:12]} and {data[1].info['fingerprint'][:12]}): a "
            "difference between them would be one of the rows too. Run both recipes on the same "
            "data."
        )


def _identity(data: Data) -> str:
    """A hash of what students are judged by: test rows with their answers, in their order.

    Training rows may differ, and with them the numbers of the labels. Of a retrieval task the
    collection counts too: what a query finds depends on it.
    """
    digest = hashlib.sha256()
    labels = data.labels
    rows = data.split("test")
    for row in rows:
        if labels is not None:
            row = {**row, "label": labels[row["label"]]}
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    if "collection" in data.info["rows"]:
        for row in data.collection():
            digest.update(json.dumps(row["text"]).encode() + b"\n")
    return digest.hexdigest()


def _statistics(evaluated: Path, data: Data, metric: str) -> list[Statistics]:
    """Per-row statistics of each student of a run, from what it decided."""
    from .judged_rows import judged_rows
    from .stage_evaluate import evaluation

    names = [f"student-{seed}" for seed in evaluation(evaluated)["seeds_used"]]
    return [scores.statistics[metric] for scores in judged_rows(evaluated, data, names, metric)]
