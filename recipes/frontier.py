"""The smallest student that keeps a stated share of the teacher's quality.

Shapes are proposed at falling shares of the teacher's FLOPs. Among those of one share the best
healed one stands for it; it is trained in full, and its share holds if the lower end of the paired
interval on the validation rows does. What holds is found by bisection.
"""

from __future__ import annotations

from ..eval.errors import RunError
from .prospects import Prospects
from .trials import WHOLE, Judge, Trial, best_of

LARGEST, SMALLEST = 2**-0.5, 1 / 64
"""Shares of the teacher's FLOPs between which a student is looked for."""
STEP = 2**-0.5
"""From one share to the next."""
ROUNDING = 1e-9
"""Of a bound and of what is compared with it."""
HEALED = 0.08
"""Share of the training that decides among the shapes of one level."""


class Frontier:
    """The levels of a search, and what is known of each.

    Args:
        judge: Makes and scores trials.
        prospects: The shapes there are.
    """

    def __init__(self, judge: Judge, prospects: Prospects) -> None:
        recipe = judge.origin.recipe
        assert recipe.budget is not None
        self.judge, self.prospects = judge, prospects
        self.retain = recipe.budget.bound[1]
        self.levels = self._levels(recipe.budget.shapes)
        self.trials = [trial for level in self.levels for trial in level]
        self.share = HEALED if recipe.distill else 0.0

    def walk(self) -> tuple[Trial, list[Trial], list[float]]:
        """Bisects.

        Returns:
            The winner, all trials, and the share of training of each round.

        Raises:
            RunError: If no level holds; the nearest is named.
        """
        self.judge.score(self.trials, 0.0)
        first, last = 0, len(self.levels)
        found: Trial | None = None
        tried: list[Trial] = []
        while first < last:
            middle = (first + last) // 2
            tried.append(self._stand_in(self.levels[middle]))
            if self._holds(tried[-1]):
                found, first = tried[-1], middle + 1
            else:
                last = middle
        if found is None:
            raise self._unmet(tried)
        for trial in self.trials:
            if trial is not found and trial.out is None:
                trial.out = "another share of the FLOPs"
        healed = [0.0, self.share, WHOLE] if self.share else [0.0, 0.0]
        return found, self.trials, healed

    def _levels(self, count: int) -> list[list[Trial]]:
        """Shapes at falling shares of the FLOPs, none of them twice; about ``count`` in all."""
        bounds = []
        bound, least = LARGEST, max(SMALLEST, self.prospects.smallest.flops)
        while bound >= least:
            bounds.append(bound)
            bound *= STEP
        each = max(2, -(-count // max(1, len(bounds))))
        seen: set[str] = set()
        levels = []
        for bound in bounds or [1.0]:
            shapes = self.prospects.within("flops", bound, each)
            new = [Trial(shape) for shape in shapes if shape.name not in seen]
            seen |= {shape.name for shape in shapes}
            levels += [new] if new else []
        return levels

    def _stand_in(self, level: list[Trial]) -> Trial:
        """The best of a level as the run itself would make it: trained in full, if it is at all."""
        if self.share:
            self.judge.score(level, self.share)
        best = best_of(level, 1, "flops")[0]
        self.judge.score([best], WHOLE)
        return best

    def _holds(self, trial: Trial) -> bool:
        interval = trial.scores[-1].interval
        holds = interval is not None and interval[0] >= self.retain - ROUNDING
        if not holds:
            low = "nothing" if interval is None else f"{interval[0]:.4f}"
            trial.out = f"lower end {low} on validation rows"
        return holds

    def _unmet(self, tried: list[Trial]) -> RunError:
        nearest = max(tried, key=lambda trial: (trial.scores[-1].interval or (0.0, 0.0))[0])
        low = (nearest.scores[-1].interval or (0.0, 0.0))[0]
        share = nearest.shape.cost.over(self.prospects.teacher).flops
        return RunError(
            f"budget.retain {self.retain:g}: no shape keeps that at up to {LARGEST:.0%} of the "
            f"teacher's FLOPs. The nearest is {nearest.shape.name}, at {share:.3g} of them: the "
            f"lower end of its interval on the validation rows is {low:.4f}. Ask for less, give "
            "more validation rows (`data.validation`), or train longer (`distill.epochs`)."
        )
