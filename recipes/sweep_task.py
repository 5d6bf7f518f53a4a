"""One point of a sweep, as whoever makes it does: the sweep itself, or a worker of its pool."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..eval.errors import PareError
from .extensions import import_extensions
from .generation_rules import generates
from .pipeline import Run
from .progress import Display
from .schema import Recipe
from .stage_score import Score, score_of, score_stage
from .store import Folder, Stage, Store
from .sweep_points import Made
from .world import World


class Enough(Exception):
    """The stages that were asked for are there."""


class StoreBefore(Store):
    """A store that makes the stages before one, and no further.

    Args:
        stop: The stage that is made elsewhere.
        make: Whether missing stages are made, or only looked for.
        metered: As in `Store`.
    """

    def __init__(
        self,
        root: Path,
        display: Display,
        imports: Sequence[str],
        stop: str,
        *,
        make: bool = True,
        metered: bool = True,
    ) -> None:
        super().__init__(root, display, World(), imports, patient=True, metered=metered)
        self.stop, self.make = stop, make

    def ensure(self, stage: Stage, trial: str | None = None) -> Folder:
        """As `Store.ensure`.

        Raises:
            Enough: At the stage that is made elsewhere.
            NotMade: If a stage is only looked for, and is not there.
        """
        if stage.name == self.stop:
            raise Enough(stage.name)
        if self.make:
            return super().ensure(stage, trial)
        folder = self.found(stage, trial)
        self.given.append(folder)
        return folder


@dataclass(frozen=True)
class Task:
    """A point for a worker; all of it can be sent to another process.

    Attributes:
        recipe: Resolved.
        root: Of the store.
        imports: Extensions that are in use.
        smoke: Whether it is not to be judged.
        stop: The stage before which it ends.
        make: Whether missing stages are made, or only looked for.
        metered: Whether the machine's energy counters are this point's alone meanwhile.
    """

    recipe: Recipe
    root: Path
    imports: tuple[str, ...]
    smoke: bool
    stop: str
    make: bool
    metered: bool = True


def make_point(task: Task, display: Display | None = None) -> tuple[Made, list[tuple[str, float]]]:
    """Makes one point up to a stage, and scores its student on the validation rows.

    Args:
        task: What to make.
        display: Where progress is told; nowhere if None.

    Returns:
        The scores or the error, and the stages that were made here, each with its seconds.

    Raises:
        NotMade: If stages are only looked for, and one is not there.
    """
    import_extensions(task.imports)
    shown = display or Display(quiet=True)
    store = StoreBefore(
        task.root, shown, task.imports, task.stop, make=task.make, metered=task.metered
    )
    score, error = None, None
    try:
        run = Run(task.recipe, store, "", task.smoke)
        with contextlib.suppress(Enough):
            run.stages()
        score = _validation(run)
    except PareError as problem:
        error = str(problem)
    finally:
        if display is None:
            shown.close()
    stages = [(f.name, float(f.record["seconds"])) for f in store.given if not f.cached]
    return Made(error=error, validation=score), stages


def _validation(run: Run) -> Score | None:
    """How the first student does on the validation rows; None for texts, which have no score."""
    if generates(run.recipe) or not run.students:
        return None
    (_, student), *_ = run.students
    stage = score_stage(run.recipe, run.made["data"], run.made["capture"], student)
    return score_of(run.store.ensure(stage).path)
