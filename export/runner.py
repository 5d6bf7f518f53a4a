"""Runs an exported folder: the same code as its predict.py, as a library and as a timed engine.

Imports no torch, so that an engine's memory and cold start are those of a deployment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.errors import RunError
from ..eval.timing_worker import decide, load_index
from .predict import PredictError, Predictor

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Runner:
    """An exported model.

    Attributes:
        predictor: What predict.py uses as well.
        role: Whose prompt is put in front of a text, for `run` and `model_only`.
        index: Embeddings (N, d) that `run` finds top answers in, or None.
    """

    runtime = "onnxruntime"

    def __init__(
        self,
        predictor: Predictor,
        role: str | None = None,
        index: NDArray[np.float32] | None = None,
    ) -> None:
        self.predictor = predictor
        self.role = role
        self.index = index
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
            batch: Rows of a batch; 32, or 1 for int8, if None. int8 activations share a scale
                over a batch, so that single rows are what a row's answer does not depend on its
                neighbours with.
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
) -> Runner:
    """Loads an exported ONNX folder; also a loader for `paredown.eval.timing`.

    Args:
        folder: The folder of an export.
        threads: Threads of ONNX Runtime; all cores if None.
        role: Whose prompt `run` puts in front; the folder's own if None.
        index: A ``.npy`` file of embeddings (N, d): `run` then gives top answers.
        providers: ONNX Runtime's execution providers; the CPU's if None.

    Raises:
        RunError: If the folder cannot be run.
    """
    try:
        predictor = Predictor(folder, threads=threads, providers=providers)
    except PredictError as error:
        raise RunError(str(error)) from error
    return Runner(predictor, role, load_index(index))
