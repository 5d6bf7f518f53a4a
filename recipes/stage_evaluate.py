"""Stage ``evaluate``: quality per test row, and cost, of every contender."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..distill.outputs import TeacherOutputs
from ..eval.compare import Interval, over_seeds, paired_bootstrap
from ..eval.cost import artefact_bytes, artefact_parameters, row_flops, usd_per_million
from ..eval.data import Data
from ..eval.errors import RunError
from ..eval.hub_metrics import hub_value
from ..eval.metrics import METRICS, Scores
from ..eval.tasks import get_task
from ..eval.timing import Engine, Worker, measure
from ..export.formats import FORMATS
from ..prune.vocabulary import tokenization_change
from .contenders import Contender, TestRows
from .schema import Recipe
from .stage_teacher import model_options
from .store import Context, Folder, Stage
from .task_rows import collection_values

REPORT = "evaluation.json"
ROWS = "scores.arrow"
SHOWN = 20
TEXT_CHARACTERS = 600


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

    def work(context: Context) -> None:
        rows = TestRows(
            get_task(recipe.task), Data.open(context.inputs["data"]), settings["options"]
        )
        outputs = TeacherOutputs(context.inputs["capture"])
        scores = _score(rows, contenders, outputs, context)
        found = _quality(recipe, contenders, scores)
        _from_hub(recipe, rows, scores, found)
        found["models"] = _costs(rows, contenders)
        found["vocabulary"] = _tokens(rows, contenders)
        found["differing"] = _differing(rows, scores, contenders)
        if recipe.evaluate.latency_rows and any(not c.recorded for c in timed):
            context.bar.update(0, 1, "timing")
            found["measurements"] = _measure(recipe, rows, timed, smoke, spare)
            _add_prices(found["measurements"], recipe.evaluate.usd_per_hour)
        _keep(context.out, scores)
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        (context.out / REPORT).write_text(text, encoding="utf-8")

    return Stage("evaluate", "stage_evaluate", settings, inputs, work)


def _score(
    rows: TestRows, contenders: Sequence[Contender], outputs: TeacherOutputs, context: Context
) -> dict[str, Scores]:
    index = collection_values(outputs) if rows.task.signal == "embedding" else None
    scores: dict[str, Scores] = {}
    own: dict[str, Any] = {}
    total = len(rows.texts)
    for number, contender in enumerate(contenders):
        done = 0

        def report(count: int, name: str = contender.name, number: int = number) -> None:
            nonlocal done
            done += count
            context.bar.update(number * total + done, len(contenders) * total, name)

        values, embedded = rows.signal(contender, report)
        # An export is asked against the index that its student made.
        mine = own.get("student") if contender.side == "export" and contender.symmetric else None
        if embedded is not None:
            own.setdefault(contender.side, embedded)
            mine = embedded
        scores[contender.name] = rows.score(values, index if mine is None else mine)
    return scores


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
    found["values"] = {"teacher": teacher.values(), "student": first.values()}
    found["seeds_used"] = [c.seed for c in students]
    return found


def _from_hub(
    recipe: Recipe, rows: TestRows, scores: dict[str, Scores], found: dict[str, Any]
) -> None:
    """Metrics that are not ours, for both models; they have no figure a row and no interval."""
    asked = [name for name in recipe.evaluate.metrics if name not in METRICS]
    if not asked:
        return
    labels = rows.data.split("test")["label"][:]
    sides = {"teacher": "teacher", "student": f"student-{found['seeds_used'][0]}"}
    for name in asked:
        for side, contender in sides.items():
            value = hub_value(name, scores[contender].decisions, labels)
            found["values"][side][name] = value


def _costs(rows: TestRows, contenders: Sequence[Contender]) -> dict[str, Any]:
    """Parameters, bytes and FLOPs of each checkpoint, on the test rows as it tokenises them."""
    found: dict[str, Any] = {}
    for contender in contenders:
        if contender.recorded:
            continue
        entry: dict[str, Any] = {"bytes": artefact_bytes(contender.path)}
        if contender.fmt is None or FORMATS[contender.fmt].loader is None:
            model = rows.load(contender)
            tokens = model.tokenize(rows.texts, rows.pairs, rows.role)
            lengths = np.asarray([len(row["input_ids"]) for row in tokens])
            entry |= {
                "parameters": artefact_parameters(contender.path),
                "flops_per_example": float(row_flops(model, lengths).mean()),
                "tokens_per_example": float(lengths.mean()),
            }
            if model.dense is not None:
                entry["parameters"] += artefact_parameters(contender.path / "2_Dense")
                entry["bytes"] += artefact_bytes(contender.path / "2_Dense")
        found[contender.name] = entry
    return found


def _tokens(rows: TestRows, contenders: Sequence[Contender]) -> dict[str, Any] | None:
    """How the student cuts the test texts into tokens, beside the teacher."""
    teacher = contenders[0]
    student = next(c for c in contenders if c.side == "student")
    if teacher.recorded:
        return None
    before, after = rows.load(teacher).tokenizer, rows.load(student).tokenizer
    return dict(tokenization_change(before, after, rows.texts))


def _differing(
    rows: TestRows, scores: dict[str, Scores], contenders: Sequence[Contender]
) -> list[dict[str, Any]]:
    """Rows that teacher and student decide differently, spread evenly over the test set."""
    teacher = scores["teacher"]
    student = scores[next(c for c in contenders if c.side == "student").name]
    where = np.flatnonzero(teacher.decisions != student.decisions)
    chosen = (
        where[np.unique(np.linspace(0, len(where) - 1, SHOWN).astype(int))] if len(where) else []
    )
    split = rows.data.split("test")

    def name(decision: int) -> str:
        if rows.task.signal == "class_logits":
            return str((rows.data.labels or [])[decision])
        return str(rows.data.collection()[int(decision)]["text"])[:TEXT_CHARACTERS]

    shown = []
    for i in map(int, chosen):
        row = split[i]
        classes = rows.task.signal == "class_logits"
        expected = [row["label"]] if classes else list(row["relevant"])
        text = row["text"] if classes else row["query"]
        if row.get("text_pair"):
            text = f"{text} | {row['text_pair']}"
        shown.append(
            {
                "text": str(text)[:TEXT_CHARACTERS],
                "expected": name(expected[0]),
                "teacher": name(int(teacher.decisions[i])),
                "student": name(int(student.decisions[i])),
                "teacher_right": int(teacher.decisions[i]) in expected,
                "student_right": int(student.decisions[i]) in expected,
            }
        )
    return shown


def _measure(
    recipe: Recipe,
    rows: TestRows,
    timed: Sequence[Contender],
    smoke: bool,
    spare: Worker | None,
) -> list[dict[str, Any]]:
    engines = []
    for contender in timed:
        if contender.recorded:
            continue
        loader = FORMATS[contender.fmt].loader if contender.fmt else None
        side = "teacher" if contender.side == "teacher" else "student"
        if loader is None:
            options: dict[str, Any] = {"task": recipe.task, "role": rows.role}
            if contender.side == "teacher":
                options["model"] = rows.options
            engines.append(Engine(side, str(contender.path), options=options))
        else:
            engines.append(Engine(side, str(contender.path), loader, {"role": rows.role}))
    count = min(recipe.evaluate.latency_rows, len(rows.texts))
    if smoke:
        few: dict[str, Any] = {"runs": 20, "rounds": 2, "warmup": 2, "offline_rows": 32}
        few |= {"together": True, "spare": spare}
        return measure(engines, rows.texts[:32], rows.pairs and rows.pairs[:32], **few)
    # Drawn from all rows, so that short and long ones are timed in their true shares.
    rows_timed = np.random.default_rng(0).permutation(len(rows.texts))[: max(count, 512)]
    every, second = rows.texts, rows.pairs
    texts = [every[i] for i in rows_timed]
    pairs = None if second is None else [second[i] for i in rows_timed]
    return measure(engines, texts, pairs, runs=count, offline_rows=256)


def _add_prices(measurements: list[dict[str, Any]], usd_per_hour: float | None) -> None:
    """What a million rows in batches cost, where the recipe says what a core does."""
    for entry in measurements:
        if usd_per_hour is not None and entry["scenario"] == "offline":
            entry["usd_per_million"] = usd_per_million(entry["examples_per_s"], usd_per_hour)


def _keep(out: Path, scores: dict[str, Scores]) -> None:
    """Keeps every row's ten best answers of every contender, so that any figure can be made again.

    ``scores.arrow`` has a column a contender and a row a test row; `score_decisions` and
    `score_top` read them.
    """
    import pyarrow as pa

    columns = {name: pa.array(score.top.tolist()) for name, score in scores.items()}
    table = pa.table(columns)
    with pa.OSFile(str(out / ROWS), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
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
