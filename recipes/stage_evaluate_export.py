"""Stage ``evaluate-export``: one export of a finished run, judged by the task on the test rows.

The teacher is not asked again: what it decided on each test row is on file in the run's own
evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..distill.outputs import TeacherOutputs
from ..eval.compare import paired_bootstrap
from ..eval.metrics import Scores
from . import signal_evaluation, text_evaluation
from .contenders import Contender, TestRows
from .finished_run import FinishedRun
from .generation_rules import generates
from .judged_rows import judged_rows, kept_decisions
from .stage_evaluate import evaluation
from .stage_export import EXPORTED
from .stage_teacher import CHECKPOINT
from .store import Context, Folder, Stage
from .task_rows import collection_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPORT = "measured.json"


def evaluate_export_stage(run: FinishedRun, fmt: str, export: Folder) -> Stage:
    """Scores an export and its student on the test rows, and times the export.

    Args:
        run: Whose student was exported.
        fmt: The format.
        export: The export stage.
    """
    recipe = run.recipe
    smoke = bool(run.report.get("smoke"))
    settings: dict[str, Any] = {
        "task": recipe.task,
        "format": fmt,
        "metric": recipe.target.metric,
        "seed": recipe.seed,
        "symmetric": recipe.symmetric,
        "resamples": recipe.evaluate.resamples,
        "latency_rows": recipe.evaluate.latency_rows,
        "smoke": smoke,
    }
    if recipe.generation is not None:
        settings["generation"] = recipe.generation.model_dump()
    names = ("data", "capture", "evaluate")
    inputs = {name: run.stage(name) for name in names} | {"student": run.student, "export": export}

    def work(context: Context) -> None:
        path = context.inputs["export"] / EXPORTED
        contender = Contender("export", path, fmt, symmetric=recipe.symmetric)
        how: Any = text_evaluation if generates(recipe) else signal_evaluation
        rows = how.open_rows(recipe, context.inputs["data"])
        judge = _of_texts if generates(recipe) else _of_signals
        found = judge(rows, contender, run, context)
        found["measurements"] = []
        if recipe.evaluate.latency_rows:
            context.bar.update(0, 1, "timing")
            found["measurements"] = how.timings(recipe, rows, [contender], smoke, None)
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        (context.out / REPORT).write_text(text, encoding="utf-8")

    return Stage(f"evaluate-export-{fmt}", "stage_evaluate_export", settings, inputs, work)


def _of_signals(
    rows: TestRows, export: Contender, run: FinishedRun, context: Context
) -> dict[str, Any]:
    """Metric, retention, flips and calibration of a model of classes or embeddings."""
    classes = rows.task.signal == "class_logits"
    student = Contender(
        "student", context.inputs["student"] / CHECKPOINT, symmetric=export.symmetric
    )
    progress = _progress(context, 2 * len(rows.texts))
    before, own = rows.signal(student, progress)
    # An export is asked against the index that its student made.
    alone = Contender(export.side, export.path, export.fmt)
    after, _ = rows.signal(alone, progress)
    index = None
    if not classes:
        index = collection_values(TeacherOutputs(context.inputs["capture"])) if own is None else own
    scores, base = rows.score(after, index), rows.score(before, index)
    found = _kept(rows, scores, run, context)
    found["student"] = base.value(str(run.recipe.target.metric))
    found["flip_rate"] = 1 - scores.agreement(base)
    found["calibration_shift"] = calibration_shift(before, after) if classes else None
    return found


def _progress(context: Context, total: int) -> Callable[[int], None]:
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        context.bar.update(done, total, "scoring")

    return report


def _kept(rows: Any, scores: Scores, run: FinishedRun, context: Context) -> dict[str, Any]:
    """What an export keeps of the teacher, whose decisions or answers are on file."""
    recipe, metric = run.recipe, str(run.recipe.target.metric)
    (teacher,) = judged_rows(context.inputs["evaluate"], rows.data, ["teacher"], metric)
    found: dict[str, Any] = {
        "examples": len(scores.decisions),
        "teacher": teacher.value(metric),
        "value": scores.value(metric),
        "retention": None,
        "retention_ci95": None,
    }
    if found["teacher"] > 0:
        kept = paired_bootstrap(
            metric,
            scores.statistics[metric],
            teacher.statistics[metric],
            resamples=recipe.evaluate.resamples,
            seed=recipe.seed,
        )
        found["retention"] = kept.value
        ends = [kept.low, kept.high]
        found["retention_ci95"] = ends if np.isfinite(ends).all() else None
    return found


def _of_texts(rows: Any, export: Contender, run: FinishedRun, context: Context) -> dict[str, Any]:
    """Metric, retention and flips of a language model; both others' answers are on file."""
    known = evaluation(context.inputs["evaluate"])
    scores = text_evaluation.score(rows, [export], context)[export.name]
    name = f"student-{known['seeds_used'][0]}"
    before = kept_decisions(context.inputs["evaluate"], name, len(scores.decisions))[:, 0]
    found = _kept(rows, scores, run, context)
    found["student"] = known["contenders"][name]["value"]
    found["flip_rate"] = float(np.mean(scores.decisions != before))
    found["calibration_shift"] = None
    return found


def calibration_shift(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Mean absolute change of the probability of the class that wins at first.

    Args:
        before: Class logits of the student, (n, C).
        after: Those of the export.

    Examples:
        >>> import numpy as np
        >>> calibration_shift(np.zeros((1, 2)), np.log([[1.0, 3.0]]))
        0.25
    """
    chances = [_softmax(logits) for logits in (before, after)]
    winners = before.argmax(1)[:, None]
    first, second = (np.take_along_axis(one, winners, 1) for one in chances)
    return float(np.abs(first - second).mean())


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True), dtype=np.float64)


def measured(folder: Path) -> dict[str, Any]:
    """What the stage found."""
    found: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return found
