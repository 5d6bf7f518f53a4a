"""Stage ``teacher``: a checkpoint as it is, or fine-tuned on the task; or none, but its answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..distill.rows import DistillRows, TokenRows
from ..distill.trainer import train, training_arguments, weigh
from ..eval.checkpoints import find_checkpoint, save_model, sha256
from ..eval.data import Data
from ..eval.errors import RecipeError, RunError
from ..eval.metrics import score_classes
from ..eval.models import TextModel, load_model
from ..eval.tasks import Task, get_task
from .schema import Finetune, Recipe
from .store import Context, Folder, Stage
from .task_rows import labels_of, streams

RECORD = "teacher.json"
CHECKPOINT = "checkpoint"


def identity(folder: Path) -> dict[str, str]:
    """What tells one checkpoint folder from another: the hub's commit, or its files' hashes."""
    if folder.parent.name == "snapshots":
        return {"commit": folder.name}
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".txt", ".safetensors")]
    return {str(p.relative_to(folder)): sha256(p) for p in files if p.is_file()}


def model_options(section: Any) -> dict[str, Any]:
    """What a teacher or student section says about loading a model."""
    names = ("dtype", "attn_implementation", "max_length")
    return {name: getattr(section, name) for name in names if hasattr(section, name)}


def teacher_stage(recipe: Recipe, data: Folder) -> Stage:
    """Finds the teacher, and trains it on the task where the recipe says so."""
    teacher, task = recipe.teacher, get_task(recipe.task)
    if teacher.kind == "recorded":
        return _recorded_stage(recipe)
    assert teacher.model is not None
    found = find_checkpoint(teacher.model, teacher.revision)
    settings = {"identity": identity(found), **model_options(teacher), "task": task.name}
    if teacher.finetune is not None:
        settings |= {"finetune": teacher.finetune.model_dump(), "seed": recipe.seed}

    def work(context: Context) -> None:
        if teacher.finetune is None:
            _check_head(found, task, Data.open(context.inputs["data"]))
            record = {"kind": "checkpoint", "path": str(found.resolve()), **_named(recipe)}
        else:
            finetune(context, found, recipe, teacher.finetune)
            record = {"kind": "checkpoint", "path": CHECKPOINT, **_named(recipe)}
        if context.world.main:
            (context.out / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    return Stage(
        "teacher",
        "stage_teacher",
        settings,
        {"data": data},
        work,
        shared=teacher.finetune is not None,
    )


def _named(recipe: Recipe) -> dict[str, Any]:
    return {"name": recipe.teacher.model, "revision": recipe.teacher.revision}


def _recorded_stage(recipe: Recipe) -> Stage:
    files = recipe.teacher.files
    assert files is not None
    paths = {name: str(path) for name, path in files.model_dump(exclude_none=True).items()}
    for name, path in paths.items():
        if not Path(path).is_file():
            raise RecipeError(f"teacher.files.{name}: there is no file '{path}'.")
    hashes = {name: sha256(Path(path)) for name, path in paths.items()}

    def work(context: Context) -> None:
        record = {
            "kind": "recorded",
            "files": {k: str(Path(v).resolve()) for k, v in paths.items()},
        }
        (context.out / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    return Stage("teacher", "stage_teacher", {"kind": "recorded", "files": hashes}, {}, work)


def teacher_record(folder: Path) -> dict[str, Any]:
    """The content of ``teacher.json``."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return record


def teacher_checkpoint(folder: Path) -> Path | None:
    """The teacher's checkpoint folder, or None where only its answers are on file."""
    record = teacher_record(folder)
    if record["kind"] == "recorded":
        return None
    path = folder / str(record["path"])
    if not path.exists():
        raise RunError(
            f"The teacher's checkpoint '{path}' is gone; delete '{folder}' and run again."
        )
    return path


def _check_head(found: Path, task: Task, data: Data) -> None:
    """A classifier that is used as it is must know the task's classes, in their order."""
    if task.signal != "class_logits":
        return
    known = load_model(found, task).labels
    if known != data.labels:
        raise RecipeError(
            f"The teacher's classes ({', '.join((known or [])[:4])} …) are not the task's "
            f"({', '.join((data.labels or [])[:4])} …). Add teacher.finetune to train it on the "
            "task, or give a teacher with these classes in this order (sorted by name)."
        )


def finetune(context: Context, found: Path, recipe: Recipe, settings: Finetune) -> None:
    """Trains a checkpoint on the task's labelled rows and saves the best epoch's weights."""
    task = get_task(recipe.task)
    if task.signal != "class_logits":
        raise RecipeError(
            f"teacher.finetune trains on class labels; a teacher for {task.name} is taken as it "
            "is. Leave it out."
        )
    import numpy as np
    import torch

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
    )
    if context.world.main:
        save_model(model.cpu(), context.out / CHECKPOINT)
        shutil.rmtree(scratch)
        context.facts["training"] = {"steps": trained.steps, "history": trained.history}
