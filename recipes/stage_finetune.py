"""Stage ``teacher``, where the recipe trains it on the task first."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from ..distill.rows import DistillRows, TokenRows
from ..distill.terms import weigh
from ..eval.checkpoints import save_model
from ..eval.data import Data
from ..eval.errors import RecipeError
from ..eval.metrics import score_classes
from ..eval.models import TextModel, load_model
from ..eval.tasks import get_task
from .flops_spent import pass_over, training_flops
from .schema import Finetune, Recipe
from .stage_teacher import CHECKPOINT, find_model, identity, model_options, write_record
from .store import Context, Folder, Stage
from .task_rows import labels_of, streams


def finetune_stage(recipe: Recipe, data: Folder) -> Stage:
    """Trains the checkpoint on the task's labelled rows; the result is the teacher."""
    teacher, settings = recipe.teacher, recipe.teacher.finetune
    assert settings is not None and teacher.model is not None
    if recipe.student is not None:
        find_model(recipe.student, "student.model")
    found = find_model(teacher, "teacher.model")
    said = {"identity": identity(found), **model_options(teacher), "task": recipe.task}
    said |= {"finetune": settings.model_dump(), "seed": recipe.seed}

    def work(context: Context) -> None:
        _finetune(context, found, recipe, settings)

    return Stage("teacher", "stage_finetune", said, {"data": data}, work, shared=True)


def _finetune(context: Context, found: Path, recipe: Recipe, settings: Finetune) -> None:
    """Trains a checkpoint on the task's labelled rows and saves the best epoch's weights."""
    # The Trainer takes seconds to import, which a run that is finished already need not wait for.
    from ..distill.arguments import training_arguments
    from ..distill.trainer import train

    task = get_task(recipe.task)
    if task.signal != "class_logits":
        raise RecipeError(
            f"teacher.finetune trains on class labels; a teacher for {task.name} is taken as it "
            "is. Leave it out."
        )
    data = Data.open(context.inputs["data"])
    torch.manual_seed(recipe.seed)  # the new head
    model = load_model(found, task, labels=data.labels, **model_options(recipe.teacher))
    stream = streams(data, task)["train.text"]
    labels = labels_of(data)
    kept = np.flatnonzero(labels >= 0)
    if not len(kept):
        raise RecipeError("teacher.finetune needs training rows with labels; there is none.")
    stream = type(stream)(stream.name, *stream.read(kept.tolist()))
    scratch = context.out / "training"
    tokens = TokenRows(model, [stream], scratch / f"tokens-{context.world.rank}")
    rows = DistillRows(tokens, model, labels=labels[kept])
    arguments = training_arguments(
        scratch,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup=0.1,
        precision=settings.precision,
        seed=recipe.seed,
        metric="accuracy",
        world_size=context.world.size,
        extra=settings.arguments,
        where="teacher.finetune",
    )

    def validate(student: TextModel) -> dict[str, float]:
        held = data.split("validation")
        pairs = held["text_pair"][:] if "text_pair" in held.column_names else None
        logits = student.predict(held["text"][:], pairs, precision=settings.precision)
        return score_classes(logits, np.asarray(held["label"][:])).values()

    terms = weigh({"cross_entropy": 1.0}, task.signal)
    trained = train(
        model,
        rows,
        terms,
        arguments,
        validate=validate,
        barrier=context.world.barrier,
        progress=context.bar.update,
        optimizer=settings.optimizer,
    )
    context.world.barrier()  # until all have read the best checkpoint
    if context.world.main:
        write_record(context.out, CHECKPOINT, recipe)
        save_model(model.cpu(), context.out / CHECKPOINT)
        shutil.rmtree(scratch)
        context.facts["training"] = {"steps": trained.steps, "history": trained.history}
        context.facts["flops"] = training_flops(
            pass_over(model, rows),
            len(rows),
            trained.steps,
            settings.batch_size,
            settings.arguments,
        )
