"""The search for a student that meets a budget: successive halving over shapes.

Shapes are proposed from importance curves, cut and scored; the best are trained briefly from the
recorded teacher outputs and scored again, fewer each time and longer (Jamieson and Talwalkar,
arXiv 1502.07943). What looks best as cut is often not what can be healed best, so several are
healed before one is chosen. Every step is an ordinary stage; no teacher is asked for any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..eval.data import Data
from ..eval.errors import RecipeError
from ..eval.models import load_model
from ..eval.tasks import get_task
from .schema import Prune, Recipe
from .shapes import Cost, Costs, Shape, grid, proposals
from .stage_distill import distill_stage
from .stage_importance import curves_of, importance_stage
from .stage_prune import prune_stage
from .stage_score import Score, score_of, score_stage, texts_of
from .stage_teacher import CHECKPOINT, model_options, teacher_checkpoint
from .store import Folder, Store
from .task_rows import streams, training_streams

HEALED = 6
"""Shapes that are healed in the first round; each further round halves them."""
SHARES = (0.08, 0.2)
"""Share of the full training's steps in each round of healing."""
TRIAL_ROWS = 256
"""Calibration rows of a trial's cut, at most; the winner's are the recipe's own."""
LENGTHS = 2000
"""Rows whose tokens the FLOPs are predicted on."""


@dataclass
class Trial:
    """One shape and what was found of it.

    Attributes:
        shape: Its sizes, and what was predicted.
        scores: As cut, then after each round of healing.
        out: Why it was dropped; None while it is in.
    """

    shape: Shape
    scores: list[Score] = field(default_factory=list)
    out: str | None = None

    @property
    def agreement(self) -> float:
        """Mean agreement with the teacher, as last scored."""
        return float(self.scores[-1].agreement.mean())


