"""ONNX graphs in 8 bits, by ONNX Runtime's quantiser: scales found while running, or on rows.

Weights of matrix products and embeddings get 8 bits, with one scale for each output channel.
Activations are quantised while running (dynamic), or by scales that calibration rows gave (static):
then a row's answer does not depend on the rows beside it, and no time goes into finding scales.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .noise import into_log

if TYPE_CHECKING:
    import onnx_ir
    from torch import Tensor

    from ..eval.errors import RunError

logger = logging.getLogger(__name__)
STATIC_OPERATORS = ["MatMul", "Gemm", "Gather"]
"""What static quantisation covers: products with weights, and embeddings. Norms, softmax and
additions cost little and lose much in 8 bits."""


def quantized(
    graph: onnx_ir.Model, calibration: Iterable[Mapping[str, Tensor]] | None = None
) -> onnx_ir.Model:
    """The graph in 8 bits; names of inputs and outputs are kept.

    Args:
        graph: In fp32.
        calibration: Batches to find the activations' scales on; None finds them while running.

    Raises:
        RunError: If the quantiser fails.
    """
    with into_log(logger):
        try:
            exporters: Any = importlib.import_module("transformers.exporters")
            if calibration is None:
                how = exporters.OnnxRuntimeDynamicConfig(per_channel=True)
                quantizer = exporters.OnnxRuntimeQuantizer(how)
            else:
                from onnxruntime.quantization import QuantType

                how = exporters.OnnxRuntimeStaticConfig(
                    per_channel=True,
                    activation_type=QuantType.QUInt8,  # what x86's dot products take
                    weight_type=QuantType.QInt8,
                    op_types_to_quantize=STATIC_OPERATORS,
                    extra_options={"MatMulConstBOnly": True},
                )
                quantizer = exporters.OnnxRuntimeQuantizer(how, calibration_dataset=calibration)
            found: onnx_ir.Model = quantizer.quantize(graph, {}, "onnx")
        except Exception as error:  # onnx and ONNX Runtime share no base
            raise failed("Quantisation of the ONNX graph", error) from error
    return found


def failed(what: str, error: Exception) -> RunError:
    """The one message of an exporter that gave up."""
    from ..eval.errors import RunError

    first = (str(error).strip().splitlines() or [""])[0]
    return RunError(
        f"{what} failed: {type(error).__name__}: {first} (the log has what the exporter said)."
    )
