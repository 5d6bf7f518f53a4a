"""Opens whatever holds a model that answers rows: an export, a stock checkpoint, a run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..eval.errors import RecipeError, RunError
from ..eval.tasks import TASKS, Task
from .runner import Runner, load
from .text_runner import TextRunner

HEADS = {"ForSequenceClassification": "classification", "ForCausalLM": "generation"}
"""Ends of a stock class's name, and the task it is for; other checkpoints give embeddings."""


def open_folder(folder: str | Path, *, threads: int | None = None, **options: Any) -> Any:
    """Loads the model of a folder, by what lies in it.

    Args:
        folder: Of an export, or a stock checkpoint (with sentence-transformers files or without).
        threads: Threads of its runtime; all cores if None.
        options: Of `load_checkpoint`, where it is a checkpoint.

    Returns:
        What `load` gives of an export. PyTorch is imported only where it is a checkpoint.

    Raises:
        RecipeError: If there is no such folder, or nothing of the kind in it.
        RunError: If it cannot be loaded.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RecipeError(f"There is no folder '{path}'.")
    try:
        if (path / "paredown.json").exists():
            return load(path, threads=threads)
        if (path / "config.json").is_file():
            return load_checkpoint(path, threads=threads, **options)
    except ImportError as error:
        raise RunError(
            f"'{path}' needs '{error.name}', which is not installed here; install the extra of its "
            "format, such as pip install 'paredown[onnx]'."
        ) from error
    raise RecipeError(
        f"'{path}' holds no model that can be run: expected an export (paredown.json), a "
        "checkpoint (config.json), or a run's folder (report.json)."
    )


def load_checkpoint(
    folder: str | Path,
    task: Task | None = None,
    *,
    threads: int | None = None,
    form: Literal["text", "messages"] | None = None,
    template: Mapping[str, Any] | None = None,
    max_new_tokens: int = 128,
    max_length: int | None = None,
) -> Runner | TextRunner:
    """Loads a stock checkpoint to be run as an export is.

    Args:
        folder: The checkpoint, such as a run's ``student/``.
        task: What it does; found by its class if None.
        threads: Threads of torch; as they are if None.
        form: How a language model's prompts are written; as messages if None and its tokenizer has
            a chat template.
        template: Further arguments of the chat template.
        max_new_tokens: Tokens of an answer, at most.
        max_length: Tokens of a text, or None for the checkpoint's own limit.

    Raises:
        RunError: If it cannot be loaded.
    """
    from .torch_runner import open_model

    folder = Path(folder)
    known = task or task_of(folder)
    settings = {
        "task": known.name,
        "signal": known.signal,
        "format": "checkpoint",
        "precision": "fp32",
        "form": form,
        "max_length": max_length,
        "max_new_tokens": max_new_tokens,
        "template_arguments": dict(template or {}),
    }
    opened: Any = open_model(folder, known, settings, threads)
    if known.signal == "token_distribution":
        return TextRunner(opened, "pytorch")
    return Runner(opened, runtime="pytorch")


def task_of(folder: Path) -> Task:
    """The task a checkpoint is for: what its class's name or its sentence-transformers files say.

    Raises:
        RunError: If its config.json cannot be read.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name = str((config.get("architectures") or [""])[0])
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise RunError(f"'{path}' cannot be read: {error}") from error
    ending = next((task for end, task in HEADS.items() if name.endswith(end)), "retrieval")
    return TASKS[ending]
