"""The trainings of benchmarks/pruning.py: for a time by the clock, or for a number of passes."""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import Contest, Student
from cuts import LAYERS
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import MSELoss
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback

from paredown.distill.arguments import training_arguments
from paredown.distill.losses import Loss, register_loss
from paredown.distill.rows import DistillRows, TokenRows
from paredown.distill.terms import WeightedLoss, weigh
from paredown.distill.trainer import (
    Distiller,
    DistillTrainer,
    attention_for_training,
    set_dropout,
)
from paredown.eval.checkpoints import save_model
from paredown.eval.models import load_model, no_loading_bar
from paredown.recipes.task_rows import labels_of

ENDLESS = 10**6
"""Steps of a training that the clock ends."""


def logits_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of (s − t)² over rows and classes: layer reduction's loss, for a classifier.

    Args:
        student: Logits, (B, C).
        teacher: Logits, (B, C).

    Returns:
        A scalar ≥ 0.
    """
    return (student.float() - teacher.float()).square().mean()


register_loss(Loss("logits_mse", logits_mse, ("class_logits",), "values"))


@dataclass
class Pace:
    """How long a training lasts, and the learning rate over its course, alike for all sides.

    The rate rises linearly over the first part and falls as a cosine. Where the clock ends the
    training, the clock is the rate's course too: a machine that slows down half way then shortens
    everybody's training, and nobody's is cut off at a high rate.

    Attributes:
        warmup: Share of the course in which the rate rises.
        seconds: By the clock, loading and tokenising included; or None.
        steps: Where no seconds are given.
        started: When the clock was.
    """

    warmup: float
    seconds: float | None = None
    steps: int = ENDLESS
    started: float = field(default_factory=time.perf_counter)

    def now(self) -> Pace:
        """The same pace, its clock started."""
        return dataclasses.replace(self, started=time.perf_counter())

    @property
    def elapsed(self) -> float:
        """Seconds since the call."""
        return time.perf_counter() - self.started

    def course(self, step: int) -> float:
        """How much of the training is over, 0 to 1."""
        done = step / self.steps if self.seconds is None else self.elapsed / self.seconds
        return min(done, 1.0)

    def factor(self, step: int) -> float:
        """The learning rate after so many steps, as a share of the highest."""
        done = self.course(step)
        if done < self.warmup:
            return max(done / self.warmup, 0.01)
        return 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))

    def govern(self, trainer: Trainer) -> None:
        """Gives a Trainer this course, and its end."""
        trainer.create_optimizer()
        assert trainer.optimizer is not None
        trainer.lr_scheduler = LambdaLR(trainer.optimizer, self.factor)
        trainer.add_callback(_Stop(self))
        trainer.remove_callback(PrinterCallback)


class _Stop(TrainerCallback):
    """Ends a training when its time is over."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.pace.course(state.global_step) >= 1:
            control.should_training_stop = True


@dataclass(frozen=True)
class Healed:
    """A trained student.

    Attributes:
        path: Its checkpoint.
        seconds: From the call to the end of the training.
        rows: Rows seen, each as often as it was.
    """

    path: Path
    seconds: float
    rows: int


def heal(contest: Contest, student: Student, pace: Pace, folder: Path) -> Healed:
    """Trains a side's student in that side's way, on the same rows and recorded outputs.

    paredown and Torch-Pruning (which brings no training of its own) get the recipe's losses and
    paredown's trainer. Layer reduction gets mean squared error: to the embeddings with
    sentence-transformers' own trainer, to the logits with paredown's.

    Args:
        contest: The data set.
        student: As cut.
        pace: How long.
        folder: Where the trained checkpoint goes.
    """
    if student.side == LAYERS and contest.task.signal == "embedding":
        return _sentence_transformers(contest, student, pace, folder)
    losses: Mapping[str, Any] = {"logits_mse": 1.0}
    if student.side != LAYERS:
        losses = {name: loss.model_dump() for name, loss in contest.distill.losses.items()}
    return _distilled(contest, student, weigh(losses, contest.task.signal), pace, folder)


def _distilled(
    contest: Contest, student: Student, terms: list[WeightedLoss], pace: Pace, folder: Path
) -> Healed:
    """Trains with paredown's trainer, its rate governed by the pace; keeps the last weights."""
    settings, scratch = contest.distill, Path(tempfile.mkdtemp())
    pace = pace.now()
    torch.manual_seed(contest.recipe.seed)
    model = load_model(student.path, contest.task)
    if settings.dropout is not None:
        set_dropout(model, settings.dropout)
    arguments = training_arguments(
        scratch,
        epochs=1,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup=0,
        precision=settings.precision,
        seed=contest.recipe.seed,
        metric="none",
        extra={
            "max_steps": pace.steps,
            "save_strategy": "no",
            "eval_strategy": "no",
            "logging_strategy": "no",
            "load_best_model_at_end": False,
        },
    )
    rows = _rows(contest, model, terms, scratch)
    trainer = DistillTrainer(Distiller(model, {}, 0), arguments, terms, rows, lambda m: {})
    pace.govern(trainer)
    with attention_for_training(model, bool(arguments.use_cpu)):
        trainer.train()
    seconds = pace.elapsed
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    save_model(model.eval(), folder)
    shutil.rmtree(scratch)
    return Healed(folder, seconds, trainer.state.global_step * settings.batch_size)


def _rows(contest: Contest, model: Any, terms: list[WeightedLoss], folder: Path) -> DistillRows:
    """The training rows, and what the terms compare with."""
    uses = {term.loss.uses for term in terms}
    anchored = any(term.options.get("anchors") == "collection" for term in terms)
    outputs = contest.outputs
    return DistillRows(
        TokenRows(model, contest.streams, folder / "tokens"),
        model,
        items=np.concatenate([outputs.items(stream.name) for stream in contest.streams]),
        outputs=outputs,
        labels=labels_of(contest.rows) if "labels" in uses else None,
        collection=outputs.items("collection.text") if anchored else None,
    )


def _sentence_transformers(contest: Contest, student: Student, pace: Pace, folder: Path) -> Healed:
    """Trains with sentence-transformers' trainer and MSELoss.

    In its favour: the clock starts after its data sets are made; queries and texts are two of them,
    so that a batch is not padded to the longest of both; eager attention, faster backwards on a
    CPU; and the recipe's dropout.
    """
    settings, scratch = contest.distill, Path(tempfile.mkdtemp())
    sentences = _sentences(contest)
    pace = pace.now()
    options = {"attn_implementation": "eager"}
    with no_loading_bar():
        model = SentenceTransformer(str(student.path), device="cpu", model_kwargs=options)
    if settings.dropout is not None:
        set_dropout(model, settings.dropout)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(scratch),
        max_steps=pace.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        bf16=settings.precision == "bf16",
        multi_dataset_batch_sampler="proportional",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=contest.recipe.seed,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=sentences, loss=MSELoss(model)
    )
    pace.govern(trainer)
    trainer.train()
    seconds = pace.elapsed
    with no_loading_bar():
        model.save(str(folder), create_model_card=False)
    shutil.rmtree(scratch)
    return Healed(folder, seconds, trainer.state.global_step * settings.batch_size)


def _sentences(contest: Contest) -> DatasetDict:
    """Each stream as a data set of texts and the teacher's embeddings."""
    found = {}
    for stream in contest.streams:
        texts, _ = stream.read(range(len(stream.texts)))
        values = contest.outputs.values(contest.outputs.items(stream.name))
        found[stream.name.replace(".", "_")] = Dataset.from_dict(
            {"sentence": texts, "label": list(values)}
        )
    return DatasetDict(found)
