"""Stage ``score``: how well a trial agrees with the teacher, without test rows or labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from ..distill.outputs import TeacherOutputs
from ..eval.compare import paired_bootstrap
from ..eval.cost import artefact_bytes, artefact_parameters, row_flops
from ..eval.data import Data
from ..eval.metrics import Scores, score_classes, score_ranking
from ..eval.models import TextModel, load_model
from ..eval.ranking import top_rows
from ..eval.tasks import Task, get_task
from .schema import Recipe
from .stage_teacher import CHECKPOINT
from .store import Context, Folder, Stage
from .task_rows import collection_values, streams

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPORT = "score.json"
UNLABELLED = 2000
"""Unlabelled training rows that are scored beside the validation rows, at most."""


@dataclass(frozen=True)
class Score:
    """What a trial was found to be.

    Attributes:
        agreement: With the teacher, of each row, 0 to 1, (n,).
        metric: The task's metric on the labelled validation rows.
        teacher: The teacher's, on the same rows.
        flops: Mean forward FLOPs of a row, on the validation rows.
        parameters: In the checkpoint.
        bytes: Of its weights on disk.
        interval: 95 % interval of the share of the teacher's metric that is kept, on the labelled
            validation rows; None where the teacher's is 0.
    """

    agreement: NDArray[np.float64]
    metric: float
    teacher: float
    flops: float
    parameters: int
    bytes: int
    interval: tuple[float, float] | None = None

    @property
    def retention(self) -> float | None:
        """Share of the teacher's metric that is kept, on the validation rows."""
        return self.metric / self.teacher if self.teacher else None


def score_stage(recipe: Recipe, data: Folder, captured: Folder, model: Folder) -> Stage:
    """Scores one student on validation rows, and on training rows that nobody labelled.

    Agreement of a row is 1 − total variation distance between the classes' probabilities; or, for
    embeddings, one over the rank that the student gives the teacher's top answer (0 below ten).

    Args:
        recipe: For task, metric and precision.
        data: Validation and unlabelled rows.
        captured: What the teacher said of them.
        model: The stage with the student.
    """
    settings: dict[str, Any] = {
        "task": recipe.task,
        "metric": recipe.target.metric,
        "precision": recipe.capture.precision,
        "symmetric": recipe.symmetric,
        "unlabelled": UNLABELLED,
        "seed": recipe.seed,
        "resamples": recipe.evaluate.resamples,
    }

    def work(context: Context) -> None:
        task = get_task(recipe.task)
        rows = Data.open(context.inputs["data"])
        outputs = TeacherOutputs(context.inputs["capture"])
        student = load_model(context.inputs["model"] / CHECKPOINT, task)
        parts = _parts(rows, task, recipe.seed)
        scorer = _classes if task.signal == "class_logits" else _ranking
        found = scorer(student, rows, task, outputs, parts, settings)
        texts, pairs = texts_of(rows, task, "validation", None)
        role = "text" if task.signal == "class_logits" else "query"
        lengths = [len(row["input_ids"]) for row in student.tokenize(texts, pairs, role)]
        checkpoint = context.inputs["model"] / CHECKPOINT
        found |= {
            "flops": float(row_flops(student, lengths).mean()),
            "parameters": artefact_parameters(checkpoint),
            "bytes": artefact_bytes(checkpoint),
        }
        (context.out / REPORT).write_text(json.dumps(found), encoding="utf-8")

    inputs = {"data": data, "capture": captured, "model": model}
    return Stage("score", "stage_score", settings, inputs, work)


def _parts(rows: Data, task: Task, seed: int) -> dict[str, NDArray[np.int64] | None]:
    """Row numbers by split: all of validation, and a sample of unlabelled training rows."""
    train = rows.split("train")
    if task.signal == "class_logits":
        free = np.flatnonzero(np.asarray(train["label"][:]) < 0)
    else:
        free = np.flatnonzero([not relevant for relevant in train["relevant"]])
    some = np.random.default_rng(seed).permutation(free)[:UNLABELLED]
    return {"validation": None, "train": np.sort(some) if len(some) else np.empty(0, np.int64)}


def texts_of(
    rows: Data, task: Task, split: str, index: NDArray[np.int64] | None
) -> tuple[list[str], list[str] | None]:
    """Texts, or queries, of a split, and their second texts: those of some rows, or all."""
    stream = streams(rows, task)[f"{split}.{'text' if task.signal == 'class_logits' else 'query'}"]
    every = range(len(stream.texts)) if index is None else index.tolist()
    return stream.read(every)


def _classes(
    student: TextModel,
    rows: Data,
    task: Task,
    outputs: TeacherOutputs,
    parts: dict[str, NDArray[np.int64] | None],
    settings: dict[str, Any],
) -> dict[str, Any]:
    agreement: list[float] = []
    values: dict[str, Any] = {}
    for split, index in parts.items():
        if index is not None and not len(index):
            continue
        texts, pairs = texts_of(rows, task, split, index)
        logits = student.predict(texts, pairs, precision=settings["precision"])
        items = outputs.items(f"{split}.text")
        teacher = outputs.values(items if index is None else items[index])
        apart = np.abs(softmax(logits, axis=1) - softmax(teacher, axis=1)).sum(1) / 2
        agreement += (1 - apart).tolist()
        if split == "validation":
            labels = np.asarray(rows.split(split)["label"][:])
            known = labels >= 0
            ours, theirs = (score_classes(v[known], labels[known]) for v in (logits, teacher))
            values = _kept(ours, theirs, settings)
    return {"agreement": agreement, **values}


def _kept(student: Scores, teacher: Scores, settings: dict[str, Any]) -> dict[str, Any]:
    """The metric of both on the labelled validation rows, and the interval of what is kept."""
    name = settings["metric"]
    values: dict[str, Any] = {"metric": student.value(name), "teacher": teacher.value(name)}
    if values["teacher"] > 0:
        found = paired_bootstrap(
            name,
            student.statistics[name],
            teacher.statistics[name],
            resamples=settings["resamples"],
            seed=settings["seed"],
        )
        values["interval"] = [found.low, found.high]
    return values


def _ranking(
    student: TextModel,
    rows: Data,
    task: Task,
    outputs: TeacherOutputs,
    parts: dict[str, NDArray[np.int64] | None],
    settings: dict[str, Any],
) -> dict[str, Any]:
    teachers = collection_values(outputs)
    index_of = teachers
    if settings["symmetric"]:
        texts = rows.collection()["text"][:]
        index_of = student.predict(texts, None, "document", precision=settings["precision"])
    agreement: list[float] = []
    values: dict[str, Any] = {}
    for split, index in parts.items():
        if index is not None and not len(index):
            continue
        texts, _ = texts_of(rows, task, split, index)
        queries = student.predict(texts, None, "query", precision=settings["precision"])
        items = outputs.items(f"{split}.query")
        said = outputs.values(items if index is None else items[index])
        top = top_rows(said, teachers, 1).tolist()
        scores = score_ranking(queries, index_of, top, [[1]] * len(top))
        agreement += scores.statistics["mrr@10"][:, 0].tolist()
        if split == "validation":
            answers = rows.split(split)["relevant"][:], rows.split(split)["grades"][:]
            ours = score_ranking(queries, index_of, *answers)
            values = _kept(ours, score_ranking(said, teachers, *answers), settings)
    return {"agreement": agreement, **values}


def score_of(folder: Path) -> Score:
    """What a score stage found."""
    found = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    found["agreement"] = np.asarray(found["agreement"], dtype=np.float64)
    if found.get("interval"):
        found["interval"] = tuple(found["interval"])
    return Score(**found)
