"""What a checkpoint can be exported to: one table, and the function that uses it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..eval.errors import RecipeError, nearest
from .options import Option, resolve_options

if TYPE_CHECKING:
    from ..eval.tasks import Signal, Task
    from .folder import Answering


class Exporter(Protocol):
    """Writes one format.

    Args:
        checkpoint: A stock checkpoint folder.
        task: What it does.
        out: The folder to write.
        sample_texts: Real texts (of a language model: prompts) to compare the export with the
            checkpoint on.
        threads: Threads of the runtime in that comparison; its default if None.
        base: A folder with the same checkpoint in the format's `Format.base`, where there is one
            already; to be used or not.
        more: ``options`` and ``sample_pairs`` (the second text of each sample text, or None) where
            the format has options, and ``answering`` (a `folder.Answering`) where it exports
            language models.

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
        **more: Any,
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
        runtime: What runs it, as measurements call it.
        runs_on: Import names that running it needs, where they are fewer than `modules`.
        precision: Of what it computes in. A full-precision export is its student: one that decides
            otherwise than `evaluate.flip_rate` allows fails the run.
        options: What a recipe may say about it, by name.
        card: Whether its ``README.md`` becomes the student's model card.
    """

    name: str
    export: Exporter
    signals: tuple[Signal, ...]
    modules: tuple[str, ...] = ()
    extra: str = ""
    loader: str | None = None
    base: str | None = None
    runtime: str = "pytorch"
    runs_on: tuple[str, ...] = ()
    precision: Literal["fp32", "int8"] = "fp32"
    options: Mapping[str, Option] = field(default_factory=dict)
    card: bool = False


def _onnx(checkpoint: Path, task: Task, out: Path, **options: Any) -> dict[str, Any]:
    return _to_onnx(checkpoint, task, out, precision="fp32", **options)


def _onnx_int8(checkpoint: Path, task: Task, out: Path, **options: Any) -> dict[str, Any]:
    return _to_onnx(checkpoint, task, out, precision="int8", **options)


def _to_onnx(checkpoint: Path, task: Task, out: Path, **given: Any) -> dict[str, Any]:
    if task.signal != "token_distribution":
        from .onnx import export_onnx

        return export_onnx(checkpoint, task, out, **given)
    from .onnx_text import export_onnx_text

    for name in ("options", "sample_pairs"):  # all of them are of classes and embeddings
        given.pop(name, None)
    return export_onnx_text(checkpoint, task, out, **given)


def _openvino(
    checkpoint: Path, task: Task, out: Path, *, base: Path | None, **given: Any
) -> dict[str, Any]:
    from .openvino import export_openvino

    return export_openvino(checkpoint, task, out, **given)


def _executorch(
    checkpoint: Path, task: Task, out: Path, *, base: Path | None, **given: Any
) -> dict[str, Any]:
    from .executorch import export_executorch

    return export_executorch(checkpoint, task, out, **given)


def _safetensors(
    checkpoint: Path,
    task: Task,
    out: Path,
    *,
    sample_texts: Sequence[str],
    answering: Answering | None = None,
    **_: Any,
) -> dict[str, Any]:
    from .safetensors import export_safetensors

    return export_safetensors(checkpoint, task, out, sample_texts=sample_texts, answering=answering)


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


def format_options(name: str, task: Task, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a format: those that a recipe gives, and the defaults of the others.

    Raises:
        RecipeError: As `get_format`; or if an option is unknown, cannot have its value, or would
            have no effect.
    """
    return resolve_options(name, get_format(name, task).options, given, task.signal)


def export_model(
    checkpoint: Path,
    task: Task,
    fmt: str,
    out: Path,
    *,
    sample_texts: Sequence[str],
    sample_pairs: Sequence[str] | None = None,
    threads: int | None = None,
    base: Path | None = None,
    options: Mapping[str, Any] | None = None,
    answering: Answering | None = None,
) -> dict[str, Any]:
    """Exports a checkpoint and compares the result with it.

    Args:
        checkpoint: A stock checkpoint folder.
        task: What it does.
        fmt: A format's name.
        out: The folder to write; it is made.
        sample_texts: Real texts, or prompts, for the comparison and to calibrate on.
        sample_pairs: The second text of each, or None.
        threads: Threads of the runtime in the comparison; its default if None.
        base: A folder with the same checkpoint in the format's `Format.base`, or None.
        options: The format's own options; defaults for those that are not given.
        answering: How a language model's prompts are written and its answers bounded.

    Returns:
        Facts: ``format``, ``bytes``, ``seconds``, ``max_difference`` and what the format adds.

    Raises:
        RecipeError: As `format_options`.
        RunError: If the export fails, or answers differently from the checkpoint.
    """
    entry = get_format(fmt, task)
    asked = format_options(fmt, task, options or {})
    more: dict[str, Any] = {}
    if entry.options:
        more |= {"options": asked, "sample_pairs": sample_pairs}
    if task.signal == "token_distribution":
        from .folder import Answering

        more["answering"] = answering or Answering()
    facts = entry.export(
        checkpoint, task, out, sample_texts=sample_texts, threads=threads, base=base, **more
    )
    return {"format": fmt} | facts


CALIBRATION_ROWS = 256
INT8_OPTIONS = {
    "calibration": Option("dynamic", ("dynamic", "static"), signals=("class_logits", "embedding")),
    "calibration_rows": Option(CALIBRATION_ROWS, needs=("calibration", "static")),
}
VECTORS: tuple[Signal, ...] = ("class_logits", "embedding")
EVERY: tuple[Signal, ...] = (*VECTORS, "token_distribution")
ON_ONNX: dict[str, Any] = {
    "modules": ONNX_MODULES, "extra": "onnx", "loader": RUNNER, "runtime": "onnxruntime",
    "runs_on": ("onnxruntime",),
}  # fmt: skip
register_format(Format("safetensors", _safetensors, EVERY, card=True))
register_format(Format("sentence-transformers", _sentence_transformers, ("embedding",)))
register_format(Format("onnx", _onnx, EVERY, **ON_ONNX))
INT8: dict[str, Any] = {"base": "onnx", "precision": "int8", "options": INT8_OPTIONS}
register_format(Format("onnx-int8", _onnx_int8, EVERY, **ON_ONNX, **INT8))


def _own(name: str) -> dict[str, Any]:
    """A format whose package, extra and runtime have its name."""
    return {
        "modules": (name,), "extra": name, "loader": RUNNER, "runtime": name, "runs_on": (name,)
    }  # fmt: skip


register_format(Format("openvino", _openvino, EVERY, **_own("openvino")))
register_format(Format("executorch", _executorch, VECTORS, **_own("executorch")))
