"""The stock checkpoint as an export: what transformers loads, with a page that says so."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.checkpoints import save_model
from ..eval.cost import artefact_bytes
from ..eval.errors import RunError
from ..eval.models import TextModel, load_model
from .folder import Answering, common_settings
from .settings import write_settings

if TYPE_CHECKING:
    from ..eval.tasks import Task

FORMAT = "safetensors"
LIBRARIES = ("transformers", "torch", "safetensors", "tokenizers")
CHECK_TEXTS = ("a", "a short text", "a longer text, with commas, numbers (12.5) and so on")

README = """# {name}

{what} as stock transformers has it: `{head}.from_pretrained(".")` loads it, with
`AutoTokenizer.from_pretrained(".")` beside it. `paredown.json` says what it was made for.
"""
KINDS = {
    "class_logits": "A classifier",
    "embedding": "An embedding model",
    "token_distribution": "A language model",
}


def export_safetensors(
    checkpoint: Path,
    task: Task,
    out: Path,
    *,
    sample_texts: Sequence[str] = (),
    answering: Answering | None = None,
) -> dict[str, Any]:
    """Saves the checkpoint anew, loads it as stock transformers does, and compares the two.

    Args:
        checkpoint: A stock checkpoint.
        task: Says which Auto class loads it.
        out: The folder to write.
        sample_texts: Real texts for the comparison.
        answering: How a language model's prompts are written, which is noted.

    Returns:
        Facts: ``precision``, ``bytes``, ``seconds``, ``max_difference`` (0) and ``rows_compared``.

    Raises:
        RunError: If what is loaded again is not the same.
    """
    started = time.perf_counter()
    model = load_model(checkpoint, task)
    save_model(model, out)
    settings = checkpoint_settings(model, task, FORMAT, answering)
    write_settings(out, settings)
    about = {"name": out.name, "what": KINDS[model.signal], "head": task.head}
    (out / "README.md").write_text(README.format(**about), encoding="utf-8")
    texts = [*CHECK_TEXTS, *[text for text in sample_texts if text.strip()][:64]]
    length = model.encoding.max_length if model.signal == "token_distribution" else None
    found = load_model(out, task, max_length=length).predict(texts)
    expected = model.predict(texts)
    if not np.array_equal(expected, found):
        difference = np.abs(expected - found).max() if found.shape == expected.shape else np.inf
        raise RunError(
            f"Loaded again, the checkpoint answers otherwise (by {difference:.2g}); export it once "
            "more, and report the architecture "
            f"({model.config.model_type}) if that stays so."
        )
    return {
        "precision": "fp32",
        "bytes": artefact_bytes(out),
        "seconds": round(time.perf_counter() - started, 2),
        "max_difference": 0.0,
        "rows_compared": len(texts),
    }


def checkpoint_settings(
    model: TextModel, task: Task, fmt: str, answering: Answering | None
) -> Mapping[str, Any]:
    """``paredown.json`` of a folder whose own files say how a text is prepared."""
    settings = common_settings(model, task, fmt, "fp32", LIBRARIES)
    if model.signal != "token_distribution":
        return settings
    how = answering or Answering()
    return settings | {
        "max_new_tokens": how.max_new_tokens, "form": how.form,
        "template_arguments": dict(how.template),
    }  # fmt: skip
