"""Runs an exported folder of any format: as a library, and as a timed engine.

`load` reads the folder's own ``paredown.json`` and opens it on the runtime of its format. Nothing
here imports torch unless the format needs it, so that an engine's memory and cold start are those
of a deployment.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.errors import RunError, nearest
from ..eval.timing_worker import decide, load_index
from .formats import FORMATS, RUNNER, Format
from .generator import Generator
from .predict import PredictError, Predictor
from .settings import check_prepared, read_settings, require_files
from .text_runner import TextRunner

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .sessions import ExecutorchSession, OpenVinoSession


class Runner:
    """An exported model that gives classes or embeddings.

    Attributes:
        predictor: What prepares texts and runs the graph.
        role: Whose prompt is put in front of a text, for `run` and `model_only`.
        index: Embeddings (N, d) that `run` finds top answers in, or None.
        runtime: What runs the graph, such as ``onnxruntime``.
    """

    def __init__(
        self,
        predictor: Predictor,
        role: str | None = None,
        index: NDArray[np.float32] | None = None,
        runtime: str = "onnxruntime",
    ) -> None:
        self.predictor = predictor
        self.role = role
        self.index = index
        self.runtime = runtime
        self.settings: dict[str, Any] = predictor.settings
        self.precision = str(predictor.settings["precision"])

    def signal(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        role: str | None = None,
        batch: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Computes the signal of many texts.

        Args:
            texts: One text a row, n of them.
            pairs: The second text of each row, or None.
            role: ``query``, ``document`` or ``text``; the folder's own if None.
            batch: Rows of a batch; the folder's own if None: 32, or 1 where activations are
                quantised while running. Those share a scale over a batch, so that single rows are
                what a row's answer does not depend on its neighbours with.
            progress: Called with the number of rows done, every thousand or so.

        Returns:
            (n, W) float32, class logits or embeddings.
        """
        step = len(texts) if progress is None else 1024
        parts = [np.empty((0, int(self.settings["width"])), dtype=np.float32)]
        for start in range(0, len(texts), step or 1):
            some = texts[start : start + step]
            second = None if pairs is None else pairs[start : start + step]
            parts.append(self.predictor.signal(some, second, role, batch))
            if progress is not None:
                progress(len(some))
        return np.concatenate(parts)

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Answers texts as predict.py prints them; see `Predictor.predict`."""
        return self.predictor.predict(texts, pairs, **options)

    def generate(self, texts: Sequence[str], **_: Any) -> Any:
        """Refused: a model that gives classes or embeddings writes nothing."""
        raise RunError(
            f"This export gives {self.settings['signal']} and writes no texts; use .predict."
        )

    def run(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
        """Texts, as one batch, to classes, to embeddings, or with an index to top answers."""
        values = self.model_only(texts, pairs)()
        if self.index is None and self.settings["signal"] == "embedding":
            return values
        return decide(values, self.index)

    def model_only(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> Callable[[], NDArray[np.float32]]:
        """Tokenises, and returns the run of the graph on that one batch."""
        batch = self.predictor.collate(self.predictor.tokenize(texts, pairs, self.role))
        return lambda: self.predictor.forward(batch)


def load(
    folder: str | Path,
    *,
    threads: int | None = None,
    role: str | None = None,
    index: str | None = None,
    providers: Sequence[str] | None = None,
) -> Any:
    """Loads an exported folder of any format; also a loader for `paredown.eval.timing`.

    Args:
        folder: The folder of an export.
        threads: Threads of its runtime; all cores if None.
        role: Whose prompt `Runner.run` puts in front; the folder's own if None.
        index: A ``.npy`` file of embeddings (N, d): `Runner.run` then gives top answers.
        providers: ONNX Runtime's execution providers; the CPU's if None.

    Returns:
        A `Runner`, a `TextRunner` of a model that writes texts, or what the loader of a registered
        format gives. All have ``predict``, ``generate`` and ``signal``.

    Raises:
        RunError: If the folder cannot be run; the message says what is wrong with it.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    entry = _format_of(folder, settings)
    if entry.loader not in (None, RUNNER):
        module, _, function = str(entry.loader).partition(":")
        return getattr(importlib.import_module(module), function)(folder, threads=threads)
    if providers is not None and entry.runtime != "onnxruntime":
        raise RunError(f"providers are ONNX Runtime's, and '{folder}' runs on {entry.runtime}.")
    if entry.runtime != "pytorch":
        check_prepared(folder, settings)
    opened: Any
    try:
        if entry.runtime == "pytorch":
            from .torch_runner import open_checkpoint

            opened = open_checkpoint(folder, settings, threads)
        elif entry.runtime == "onnxruntime":
            require_files(folder, ("tokenizer.json", "model.onnx"))
            writes = settings["signal"] == "token_distribution"
            kind: Any = Generator if writes else Predictor
            opened = kind(folder, threads=threads, providers=providers)
            _check_ports(folder, settings, *_onnx_ports(opened.session))
        else:
            opened = _other(folder, settings, entry.runtime, threads)
    except PredictError as error:
        raise RunError(str(error)) from error
    if settings["signal"] == "token_distribution":
        return TextRunner(opened, entry.runtime)
    return Runner(opened, role, load_index(index), entry.runtime)


