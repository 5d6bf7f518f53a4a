"""Stage ``distill``: the student trained on the captured outputs; or, as a baseline, on labels."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..distill.capture import Stream
from ..distill.outputs import TeacherOutputs
from ..distill.rows import DistillRows, TokenRows
from ..distill.terms import WeightedLoss, weigh
from ..eval.checkpoints import save_model
from ..eval.data import Data
from ..eval.errors import RecipeError, RunError
from ..eval.models import TextModel, load_model
from ..eval.tasks import Task, get_task
from ..prune.masks import Zeros
from .flops_spent import pass_over, training_flops
from .layer_maps import hidden_layers
from .schema import Distill, Recipe
from .stage_teacher import CHECKPOINT, model_options, teacher_checkpoint
from .store import Context, Folder, Stage
from .task_rows import (
    Validation,
    count_unlabelled,
    labels_of,
    paired_texts,
    streams,
    training_streams,
)

# What a baseline learns from instead of the teacher.
LABEL_LOSSES = {"class_logits": {"cross_entropy": 1.0}, "embedding": {"contrastive": 1.0}}


def distill_stage(
    recipe: Recipe,
    data: Folder,
    teacher: Folder,
    captured: Folder,
    pruned: Folder,
    *,
    seed: int,
    labels_only: bool = False,
) -> Stage:
    """Trains one student.

    Args:
        recipe: With a ``distill`` section.
        data: Training and validation rows.
        teacher: For the number of its layers.
        captured: What it said.
        pruned: The student to train.
        seed: Of the order of rows and of dropout.
        labels_only: Train on the task's labels or pairs, without the teacher: the baseline.
    """
    settings, task = recipe.distill, get_task(recipe.task)
    assert settings is not None
    losses: dict[str, Any] = {n: loss.model_dump() for n, loss in settings.losses.items()}
    if labels_only:
        losses = dict(LABEL_LOSSES[task.signal])
    symmetric = recipe.symmetric or (labels_only and task.signal == "embedding")
    metric = recipe.target.metric or task.default_metric
    said = {
        **settings.model_dump(),
        "losses": losses,
        "seed": seed,
        "metric": metric,
        "symmetric": symmetric,
        "task": task.name,
        "masked": recipe.prune is not None and recipe.prune.mask is not None,
        "options": model_options(recipe.student or recipe.teacher),
        "layers": {} if labels_only else hidden_layers(recipe, teacher_checkpoint(teacher.path)),
    }

    def work(context: Context) -> None:
        rows = Data.open(context.inputs["data"])
        outputs = TeacherOutputs(
            context.inputs["capture"],
            {"teacher": teacher.fingerprint, "data": rows.info["fingerprint"]},
        )
        terms = weigh(losses, task.signal)
        if not labels_only:  # the baseline learns from the rows that have labels
            _refuse_unlabelled(terms, rows, task)
        options = {**model_options(recipe.student or recipe.teacher)}
        options["max_length"] = settings.max_length
        student = load_model(context.inputs["prune"] / CHECKPOINT, task, **options)
        _train(context, student, rows, outputs, terms, said, settings)

    name = "distill-labels" if labels_only else "distill"
    inputs = {"data": data, "capture": captured, "prune": pruned}
    return Stage(name, "stage_distill", said, inputs, work, shared=True)


def _train(
    context: Context,
    student: TextModel,
    data: Data,
    outputs: TeacherOutputs,
    terms: list[WeightedLoss],
    said: dict[str, Any],
    settings: Distill,
) -> None:
    # The Trainer takes seconds to import, which a run that is finished already need not wait for.
    from ..distill.arguments import training_arguments
    from ..distill.trainer import set_dropout, train

    scratch = context.out / "training"
    if settings.dropout is not None:
        set_dropout(student, settings.dropout)
    rows = _rows(context, student, data, outputs, terms, said, settings)
    arguments = training_arguments(
        scratch,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        precision=settings.precision,
        seed=said["seed"],
        metric=said["metric"],
        world_size=context.world.size,
        extra=settings.arguments,
    )
    validate = Validation(
        data, get_task(said["task"]), outputs, said["symmetric"], settings.precision
    )
    zeros = Zeros.of(student) if said["masked"] else None
    trained = train(
        student,
        rows,
        terms,
        arguments,
        validate=validate,
        layers=said["layers"],
        teacher_hidden=int(outputs.manifest.get("hidden_size", 0)),
        barrier=context.world.barrier,
        progress=context.bar.update,
        after_step=partial(zeros.keep, student) if zeros else None,
        optimizer=settings.optimizer,
    )
    context.world.barrier()
    if context.world.main:
        # A shorter limit for training rows is no limit of the student.
        stock = load_model(context.inputs["prune"] / CHECKPOINT, get_task(said["task"]))
        student.encoding = stock.encoding
        save_model(student.cpu(), context.out / CHECKPOINT)
        if zeros:
            _check_zeros(zeros, context.out / CHECKPOINT, get_task(said["task"]))
        history = json.dumps(trained.history, indent=1)
        (context.out / "history.json").write_text(history, encoding="utf-8")
        shutil.rmtree(scratch)
        context.facts.update(
            steps=trained.steps,
            best_validation=trained.best_metric,
            resumed_from=trained.resumed_from,
            flops=training_flops(
                pass_over(student, rows),
                len(rows),
                trained.steps,
                settings.batch_size,
                settings.arguments,
            ),
        )


def _check_zeros(zeros: Zeros, saved: Path, task: Task) -> None:
    """A saved student without its mask's zeros is not the one that the report speaks of."""
    lost = zeros.lost(load_model(saved, task))
    if lost:
        raise RunError(
            f"`prune.mask`: {lost:,} weights of the trained student that were set to zero are no "
            "longer zero; something in this training changes weights outside the optimizer's "
            "steps. Leave that out, or train without the mask."
        )


