"""The terms of a training loss: which losses, with which weights, between which layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..eval.errors import RecipeError, nearest
from .losses import Loss, get_loss


@dataclass(frozen=True)
class WeightedLoss:
    """A term of the training loss.

    Attributes:
        loss: From the table.
        weight: Its factor, > 0.
        options: Its options, defaults filled in.
    """

    loss: Loss
    weight: float
    options: dict[str, Any] = field(default_factory=dict)


def weigh(losses: Mapping[str, Any], signal: str) -> list[WeightedLoss]:
    """Turns ``{name: weight}`` or ``{name: {weight: …, option: …}}`` into terms.

    Raises:
        RecipeError: For an unknown loss or option, a weight that is not above 0, or no loss.
    """
    terms = []
    for name, given in losses.items():
        loss = get_loss(name, signal)
        options = dict(given) if isinstance(given, Mapping) else {"weight": given}
        weight = float(options.pop("weight", 1.0))
        for option, value in options.items():
            if option not in loss.options:
                raise RecipeError(
                    f"The loss '{name}' has no option '{option}'.{nearest(option, loss.options)} "
                    f"It has: {', '.join(loss.options) or 'none'}."
                )
            known = loss.choices.get(option)
            if known is not None and value not in known:
                raise RecipeError(
                    f"distill.losses.{name}.{option} is one of {', '.join(known)}, not {value!r}."
                )
            if option == "temperature" and not value > 0:
                raise RecipeError(f"distill.losses.{name}.temperature must be > 0, not {value}.")
        if not weight > 0:
            raise RecipeError(f"The loss '{name}' has weight {weight}: leave it out instead.")
        terms.append(WeightedLoss(loss, weight, {**loss.options, **options}))
    if not terms:
        raise RecipeError("distill.losses is empty: name at least one loss.")
    return terms


def layer_map(student_layers: int, teacher_layers: int, given: Any) -> dict[int, int]:
    """Which teacher layer each student layer learns from (numbers from 1; 0 is the embeddings).

    Args:
        student_layers: Layers of the student.
        teacher_layers: Layers of the teacher.
        given: ``uniform``, ``last``, or a map {student layer: teacher layer}.

    Raises:
        RecipeError: If a layer does not exist.
    """
    if given == "uniform":
        return {i: round(i * teacher_layers / student_layers) for i in range(1, student_layers + 1)}
    if given == "last":
        return {student_layers: teacher_layers}
    if not isinstance(given, Mapping):
        raise RecipeError(f"hidden_mse.layers is 'uniform', 'last' or a map, not {given!r}.")
    out = {int(k): int(v) for k, v in given.items()}
    for s, t in out.items():
        if not (0 <= s <= student_layers and 0 <= t <= teacher_layers):
            raise RecipeError(
                f"hidden_mse.layers maps student layer {s} to teacher layer {t}; "
                f"there are {student_layers} and {teacher_layers}."
            )
    return out