def _format_of(folder: Path, settings: Mapping[str, Any]) -> Format:
    """The entry of a folder's format; its packages are there, and it is for such models."""
    name = settings["format"]
    if name not in FORMATS:
        raise RunError(
            f"'{folder}' is of the format '{name}', which is not known here."
            f"{nearest(name, FORMATS)} Known: {', '.join(sorted(FORMATS))}. Upgrade paredown, or "
            "import the module that registers it first (--import)."
        )
    entry = FORMATS[name]
    if settings["signal"] not in entry.signals:
        raise RunError(
            f"paredown.json of '{folder}' says format {name} and signal {settings['signal']}, "
            "which do not go together; export the model again."
        )
    missing = [module for module in entry.runs_on if importlib.util.find_spec(module) is None]
    if missing:
        install = (
            f"pip install 'paredown[{entry.extra}]'" if entry.extra else "pip install paredown"
        )
        raise RunError(f"Format '{name}' runs on {', '.join(missing)}: {install}")
    return entry


def _other(folder: Path, settings: dict[str, Any], runtime: str, threads: int | None) -> Any:
    """A folder's model on OpenVINO or ExecuTorch."""
    from .sessions import ExecutorchSession, OpenVinoSession, Prepared, generator_of

    session: OpenVinoSession | ExecutorchSession
    if runtime == "executorch":
        session = ExecutorchSession(folder, settings["inputs"], threads)
    else:
        session = OpenVinoSession(folder, threads)
        _check_ports(folder, settings, session.inputs, session.outputs)
    if settings["signal"] == "token_distribution":
        require_files(folder, ("tokenizer.json",))
        return generator_of(folder, session)
    return Prepared(folder, settings, session)


def _onnx_ports(session: Any) -> tuple[list[str], dict[str, Any]]:
    outputs = {port.name: port.shape[-1] if port.shape else None for port in session.get_outputs()}
    return [port.name for port in session.get_inputs()], outputs


def _check_ports(
    folder: Path, settings: Mapping[str, Any], inputs: Sequence[str], outputs: Mapping[str, Any]
) -> None:
    """Makes sure that a graph takes and gives what the settings say.

    Raises:
        RunError: If it is another graph than the settings are of.
    """
    if settings["signal"] == "token_distribution":
        parts = [f"{i}.{p}" for i in range(settings["layers"]) for p in ("key", "value")]
        wanted = {"input_ids", "attention_mask", "position_ids"}
        wanted |= {f"past_key_values.{part}" for part in parts}
        given, output = {"logits", *(f"present.{part}" for part in parts)}, "logits"
    else:
        wanted, output = set(settings["inputs"]), settings["output"]
        given = {output}
    width = outputs.get(output)
    if set(inputs) != wanted or not given <= set(outputs):
        raise RunError(
            f"The graph of '{folder}' is another than paredown.json says: it takes "
            f"{_few(inputs)} and gives {_few(outputs)}; {_few(sorted(wanted))} and "
            f"{_few(sorted(given))} are expected. Export the model again."
        )
    if isinstance(width, int) and width != settings["width"]:
        raise RunError(
            f"The graph of '{folder}' gives {width} numbers a row, and paredown.json says "
            f"{settings['width']}; export the model again."
        )


def _few(names: Any) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (" …" if len(listed) > 4 else "")
