"""`--smoke` for a sweep: its points on one tiny teacher, with sizes that this one has room for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..eval.errors import RecipeError
from .consistency import BOUNDS
from .grid import Point
from .schema import Recipe
from .smoke import HEADS, HIDDEN, SMOKE_BOUNDS, SMOKE_ROUNDS, WIDTH, smoke_recipe, write_stand_ins

ROOM = {
    "prune.intermediate_size": (WIDTH, 8),
    "prune.hidden_size": (HIDDEN, 8),
    "prune.attention_heads": (HEADS, 1),
    "prune.kv_heads": (HEADS // 2, 1),
}
"""What the tiny teacher has of an axis, and the step between sizes of it."""
SHARES = (0.5, 0.8)
"""Between which the shares of a tiny budget lie."""
DEEPEST = 48
STOOD_IN = ("data", "student", "smoke")


def smoke_grid(points: Sequence[Point], folder: Path) -> list[Recipe]:
    """The recipes of a grid's points, on stand-ins that all of them share.

    Layers are those that are asked for, and the tiny teacher has more. Other sizes and bounds are
    tiny ones in the same order, and all else is what a smoke run makes of it, with the axes' own
    values.

    Args:
        points: With resolved recipes.
        folder: Where the stand-ins are written.

    Raises:
        RecipeError: If an axis has no effect on stand-ins, or more sizes than they have room for.
    """
    for key in points[0].values:
        _check(key)
    depth = _depth(points)
    write_stand_ins(points[0].recipe, folder, depth)
    found = []
    for point in points:
        values = smoke_recipe(point.recipe, folder, depth).model_dump(mode="json")
        for key in point.values:
            _set(values, key, _tiny(key, point.values[key], [p.values[key] for p in points]))
        found.append(Recipe.model_validate(values))
    return found


def _check(key: str) -> None:
    section, _, rest = key.partition(".")
    if section in STOOD_IN or (section == "teacher" and not rest.startswith("finetune")):
        raise RecipeError(
            f"--grid {key}: a smoke run has a stand-in for that, whatever the recipe says. Leave "
            "the axis out, or --smoke."
        )


def _depth(points: Sequence[Point]) -> int | None:
    """Layers of the tiny teacher: more than any point keeps; None where none says how many."""
    most = rounds = 0
    for point in points:
        prune = point.recipe.prune
        wanted = prune.layers if prune else None
        most = max(most, wanted if isinstance(wanted, int) else max(wanted or [-1]) + 1)
        rounds = max(rounds, prune.rounds if prune else 1)
    return min(DEEPEST, most + min(rounds, SMOKE_ROUNDS)) if most else None


def _tiny(key: str, value: Any, every: Sequence[Any]) -> Any:
    """A value that stand-ins have room for: its rank among the axis's, in their steps."""
    section, _, kind = key.partition(".")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if key not in ROOM and section != "budget":
        return value
    ranks = sorted({other for other in every if isinstance(other, int | float)})
    rank = ranks.index(value)
    if key in ROOM:
        whole, step = ROOM[key]
        if len(ranks) >= whole // step:
            raise RecipeError(
                f"--grid {key}: the tiny model of --smoke has room for {whole // step - 1} sizes, "
                f"got {len(ranks)}."
            )
        return step * (rank + 1)
    part = (rank + 1) / len(ranks)
    if kind in SMOKE_BOUNDS:
        return SMOKE_BOUNDS[kind] * part
    return SHARES[0] + (SHARES[1] - SHARES[0]) * part if kind in BOUNDS else value


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    inner = values
    *sections, last = key.split(".")
    for section in sections:
        if inner.get(section) is None:
            inner[section] = {}
        inner = inner[section]
    inner[last] = copy.deepcopy(value)