class Search:
    """Finds the sizes that a recipe's budget leaves open.

    Args:
        recipe: Resolved, with a budget.
        store: Makes the stages.
        data: Stage.
        teacher: Stage.
        captured: Stage.
    """

    def __init__(
        self, recipe: Recipe, store: Store, data: Folder, teacher: Folder, captured: Folder
    ) -> None:
        assert recipe.budget is not None
        self.recipe, self.store = recipe, store
        self.data, self.teacher, self.captured = data, teacher, captured
        self.prune = recipe.prune or Prune()
        self.kind, self.share = recipe.budget.bound
        self.fixed = _fixed(self.prune)
        self.trials: list[Trial] = []
        self.made: dict[str, Folder] = {}

    def run(self) -> tuple[Recipe, Folder, dict[str, Any]]:
        """Searches.

        Returns:
            The recipe with the sizes found, the stage of the uncut student that they are cut from,
            and the search for the report.
        """
        base = self._base()
        shapes, whole = self._propose(base)
        for shape in shapes:
            trial = Trial(shape)
            self.trials.append(trial)
            cut = self.store.ensure(self._cut(shape, base), shape.name)
            trial.scores.append(self._score(cut, shape))
        alive = self._best(self.trials, HEALED)
        for share in SHARES:
            for trial in alive:
                cut = self.store.ensure(self._cut(trial.shape, base), trial.shape.name)
                stage = distill_stage(
                    self._healing(share), self.data, self.teacher, self.captured, cut,
                    seed=self.recipe.seed,
                )  # fmt: skip
                healed = self.store.ensure(stage, f"{trial.shape.name}, {share:.0%}")
                trial.scores.append(self._score(healed, trial.shape))
            alive = self._best(alive, max(1, len(alive) // 2))
        winner = self._best(alive, 1)[0]
        sizes = self.prune.model_dump() | winner.shape.sizes
        if "layers" in self.fixed and isinstance(self.prune.layers, list):
            sizes["layers"] = self.prune.layers
        if not winner.shape.sizes:
            raise RecipeError("The budget allows the whole model: leave `budget` out.")
        found = self.recipe.model_copy(update={"prune": Prune(**sizes)})
        return found, base, self._told(winner, whole)

    def _base(self) -> Folder:
        """The uncut student, its vocabulary cut already if the recipe cuts it."""
        prune = Prune(vocabulary="task") if self.prune.vocabulary else None
        recipe = self.recipe.model_copy(update={"prune": prune})
        return self.store.ensure(
            prune_stage(recipe, self.data, self.teacher, self.captured), "uncut"
        )

    def _propose(self, base: Folder) -> tuple[list[Shape], Cost]:
        task = get_task(self.recipe.task)
        rows = Data.open(self.data.path)
        model = load_model(base.path / CHECKPOINT, task)
        checkpoint = teacher_checkpoint(self.teacher.path)
        if checkpoint is None:
            raise RecipeError(
                "A budget is a share of the teacher's cost, and recorded outputs do not say what "
                "the teacher costs: give the sizes under `prune` instead."
            )
        texts = self.recipe.distill.texts if self.recipe.distill else None
        stream = training_streams(streams(rows, task), task, texts)[0]
        draw = np.random.default_rng(0).permutation(len(stream.texts))[:LENGTHS]
        some, pairs = stream.read(np.sort(draw).tolist())
        tokens = model.tokenize(some, pairs, stream.role)
        whole = load_model(checkpoint, task, **model_options(self.recipe.teacher))
        before = whole.tokenize(some, pairs, stream.role)
        teacher = Costs(whole, _lengths(before)).of({})
        # trials are scored on validation rows, whose texts may be longer or shorter
        words, others = texts_of(rows, task, "validation", None)
        role = "text" if task.signal == "class_logits" else "query"
        self.scored = Costs(whole, _lengths(whole.tokenize(words, others, role))).of({})
        costs = Costs(model, _lengths(tokens))
        step = self.prune.round_to or (64 if teacher.parameters > 100_000_000 else 8)
        sizes = grid(costs.anatomy, model.config, self.fixed, step)
        importance = self.store.ensure(
            importance_stage(self.recipe, self.data, base, self.fixed), "curves"
        )
        assert self.recipe.budget is not None
        found = proposals(
            costs, sizes, curves_of(importance.path), (self.kind, self.share), teacher,
            self.recipe.budget.shapes,
        )  # fmt: skip
        return found, teacher

    def _cut(self, shape: Shape, base: Folder) -> Any:
        rows = min(self.prune.calibration_rows, TRIAL_ROWS)
        sizes: dict[str, Any] = dict(shape.sizes)
        if isinstance(self.prune.layers, list):
            sizes["layers"] = self.prune.layers
        prune = self.prune.model_copy(update={**sizes, "calibration_rows": rows})
        recipe = self.recipe.model_copy(update={"prune": prune, "budget": None})
        return prune_stage(recipe, self.data, self.teacher, self.captured, source=base)

    def _score(self, model: Folder, shape: Shape) -> Score:
        stage = score_stage(self.recipe, self.data, self.captured, model)
        return score_of(self.store.ensure(stage, shape.name).path)

    def _healing(self, share: float) -> Recipe:
        """The recipe with a training of a share of its steps."""
        distill = self.recipe.distill
        assert distill is not None
        rows = Data.open(self.data.path)
        task = get_task(self.recipe.task)
        chosen = training_streams(streams(rows, task), task, distill.texts)
        count = sum(len(stream.texts) for stream in chosen)
        steps = max(10, round(share * distill.epochs * count / distill.batch_size))
        arguments = distill.arguments | {"max_steps": steps, "eval_strategy": "no"}
        arguments["load_best_model_at_end"] = False
        shorter = distill.model_copy(update={"arguments": arguments})
        return self.recipe.model_copy(update={"distill": shorter})

    def _best(self, trials: Sequence[Trial], count: int) -> list[Trial]:
        """The trials that agree most with the teacher; the others are dropped.

        A trial whose metric on the validation rows is far below the best one's goes first. Among
        trials that cannot be told apart from the best by their rows, the cheapest is first.
        """
        alive = [trial for trial in trials if trial.out is None]
        best = max(alive, key=lambda trial: trial.agreement)
        labelled = [trial.scores[-1].metric for trial in alive]
        worst = max(labelled) - VETO * abs(max(labelled))
        for trial in alive:
            if trial.scores[-1].metric < worst and trial is not best:
                trial.out = f"metric {trial.scores[-1].metric:.3f} on validation rows"
        alive = [trial for trial in alive if trial.out is None]
        near = [trial for trial in alive if _alike(trial, best)]
        near.sort(key=lambda trial: (getattr(trial.shape.cost, self.kind), -trial.agreement))
        rest = [trial for trial in alive if trial not in near]
        rest.sort(key=lambda trial: -trial.agreement)
        if count > len(near):
            near.sort(key=lambda trial: -trial.agreement)
        kept = [*near, *rest][:count]
        for trial in alive:
            if trial not in kept:
                trial.out = f"agreement {trial.agreement:.4f}"
        return kept

    def _told(self, winner: Trial, whole: Cost) -> dict[str, Any]:
        """The search as the report has it."""
        trials = []
        for trial in self.trials:
            last = trial.scores[-1]
            measured = Cost(last.flops, last.parameters, last.bytes)
            trials.append(
                {
                    "name": trial.shape.name,
                    "sizes": trial.shape.sizes,
                    "predicted": vars(trial.shape.cost.over(whole)),
                    "measured": vars(measured.over(self.scored)),
                    "agreement": [float(s.agreement.mean()) for s in trial.scores],
                    "metric": [s.metric for s in trial.scores],
                    "retention": [s.retention for s in trial.scores],
                    "chosen": trial is winner,
                    "out": trial.out,
                }
            )
        return {
            "budget": {self.kind: self.share},
            "healed": [0.0, *SHARES],
            "chosen": winner.shape.name,
            "rows": len(winner.scores[0].agreement),
            "trials": trials,
        }


VETO = 0.1
"""A trial whose metric on validation rows is lower than the best by this share is dropped."""


def _alike(trial: Trial, best: Trial) -> bool:
    """Whether the rows cannot tell two trials apart (one standard error of the difference)."""
    apart = best.scores[-1].agreement - trial.scores[-1].agreement
    return bool(apart.mean() <= apart.std() / max(1.0, len(apart)) ** 0.5)


def _fixed(prune: Prune) -> dict[str, int]:
    found = {}
    for axis in ("layers", "intermediate_size", "hidden_size"):
        size = getattr(prune, axis)
        if size is not None:
            found[axis] = len(size) if isinstance(size, list) else int(size)
    return found


def _lengths(rows: Sequence[dict[str, list[int]]]) -> Any:
    return np.asarray([len(row["input_ids"]) for row in rows], dtype=np.int64)
