"""Stage ``importance``: how far the student gets from itself as one axis alone is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..eval.data import Data
from ..eval.models import load_model
from ..eval.tasks import get_task
from ..prune import anatomy_of, prune_model
from .schema import Recipe
from .shapes import grid
from .stage_prune import importance_loss, sample
from .stage_teacher import CHECKPOINT
from .store import Context, Folder, Stage
from .task_rows import streams, training_streams

REPORT = "importance.json"
ROWS = 192
POINTS = 6
"""Sizes of an axis that are tried, at most; between them a curve is straight."""


def importance_stage(recipe: Recipe, data: Folder, base: Folder, fixed: dict[str, int]) -> Stage:
    """Cuts the uncut student along one axis after the other, to several sizes, and fits it.

    Args:
        recipe: For seed, precision and the texts that are trained on.
        data: Training rows.
        base: The stage with the uncut student.
        fixed: Axes that are not searched, and their sizes.
    """
    criterion = recipe.prune.importance if recipe.prune else None
    settings: dict[str, Any] = {
        "task": recipe.task,
        "texts": recipe.distill.texts if recipe.distill else None,
        "seed": recipe.seed,
        "precision": recipe.capture.precision,
        "compensate": recipe.prune.compensate if recipe.prune else True,
        "importance": criterion,
        "fixed": fixed,
        "rows": ROWS,
        "points": POINTS,
    }

    def work(context: Context) -> None:
        task = get_task(recipe.task)
        model = load_model(context.inputs["base"] / CHECKPOINT, task)
        found = streams(Data.open(context.inputs["data"]), task)
        chosen = training_streams(found, task, settings["texts"])
        rows = sample(chosen, 2 * ROWS, recipe.seed)
        anatomy = anatomy_of(model.config)
        sizes = grid(anatomy, model.config, fixed, 8)
        wanted = [
            (axis, size)
            for axis, every in sizes.items()
            if axis not in fixed
            for size in _spread(every[:-1])
        ]
        curves: dict[str, list[tuple[int, float]]] = {
            axis: [(every[-1], 0.0)] for axis, every in sizes.items() if axis not in fixed
        }
        for done, (axis, size) in enumerate(wanted):
            context.bar.update(done, len(wanted), f"{axis} {size}")
            pruned = prune_model(
                model,
                [row[0] for row in rows],
                roles=[row[2] for row in rows],
                pairs=[row[1] or "" for row in rows] if rows[0][1] is not None else None,
                compensate=settings["compensate"],
                importance=criterion,
                loss=importance_loss(criterion),
                calibration_rows=ROWS,
                round_to=1,
                seed=recipe.seed,
                precision=recipe.capture.precision,
                **{axis: size},  # type: ignore[arg-type]
            )
            distance = pruned.facts["distance"]
            curves[axis].append((size, min(distance["as_cut"], distance.get("fitted", 1e9))))
        found_curves = {axis: sorted(points) for axis, points in curves.items()}
        (context.out / REPORT).write_text(json.dumps(found_curves, indent=1), encoding="utf-8")

    return Stage("importance", "stage_importance", settings, {"data": data, "base": base}, work)


def _spread(sizes: list[int]) -> list[int]:
    """Some of the sizes, closer together where they are small."""
    if len(sizes) <= POINTS:
        return sizes
    places = {round((len(sizes) - 1) * (i / (POINTS - 1)) ** 1.5) for i in range(POINTS)}
    return [sizes[place] for place in sorted(places)]


def curves_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Axis → (size, distance), the size rising."""
    found = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return {axis: [(int(s), float(d)) for s, d in points] for axis, points in found.items()}
