"""What shapes of a student would cost beside the teacher, and which of them a bound allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.cost import artefact_bytes
from ..eval.data import Data
from ..eval.errors import RecipeError
from ..eval.models import TextModel, load_model
from ..eval.tasks import get_task
from ..prune import anatomy_of
from ..prune.sizes import LARGE, checked_sizes
from .schema import Prune
from .shapes import Cost, Costs, Shape, grid, proposals
from .stage_importance import curves_of, importance_stage
from .stage_score import texts_of
from .stage_speed import Clock, speed_stage, times_of
from .stage_teacher import CHECKPOINT, model_options, teacher_checkpoint
from .task_rows import streams, training_streams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..distill.capture import Stream
    from .store import Store
    from .trials import Origin

LENGTHS = 2000
"""Rows whose tokens the FLOPs are predicted on."""


class Prospects:
    """The shapes that can be cut from a student, and what each would cost.

    Attributes:
        teacher: What the teacher costs, on training rows.
        scored: What it costs on the validation rows, which trials are scored on.

    Args:
        origin: The uncut student and the stages before it.
        store: Makes the importance curves, and times shapes where the budget asks for it.

    Raises:
        RecipeError: If a size that is fixed cannot be.
    """

    def __init__(self, origin: Origin, store: Store) -> None:
        recipe = origin.recipe
        assert recipe.budget is not None
        self.origin, self.store = origin, store
        self.task = get_task(recipe.task)
        self.rows = Data.open(origin.data.path)
        options = model_options(recipe.student or recipe.teacher)
        model = load_model(origin.base.path / CHECKPOINT, self.task, **options)
        parameters = sum(p.numel() for p in model.parameters())
        prune = recipe.prune or Prune()
        fixed = fixed_sizes(prune, model, parameters)
        checkpoint = self._teacher()
        whole = load_model(checkpoint, self.task, **model_options(recipe.teacher))
        texts = recipe.distill.texts if recipe.distill else None
        stream = training_streams(streams(self.rows, self.task), self.task, texts)[0]
        stored = {"bytes": float(artefact_bytes(checkpoint))}
        self.teacher = replace(Costs(whole, _drawn(stream, whole)).of({}), **stored)
        self.scored = replace(Costs(whole, self._validation(whole)).of({}), **stored)
        clock = self._clock(model, fixed) if recipe.budget.timed else None
        self.costs = Costs(model, _drawn(stream, model), clock, fixed)
        step = prune.round_to or (64 if parameters > LARGE else 8)
        self.sizes = grid(self.costs.anatomy, model.config, fixed, step)
        curves = store.ensure(importance_stage(recipe, origin.data, origin.base, fixed), "curves")
        self.curves = curves_of(curves.path)

    def within(self, kind: str, bound: float, count: int) -> list[Shape]:
        """The shapes that a bound allows and the importance curves think best of.

        Args:
            kind: A field of `Cost`.
            bound: A share of the teacher's; the value itself of a time or a price.
            count: At most so many.

        Raises:
            RecipeError: If there is none; the nearest is named.
        """
        return proposals(self.costs, self.sizes, self.curves, (kind, bound), self.teacher, count)

    @property
    def smallest(self) -> Cost:
        """What the smallest shape costs, as shares of the teacher's."""
        sizes = {axis: every[0] for axis, every in self.sizes.items()}
        return self.costs.of(sizes).over(self.teacher)

    def _teacher(self) -> Any:
        found = teacher_checkpoint(self.origin.teacher.path)
        if found is None:
            raise RecipeError(
                "A budget is a share of the teacher's cost, and recorded outputs do not say what "
                "the teacher costs: give the sizes under `prune` instead."
            )
        return found

    def _validation(self, model: TextModel) -> NDArray[np.int64]:
        """Tokens of the validation rows; their texts may be longer than those of training rows."""
        texts, pairs = texts_of(self.rows, self.task, "validation", None)
        role = "text" if self.task.signal == "class_logits" else "query"
        return _lengths(model.tokenize(texts, pairs, role))

    def _clock(self, model: TextModel, fixed: dict[str, int]) -> Clock:
        recipe = self.origin.recipe
        assert recipe.budget is not None
        stage = speed_stage(recipe, self.origin.data, self.origin.base, fixed)
        timed = times_of(self.store.ensure(stage, "speed").path)
        costs = Costs(model, self._validation(model), fixed=fixed)
        kind = recipe.budget.bound[0]
        return Clock(timed, costs, kind, recipe.evaluate.usd_per_hour)


def fixed_sizes(prune: Prune, model: TextModel, parameters: int) -> dict[str, int]:
    """Axis → size, for those that the recipe says and the search leaves alone, as they are cut.

    Raises:
        RecipeError: If one cannot be.
    """
    anatomy, asked = anatomy_of(model.config), prune.sizes
    sizes = checked_sizes(anatomy, model.config, parameters, asked, prune.round_to)
    found = {axis: getattr(sizes, axis) for axis in asked}
    return {axis: len(s) if isinstance(s, list) else int(s) for axis, s in found.items()}


def _drawn(stream: Stream, model: TextModel) -> NDArray[np.int64]:
    """Tokens of some rows of a stream."""
    draw = np.random.default_rng(0).permutation(len(stream.texts))[:LENGTHS]
    texts, pairs = stream.read(np.sort(draw).tolist())
    return _lengths(model.tokenize(texts, pairs, stream.role))


def _lengths(rows: Sequence[dict[str, list[int]]]) -> NDArray[np.int64]:
    return np.asarray([len(row["input_ids"]) for row in rows], dtype=np.int64)
