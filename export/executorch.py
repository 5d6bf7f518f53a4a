"""Export to ExecuTorch's program format, for phones and small devices; by XNNPACK on a processor.

A program takes one row of any length up to the model's longest: memory is planned for that when
the program is made, so the bound is part of the folder.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..eval.cost import artefact_bytes
from ..eval.models import TextModel, load_model
from .check import compare, refuse_difference
from .folder import signal_settings, write_companions
from .graphs import SignalGraph, signal_sample
from .noise import into_log
from .quantizing import failed
from .sessions import ExecutorchSession, Prepared

if TYPE_CHECKING:
    from ..eval.tasks import Task

logger = logging.getLogger(__name__)
FORMAT = "executorch"
LIBRARIES = ("transformers", "torch", "executorch", "tokenizers")

README = """# {name}

{what} as an ExecuTorch program ({precision}, XNNPACK), made by paredown. `model.pte` takes
{inputs} (int64, 1 × up to {max_length}) and gives `{output}` (float32, 1 × {width}).
`paredown.json` says how a text is prepared, and `tokenizer.json` is its tokenizer. On a device,
ExecuTorch's runtime loads `model.pte`; here:

    pip install 'paredown[executorch]'
    python -c "from paredown.export import load; print(load('.').predict(['a text']))"
"""


def export_executorch(
    checkpoint: Path,
    task: Task,
    out: Path,
    *,
    sample_texts: Sequence[str] = (),
    threads: int | None = None,
) -> dict[str, Any]:
    """Writes a folder that `runner.load` runs, and compares it with PyTorch.

    Args:
        checkpoint: A stock checkpoint.
        task: Says which signal it gives: classes or embeddings.
        out: The folder to write; it is made.
        sample_texts: Real texts for the comparison.
        threads: Threads of ExecuTorch in the comparison; its default if None.

    Returns:
        Facts: ``precision``, ``bytes``, ``seconds``, ``longest`` (tokens of a row, at most),
        ``versions``, and those of `check.compare`.

    Raises:
        RunError: If the exporter fails, or the export answers differently from PyTorch.
    """
    started = time.perf_counter()
    model = load_model(checkpoint, task).eval().requires_grad_(False)
    out.mkdir(parents=True, exist_ok=True)
    settings = signal_settings(model, task, FORMAT, "fp32", LIBRARIES, 1)
    _write(model, out)
    write_companions(model, settings, out, README)
    seconds = time.perf_counter() - started
    facts: dict[str, Any] = {
        "precision": "fp32", "bytes": artefact_bytes(out), "seconds": round(seconds, 2),
        "longest": model.encoding.max_length,
    }  # fmt: skip
    session = ExecutorchSession(out, settings["inputs"], threads)
    compared = compare(model, Prepared(out, settings, session), sample_texts)
    refuse_difference("ExecuTorch", compared, model, settings["versions"])
    return facts | compared | {"versions": settings["versions"]}


def _write(model: TextModel, out: Path) -> None:
    """Traces and lowers the signal's graph; RunError if the exporter fails."""
    from torch.export import Dim

    batch = signal_sample(model, rows=1)
    length = Dim("length", min=2, max=model.encoding.max_length)
    axes = {name: {1: length} for name in batch}
    with into_log(logger):
        try:
            exporters: Any = importlib.import_module("transformers.exporters")
            config = exporters.ExecutorchConfig(dynamic=True, dynamic_shapes=axes)
            exporter = exporters.ExecutorchExporter()
            program = exporter.export(SignalGraph(model).eval(), batch, config=config).program
            with (out / "model.pte").open("wb") as file:
                program.write_to_file(file)
        except Exception as error:  # torch.export and ExecuTorch share no base
            kind = model.config.model_type
            raise failed(f"ExecuTorch export of a {kind} model", error) from error
