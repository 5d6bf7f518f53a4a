"""How classes and rankings are scored, costed and timed on the test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..distill.outputs import TeacherOutputs
from ..eval.cost import artefact_bytes, artefact_parameters, row_flops
from ..eval.data import Data
from ..eval.metrics import Scores
from ..eval.tasks import get_task
from ..eval.timing import Engine, Worker, measure
from ..export.formats import FORMATS
from ..prune.vocabulary import tokenization_change
from .baseline_scores import baseline_costs, baseline_scores, is_baseline
from .contenders import Contender, TestRows
from .schema import Recipe
from .stage_teacher import model_options
from .store import Context
from .task_rows import collection_values
from .timing_notes import with_bytes

SHOWN = 200
TEXT_CHARACTERS = 600


def open_rows(recipe: Recipe, data: Path) -> TestRows:
    """The test rows of a task of classes or rankings."""
    return TestRows(get_task(recipe.task), Data.open(data), model_options(recipe.teacher))


def score(rows: TestRows, contenders: Sequence[Contender], context: Context) -> dict[str, Scores]:
    """Scores every contender on the test rows."""
    outputs = TeacherOutputs(context.inputs["capture"])
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

        if is_baseline(contender):
            scores[contender.name] = baseline_scores(rows, contender, report)
            continue
        values, embedded = rows.signal(contender, report)
        # An export is asked against the index that its student made.
        mine = own.get("student") if contender.side == "export" and contender.symmetric else None
        if embedded is not None:
            own.setdefault(contender.side, embedded)
            mine = embedded
        found = rows.score(values, index if mine is None else mine)
        if rows.names_alone(contender):  # a class that was chosen has no probability
            found = replace(found, confidence=None)
        scores[contender.name] = found
    return scores


def kinds(rows: TestRows) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What the test rows are judged apart by, a value a row, and the values' order: classes."""
    if rows.task.signal != "class_logits":
        return {}, {}
    labels = rows.data.labels or []
    return {"label": [labels[i] for i in rows.data.split("test")["label"]]}, {"label": labels}


def costs(rows: TestRows, contenders: Sequence[Contender]) -> dict[str, Any]:
    """Parameters, bytes and FLOPs of each checkpoint, on the test rows as it tokenises them."""
    found: dict[str, Any] = {}
    for contender in contenders:
        if contender.recorded:
            continue
        if is_baseline(contender):
            found[contender.name] = baseline_costs(rows, contender)
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
        found[contender.name] = entry
    return found


def tokens(rows: TestRows, contenders: Sequence[Contender]) -> dict[str, Any] | None:
    """How the student cuts the test texts into tokens, beside the teacher."""
    teacher = contenders[0]
    student = next(c for c in contenders if c.side == "student")
    if teacher.recorded:
        return None
    before, after = rows.load(teacher).tokenizer, rows.load(student).tokenizer
    return dict(tokenization_change(before, after, rows.texts))


def differing(
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


def timings(
    recipe: Recipe,
    rows: TestRows,
    timed: Sequence[Contender],
    smoke: bool,
    spare: Worker | None,
) -> list[dict[str, Any]]:
    """Times some contenders side by side."""
    engines = []
    timed = [contender for contender in timed if not contender.recorded]
    folders = [contender.path for contender in timed]
    for contender in timed:
        loader = FORMATS[contender.fmt].loader if contender.fmt else None
        side = "teacher" if contender.side in ("teacher", "teacher_int8") else "student"
        if loader is None:
            options: dict[str, Any] = {"task": rows.task.plain(), "role": rows.role}
            if contender.side == "teacher":
                options["model"] = rows.options
            engines.append(Engine(side, str(contender.path), options=options))
        else:
            engines.append(Engine(side, str(contender.path), loader, {"role": rows.role}))
    count = min(recipe.evaluate.latency_rows, len(rows.texts))
    if smoke:
        few: dict[str, Any] = {"runs": 20, "rounds": 2, "warmup": 2, "offline_rows": 32}
        few |= {"together": True, "spare": spare, "server_seconds": 0.1}
        few["server_ms"] = recipe.evaluate.server_ms
        some = measure(engines, rows.texts[:32], rows.pairs and rows.pairs[:32], **few)
        return with_bytes(some, folders)
    # Drawn from all rows, so that short and long ones are timed in their true shares.
    rows_timed = np.random.default_rng(0).permutation(len(rows.texts))[: max(count, 512)]
    every, second = rows.texts, rows.pairs
    texts = [every[i] for i in rows_timed]
    pairs = None if second is None else [second[i] for i in rows_timed]
    bound = recipe.evaluate.server_ms
    found = measure(engines, texts, pairs, runs=count, offline_rows=256, server_ms=bound)
    return with_bytes(found, folders)