def _rows(
    context: Context,
    student: TextModel,
    data: Data,
    outputs: TeacherOutputs,
    terms: list[WeightedLoss],
    said: dict[str, Any],
    settings: Distill,
) -> DistillRows:
    """The rows of a training: the student's tokens, and what each loss compares with."""
    task = get_task(said["task"])
    folder = context.out / "training" / f"tokens-{context.world.rank}"
    found = streams(data, task)
    uses = {term.loss.uses for term in terms}
    anchored = any(term.options.get("anchors") == "collection" for term in terms)
    if "documents" in uses:
        queries, texts = paired_texts(data)
        every = found["train.query"]
        chosen = [Stream("pairs", queries, role=every.role)]
        documents = TokenRows(
            student, [Stream("documents", texts, role="document")], folder / "documents"
        )
        items = None
        if uses - {"documents"}:
            has = [bool(r) for r in data.split("train")["relevant"]]
            items = outputs.items("train.query")[np.flatnonzero(has)]
    else:
        chosen, documents = training_streams(found, task, settings.texts), None
        items = np.concatenate([outputs.items(s.name) for s in chosen])
    return DistillRows(
        TokenRows(student, chosen, folder),
        student,
        items=items if uses & {"values", "hidden"} else None,
        outputs=outputs if uses & {"values", "hidden"} else None,
        labels=labels_of(data) if "labels" in uses else None,
        documents=documents,
        collection=outputs.items("collection.text") if anchored else None,
        hidden_layers=sorted(set(said["layers"].values())) if "hidden" in uses else (),
    )


def _refuse_unlabelled(terms: list[WeightedLoss], data: Data, task: Task) -> None:
    lacking = count_unlabelled(data, task)
    names = [term.loss.name for term in terms if term.loss.needs_labels]
    if lacking and names:
        what = "without a label" if task.signal == "class_logits" else "without a text to find"
        raise RecipeError(
            f"distill.losses.{names[0]} needs labels, but {lacking} training rows are {what}. "
            "Leave that loss out (the others learn from the teacher alone), or drop those rows."
        )
