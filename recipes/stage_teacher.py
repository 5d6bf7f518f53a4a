"""Stage ``teacher``: a checkpoint as it is; or none, but its answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..eval.checkpoints import find_checkpoint, sha256
from ..eval.data import Data
from ..eval.errors import RecipeError, RunError
from ..eval.models import load_model
from ..eval.tasks import Task, get_task
from .schema import Recipe
from .store import Context, Folder, Stage

RECORD = "teacher.json"
CHECKPOINT = "checkpoint"


def identity(folder: Path) -> dict[str, str]:
    """What tells one checkpoint folder from another: the hub's commit, or its files' hashes."""
    hub = folder.parent.parent.name.startswith("models--") and folder.parent.name == "snapshots"
    if hub and re.fullmatch("[0-9a-f]{40}", folder.name):
        return {"commit": folder.name}
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".txt", ".safetensors")]
    return {str(p.relative_to(folder)): sha256(p) for p in files if p.is_file()}


def model_options(section: Any) -> dict[str, Any]:
    """What a teacher or student section says about loading a model."""
    names = ("dtype", "attn_implementation", "max_length")
    return {name: getattr(section, name) for name in names if hasattr(section, name)}


def find_model(section: Any, key: str) -> Path:
    """Finds a section's checkpoint.

    Raises:
        RecipeError: If it is an encoder and a decoder, before anything is done with it.
        RunError: If it is nowhere.
    """
    found = find_checkpoint(section.model, section.revision)
    config = json.loads((found / "config.json").read_text(encoding="utf-8"))
    if config.get("is_encoder_decoder"):
        raise RecipeError(
            f"{key}: '{section.model}' is a {config.get('model_type')}, an encoder and a decoder. "
            "Recipes run models of one stack of layers; a t5 is cut from Python alone, by "
            "`paredown.prune.cut_backbone` (docs/architectures.md)."
        )
    return found


def teacher_stage(recipe: Recipe, data: Folder) -> Stage:
    """Finds the teacher, and takes it as it is."""
    teacher, task = recipe.teacher, get_task(recipe.task)
    if recipe.student is not None:
        find_model(recipe.student, "student.model")
    if teacher.kind == "recorded":
        return _recorded_stage(recipe)
    if teacher.kind == "endpoint":
        return _endpoint_stage(recipe)
    assert teacher.model is not None
    found = find_model(teacher, "teacher.model")
    # The path too: what lies there is read again by later stages.
    where = str(found.resolve())
    settings = {"identity": identity(found), "path": where, "task": task.name}
    settings |= model_options(teacher)

    def work(context: Context) -> None:
        _check_head(found, task, Data.open(context.inputs["data"]))
        write_record(context.out, where, recipe)

    return Stage("teacher", "stage_teacher", settings, {"data": data}, work)


def write_record(out: Path, path: str, recipe: Recipe) -> None:
    """Says in ``teacher.json`` where the checkpoint is and what the recipe calls it."""
    named = {"name": recipe.teacher.model, "revision": recipe.teacher.revision}
    record = {"kind": "checkpoint", "path": path, **named}
    (out / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


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

    return Stage(
        "teacher", "stage_teacher", {"kind": "recorded", "files": hashes, "paths": paths}, {}, work
    )


def _endpoint_stage(recipe: Recipe) -> Stage:
    endpoint = recipe.teacher.endpoint
    assert endpoint is not None
    settings = {"kind": "endpoint", "name": recipe.teacher.model, "base_url": endpoint.base_url}

    def work(context: Context) -> None:
        (context.out / RECORD).write_text(json.dumps(settings, indent=1), encoding="utf-8")

    return Stage("teacher", "stage_teacher", settings, {}, work)


def teacher_record(folder: Path) -> dict[str, Any]:
    """The content of ``teacher.json``."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return record


def teacher_checkpoint(folder: Path) -> Path | None:
    """The teacher's checkpoint folder, or None where only its answers are on file."""
    record = teacher_record(folder)
    if record["kind"] != "checkpoint":
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
