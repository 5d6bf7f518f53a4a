"""What the sides of benchmarks/pruning.py share: rows, teacher, its outputs, and one judge."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.distill.capture import Stream
from paredown.distill.outputs import TeacherOutputs
from paredown.eval.checkpoints import sha256
from paredown.eval.cost import row_flops
from paredown.eval.data import Data
from paredown.eval.metrics import Scores
from paredown.eval.models import TextModel, load_model
from paredown.eval.tasks import Task, get_task
from paredown.recipes.contenders import Contender, TestRows
from paredown.recipes.resolving import resolve
from paredown.recipes.schema import Distill, Prune, Recipe
from paredown.recipes.stage_capture import capture_stage
from paredown.recipes.stage_data import data_stage
from paredown.recipes.stage_finetune import finetune_stage
from paredown.recipes.stage_prune import prune_stage
from paredown.recipes.stage_score import score_of, score_stage
from paredown.recipes.stage_teacher import (
    CHECKPOINT,
    model_options,
    teacher_checkpoint,
    teacher_stage,
)
from paredown.recipes.store import Folder, Store
from paredown.recipes.task_rows import collection_values, streams, training_streams

LENGTHS = 2000
"""Training rows whose tokens the FLOPs of a shape are predicted on."""


@dataclass(frozen=True)
class Student:
    """A student before any training.

    Attributes:
        side: Whose cut it is.
        shape: Its sizes in words.
        path: Its checkpoint.
        predicted: Its FLOPs, as a share of the teacher's, on training rows.
    """

    side: str
    shape: str
    path: Path
    predicted: float


class Contest:
    """One data set: its teacher, what the teacher said, and a judge of students.

    All students of all sides are cut from the same model: the teacher with its vocabulary cut to
    the task, so that sides differ in what they do to layers and widths alone.

    Args:
        recipe: A shipped recipe whose data, teacher and capture are used.
        store: Makes their stages.
    """

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self.recipe, self.store = resolve(recipe), store
        assert self.recipe.distill is not None and self.recipe.prune is not None
        self.prune: Prune = self.recipe.prune
        self.distill: Distill = self.recipe.distill
        self.task: Task = get_task(recipe.task)
        self.metric = self.recipe.target.metric or self.task.default_metric
        self.data = store.ensure(data_stage(self.recipe))
        tuned = self.recipe.teacher.finetune is not None
        self.teacher = store.ensure(
            (finetune_stage if tuned else teacher_stage)(self.recipe, self.data)
        )
        self.captured = store.ensure(capture_stage(self.recipe, self.data, self.teacher, []))
        whole = self.recipe.model_copy(update={"prune": Prune(vocabulary="task")})
        self.base = store.ensure(prune_stage(whole, self.data, self.teacher, self.captured))
        self.rows = Data.open(self.data.path)
        self.test = TestRows(self.task, self.rows, model_options(self.recipe.teacher))

    @functools.cached_property
    def outputs(self) -> TeacherOutputs:
        """What the teacher said of the training and validation rows."""
        return TeacherOutputs(self.captured.path)

    @functools.cached_property
    def streams(self) -> list[Stream]:
        """The texts that every side trains on."""
        return training_streams(streams(self.rows, self.task), self.task, self.distill.texts)

    @property
    def training_rows(self) -> int:
        """How many there are."""
        return sum(len(stream.texts) for stream in self.streams)

    @property
    def teacher_path(self) -> Path:
        """The teacher's checkpoint."""
        found = teacher_checkpoint(self.teacher.path)
        assert found is not None
        return found

    def whole(self) -> TextModel:
        """A fresh copy of the model that all sides cut."""
        return load_model(self.base.path / CHECKPOINT, self.task)

    def lengths(self, model: TextModel) -> NDArray[np.int64]:
        """Tokens of some training rows, for predictions of FLOPs."""
        stream = self.streams[0]
        draw = np.random.default_rng(0).permutation(len(stream.texts))[:LENGTHS]
        texts, pairs = stream.read(np.sort(draw).tolist())
        found = model.tokenize(texts, pairs, stream.role)
        return np.asarray([len(row["input_ids"]) for row in found], dtype=np.int64)

    def agreement(self, path: Path, name: str) -> float:
        """Mean agreement with the teacher on validation and unlabelled rows; no test row.

        Args:
            path: The folder that holds the checkpoint.
            name: For the display.
        """
        stage = score_stage(self.recipe, self.data, self.captured, as_stage(path))
        return float(score_of(self.store.ensure(stage, name).path).agreement.mean())

    @functools.cached_property
    def teacher_scores(self) -> Scores:
        """The teacher on the test rows."""
        return self.scores(self.teacher_path, teacher=True)

    def scores(self, path: Path, *, teacher: bool = False) -> Scores:
        """A checkpoint on the test rows; a query encoder is asked against the teacher's index."""
        contender = Contender("teacher" if teacher else "student", path)
        values, _ = self.test.signal(contender, lambda done: None)
        index = collection_values(self.outputs) if self.task.signal == "embedding" else None
        return self.test.score(values, index)

    @functools.cached_property
    def teacher_flops(self) -> float:
        """Mean forward FLOPs of a test row."""
        return self._flops(self.teacher_path, teacher=True)

    def share(self, path: Path) -> float:
        """A checkpoint's FLOPs on the test rows, as a share of the teacher's."""
        return self._flops(path) / self.teacher_flops

    def _flops(self, path: Path, *, teacher: bool = False) -> float:
        model = self.test.load(Contender("teacher" if teacher else "student", path))
        rows = model.tokenize(self.test.texts, self.test.pairs, self.test.role)
        return float(row_flops(model, [len(row["input_ids"]) for row in rows]).mean())


def as_stage(path: Path) -> Folder:
    """A peer's folder, as the stages that judge students take them."""
    digest = hashlib.sha256()
    for file in sorted((path / CHECKPOINT).rglob("*.*")):
        digest.update(f"{file.relative_to(path)} {sha256(file)}".encode())
    return Folder("peer", path, {"fingerprint": digest.hexdigest()[:16]}, cached=True)


def best_of(contest: Contest, tried: Sequence[Student]) -> Student:
    """The student that agrees most with the teacher as cut: every side may try a few."""
    if len(tried) == 1:
        return tried[0]
    found = [contest.agreement(one.path.parent, f"{one.side}, {one.shape}") for one in tried]
    return tried[int(np.argmax(found))]


def with_sizes(prune: Prune, sizes: dict[str, Any], rows: int) -> Prune:
    """A recipe's cut with other sizes and another number of calibration rows."""
    none = dict.fromkeys(("layers", "intermediate_size", "hidden_size"))
    return prune.model_copy(update={**none, **sizes, "calibration_rows": rows})
