"""The search for a student that meets a budget: successive halving over shapes.

Shapes are proposed from importance curves, cut and scored; the best are trained briefly from the
recorded teacher outputs and scored again, fewer each time and longer (Jamieson and Talwalkar,
arXiv 1502.07943). What looks best as cut is often not what can be healed best, so several are
healed before one is chosen. Every step is an ordinary stage; no teacher is asked for any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..eval.errors import RecipeError
from .frontier import Frontier
from .prospects import Prospects
from .schema import Prune, Recipe
from .shapes import Cost
from .stage_prune import prune_stage
from .stage_speed import times_of, timing_stage, with_time
from .store import Folder, Store
from .trial_pool import TrialPool
from .trials import Judge, Origin, Trial, best_of

HEALED = 6
"""Shapes that are healed in the first round; each further round halves them."""
SHARES = (0.08, 0.2)
"""Share of the full training's steps in each round of healing."""


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
        RunError: If none keeps what the budget asks to be kept; the nearest is named.
    """
    assert recipe.budget is not None
    if store.world.size > 1 and (recipe.budget.processes or 1) > 1:
        raise RecipeError(
            f"budget.processes {recipe.budget.processes}: the {store.world.size} processes of this "
            "launch share each trial already. Leave it out, or launch one process."
        )
    vocabulary = recipe.prune.vocabulary if recipe.prune else None
    uncut = recipe.model_copy(update={"prune": Prune(vocabulary="task") if vocabulary else None})
    base = store.ensure(prune_stage(uncut, data, teacher, captured), "uncut")
    origin = Origin(recipe, data, teacher, captured, base)
    prospects = Prospects(origin, store, fixed_sizes(recipe.prune))
    with TrialPool(recipe.budget.processes or 1) as pool:
        judge = Judge(origin, store, pool)
        if recipe.budget.bound[0] == "retain":
            winner, trials, healed = Frontier(judge, prospects).walk()
        else:
            winner, trials, healed = _halve(judge, prospects)
    if not winner.shape.sizes:
        raise RecipeError("The budget allows the whole model: leave `budget` out.")
    prune = judge.trials.prune(winner.shape)
    told = _told(recipe, prospects, winner, trials, healed)
    return Found(recipe.model_copy(update={"prune": prune}), base, told)


def fixed_sizes(prune: Prune | None) -> dict[str, int]:
    """Axis → size, for those that the recipe says and the search leaves alone."""
    found = {}
    for axis in ("layers", "intermediate_size", "hidden_size"):
        size = getattr(prune, axis, None)
        if size is not None:
            found[axis] = len(size) if isinstance(size, list) else int(size)
    return found


def _halve(judge: Judge, prospects: Prospects) -> tuple[Trial, list[Trial], list[float]]:
    """Successive halving: the winner, all trials, and the share of training of each round."""
    recipe, budget = judge.origin.recipe, judge.origin.recipe.budget
    assert budget is not None
    kind, bound = budget.bound
    trials = [Trial(shape) for shape in prospects.within(kind, bound, budget.shapes)]
    judge.score(trials, 0.0)
    shares = SHARES if recipe.distill else ()
    if budget.timed:
        _time(judge, trials)
    alive = best_of(trials, HEALED if shares else 1, kind)
    for share in shares:
        judge.score(alive, share)
        alive = best_of(alive, max(1, len(alive) // 2), kind)
    return best_of(alive, 1, kind)[0], trials, [0.0, *shares]


def _time(judge: Judge, trials: Sequence[Trial]) -> None:
    """Times the saved checkpoints of trials, and drops those over the budget if others are not."""
    recipe = judge.origin.recipe
    assert recipe.budget is not None
    kind, bound = recipe.budget.bound
    cuts = [judge.trials.cut(trial.shape) for trial in trials]
    stage = timing_stage(recipe, judge.origin.data, cuts)
    timed = times_of(judge.store.ensure(stage, "timing").path)
    for trial, found in zip(trials, timed, strict=True):
        empty = Cost(0.0, 0.0, 0.0)
        trial.timed = with_time(empty, kind, found["ms"], recipe.evaluate.usd_per_hour).told()[kind]
    if any(trial.timed is not None and trial.timed <= bound for trial in trials):
        for trial in trials:
            if trial.timed is not None and trial.timed > bound:
                trial.out = f"{kind} {trial.timed:.3g} as saved"


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
