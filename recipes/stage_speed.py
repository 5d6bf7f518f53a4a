"""Stage ``speed``: how long a row takes, of random models that stand for shapes, or of checkpoints.

Weights do not change how long a model takes, so shapes are timed before anything is trained. What
lies between the timed ones is predicted from layers and FLOPs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.checkpoints import save_model
from ..eval.cost import usd_per_million
from ..eval.data import Data
from ..eval.hardware import environment, usable_cores
from ..eval.models import load_model
from ..eval.tasks import get_task
from ..eval.timing import Engine, measure
from ..export import FORMATS, export_model
from .schema import Recipe
from .shapes import Cost, Costs, grid
from .stage_score import texts_of
from .stage_teacher import CHECKPOINT
from .store import Context, Folder, Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..eval.tasks import Task

REPORT = "speed.json"
SHAPES = 10
"""Shapes that are timed before any is proposed."""
ROWS = 100
GROUP = 5
"""Engines that take turns: each is a process with its own copy of the libraries."""
SAMPLE = 16
SCENARIOS = {"latency_ms": "single_stream", "usd_per_million": "offline"}


def speed_stage(recipe: Recipe, data: Folder, base: Folder, fixed: Mapping[str, int]) -> Stage:
    """Times random models of several shapes on the budget's runtime.

    Args:
        recipe: With a budget of time or price.
        data: Its validation rows are run.
        base: The stage with the uncut student.
        fixed: Axes that are not searched, and their sizes.
    """
    settings = _settings(recipe) | {"fixed": dict(fixed), "shapes": SHAPES}

    def work(context: Context) -> None:
        task = get_task(recipe.task)
        model = load_model(context.inputs["base"] / CHECKPOINT, task)
        rows = _rows(Data.open(context.inputs["data"]), task)
        costs = Costs(model, rows.lengths(model), fixed=fixed)
        sizes = spread(grid(costs.anatomy, model.config, fixed, 8), costs)
        folders = []
        for number, one in enumerate(sizes):
            context.bar.update(number, len(sizes), "random models")
            folders.append(context.out / "shapes" / str(number))
            save_model(costs.random_model(one), folders[-1])
        found = _timed(folders, rows, task, settings, context)
        told = [
            {"sizes": one, "features": features(costs, one), "ms": ms}
            for one, ms in zip(sizes, found, strict=True)
        ]
        _tell(context.out, told)

    return Stage("speed", "stage_speed", settings, {"data": data, "base": base}, work)


def timing_stage(recipe: Recipe, data: Folder, models: Sequence[Folder]) -> Stage:
    """Times saved checkpoints, in turns, on the budget's runtime.

    Args:
        recipe: With a budget of time or price.
        data: Its validation rows are run.
        models: Stages that each hold a checkpoint.
    """
    settings = _settings(recipe)

    def work(context: Context) -> None:
        task = get_task(recipe.task)
        rows = _rows(Data.open(context.inputs["data"]), task)
        folders = [context.inputs[str(number)] / CHECKPOINT for number in range(len(models))]
        found = _timed(folders, rows, task, settings, context)
        _tell(context.out, [{"ms": ms} for ms in found])

    inputs = {"data": data} | {str(number): model for number, model in enumerate(models)}
    return Stage("timing", "stage_speed", settings, inputs, work)


def _settings(recipe: Recipe) -> dict[str, Any]:
    assert recipe.budget is not None
    return {
        "task": recipe.task,
        "runtime": recipe.budget.runtime or "pytorch",
        "scenario": SCENARIOS[recipe.budget.bound[0]],
        "rows": ROWS,
        "machine": [usable_cores(), environment()["processor"]],  # a time is of one machine
    }


@dataclass(frozen=True)
class _Timed:
    """Rows that are timed: texts, their second texts or None, and whose prompt they get."""

    texts: list[str]
    pairs: list[str] | None
    role: str

    def lengths(self, model: Any) -> NDArray[np.int64]:
        """Tokens of each row."""
        tokens = model.tokenize(self.texts, self.pairs, self.role)
        return np.asarray([len(row["input_ids"]) for row in tokens], dtype=np.int64)


def _rows(data: Data, task: Task) -> _Timed:
    texts, pairs = texts_of(data, task, "validation", None)
    chosen = np.random.default_rng(0).permutation(len(texts))[:ROWS]
    some = None if pairs is None else [pairs[i] for i in chosen]
    role = "text" if task.signal == "class_logits" else "query"
    return _Timed([texts[i] for i in chosen], some, role)


def _timed(
    folders: Sequence[Path], rows: _Timed, task: Task, settings: dict[str, Any], context: Context
) -> list[float]:
    """Milliseconds of a row, for each checkpoint."""
    engines = []
    for number, folder in enumerate(folders):
        context.bar.update(number, len(folders), "engines")
        engines.append(_engine(folder, number, rows, task, settings["runtime"], context.out))
    single = settings["scenario"] == "single_stream"
    found: list[float] = []
    for start in range(0, len(engines), GROUP):
        context.bar.update(start, len(engines), "timing")
        for taken in measure(
            engines[start : start + GROUP], rows.texts, rows.pairs, runs=settings["rows"],
            offline_rows=settings["rows"], scenarios=[settings["scenario"]], together=True,
        ):  # fmt: skip
            found.append(taken["p50"] if single else 1e3 / taken["examples_per_s"])
    return found


def _engine(folder: Path, number: int, rows: _Timed, task: Task, runtime: str, out: Path) -> Engine:
    """A checkpoint on a runtime; exported where the runtime asks for that."""
    name = str(number)
    if runtime == "pytorch":
        return Engine(name, str(folder), options={"task": task.plain(), "role": rows.role})
    made = out / "exports" / name
    export_model(folder, task, runtime, made, sample_texts=rows.texts[:SAMPLE])
    return Engine(name, str(made), str(FORMATS[runtime].loader), {"role": rows.role})


def _tell(out: Path, found: list[dict[str, Any]]) -> None:
    """Writes what was found; the models have served."""
    for name in ("shapes", "exports"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / REPORT).write_text(json.dumps(found, indent=1), encoding="utf-8")


def times_of(folder: Path) -> list[dict[str, Any]]:
    """What a stage of this module found, one entry a model."""
    found: list[dict[str, Any]] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return found


def spread(sizes: Mapping[str, Sequence[int]], costs: Costs) -> list[dict[str, int]]:
    """Shapes to time, from the smallest to the largest: ends and middle of each axis."""
    axes = [axis for axis in sizes if len(sizes[axis]) > 1] or list(sizes)
    found: list[dict[str, int]] = [{axis: every[0] for axis, every in sizes.items()}]
    for axis in axes:
        every = sizes[axis]
        ends = [every[0], every[len(every) // 2], every[-1]]
        found = [one | {axis: size} for one in found for size in dict.fromkeys(ends)]
    found.sort(key=lambda one: costs.of(one).flops)
    places = np.unique(np.linspace(0, len(found) - 1, SHAPES).round().astype(int))
    return [found[place] for place in places]


def features(costs: Costs, sizes: Mapping[str, int]) -> list[float]:
    """What a time is predicted from: one, layers, layers × hidden size, FLOPs."""
    config, anatomy = costs.config_of(sizes), costs.anatomy
    layers, hidden = anatomy.size(config, "layers"), anatomy.size(config, "hidden_size")
    return [1.0, float(layers), float(layers * hidden), costs.of(sizes).flops]


class Clock:
    """Predicts what a shape takes, from the shapes that were timed.

    The time is a sum, with factors of at least 0, of `features`; they are fitted by non-negative
    least squares to relative errors.

    Args:
        timed: From `times_of` a speed stage.
        costs: On rows such as were timed.
        kind: ``latency_ms`` or ``usd_per_million``.
        usd_per_hour: Price of the core it ran on.
    """

    def __init__(
        self,
        timed: Sequence[Mapping[str, Any]],
        costs: Costs,
        kind: str,
        usd_per_hour: float | None = None,
    ) -> None:
        from scipy.optimize import nnls

        self.costs, self.kind, self.usd_per_hour = costs, kind, usd_per_hour
        times = np.asarray([one["ms"] for one in timed])
        table = np.asarray([one["features"] for one in timed]) / times[:, None]
        scale = np.abs(table).max(0)
        self.factors = nnls(table / scale, np.ones(len(times)))[0] / scale

    def __call__(self, sizes: Mapping[str, int], cost: Cost) -> Cost:
        """Adds the predicted time, or price, to a cost."""
        ms = float(np.asarray(features(self.costs, sizes)) @ self.factors)
        return with_time(cost, self.kind, ms, self.usd_per_hour)


def with_time(cost: Cost, kind: str, ms: float, usd_per_hour: float | None) -> Cost:
    """Adds a time to a cost, or the price that follows from it.

    Args:
        cost: Of a shape.
        kind: ``latency_ms`` or ``usd_per_million``.
        ms: Milliseconds of a row.
        usd_per_hour: Price of a core.
    """
    if kind == "latency_ms":
        return replace(cost, latency_ms=ms)
    assert usd_per_hour is not None  # the recipe was checked
    return replace(cost, usd_per_million=usd_per_million(1e3 / ms, usd_per_hour))
