"""Opens whatever holds a model that answers rows: an export, a stock checkpoint, a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..eval.errors import RecipeError, RunError
from .checkpoint_runner import is_checkpoint, load_checkpoint
from .runner import load


def open_folder(folder: str | Path, *, threads: int | None = None, **options: Any) -> Any:
    """Loads the model of a folder, by what lies in it.

    Args:
        folder: Of an export, or a stock checkpoint (with sentence-transformers files or without).
        threads: Threads of its runtime; all cores if None.
        options: Of `load_checkpoint`, where it is a checkpoint.

    Returns:
        An object with ``settings``, ``runtime``, ``predict``, and ``signal`` or ``generate``.
        PyTorch is imported only where it is a checkpoint.

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
        if is_checkpoint(path):
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
