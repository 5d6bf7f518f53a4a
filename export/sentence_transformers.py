"""A retrieval student as a sentence-transformers folder, loaded again and compared."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.checkpoints import save_model
from ..eval.cost import artefact_bytes
from ..eval.errors import RunError
from ..eval.models import load_model
from .noise import into_log
from .safetensors import checkpoint_settings
from .settings import write_settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..eval.tasks import Task

logger = logging.getLogger(__name__)
TOLERANCE = 1e-5
CHECK_TEXTS = ("a", "a short text", "a longer text, with commas, numbers (12.5) and so on")


def export_sentence_transformers(
    checkpoint: Path, task: Task, out: Path, *, sample_texts: Sequence[str] = ()
) -> dict[str, Any]:
    """Writes the folder and loads it with `SentenceTransformer` where that is installed.

    Args:
        checkpoint: A retrieval checkpoint; it gets the sentence-transformers files if it has none.
        task: A task whose signal is an embedding.
        out: The folder to write.
        sample_texts: Real texts for the comparison.

    Returns:
        Facts: ``bytes``, ``seconds``, ``max_difference``, ``rows_compared`` and ``verified_with``,
        the library that loaded the folder again.

    Raises:
        RunError: If what is loaded again gives other embeddings.
    """
    started = time.perf_counter()
    model = load_model(checkpoint, task)
    if (checkpoint / "modules.json").exists():
        shutil.copytree(checkpoint, out, dirs_exist_ok=True)
    else:
        save_model(model, out)
    write_settings(out, checkpoint_settings(model, task, "sentence-transformers", None))
    texts = [*CHECK_TEXTS, *[text for text in sample_texts if text.strip()][:64]]
    with into_log(logger):
        if importlib.util.find_spec("sentence_transformers") is not None:
            verified_with = "sentence-transformers"
            found = _encode(out, texts)
        else:
            verified_with = "paredown"
            found = load_model(out, task).predict(texts)
    expected = model.predict(texts)
    difference = float(np.abs(expected - found).max()) if found.shape == expected.shape else np.inf
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise RunError(
            f"Loaded with {verified_with}, the folder gives other embeddings (by {difference:.2g}; "
            f"at most {TOLERANCE:.0e} is expected)."
        )
    return {
        "bytes": artefact_bytes(out),
        "seconds": round(time.perf_counter() - started, 2),
        "max_difference": difference,
        "rows_compared": len(texts),
        "verified_with": verified_with,
    }


def _encode(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(loaded.encode(texts, show_progress_bar=False), dtype=np.float32)
