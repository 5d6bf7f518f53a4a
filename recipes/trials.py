"""Trials of a search: shapes that are cut, trained for a while and scored, in ordinary stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..eval.data import Data
from ..eval.tasks import get_task
from .extensions import import_extensions
from .progress import Display
from .schedule import Ensure, healing, student_stages
from .schema import Prune, Recipe
from .shapes import Shape
from .stage_distill import distill_stage
from .stage_prune import prune_stage
from .stage_score import Score, score_of, score_stage
from .store import Folder, NotMade, Store
from .trial_pool import Made, TrialPool, WorkersDied
from .world import World

TRIAL_ROWS = 256
"""Calibration rows of a trial's cut, at most; the winner's are the recipe's own."""
WHOLE = 1.0
"""The share of a training that is all of it."""


@dataclass
class Trial:
    """One shape and what was found of it.

    Attributes:
        shape: Its sizes, and what was predicted.
        scores: As cut, then after each training.
        out: Why it was dropped; None while it is in.
        timed: The time or price as saved, where a budget bounds it.
    """

    shape: Shape
    scores: list[Score] = field(default_factory=list)
    out: str | None = None
    timed: float | None = None

    @property
    def agreement(self) -> float:
        """Mean agreement with the teacher, as last scored."""
        return float(self.scores[-1].agreement.mean())


@dataclass(frozen=True)
class Origin:
    """What all trials of a search are made from: the recipe and the stages before them."""

    recipe: Recipe
    data: Folder
    teacher: Folder
    captured: Folder
    base: Folder
    """The uncut student, its vocabulary cut already."""


class Trials:
    """Makes and scores trials, in ordinary stages.

    Args:
        origin: What they are made from.
        ensure: `Store.ensure`, or `Store.found` to look whether all is there.
    """

    def __init__(self, origin: Origin, ensure: Ensure) -> None:
        self.origin, self.ensure = origin, ensure

    def prune(self, shape: Shape) -> Prune:
        """The recipe's cut with a shape's sizes."""
        prune = self.origin.recipe.prune or Prune()
        sizes = prune.model_dump() | shape.sizes
        if isinstance(prune.layers, list):
            sizes["layers"] = prune.layers
        return Prune.model_validate(sizes)

    def cut(self, shape: Shape) -> Folder:
        """The shape as cut, on a trial's few calibration rows."""
        at, prune = self.origin, self.prune(shape)
        rows = min(prune.calibration_rows, TRIAL_ROWS)
        prune = prune.model_copy(update={"calibration_rows": rows})
        recipe = at.recipe.model_copy(update={"prune": prune, "budget": None})
        stage = prune_stage(recipe, at.data, at.teacher, at.captured, source=at.base)
        return self.ensure(stage, shape.name)

    def made(self, shape: Shape, share: float) -> Folder:
        """The shape after a share of the recipe's training: none of it is as cut.

        All of it is what the run itself does for a shape that is chosen.
        """
        at, recipe = self.origin, self.origin.recipe
        name = f"{shape.name}, {share:.0%} trained"
        if share == WHOLE:
            recipe = recipe.model_copy(update={"prune": self.prune(shape)})
            stages = student_stages(
                recipe, self.ensure, at.data, at.teacher, at.captured, source=at.base, trial=name
            )
            cut = stages["prune"]
        else:
            cut = self.cut(shape)
        if share == 0 or recipe.distill is None:
            return cut
        if share != WHOLE:
            recipe = healing(recipe, Data.open(at.data.path), get_task(recipe.task), share)
        stage = distill_stage(recipe, at.data, at.teacher, at.captured, cut, seed=recipe.seed)
        return self.ensure(stage, name)

    def score(self, shape: Shape, share: float) -> Score:
        """Makes a shape and scores it."""
        at = self.origin
        stage = score_stage(at.recipe, at.data, at.captured, self.made(shape, share))
        return score_of(self.ensure(stage, shape.name).path)


class Judge:
    """Scores trials, as many at the same time as there are processes.

    Args:
        origin: What the trials are made from.
        store: Makes the stages.
        pool: Makes them beforehand where several are wanted.
    """

    def __init__(self, origin: Origin, store: Store, pool: TrialPool) -> None:
        self.origin, self.store, self.pool = origin, store, pool
        self.trials = Trials(origin, store.ensure)

    def score(self, trials: Sequence[Trial], share: float) -> None:
        """Adds a score to each trial, after a share of the recipe's training."""
        if self.pool.processes > 1 and share < WHOLE:
            self._make_beside([trial for trial in trials if not self._there(trial, share)], share)
        for trial in trials:
            trial.scores.append(self.trials.score(trial.shape, share))

    def _there(self, trial: Trial, share: float) -> bool:
        try:
            Trials(self.origin, self.store.found).score(trial.shape, share)
        except NotMade:
            return False
        return True

    def _make_beside(self, trials: Sequence[Trial], share: float) -> None:
        if not trials:
            return
        root, imports = self.store.folder.parent, self.store.imports
        tasks = [(self.origin, root, imports, trial.shape, share) for trial in trials]
        try:
            with self.store.display.task("trials") as bar:
                for done, (number, made) in enumerate(self.pool.run(make_trial, tasks), 1):
                    for stage, seconds in made:
                        self.store.note(stage, seconds, trials[number].shape.name)
                    bar.update(done, len(tasks))
        except WorkersDied as error:
            self.store.display.say(
                f"  trials go on one by one: a process that made them ended ({error})"
            )


def make_trial(task: tuple[Origin, Path, Sequence[str], Shape, float]) -> Made:
    """Makes one trial, in a worker: its stages are then in the store."""
    origin, root, imports, shape, share = task
    import_extensions(imports)
    store = Store(root, Display(quiet=True), World(), imports, metered=False)
    Trials(origin, store.ensure).score(shape, share)
    return [(made.name, made.record["seconds"]) for made in store.given if not made.cached]


VETO = 0.1
"""A trial whose metric on validation rows is below the highest by over this share is dropped."""


def best_of(trials: Sequence[Trial], count: int, kind: str) -> list[Trial]:
    """The trials that agree most with the teacher; the others are dropped.

    A trial whose metric on the validation rows is far below the best one's goes first. Among
    trials that cannot be told apart from the best by their rows, the cheapest is first.

    Args:
        trials: Scored.
        count: How many stay.
        kind: The field of `Cost` that tells which is cheaper.
    """
    alive = [trial for trial in trials if trial.out is None]
    highest = max(trial.scores[-1].metric for trial in alive)
    for trial in alive:
        metric = trial.scores[-1].metric
        if metric < highest - VETO * abs(highest):
            trial.out = f"metric {metric:.3f} on validation rows"
    alive = [trial for trial in alive if trial.out is None]
    best = max(alive, key=lambda trial: trial.agreement)
    near = [trial for trial in alive if _alike(trial, best)]
    near.sort(key=lambda trial: (getattr(trial.shape.cost, kind), -trial.agreement))
    rest = [trial for trial in alive if trial not in near]
    rest.sort(key=lambda trial: -trial.agreement)
    if count > len(near):
        near.sort(key=lambda trial: -trial.agreement)
    kept = [*near, *rest][:count]
    for trial in alive:
        if trial not in kept:
            trial.out = f"agreement {trial.agreement:.4f}"
    return kept


def _alike(trial: Trial, best: Trial) -> bool:
    """Whether the rows cannot tell two trials apart (one standard error of the difference)."""
    apart = best.scores[-1].agreement - trial.scores[-1].agreement
    return bool(apart.mean() <= apart.std() / max(1.0, len(apart)) ** 0.5)
