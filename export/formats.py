"""What a checkpoint can be exported to: one table, and the function that uses it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..eval.errors import RecipeError, nearest

if TYPE_CHECKING:
    from ..eval.tasks import Signal, Task


class Exporter(Protocol):
    """Writes one format.

    Args:
        checkpoint: A stock checkpoint folder.
        task: What it does.
        out: The folder to write.
        sample_texts: Real texts to compare the export with the checkpoint on.
        threads: Threads of the runtime in that comparison; its default if None.
        base: A folder with the same checkpoint in the format's `Format.base`, where there is one
            already; to be used or not.

    Returns:
        Facts as JSON can carry them, at least ``bytes``, ``seconds`` and ``max_difference``.
    """

    def __call__(
        self,
        checkpoint: Path,
        task: Task,
        out: Path,
        *,
        sample_texts: Sequence[str],
        threads: int | None,
        base: Path | None,
    ) -> dict[str, Any]:
        """Writes the folder, compares it with the checkpoint, and returns facts."""


@dataclass(frozen=True)
class Format:
    """An entry of the table.

    Attributes:
        name: The word used in ``export:``.
        export: The function that writes it.
        signals: What a model may give to be exported so.
        modules: Import names it needs.
        extra: The extra of paredown that installs them.
        loader: ``module:function`` that loads the folder to run it, or None where it is loaded as
            the checkpoint is.
        base: Another format whose folder saves work, where a run makes both.
    """

    name: str
    export: Exporter
    signals: tuple[Signal, ...]
    modules: tuple[str, ...] = ()
    extra: str = ""
    loader: str | None = None
    base: str | None = None


def _onnx(checkpoint: Path, task: Task, out: Path, **options: Any) -> dict[str, Any]:
    from .onnx import export_onnx

    return export_onnx(checkpoint, task, out, precision="fp32", **options)


def _onnx_int8(checkpoint: Path, task: Task, out: Path, **options: Any) -> dict[str, Any]:
    from .onnx import export_onnx

    return export_onnx(checkpoint, task, out, precision="int8", **options)


def _sentence_transformers(
    checkpoint: Path, task: Task, out: Path, *, sample_texts: Sequence[str], **_: Any
) -> dict[str, Any]:
    from .sentence_transformers import export_sentence_transformers

    return export_sentence_transformers(checkpoint, task, out, sample_texts=sample_texts)


ONNX_MODULES = ("onnx", "onnxscript", "onnxruntime")
RUNNER = "paredown.export.runner:load"
FORMATS: dict[str, Format] = {}


def register_format(entry: Format) -> Format:
    """Adds a format to the table; a name that is taken is refused.

    Raises:
        RecipeError: If another format has the name.
    """
    if FORMATS.get(entry.name, entry) != entry:
        raise RecipeError(f"A format named '{entry.name}' exists already; choose another name.")
    FORMATS[entry.name] = entry
    return entry


def get_format(name: str, task: Task) -> Format:
    """Looks a format up, and makes sure that it fits the task and that its packages are there.

    Raises:
        RecipeError: If it is unknown, does not fit, or something must be installed first.
    """
    if name not in FORMATS:
        raise RecipeError(
            f"Unknown format '{name}'.{nearest(name, FORMATS)} Known formats: "
            f"{', '.join(sorted(FORMATS))}."
        )
    entry = FORMATS[name]
    if task.signal not in entry.signals:
        fitting = [key for key, other in FORMATS.items() if task.signal in other.signals]
        raise RecipeError(
            f"Format '{name}' is for models that give {' or '.join(entry.signals)}; task "
            f"'{task.name}' gives {task.signal}. Choose among {', '.join(sorted(fitting))}."
        )
    missing = [module for module in entry.modules if importlib.util.find_spec(module) is None]
    if missing:
        raise RecipeError(
            f"Format '{name}' needs {', '.join(missing)}: pip install 'paredown[{entry.extra}]'"
        )
    return entry


def export_model(
    checkpoint: Path,
    task: Task,
    fmt: str,
    out: Path,
    *,
    sample_texts: Sequence[str],
    threads: int | None = None,
    base: Path | None = None,
) -> dict[str, Any]:
    """Exports a checkpoint and compares the result with it.

    Args:
        checkpoint: A stock checkpoint folder.
        task: What it does.
        fmt: A format's name.
        out: The folder to write; it is made.
        sample_texts: Real texts for the comparison.
        threads: Threads of the runtime in the comparison; its default if None.
        base: A folder with the same checkpoint in the format's `Format.base`, or None.

    Returns:
        Facts: ``format``, ``bytes``, ``seconds``, ``max_difference`` and what the format adds.

    Raises:
        RecipeError: As `get_format`.
        RunError: If the export fails, or answers differently from the checkpoint.
    """
    entry = get_format(fmt, task)
    facts = entry.export(
        checkpoint, task, out, sample_texts=sample_texts, threads=threads, base=base
    )
    return {"format": fmt} | facts


SIGNALS: tuple[Signal, ...] = ("class_logits", "embedding")
register_format(Format("onnx", _onnx, SIGNALS, ONNX_MODULES, "onnx", RUNNER))
register_format(Format("onnx-int8", _onnx_int8, SIGNALS, ONNX_MODULES, "onnx", RUNNER, "onnx"))
register_format(Format("sentence-transformers", _sentence_transformers, ("embedding",)))
