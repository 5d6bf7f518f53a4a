"""Export to ONNX, in fp32 or int8, and the check that it answers as the model it came from.

The graph holds everything behind the tokenizer: backbone, pooling, dense map, normalisation and
head. It is made by ``transformers.exporters``, which its authors call experimental; so every
export is compared with PyTorch before it counts. Language models are in `onnx_text`.
"""

from __future__ import annotations

import importlib
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..eval.cost import artefact_bytes
from ..eval.errors import RunError
from ..eval.models import TextModel, load_model
from .check import compare, refuse_difference
from .folder import ALONE, output_name, signal_settings, write_companions
from .graphs import SignalGraph, plain_attention, signal_sample
from .noise import into_log
from .predict import PredictError, Predictor
from .quantizing import failed, quantized

if TYPE_CHECKING:
    import onnx_ir
    from torch import Tensor, nn

    from ..eval.tasks import Task

logger = logging.getLogger(__name__)

SINGLE_FILE_BYTES = 1_900_000_000
"""Above this, weights go into model.onnx.data: a protobuf file ends at 2 GB."""
BATCH, CALIBRATION_BATCH = 32, 8
LIBRARIES = ("transformers", "torch", "onnx", "onnxscript", "onnxruntime", "tokenizers")

README = """# {name}

{what} as ONNX ({precision}), made by paredown. It needs no other file and no PyTorch:

    pip install numpy onnxruntime tokenizers
    python predict.py < rows.txt
    python predict.py --help

`model.onnx` takes {inputs} (int64, batch × sequence) and gives `{output}` (float32, batch ×
{width}). `paredown.json` says how a text is prepared: at most {max_length} tokens, padded with
{pad_id}. From Python, in this folder:

    from predict import Predictor
    Predictor(".").predict(["a text"])
"""


def export_onnx(
    checkpoint: Path,
    task: Task,
    out: Path,
    *,
    precision: str,
    sample_texts: Sequence[str] = (),
    sample_pairs: Sequence[str] | None = None,
    threads: int | None = None,
    base: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a folder that runs by itself, and compares it with PyTorch.

    Args:
        checkpoint: A stock checkpoint.
        task: Says which signal it gives.
        out: The folder to write; it is made.
        precision: ``fp32``, or ``int8``: weights of matrix products and embeddings in 8 bits, one
            scale for each output channel.
        sample_texts: Real texts for the comparison, and to calibrate on.
        sample_pairs: The second text of each, or None; for calibration.
        threads: Threads of ONNX Runtime in the comparison; all cores if None.
        base: The folder of this checkpoint's fp32 export, to be quantised; for int8 the checkpoint
            is traced once more if None.
        options: ``calibration`` of int8: ``dynamic`` quantises activations while running,
            ``static`` by scales found on ``calibration_rows`` of the sample texts.

    Returns:
        Facts: ``precision``, ``bytes``, ``seconds``, ``max_difference``, ``tolerance`` (None for
        int8), ``mean_cosine`` (of the signals), ``same_class`` (class logits only),
        ``rows_compared``, ``opset``, ``versions``, and for int8 ``calibration`` with the number of
        rows where it is static.

    Raises:
        RunError: If the exporter fails, or the export answers differently from PyTorch.
    """
    started = time.perf_counter()
    model = load_model(checkpoint, task)
    out.mkdir(parents=True, exist_ok=True)
    graph = _fp32_graph(model, base)
    facts: dict[str, Any] = {"precision": precision}
    batch = BATCH
    if precision == "int8":
        asked = dict(options or {"calibration": "dynamic"})
        static = asked["calibration"] == "static"
        rows = _calibration(model, asked, sample_texts, sample_pairs) if static else None
        graph = quantized(graph, None if rows is None else _batches(model, rows))
        facts |= {"calibration": asked["calibration"]}
        facts |= {} if rows is None else {"calibration_rows": len(rows)}
        batch = BATCH if static else 1  # scales found while running are of the whole batch
    save_graph(graph, out)
    fmt = "onnx" if precision == "fp32" else f"onnx-{precision}"
    settings = signal_settings(model, task, fmt, precision, LIBRARIES, batch)
    write_companions(model, settings, out, README, ALONE)
    facts |= {"bytes": artefact_bytes(out), "seconds": round(time.perf_counter() - started, 2)}
    try:
        predictor = Predictor(out, threads=threads)
    except PredictError as error:
        raise RunError(f"The export does not run: {error}") from error
    compared = compare(model, predictor, sample_texts)
    if precision == "fp32":
        refuse_difference("ONNX", compared, model, settings["versions"])
    else:
        compared["tolerance"] = None  # what int8 keeps is for the evaluation to say
    return facts | compared | {"opset": graph.opset_imports[""], "versions": settings["versions"]}


def _fp32_graph(model: TextModel, base: Path | None) -> onnx_ir.Model:
    import onnx_ir

    if base is not None:
        return onnx_ir.load(base / "model.onnx")
    graph = _trace(model)
    _clean(graph, output_name(model))
    return graph


def _calibration(
    model: TextModel,
    options: Mapping[str, Any],
    texts: Sequence[str],
    pairs: Sequence[str] | None,
) -> list[dict[str, list[int]]]:
    """The tokenised rows that activations are measured on."""
    count = int(options["calibration_rows"])
    role = "query" if model.signal == "embedding" else "text"
    kept = [i for i, text in enumerate(texts) if text.strip()][:count]
    if not kept:
        raise RunError("Static calibration needs texts, and there are none; use dynamic.")
    second = None if pairs is None else [pairs[i] for i in kept]
    return model.tokenize([texts[i] for i in kept], second, role)


def _batches(model: TextModel, rows: Sequence[dict[str, list[int]]]) -> list[dict[str, Tensor]]:
    """Rows of like length together, so that hardly any padding is measured."""
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    starts = range(0, len(ordered), CALIBRATION_BATCH)
    return [model.collate(ordered[start : start + CALIBRATION_BATCH]) for start in starts]


def _trace(model: TextModel) -> onnx_ir.Model:
    """The graph of a model's signal, batch and sequence dynamic."""
    from torch.export import Dim

    batch = signal_sample(model)
    dims = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in batch}
    model.eval().requires_grad_(False)
    with plain_attention(model):
        return traced(SignalGraph(model).eval(), batch, dims, model.config.model_type)


