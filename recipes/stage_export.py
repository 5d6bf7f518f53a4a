"""Stage ``export``: the student in the formats a team deploys."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..eval.checkpoints import save_model
from ..eval.data import Data
from ..eval.models import load_model
from ..eval.tasks import Task, get_task
from ..export import FORMATS, export_model, format_options, load
from ..export.folder import Answering
from ..export.golden import write_golden
from ..export.opening import load_checkpoint
from .golden_rows import golden_rows
from .schema import Generation
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
    options: Mapping[str, Any] | None = None,
    writes: Generation | None = None,
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
        options: The format's own options, as the recipe gives them.
        writes: How prompts are written and answers made, of a language model.
    """
    task = get_task(task_name)
    asked = format_options(fmt, task, options or {})

    def work(context: Context) -> None:
        rows = Data.open(context.inputs["data"])
        texts, pairs = _sample(rows, task, max(SAMPLE, _calibration_rows(asked)))
        source = checkpoint
        if max_length and writes is None:  # a language model's is of its training rows
            source = context.out / "limited"
            save_model(load_model(checkpoint, task, max_length=max_length), source)
        made = context.inputs["base"] / EXPORTED if base else None
        facts = export_model(
            source, task, fmt, context.out / EXPORTED, sample_texts=texts, sample_pairs=pairs,
            base=made, options=options,
            answering=None if writes is None else answering(rows, writes),
        )  # fmt: skip
        if of == "student":
            drawn = golden_rows(rows, task, int(data.record["settings"].get("seed", 0)))
            folder = context.out / EXPORTED
            write_golden(folder, fmt, _opened(fmt, folder, task), drawn)
        if source != checkpoint:
            shutil.rmtree(source)
        (context.out / REPORT).write_text(json.dumps(facts, indent=1), encoding="utf-8")

    name = f"export-{fmt}" if of == "student" else f"export-{of}-{fmt}"
    settings: dict[str, Any] = {"task": task.name, "format": fmt, "of": of}
    settings |= {"max_length": max_length, "options": asked}
    settings |= {"writes": None if writes is None else writes.model_dump()}
    inputs = {"data": data, "model": model} | ({"base": base} if base else {})
    return Stage(name, "stage_export", settings, inputs, work)


def answering(data: Data, writes: Generation) -> Answering:
    """How a recipe has a language model's prompts written, as the exports take it."""
    return Answering(writes.max_new_tokens, data.info["form"], writes.template)


def _calibration_rows(options: Mapping[str, Any]) -> int:
    """Rows that activations are measured on, where they are."""
    static = options.get("calibration") == "static"
    return int(options["calibration_rows"]) if static else 0


def _sample(data: Data, task: Task, count: int) -> tuple[list[str], list[str] | None]:
    """Training texts, or prompts, spread evenly over the rows; no test row is touched."""
    if task.signal == "token_distribution":
        prompts = data.split("train")["prompt"]
        return [prompts[i] for i in _spread(len(prompts), count)], None
    stream = next(iter(streams(data, task).values()))
    return stream.read(_spread(len(stream.texts), count))


def _spread(rows: int, count: int) -> list[int]:
    places = np.linspace(0, rows - 1, min(rows, count)) if rows else np.empty(0)
    return [int(place) for place in places]


def _opened(fmt: str, folder: Path, task: Task) -> Any:
    """The export as `open_folder` opens it; a registered format may have no settings of ours."""
    loader = FORMATS[fmt].loader
    if loader is None:
        described = (folder / "paredown.json").exists()
        return load(folder) if described else load_checkpoint(folder, task)
    module, _, function = loader.partition(":")
    return getattr(importlib.import_module(module), function)(folder)


def export_facts(folder: Path) -> dict[str, Any]:
    """What the exporter said of its folder."""
    facts: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return facts
