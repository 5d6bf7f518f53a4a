"""Which layers of teacher and student a loss on hidden states compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..distill.losses import LOSSES
from ..distill.terms import layer_map
from ..eval.checkpoints import find_checkpoint
from ..eval.errors import RecipeError
from .schema import Recipe


def layer_count(config: dict[str, Any]) -> int:
    """Layers of a checkpoint, by the names its config may use."""
    for name in ("num_hidden_layers", "n_layers", "n_layer", "num_layers"):
        if name in config:
            return int(config[name])
    raise RecipeError("hidden_mse: the config does not say how many layers there are.")


def hidden_layers(recipe: Recipe, teacher: Path | None) -> dict[int, int]:
    """For a loss on hidden states: student layer → teacher layer; empty where none asks."""
    losses = recipe.distill.losses if recipe.distill else {}
    asked = [name for name in losses if LOSSES[name].uses == "hidden"]
    if not asked:
        return {}
    if teacher is None:
        raise RecipeError(f"distill.losses.{asked[0]}: recorded outputs have no hidden states.")

    def layers_in(folder: Path) -> int:
        return layer_count(json.loads((folder / "config.json").read_text(encoding="utf-8")))

    of_teacher = of_student = layers_in(teacher)
    if recipe.student is not None:
        of_student = layers_in(find_checkpoint(recipe.student.model, recipe.student.revision))
    cut = recipe.prune.layers if recipe.prune else None
    if cut is not None:
        of_student = len(cut) if isinstance(cut, list) else cut
    options = losses[asked[0]].options
    return layer_map(of_student, of_teacher, options.get("layers", "uniform"))
