"""Export to ONNX, in fp32 or int8, and the check that it answers as the model it came from.

The graph holds everything behind the tokenizer: backbone, pooling, dense map, normalisation and
head. It is made by ``transformers.exporters``, which its authors call experimental; so every
export is compared with PyTorch before it counts.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import shutil
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.cost import artefact_bytes
from ..eval.errors import RunError
from ..eval.models import TextModel, load_model
from .noise import into_log
from .predict import PredictError, Predictor

if TYPE_CHECKING:
    import onnx_ir
    from numpy.typing import NDArray

    from ..eval.tasks import Task

logger = logging.getLogger(__name__)

SETTINGS_VERSION = 1
TOLERANCE = 1e-4
SINGLE_FILE_BYTES = 1_900_000_000
"""Above this, weights go into model.onnx.data: a protobuf file ends at 2 GB."""

LIBRARIES = ("transformers", "torch", "onnx", "onnxscript", "onnxruntime", "tokenizers")
CHECK_TEXTS = ("a", "a short text", "a longer text, with commas, numbers (12.5) and so on " * 3)

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
    threads: int | None = None,
    base: Path | None = None,
) -> dict[str, Any]:
    """Writes a folder that runs by itself, and compares it with PyTorch.

    Args:
        checkpoint: A stock checkpoint.
        task: Says which signal it gives.
        out: The folder to write; it is made.
        precision: ``fp32``, or ``int8``: weights of matrix products and embeddings in 8 bits, one
            scale for each output channel; activations quantised while running.
        sample_texts: Real texts for the comparison.
        threads: Threads of ONNX Runtime in the comparison; all cores if None.
        base: The folder of this checkpoint's fp32 export, to be quantised; for int8 the checkpoint
            is traced once more if None.

    Returns:
        Facts: ``precision``, ``bytes``, ``seconds``, ``max_difference``, ``tolerance`` (None for
        int8), ``mean_cosine`` (of the signals), ``same_class`` (class logits only),
        ``rows_compared``, ``opset``, ``versions``.

    Raises:
        RunError: If the exporter fails, or the export answers differently from PyTorch.
    """
    started = time.perf_counter()
    model = load_model(checkpoint, task)
    out.mkdir(parents=True, exist_ok=True)
    output = "logits" if model.signal == "class_logits" else "embedding"
    graph = _fp32_graph(model, output, base)
    if precision == "int8":
        graph = _quantized(graph)
    _save(graph, out)
    settings = _settings(model, task, precision, output)
    _write_companions(model, settings, out)
    seconds = time.perf_counter() - started
    facts = {"precision": precision, "bytes": artefact_bytes(out), "seconds": round(seconds, 2)}
    compared = compare(model, out, sample_texts, threads=threads)
    if precision != "fp32":
        compared["tolerance"] = None  # what int8 keeps is for the evaluation to say
    elif not compared["max_difference"] <= compared["tolerance"]:
        raise RunError(
            f"The ONNX model answers differently from PyTorch (by "
            f"{compared['max_difference']:.2g}, expected at most {compared['tolerance']:.1e}); "
            f"report the architecture ({model.config.model_type}) and {settings['versions']}."
        )
    return facts | compared | {"opset": graph.opset_imports[""], "versions": settings["versions"]}


def _fp32_graph(model: TextModel, output: str, base: Path | None) -> onnx_ir.Model:
    import onnx_ir

    if base is not None:
        return onnx_ir.load(base / "model.onnx")
    graph = _trace(model)
    _clean(graph, output)
    return graph


def _quantized(graph: onnx_ir.Model) -> onnx_ir.Model:
    """The graph with weights in 8 bits; names are kept, and what the quantiser notes is dropped."""
    with into_log(logger):
        try:
            exporters: Any = importlib.import_module("transformers.exporters")
            int8 = exporters.OnnxRuntimeDynamicConfig(per_channel=True)
            found: onnx_ir.Model = exporters.OnnxRuntimeQuantizer(int8).quantize(graph, {}, "onnx")
        except Exception as error:  # onnx and ONNX Runtime share no base
            raise _failed("Quantisation of the ONNX graph", error) from error
    return found


def _failed(what: str, error: Exception) -> RunError:
    first = (str(error).strip().splitlines() or [""])[0]
    return RunError(
        f"{what} failed: {type(error).__name__}: {first} (the log has what the exporter said)."
    )


def _trace(model: TextModel) -> onnx_ir.Model:
    """The graph of a model, batch and sequence dynamic, from ``transformers.exporters``."""
    import torch
    from torch.export import Dim

    class Graph(torch.nn.Module):
        """The model with one named output; ``signal`` is no name that an operator would get."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"signal": self.model(**inputs).values}

    length = min(8, model.encoding.max_length)
    some = model.tokenize(["a"])[0]
    rows = [{n: (ids * length)[:size] for n, ids in some.items()} for size in (length, length - 1)]
    batch = model.collate(rows)  # the second row is padded, so that the mask matters
    dims = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in batch}
    model.eval().requires_grad_(False)
    with into_log(logger):
        try:
            exporters: Any = importlib.import_module("transformers.exporters")
            config = exporters.OnnxConfig(dynamic=True, dynamic_shapes=dims)
            exported = exporters.OnnxExporter().export(Graph().eval(), batch, config=config)
            # transformers before 5.23 gives torch's ONNXProgram
            graph: onnx_ir.Model = getattr(exported, "program", None) or exported.model
        except Exception as error:  # torch.export, onnxscript and ONNX Runtime share no base
            raise _failed(f"ONNX export of a {model.config.model_type} model", error) from error
    return graph


