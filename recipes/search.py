"""The search for a student that meets a budget: successive halving over shapes.

Shapes are proposed from importance curves, cut and scored; the best are trained briefly from the
recorded teacher outputs and scored again, fewer each time and longer (Jamieson and Talwalkar,
arXiv 1502.07943). What looks best as cut is often not what can be healed best, so several are
healed before one is chosen. Every step is an ordinary stage; no teacher is asked for any of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..eval.errors import RecipeError, RunError
from .frontier import Frontier
from .prospects import Prospects
from .schema import Prune, Recipe
from .shapes import Cost, Shape
from .stage_prune import prune_stage
from .stage_speed import times_of, timing_stage, with_time
from .store import Folder, Store
from .trial_pool import TrialPool
from .trials import Judge, Origin, Trial, best_of

HEALED = 6
"""Shapes that are healed in the first round; each further round halves them."""
SHARES = (0.08, 0.2)
"""Share of the full training's steps in each round of healing."""
MARGIN = 0.01
"""Share of a budget of FLOPs that is left for rows unlike those it is predicted from."""


@dataclass(frozen=True)
class Found:
    """What a search leaves.

    Attributes:
        recipe: With the sizes found.
        base: The stage of the uncut student that they are cut from.
        told: The search for the report.
    """

    recipe: Recipe
    base: Folder
    told: dict[str, Any]


def search(recipe: Recipe, store: Store, data: Folder, teacher: Folder, captured: Folder) -> Found:
    """Finds the sizes that a recipe's budget leaves open.

    Args:
        recipe: Resolved, with a budget.
        store: Makes the stages.
        data: Stage.
        teacher: Stage.
        captured: Stage.

    Raises:
        RecipeError: If no shape is within the budget; the nearest is named.
        RunError: If none keeps what the budget asks to be kept, or is as fast as it asks; the
            nearest is named.
    """
    assert recipe.budget is not None
    vocabulary = recipe.prune.vocabulary if recipe.prune else None
    uncut = recipe.model_copy(update={"prune": Prune(vocabulary="task") if vocabulary else None})
    base = store.ensure(prune_stage(uncut, data, teacher, captured), "uncut")
    origin = Origin(recipe, data, teacher, captured, base)
    prospects = Prospects(origin, store)
    with TrialPool(recipe.budget.processes or 1) as pool:
        judge = Judge(origin, store, pool)
        if recipe.budget.bound[0] == "retain":
            winner, trials, healed = Frontier(judge, prospects).walk()
        else:
            winner, trials, healed = _halve(judge, prospects)
    prune = judge.trials.prune(winner.shape)
    told = _told(recipe, prospects, winner, trials, healed)
    return Found(recipe.model_copy(update={"prune": prune}), base, told)


def _halve(judge: Judge, prospects: Prospects) -> tuple[Trial, list[Trial], list[float]]:
    """Successive halving: the winner, all trials, and the share of training of each round."""
    recipe, budget = judge.origin.recipe, judge.origin.recipe.budget
    assert budget is not None
    kind, bound = budget.bound
    trials = [Trial(shape) for shape in _within(prospects, kind, bound, budget.shapes)]
    judge.score(trials, 0.0)
    shares = SHARES if recipe.distill else ()
    if budget.timed:
        _time(judge, trials)
    alive = best_of(trials, HEALED if shares else 1, kind)
    for share in shares:
        judge.score(alive, share)
        alive = best_of(alive, max(1, len(alive) // 2), kind)
    return best_of(alive, 1, kind)[0], trials, [0.0, *shares]


def _within(prospects: Prospects, kind: str, bound: float, count: int) -> list[Shape]:
    """Shapes within a bound, on rows that are a little unlike those it is predicted from too.

    A share of FLOPs hangs on the rows' lengths; a bound that is met on validation rows to the last
    digit is missed on test rows half the time.
    """
    if kind == "flops":
        with contextlib.suppress(RecipeError):  # only the bound itself may leave a shape
            return prospects.within(kind, bound * (1 - MARGIN), count)
    return prospects.within(kind, bound, count)


def _time(judge: Judge, trials: Sequence[Trial]) -> None:
    """Times the saved checkpoints of trials, and drops those over the budget.

    Raises:
        RunError: If all are.
    """
    recipe = judge.origin.recipe
    assert recipe.budget is not None
    kind, bound = recipe.budget.bound
    cuts = [judge.trials.cut(trial.shape) for trial in trials]
    stage = timing_stage(recipe, judge.origin.data, cuts)
    timed = times_of(judge.store.ensure(stage, "timing").path)
    for trial, found in zip(trials, timed, strict=True):
        empty = Cost(0.0, 0.0, 0.0)
        trial.timed = with_time(empty, kind, found["ms"], recipe.evaluate.usd_per_hour).told()[kind]
        if trial.timed > bound:
            trial.out = f"{kind} {trial.timed:.3g} as saved"
    if all(trial.out for trial in trials):
        nearest = min(trials, key=lambda trial: trial.timed or 0.0)
        raise RunError(
            f"budget.{kind} {bound:g}: every shape that was tried takes more as saved. The nearest "
            f"is {nearest.shape.name}, with {nearest.timed:.3g}. Ask for that or more."
        )


def _told(
    recipe: Recipe,
    prospects: Prospects,
    winner: Trial,
    trials: Sequence[Trial],
    healed: Sequence[float],
) -> dict[str, Any]:
    """The search as the report has it."""
    assert recipe.budget is not None
    kind, bound = recipe.budget.bound
    rows = []
    for trial in trials:
        last = trial.scores[-1]
        measured = Cost(last.flops, last.parameters, last.bytes).over(prospects.scored).told()
        rows.append(
            {
                "name": trial.shape.name,
                "sizes": trial.shape.sizes,
                "predicted": trial.shape.cost.over(prospects.teacher).told(),
                "measured": measured | ({kind: trial.timed} if trial.timed is not None else {}),
                "agreement": [float(score.agreement.mean()) for score in trial.scores],
                "metric": [score.metric for score in trial.scores],
                "retention": [score.retention for score in trial.scores],
                "interval": last.interval,
                "chosen": trial is winner,
                "out": trial.out,
            }
        )
    return {
        "budget": {kind: bound},
        "healed": list(healed),
        "chosen": winner.shape.name,
        "rows": len(winner.scores[0].agreement),
        "trials": rows,
    }