def traced(
    module: nn.Module, sample: Mapping[str, Any], axes: Mapping[str, Any], kind: str
) -> onnx_ir.Model:
    """A graph from ``transformers.exporters``.

    Args:
        module: What is traced.
        sample: Its inputs.
        axes: Which of their axes vary.
        kind: The architecture, for messages.

    Raises:
        RunError: If the exporter fails.
    """
    with into_log(logger):
        try:
            exporters: Any = importlib.import_module("transformers.exporters")
            config = exporters.OnnxConfig(dynamic=True, dynamic_shapes=dict(axes))
            exported = exporters.OnnxExporter().export(module, dict(sample), config=config)
            # transformers before 5.23 gives torch's ONNXProgram
            graph: onnx_ir.Model = getattr(exported, "program", None) or exported.model
        except Exception as error:  # torch.export, onnxscript and ONNX Runtime share no base
            raise failed(f"ONNX export of a {kind} model", error) from error
    return graph


def _clean(graph: onnx_ir.Model, output: str) -> None:
    """Gives the output and the dynamic axes of a signal's graph their names."""
    axes = {
        str(symbol): axis
        for value in graph.graph.inputs
        for symbol, axis in zip(value.shape or (), ("batch", "sequence"), strict=True)
    }
    tidy(graph, axes, [output])


def tidy(graph: onnx_ir.Model, axes: Mapping[str, str], outputs: Sequence[str]) -> None:
    """Names outputs and axes, and drops what the tracer left behind.

    Every node carries the stack it was traced from, with paths of this machine.

    Args:
        graph: Changed in place.
        axes: The tracer's symbols of sizes that vary, and their names.
        outputs: Names of the outputs, in order.
    """
    import onnx_ir

    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in axes) or "(?!)")

    def renamed(size: Any) -> int | str:
        return size if isinstance(size, int) else pattern.sub(lambda m: axes[m[0]], str(size))

    nodes = list(graph.graph.all_nodes())
    for value in _values(graph, nodes):
        if value.name in outputs:  # an operator's own result may bear the name: `embedding` does
            value.name = f"{value.name}_inner"
        if value.shape is not None:
            value.shape = onnx_ir.Shape([renamed(size) for size in value.shape])
        value.metadata_props.clear()
    for value, name in zip(graph.graph.outputs, outputs, strict=True):
        value.name = name
    parts: list[Any] = [graph, graph.graph, *nodes]
    for part in parts:
        part.metadata_props.clear()
        part.doc_string = None


def _values(graph: onnx_ir.Model, nodes: Sequence[onnx_ir.Node]) -> Iterator[onnx_ir.Value]:
    yield from graph.graph.inputs
    for node in nodes:
        yield from node.outputs


def save_graph(graph: onnx_ir.Model, out: Path) -> None:
    """Writes ``model.onnx``, with ``model.onnx.data`` beside it where one file cannot hold it."""
    import onnx_ir

    weights = [
        v.const_value for v in graph.graph.initializers.values() if v.const_value is not None
    ]
    large = sum(weight.nbytes for weight in weights) > SINGLE_FILE_BYTES
    onnx_ir.save(graph, str(out / "model.onnx"), external_data="model.onnx.data" if large else None)
