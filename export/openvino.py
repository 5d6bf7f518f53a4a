"""Export to OpenVINO's intermediate representation, compared with PyTorch like every export.

Traced by ``transformers.exporters`` as the ONNX graphs are, and converted without ONNX in between.
Weights stay in fp32, and so do the sums: OpenVINO would otherwise compute in bf16 where a processor
has it, and decide some rows otherwise.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..eval.cost import artefact_bytes
from ..eval.models import TextModel, load_model
from .check import compare, compare_answers, refuse_difference
from .folder import Answering, output_name, signal_settings, text_settings, write_companions
from .graphs import SignalGraph, StepGraph, signal_sample, step_axes, step_names, step_sample
from .noise import into_log
from .quantizing import failed
from .sessions import OpenVinoSession, Prepared, generator_of, import_openvino

if TYPE_CHECKING:
    from torch import nn

    from ..eval.tasks import Task

logger = logging.getLogger(__name__)
FORMAT, BATCH = "openvino", 32
LIBRARIES = ("transformers", "torch", "openvino", "tokenizers")

README = """# {name}

{what} as OpenVINO IR ({precision}), made by paredown: `model.xml` with its weights, `model.bin`.
`paredown.json` says how a text is prepared, and `tokenizer.json` is its tokenizer.

    pip install 'paredown[openvino]'
    python -c "from paredown.export import load; print(load('.').predict(['a text']))"

Compile it with `INFERENCE_PRECISION_HINT: f32`, as paredown does: OpenVINO's default is bf16 on
processors that have it, and answers differ then.
"""


def export_openvino(
    checkpoint: Path,
    task: Task,
    out: Path,
    *,
    sample_texts: Sequence[str] = (),
    threads: int | None = None,
    answering: Answering | None = None,
) -> dict[str, Any]:
    """Writes a folder that `runner.load` runs, and compares it with PyTorch.

    Args:
        checkpoint: A stock checkpoint.
        task: Says which signal it gives.
        out: The folder to write; it is made.
        sample_texts: Real texts, or prompts, for the comparison.
        threads: Threads of OpenVINO in the comparison; all cores if None.
        answering: How a language model's prompts are written and answers bounded.

    Returns:
        Facts: ``precision``, ``bytes``, ``seconds``, ``versions``, and those of `check.compare` or
        `check.compare_answers`.

    Raises:
        RunError: If the exporter fails, or the export answers differently from PyTorch.
    """
    started = time.perf_counter()
    model = load_model(checkpoint, task).eval().requires_grad_(False)
    out.mkdir(parents=True, exist_ok=True)
    if model.signal == "token_distribution":
        answering = answering or Answering()
        settings = text_settings(model, task, FORMAT, "fp32", LIBRARIES, BATCH, answering)
        _write_steps(model, out)
    else:
        settings = signal_settings(model, task, FORMAT, "fp32", LIBRARIES, BATCH)
        _write_signal(model, out)
    write_companions(model, settings, out, README)
    seconds = time.perf_counter() - started
    facts = {"precision": "fp32", "bytes": artefact_bytes(out), "seconds": round(seconds, 2)}
    session = OpenVinoSession(out, threads)
    if answering is not None:
        generator = generator_of(out, session)
        compared = compare_answers(model, generator, answering.dialogues(model), sample_texts)
    else:
        compared = compare(model, Prepared(out, settings, session), sample_texts)
    refuse_difference("OpenVINO", compared, model, settings["versions"])
    return facts | compared | {"versions": settings["versions"]}


def _write_signal(model: TextModel, out: Path) -> None:
    from torch.export import Dim

    batch = signal_sample(model)
    axes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in batch}
    names = list(batch), [output_name(model)]
    _write(SignalGraph(model).eval(), batch, axes, names, model.config.model_type, out)


def _write_steps(model: TextModel, out: Path) -> None:
    sample = step_sample(model)
    names = step_names(len(sample["past"]) // 2)
    axes = step_axes(sample)
    _write(StepGraph(model).eval(), sample, axes, names, model.config.model_type, out)


def _write(
    module: nn.Module,
    sample: Mapping[str, Any],
    axes: Mapping[str, Any],
    names: tuple[list[str], list[str]],
    kind: str,
    out: Path,
) -> None:
    """Traces, converts, names the ports and saves; RunError if the exporter fails."""
    with into_log(logger):
        try:
            openvino = import_openvino()
            exporters: Any = importlib.import_module("transformers.exporters")
            config = exporters.OpenVINOConfig(
                dynamic=True, dynamic_shapes=dict(axes), stateful=False
            )
            graph = exporters.OpenVINOExporter().export(module, dict(sample), config=config).program
            for ports, wanted in zip((graph.inputs, graph.outputs), names, strict=True):
                for port, name in zip(ports, wanted, strict=True):
                    port.get_tensor().set_names({name})
            openvino.save_model(graph, str(out / "model.xml"), compress_to_fp16=False)
        except Exception as error:  # torch.export and OpenVINO share no base
            raise failed(f"OpenVINO export of a {kind} model", error) from error
