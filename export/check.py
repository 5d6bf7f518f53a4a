"""Whether an export answers as the checkpoint it came from: numbers, tokens and all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.errors import RunError
from .predict import PredictError, Predictor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..eval.dialogues import Dialogues
    from ..eval.models import TextModel
    from .generator import Generator

TOLERANCE = 1e-4
CHECK_TEXTS = ("a", "a short text", "a longer text, with commas, numbers (12.5) and so on " * 3)
COMPARED = 64
"""Real texts that classes and embeddings are compared on."""
ANSWERED, ANSWER_TOKENS = 8, 24
"""Prompts that answers are compared on, and their tokens at most."""


def compare(model: TextModel, predictor: Predictor, sample_texts: Sequence[str]) -> dict[str, Any]:
    """Compares an export with PyTorch on single rows, padded batches and, for logits, pairs.

    Args:
        model: The checkpoint.
        predictor: The export.
        sample_texts: Real texts; the first 64 are used.

    Returns:
        ``max_difference``, ``tolerance``, ``mean_cosine``, ``rows_compared``, and for class logits
        ``same_class``, the share of rows with the same one.

    Raises:
        RunError: If the export tokenises otherwise, or gives numbers that are none.
    """
    long = "word " * model.encoding.max_length  # more tokens than the model takes
    real = [text for text in sample_texts if text.strip()][:COMPARED]
    texts = [*CHECK_TEXTS, *real, long]
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


def compare_answers(
    model: TextModel, generator: Generator, dialogues: Dialogues, prompts: Sequence[str]
) -> dict[str, Any]:
    """Compares what an export writes with greedy PyTorch, token by token.

    Args:
        model: The checkpoint, a language model.
        generator: The export.
        dialogues: How the checkpoint's prompts are written.
        prompts: Real ones, as the data's ``prompt`` column has them; the first 8 are used.

    Returns:
        ``max_difference``, ``tolerance``, ``mean_cosine`` (of the logits behind the prompts),
        ``rows_compared``, and ``same_answer``, the share of prompts answered in the same tokens;
        an answer that parts where two tokens are as likely to within the tolerance is one too.

    Raises:
        RunError: If the export tokenises otherwise, or gives numbers that are none.
    """
    from ..eval.generating import generate

    ids = [dialogues.prompt_ids(prompt) for prompt in prompts[:ANSWERED]] or [[0]]
    try:
        written = [generator.prompt_ids(prompt) for prompt in prompts[:ANSWERED]] or [[0]]
    except PredictError as error:
        raise RunError(f"The export does not take a training prompt: {error}.") from error
    if written != ids:
        raise RunError(
            "The export writes prompts in other tokens than the checkpoint: its tokenizer.json or "
            "its chat template does not say all that the checkpoint does."
        )
    expected = np.concatenate([next_logits(model, one) for one in ids])
    facts = _differences(expected, generator.signal(ids), model.signal)
    longest = min(ANSWER_TOKENS, int(generator.settings["max_new_tokens"]))
    there = generate(model, ids, max_new_tokens=longest)
    here = generator.answers(ids, max_new_tokens=longest)
    same = [
        _same_answer(model, prompt, a.ids, b.ids, facts["tolerance"])
        for prompt, a, b in zip(ids, there, here, strict=True)
    ]
    return facts | {"same_answer": float(np.mean(same))}


def refuse_difference(what: str, facts: dict[str, Any], model: TextModel, versions: Any) -> None:
    """Raises where a full-precision export is not the checkpoint.

    Raises:
        RunError: With the difference, and what to report.
    """
    report = f"report the architecture ({model.config.model_type}) and {versions}."
    if not facts["max_difference"] <= facts["tolerance"]:
        raise RunError(
            f"The {what} model answers differently from PyTorch (by "
            f"{facts['max_difference']:.2g}, expected at most {facts['tolerance']:.1e}); {report}"
        )
    if facts.get("same_answer", 1.0) < 1:
        raise RunError(
            f"The {what} model writes other tokens than PyTorch on "
            f"{1 - facts['same_answer']:.0%} of the prompts; {report}"
        )


def _same_answer(
    model: TextModel, prompt: list[int], expected: list[int], found: list[int], tolerance: float
) -> bool:
    if expected == found:
        return True
    pairs = zip(expected, found, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if at is None:
        return False  # one ends where the other goes on
    logits = next_logits(model, prompt + expected[:at])[0]
    return bool(abs(logits[expected[at]] - logits[found[at]]) <= 2 * tolerance)


def next_logits(model: TextModel, ids: list[int]) -> NDArray[np.float32]:
    """The logits of the token behind some ids, (1, V)."""
    import torch

    with torch.inference_mode():
        given = torch.tensor([ids])
        values = model(input_ids=given, attention_mask=torch.ones_like(given)).values
    return np.asarray(values.float().numpy(), dtype=np.float32)


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
