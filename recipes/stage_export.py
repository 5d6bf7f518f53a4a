"""Stage ``export``: the student in the formats a team deploys."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

from ..eval.checkpoints import save_model
from ..eval.data import Data
from ..eval.models import load_model
from ..eval.tasks import Task, get_task
from ..export import FORMATS, export_model
from ..export.checkpoint_runner import load_checkpoint
from ..export.golden import write_golden
from .golden_rows import golden_rows
from .store import Context, Folder, Stage
from .task_rows import streams

REPORT = "export.json"
EXPORTED = "exported"
SAMPLE = 64


def export_stage(
    task_name: str,
    fmt: str,
    data: Folder,
    model: Folder,
    checkpoint: Path,
    *,
    of: str = "student",
    max_length: int | None = None,
    base: Folder | None = None,
) -> Stage:
    """Exports one checkpoint to one format, and compares it with the checkpoint.

    Args:
        task_name: The recipe's task.
        fmt: The format.
        data: For training texts to compare on; no test row is touched.
        model: The stage that made the checkpoint.
        checkpoint: Its folder.
        of: ``student``, which gets golden rows, or ``teacher`` where it is exported to be timed
            beside the student.
        max_length: Tokens of a text that the recipe has the model read; None for its own limit.
        base: The same checkpoint's export in the format that this one is made from, or None.
    """
    task = get_task(task_name)

    def work(context: Context) -> None:
        rows = Data.open(context.inputs["data"])
        stream = next(iter(streams(rows, task).values()))
        texts = stream.read(range(min(SAMPLE, len(stream.texts))))[0]
        source = checkpoint
        if max_length:
            source = context.out / "limited"
            save_model(load_model(checkpoint, task, max_length=max_length), source)
        made = context.inputs["base"] / EXPORTED if base else None
        facts = export_model(
            source, task, fmt, context.out / EXPORTED, sample_texts=texts, base=made
        )
        if of == "student":
            drawn = golden_rows(rows, task, int(data.record["settings"].get("seed", 0)))
            folder = context.out / EXPORTED
            write_golden(folder, fmt, _opened(fmt, folder, task), drawn)
        if max_length:
            shutil.rmtree(source)
        (context.out / REPORT).write_text(json.dumps(facts, indent=1), encoding="utf-8")

    name = f"export-{fmt}" if of == "student" else f"export-{of}-{fmt}"
    settings = {"task": task.name, "format": fmt, "of": of, "max_length": max_length}
    inputs = {"data": data, "model": model} | ({"base": base} if base else {})
    return Stage(name, "stage_export", settings, inputs, work)


def _opened(fmt: str, folder: Path, task: Task) -> Any:
    """The export as it is run."""
    loader = FORMATS[fmt].loader
    if loader is None:
        return load_checkpoint(folder, task)
    module, _, function = loader.partition(":")
    return getattr(importlib.import_module(module), function)(folder)


def export_facts(folder: Path) -> dict[str, Any]:
    """What the exporter said of its folder."""
    facts: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return facts
