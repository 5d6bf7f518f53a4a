"""A language model as ONNX: one graph that reads a prompt and writes behind it, with a cache.

Keys and values go in and come out, so that a token costs one step whatever stands before it. The
graph gives the logits of the last token alone; taking the likeliest is left to what runs it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..eval.cost import artefact_bytes
from ..eval.errors import RunError
from ..eval.models import TextModel, load_model
from .check import compare_answers, refuse_difference
from .folder import ALONE_TEXT, Answering, text_settings, write_companions
from .generator import Generator
from .graphs import StepGraph, plain_attention, step_axes, step_names, step_sample
from .onnx import BATCH, LIBRARIES, save_graph, tidy, traced
from .predict import PredictError
from .quantizing import quantized

if TYPE_CHECKING:
    import onnx_ir

    from ..eval.tasks import Task

README = """# {name}

{what} as ONNX ({precision}), made by paredown. It needs no other file and no PyTorch:

    pip install numpy onnxruntime tokenizers
    python predict.py < prompts.txt
    python predict.py --help

Where prompts are conversations ({form}: text or messages), it needs jinja2 as well.

`model.onnx` takes `input_ids`, `attention_mask` (of the cache and the new tokens), `position_ids`
(int64) and the cache, `past_key_values.0.key` … (float32, batch × {kv_heads} × cached ×
{head_dim}, of {layers} layers; 0 cached tokens at first), and gives `logits` of the next token
(float32, batch × {width}) and the grown cache, `present.0.key` …. `paredown.json` says how prompts
are written, and which tokens end an answer. From Python, in this folder:

    from generator import Generator
    Generator(".").predict(["a prompt"])
"""


def export_onnx_text(
    checkpoint: Path,
    task: Task,
    out: Path,
    *,
    precision: str,
    answering: Answering,
    sample_texts: Sequence[str] = (),
    threads: int | None = None,
    base: Path | None = None,
) -> dict[str, Any]:
    """Writes a folder that answers prompts by itself, and compares its answers with PyTorch's.

    Args:
        checkpoint: A stock checkpoint of a language model.
        task: Whose signal is a token distribution.
        out: The folder to write; it is made.
        precision: ``fp32``, or ``int8`` with activations quantised while running.
        answering: How prompts are written and answers bounded.
        sample_texts: Real prompts for the comparison.
        threads: Threads of ONNX Runtime in the comparison; all cores if None.
        base: The folder of this checkpoint's fp32 export, to be quantised, or None.

    Returns:
        Facts: ``precision``, ``bytes``, ``seconds``, ``opset``, ``versions``, and those of
        `check.compare_answers`.

    Raises:
        RunError: If the exporter fails, or the export writes other tokens than PyTorch.
    """
    started = time.perf_counter()
    model = load_model(checkpoint, task)
    out.mkdir(parents=True, exist_ok=True)
    graph = _fp32_graph(model, base)
    if precision == "int8":
        graph = quantized(graph)
    save_graph(graph, out)
    fmt = "onnx" if precision == "fp32" else f"onnx-{precision}"
    batch = BATCH if precision == "fp32" else 1
    settings = text_settings(model, task, fmt, precision, LIBRARIES, batch, answering)
    write_companions(model, settings, out, README, ALONE_TEXT)
    seconds = time.perf_counter() - started
    facts = {"precision": precision, "bytes": artefact_bytes(out), "seconds": round(seconds, 2)}
    try:
        generator = Generator(out, threads=threads)
    except PredictError as error:
        raise RunError(f"The export does not run: {error}") from error
    compared = compare_answers(model, generator, answering.dialogues(model), sample_texts)
    if precision == "fp32":
        refuse_difference("ONNX", compared, model, settings["versions"])
    else:
        compared["tolerance"] = None  # what int8 keeps is for the evaluation to say
    return facts | compared | {"opset": graph.opset_imports[""], "versions": settings["versions"]}


def _fp32_graph(model: TextModel, base: Path | None) -> onnx_ir.Model:
    import onnx_ir

    if base is not None:
        return onnx_ir.load(base / "model.onnx")
    sample = step_sample(model)
    axes = step_axes(sample)
    model.eval().requires_grad_(False)
    with plain_attention(model):
        graph = traced(StepGraph(model).eval(), sample, axes, model.config.model_type)
    inputs, outputs = step_names(len(sample["past"]) // 2)
    tidy(graph, _symbols(graph), outputs)
    for value, name in zip(graph.graph.inputs, inputs, strict=True):
        value.name = name
    return graph


def _symbols(graph: onnx_ir.Model) -> Mapping[str, str]:
    """The tracer's symbols of the sizes that vary, and what they are called."""
    ids, mask, _, keys = graph.graph.inputs[:4]
    named = ((ids, 0, "batch"), (ids, 1, "sequence"), (keys, 2, "cached"), (mask, 1, "total"))
    found: dict[str, str] = {}
    for value, axis, name in named:
        assert value.shape is not None
        found.setdefault(str(value.shape[axis]), name)
    return found
