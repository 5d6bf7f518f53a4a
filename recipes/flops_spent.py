"""FLOPs of recording and training, by formula, for the stages' records.

A training step costs three forward passes: backwards, the gradients of activations and of weights
each take as many operations as the way forward (Kaplan et al., arXiv 2001.08361, section 2.1).
Where the formula does not hold there is None: an architecture without one, adapters on frozen
weights, a student that writes while it is trained, a teacher that writes while it is recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.cost import ARCHITECTURES, row_flops

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ..distill.examples import Examples
    from ..distill.rows import DistillRows
    from ..eval.models import TextModel

STEP = 3
"""Forward passes that a step of training costs."""


def forward_flops(model: TextModel, lengths: ArrayLike) -> float | None:
    """One pass over rows of so many tokens, each alone and unpadded."""
    if model.config.model_type not in ARCHITECTURES:
        return None
    return float(row_flops(model, lengths).sum())


def recording_flops(model: TextModel, items: int, tokens: int) -> float | None:
    """One pass over ``items`` rows of ``tokens`` tokens together, taken at their mean length."""
    each = forward_flops(model, [round(tokens / max(1, items))])
    return None if each is None else each * items


def language_flops(model: TextModel, examples: Examples) -> float | None:
    """One pass over examples, the head over the vocabulary on the learned tokens alone."""
    layers = forward_flops(model, examples.lengths)  # and the head on one token a row
    if layers is None:
        return None
    hidden = ARCHITECTURES[model.config.model_type](model.config).hidden
    further = int(examples.learned.sum()) - len(examples)
    return layers + 2.0 * hidden * int(model.config.vocab_size) * further


def training_flops(
    one_pass: float | None, rows: int, steps: int, batch_size: int, arguments: dict[str, Any]
) -> float | None:
    """A training of so many optimizer steps.

    Args:
        one_pass: Forward FLOPs of all rows once.
        rows: How many they are.
        steps: Of the optimizer.
        batch_size: Rows a step, over all processes.
        arguments: The recipe's; gradient accumulation makes a step of several batches.
    """
    if one_pass is None or not rows:
        return None
    batch = batch_size * int(arguments.get("gradient_accumulation_steps", 1))
    epochs = steps / np.ceil(rows / batch)
    return float(STEP * one_pass * epochs)


def pass_over(model: TextModel, rows: DistillRows) -> float | None:
    """One pass of a student over what it is trained on, the texts that answer rows included."""
    found = forward_flops(model, rows.lengths)
    if found is None or rows.documents is None:
        return found
    answers = forward_flops(model, rows.documents.lengths)
    return None if answers is None else found + answers
