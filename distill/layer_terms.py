"""Losses on the token vectors of a language model's layers, from recorded states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..eval.errors import RecipeError

HIDDEN_MSE = "hidden_mse"


@dataclass(frozen=True)
class HiddenTerm:
    """The term `hidden_mse` of a loss.

    Attributes:
        weight: Its factor, above 0.

    Raises:
        RecipeError: For a weight that is not.
    """

    weight: float = 1.0
    name: ClassVar[str] = HIDDEN_MSE
    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise RecipeError(
                f"distill.losses.{HIDDEN_MSE}.weight must be above 0, not {self.weight}."
            )


def recorded_states(batch: Mapping[str, Any], layers: Mapping[int, int]) -> dict[int, Tensor]:
    """The recorded states of a batch, (N, H), by the teacher's layer.

    Raises:
        RecipeError: If no layers are compared, or one was not recorded.
    """
    found = {t: batch.get(f"teacher_hidden_{t}") for t in layers.values()}
    there = {t: states for t, states in found.items() if states is not None}
    if not there or len(there) < len(found):
        raise RecipeError(
            f"distill.losses.{HIDDEN_MSE} compares with recorded hidden states, and none are there "
            f"for layers {sorted(found.keys() - there.keys())}; record them."
        )
    return there


def recorded_mse(
    student: Mapping[int, Tensor],
    teacher: Mapping[int, Tensor],
    layers: Mapping[int, int],
    divisor: Tensor | float | None = None,
) -> Tensor:
    """Σ_tokens mean_width (s − t)² / tokens, the mean over layers: `losses.hidden_mse` unpadded.

    Args:
        student: By its own layer, the vectors that learned tokens are predicted from, projected to
            the teacher's width, (N, H).
        teacher: By the teacher's layer, what was recorded there, (N, H).
        layers: Student layer → teacher layer.
        divisor: What the sum is divided by instead of N.

    Returns:
        A float32 scalar; 0 without tokens.
    """
    values = [
        (student[s].float() - teacher[t].float()).square().mean(-1).sum() for s, t in layers.items()
    ]
    count = len(next(iter(student.values())))
    return torch.stack(values).mean() / (max(count, 1) if divisor is None else divisor)
