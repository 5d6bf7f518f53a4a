"""Other runtimes behind the interface that predict.py knows ONNX Runtime by.

Each has ``run(outputs, feeds)``: names of outputs and arrays by input, to arrays. Their libraries
are imported when a session is opened, and torch by ExecuTorch's alone, which is made of it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..eval.errors import RunError
from .generator import Generator, Session
from .predict import PredictError, Predictor
from .settings import require_files


def import_openvino() -> Any:
    """OpenVINO without its usage statistics, which it sends when it is imported unless told not to.

    It does without the package that sends them where that cannot be imported.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    return importlib.import_module("openvino")


class OpenVinoSession:
    """A graph in OpenVINO's intermediate representation, on the processor, in fp32.

    Args:
        folder: Has ``model.xml`` and ``model.bin``.
        threads: Threads of OpenVINO; all cores if None.

    Raises:
        RunError: If the files are not there or not what they are called.
    """

    runtime = "openvino"

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        openvino = import_openvino()
        require_files(folder, ("model.xml", "model.bin"))
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            graph = core.read_model(str(folder / "model.xml"), str(folder / "model.bin"))
            compiled = core.compile_model(graph, "CPU", config)
        except RuntimeError as error:
            first = (str(error).strip().splitlines() or [""])[-1]
            raise RunError(f"model.xml of '{folder}' cannot be loaded: {first}") from error
        self.request = compiled.create_infer_request()
        self.inputs = [port.get_any_name() for port in compiled.inputs]
        self.outputs = {port.get_any_name(): _width(port) for port in compiled.outputs}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Runs the graph once."""
        found = self.request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        return [np.array(found[name]) for name in outputs]


def _width(port: Any) -> int | None:
    """The last axis of an output, where it is fixed."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic or not len(shape) or shape[-1].is_dynamic:
        return None
    return int(shape[-1].get_length())


class ExecutorchSession:
    """An ExecuTorch program, which takes one row at a time.

    Args:
        folder: Has ``model.pte``.
        inputs: Names of its inputs, in order.
        threads: Threads of ExecuTorch; its default if None.

    Raises:
        RunError: If the file is not there or no program.
    """

    runtime = "executorch"

    def __init__(self, folder: Path, inputs: Sequence[str], threads: int | None = None) -> None:
        runtime: Any = importlib.import_module("executorch.runtime")
        require_files(folder, ("model.pte",))
        if threads is not None:
            _set_threads(threads)
        try:
            program = runtime.Runtime.get().load_program(folder / "model.pte")
            self.method = program.load_method("forward")
        except RuntimeError as error:
            raise RunError(f"model.pte of '{folder}' cannot be loaded: {error}") from error
        self.inputs = list(inputs)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Runs the program on each row, without the padding of its batch."""
        import torch

        rows = []
        for place, mask in enumerate(feeds["attention_mask"]):
            length = int(mask.sum())
            arrays = [feeds[name][place : place + 1, :length] for name in self.inputs]
            given = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
            rows.append(self.method.execute(given)[-1].numpy().copy())
        return [np.concatenate(rows)]


def _set_threads(threads: int) -> None:
    portable_lib = importlib.import_module("executorch.extension.pybindings.portable_lib")
    set_threads = getattr(portable_lib, "_threadpool_set_num_threads", None)
    if set_threads is not None:
        set_threads(threads)


class Prepared(Predictor):
    """A folder whose graph another runtime than ONNX Runtime runs; its texts are prepared alike."""

    def __init__(self, folder: Path, settings: dict[str, Any], session: Session) -> None:
        from tokenizers import Tokenizer

        require_files(folder, ("tokenizer.json",))
        self.folder, self.settings, self.session = folder, settings, session
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises a bare Exception
            raise RunError(f"A file of '{folder}' is damaged: {error}") from error
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(
            int(settings["max_length"]), direction=settings["truncation_side"]
        )
        self.batch = int(settings["batch"])


def generator_of(folder: Path, session: Session) -> Generator:
    """A language model that another runtime runs.

    Raises:
        RunError: If a file of the folder is damaged.
    """
    try:
        return Generator(folder, session=session)
    except PredictError as error:
        raise RunError(str(error)) from error
