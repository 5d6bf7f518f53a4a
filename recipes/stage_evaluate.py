"""Stage ``evaluate``: quality per test row, and cost, of every contender."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..eval.compare import Interval, over_seeds, paired_bootstrap
from ..eval.cost import usd_per_million
from ..eval.errors import RunError
from ..eval.hub_metrics import hub_value
from ..eval.metrics import METRICS, Scores, get_metric
from ..eval.timing import Worker
from . import attribution, row_statistics, signal_evaluation, text_evaluation
from .contenders import Contender, TestRows
from .generation_rules import generates
from .judged_rows import DECISIONS
from .schema import Generation, Recipe
from .stage_evaluate_rows import out_of_scope_texts, slice_values
from .stage_teacher import model_options
from .store import Context, Folder, Stage

REPORT = "evaluation.json"


def evaluate_stage(
    recipe: Recipe,
    inputs: dict[str, Folder],
    contenders: Sequence[Contender],
    timed: Sequence[Contender],
    *,
    smoke: bool,
    spare: Worker | None = None,
) -> Stage:
    """Scores every contender on the test rows and times some of them side by side.

    Args:
        recipe: For metrics, seed and how much to measure.
        inputs: ``data``, ``capture`` and all stages that made a contender.
        contenders: The teacher first, then the students.
        timed: What is timed; the teacher's export is timed and not scored.
        smoke: Times a few rows only: a smoke run's figures mean nothing.
        spare: A worker for timing that was started ahead.
    """
    settings: dict[str, Any] = {
        "task": recipe.task,
        "metric": recipe.target.metric,
        "evaluate": recipe.evaluate.model_dump(),
        "seed": recipe.seed,
        "symmetric": recipe.symmetric,
        "options": model_options(recipe.teacher),
        "contenders": [c.name for c in contenders],
        "timed": [c.name for c in timed],
        "smoke": smoke,
    }
    if generates(recipe):
        settings["generation"] = (recipe.generation or Generation()).model_dump()

    def work(context: Context) -> None:
        how: Any = text_evaluation if generates(recipe) else signal_evaluation
        rows = how.open_rows(recipe, context.inputs["data"])
        scores = how.score(rows, contenders, context)
        found = _quality(recipe, contenders, scores)
        if how is signal_evaluation:
            _from_hub(recipe, rows, scores, found)
        else:
            text_evaluation.keep_answers(rows, context.out)
        found |= _of_rows(recipe, how, rows, contenders, scores, context)
        found["models"] = how.costs(rows, contenders)
        found["vocabulary"] = how.tokens(rows, contenders)
        found["differing"] = how.differing(rows, scores, contenders)
        found["attribution"] = attribution.steps(recipe, contenders, scores, found)
        if recipe.evaluate.latency_rows and any(not c.recorded for c in timed):
            context.bar.update(0, 1, "timing")
            found["measurements"] = how.timings(recipe, rows, timed, smoke, spare)
            _add_prices(found["measurements"], recipe.evaluate.usd_per_hour)
        _keep(context.out, scores)
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        (context.out / REPORT).write_text(text, encoding="utf-8")

    return Stage("evaluate", "stage_evaluate", settings, inputs, work)


def _interval(found: Interval) -> dict[str, Any]:
    ends = [found.low, found.high]
    known = all(np.isfinite([found.value, *ends]))
    return {
        "retention": found.value if known else None,
        "retention_ci95": ends if known else None,
        "examples": found.examples,
    }


def _quality(
    recipe: Recipe, contenders: Sequence[Contender], scores: dict[str, Scores]
) -> dict[str, Any]:
    metric = str(recipe.target.metric)
    teacher = scores["teacher"]
    students = [c for c in contenders if c.side == "student"]
    first = scores[students[0].name]
    options: dict[str, Any] = {"resamples": recipe.evaluate.resamples, "seed": recipe.seed}
    base = teacher.statistics[metric]
    found: dict[str, Any] = {"metric": metric, "teacher": teacher.value(metric), "contenders": {}}
    for contender in contenders[1:]:
        entry: dict[str, Any] = {
            "value": scores[contender.name].value(metric),
            "values": scores[contender.name].values(),
            "agreement": scores[contender.name].agreement(teacher),
            "flip_rate": 1 - scores[contender.name].agreement(first),
        }
        if found["teacher"] > 0:
            statistics = scores[contender.name].statistics[metric]
            entry |= _interval(paired_bootstrap(metric, statistics, base, **options))
        found["contenders"][contender.name] = entry
    if found["teacher"] > 0:
        seeds = over_seeds(
            metric, [scores[c.name].statistics[metric] for c in students], base, **options
        )
        found["seeds"] = {**_interval(seeds.retention), "each": seeds.each, "std": seeds.std}
    else:
        found["seeds"] = {
            "retention": None, "retention_ci95": None, "examples": len(teacher.decisions),
            "each": [None] * len(students), "std": None,
        }  # fmt: skip
    each = [scores[c.name].values() for c in students]
    means = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
    found["values"] = {"teacher": teacher.values(), "student": means}
    found["seeds_used"] = [c.seed for c in students]
    return found


def _of_rows(
    recipe: Recipe,
    how: Any,
    rows: Any,
    contenders: Sequence[Contender],
    scores: dict[str, Scores],
    context: Context,
) -> dict[str, Any]:
    """Significance, calibration, risk against coverage, and slices."""
    metric = get_metric(str(recipe.target.metric))
    sides = row_statistics.shown_sides(contenders)
    student = next(scores[name] for name, side in sides.items() if side == "student")
    beside = context.inputs.get("evaluate-rows")
    outside = row_statistics.outside_confidences(rows, contenders, out_of_scope_texts(beside))
    columns, order = how.kinds(rows)
    return {
        "significance": row_statistics.significance(metric, scores["teacher"], student),
        "calibration": row_statistics.calibration(scores, sides),
        "risk_coverage": row_statistics.risk(scores, sides, outside),
        "slices": row_statistics.slices(
            recipe, metric, contenders, scores, columns | slice_values(beside), order
        ),
    }


def _from_hub(
    recipe: Recipe, rows: TestRows, scores: dict[str, Scores], found: dict[str, Any]
) -> None:
    """Metrics that are not ours, for both models; they have no figure a row and no interval."""
    asked = [name for name in recipe.evaluate.metrics if name not in METRICS]
    if not asked:
        return
    labels = rows.data.split("test")["label"][:]
    students = [f"student-{seed}" for seed in found["seeds_used"]]
    for name in asked:
        for side, contenders in (("teacher", ["teacher"]), ("student", students)):
            values = [hub_value(name, scores[one].decisions, labels) for one in contenders]
            found["values"][side][name] = sum(values) / len(values)


def _add_prices(measurements: list[dict[str, Any]], usd_per_hour: float | None) -> None:
    """What a million rows in batches cost, where the recipe says what a core does."""
    for entry in measurements:
        if usd_per_hour is not None and entry["scenario"] == "offline":
            entry["usd_per_million"] = usd_per_million(entry["examples_per_s"], usd_per_hour)


def _keep(out: Path, scores: dict[str, Scores]) -> None:
    """Keeps every row's ten best answers of every contender, so that any figure can be made again.

    ``scores.arrow`` has a column a contender and a row a test row; `score_decisions` and
    `score_top` read them. Beside each stands whether the first answer is right (``….right``), and
    of classes how sure the contender was of it (``….confidence``).
    """
    import pyarrow as pa

    columns = {name: pa.array(score.top.tolist()) for name, score in scores.items()}
    for name, score in scores.items():
        columns[f"{name}.right"] = pa.array(score.right)
        if score.confidence is not None:
            columns[f"{name}.confidence"] = pa.array(score.confidence)
    table = pa.table(columns)
    with (
        pa.OSFile(str(out / DECISIONS), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def evaluation(folder: Path) -> dict[str, Any]:
    """The content of ``evaluation.json``.

    Raises:
        RunError: If it is not there.
    """
    path = folder / REPORT
    if not path.exists():
        raise RunError(f"'{folder}' has no {REPORT}; delete it and run again.")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