def _clean(graph: onnx_ir.Model, output: str) -> None:
    """Gives the output and the dynamic axes their names, and drops what the tracer left behind.

    Every node carries the stack it was traced from, with paths of this machine.
    """
    import onnx_ir

    axes = {
        str(symbol): axis
        for value in graph.graph.inputs
        for symbol, axis in zip(value.shape or (), ("batch", "sequence"), strict=True)
    }
    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in axes))

    def renamed(size: Any) -> int | str:
        return size if isinstance(size, int) else pattern.sub(lambda m: axes[m[0]], str(size))

    nodes = list(graph.graph.all_nodes())
    for value in [*graph.graph.inputs, *(value for node in nodes for value in node.outputs)]:
        if value.name == output:  # an operator's own result may bear the name: `embedding` does
            value.name = f"{output}_inner"
        if value.shape is not None:
            value.shape = onnx_ir.Shape([renamed(size) for size in value.shape])
        value.metadata_props.clear()
    graph.graph.outputs[0].name = output
    parts: list[Any] = [graph, graph.graph, *nodes]
    for part in parts:
        part.metadata_props.clear()
        part.doc_string = None


def _save(graph: onnx_ir.Model, out: Path) -> None:
    import onnx_ir

    weights = [
        v.const_value for v in graph.graph.initializers.values() if v.const_value is not None
    ]
    large = sum(weight.nbytes for weight in weights) > SINGLE_FILE_BYTES
    onnx_ir.save(graph, str(out / "model.onnx"), external_data="model.onnx.data" if large else None)


def _settings(model: TextModel, task: Task, precision: str, output: str) -> dict[str, Any]:
    """The content of paredown.json: all that `Predictor` must know besides the graph."""
    tokenizer = model.tokenizer
    return {
        "version": SETTINGS_VERSION,
        "task": task.name,
        "signal": model.signal,
        "labels": model.labels,
        "width": model.width,
        "format": "onnx" if precision == "fp32" else f"onnx-{precision}",
        "precision": precision,
        "inputs": list(model.inputs),
        "output": output,
        "max_length": model.encoding.max_length,
        "truncation_side": tokenizer.truncation_side,
        "pad_id": tokenizer.pad_token_id or 0,
        "pad_type_id": tokenizer.pad_token_type_id,
        "prompts": model.encoding.prompts,
        "role": "query" if model.signal == "embedding" else "text",
        "pooling": model.encoding.pooling,
        "normalize": model.encoding.normalize,
        "batch": 32 if precision == "fp32" else 1,
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }


def _write_companions(model: TextModel, settings: dict[str, Any], out: Path) -> None:
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    plain.save(str(out / "tokenizer.json"))
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (out / "paredown.json").write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("predict.py"), out / "predict.py")
    what = "A classifier" if settings["labels"] else "An embedding model"
    facts = settings | {"inputs": ", ".join(f"`{name}`" for name in settings["inputs"])}
    (out / "README.md").write_text(
        README.format(name=out.name, what=what, **facts), encoding="utf-8"
    )


def compare(
    model: TextModel, folder: Path, sample_texts: Sequence[str], *, threads: int | None
) -> dict[str, Any]:
    """Compares an export with PyTorch on single rows, padded batches and, for logits, pairs.

    Returns:
        ``max_difference``, ``tolerance``, ``mean_cosine``, ``rows_compared``, and for class logits
        ``same_class``, the share of rows with the same one.

    Raises:
        RunError: If the export does not load, tokenises otherwise, or gives numbers that are none.
    """
    try:
        predictor = Predictor(folder, threads=threads)
    except PredictError as error:
        raise RunError(f"The export does not run: {error}") from error
    long = "word " * model.encoding.max_length  # more tokens than the model takes
    texts = [*CHECK_TEXTS, *[text for text in sample_texts if text.strip()][:64], long]
    kinds: list[list[str] | None] = [None]
    kinds += [texts[::-1]] if model.signal == "class_logits" else []
    role = predictor.settings["role"]
    expected, found = [], []
    for pairs in kinds:
        rows = model.tokenize(texts, pairs, role)
        if rows != predictor.tokenize(texts, pairs, role):
            raise RunError("The exported tokenizer.json gives other ids than the checkpoint's.")
        expected.append(model.predict(texts, pairs, role))
        found.append(predictor.signal(texts, pairs, role))
        expected.append(expected[-1][:1])
        found.append(predictor.signal(texts[:1], pairs and pairs[:1], role))
    return _differences(np.concatenate(expected), np.concatenate(found), model.signal)


def _differences(
    expected: NDArray[np.float32], found: NDArray[np.float32], signal: str
) -> dict[str, Any]:
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise RunError(
            f"The export gives {found.shape} with {(~np.isfinite(found)).sum()} numbers that are "
            f"not finite; {expected.shape} finite ones are expected."
        )
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    cosine = (expected * found).sum(1) / np.maximum(norms, 1e-12)
    facts: dict[str, Any] = {
        "max_difference": float(np.abs(expected - found).max()),
        "tolerance": TOLERANCE * max(1.0, float(np.abs(expected).max())),
        "mean_cosine": float(cosine.mean()),
        "rows_compared": len(expected),
    }
    if signal == "class_logits":
        facts["same_class"] = float((expected.argmax(1) == found.argmax(1)).mean())
    return facts
