"""A sweep: every point of a grid as an ordinary run, and the front of quality against cost.

Data, teacher and recorded outputs are made first, once for all points that share them. The students
are then made beside each other; what is timed is timed one point after the other, since a busy
machine tells no latency.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..eval.errors import PareError, RecipeError
from .grid import Axes, Point, as_text, axis_text, check_axes, check_distinct, grid_points
from .pipeline import RUNS, run_resolved
from .progress import Display
from .resolving import resolve
from .run_folder import claim
from .schema import Recipe
from .smoke_grid import smoke_grid
from .store import NotMade
from .sweep_page import JSON, PAGE, write_sweep
from .sweep_points import Made, sweep_content
from .sweep_task import Task, make_point
from .trial_pool import TrialPool, WorkersDied, processes_here


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left.

    Attributes:
        sweep: The content of ``sweep.json``.
        folder: The sweep's folder, with the points' run folders.
        seconds: How long it took.
        cached: Whether everything was there already.
    """

    sweep: dict[str, Any]
    folder: Path
    seconds: float
    cached: bool


def run_sweep(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    grid: Axes,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    smoke: bool = False,
    processes: int | None = None,
    imports: Sequence[str] = (),
    argv: Sequence[str] | None = None,
    quiet: bool = False,
) -> SweepResult:
    """Runs every point of a grid that is not there yet, and draws the front.

    Args:
        recipe: As `load_recipe` takes it.
        grid: Values by key, two or more of each.
        overrides: ``a.b=c`` texts, for all points.
        out: The sweep's folder; ``runs/<name>-sweep`` if None.
        smoke: Run on tiny random models and made-up rows, without judging.
        processes: Points made at the same time; as many as the machine bears if None.
        imports: Extensions that are in use.
        argv: The command, for the page.
        quiet: Show nothing.

    Raises:
        RecipeError: If the grid or a point of it is wrong; nothing was run then.
    """
    started = time.monotonic()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "A sweep shares its points out itself (--processes): start it without a launcher."
        )
    check_axes(grid, overrides)
    points = [
        replace(point, recipe=resolve(_searched_alone(point.recipe)))
        for point in grid_points(recipe, grid, overrides)
    ]
    check_distinct(points)
    count = _processes(points, processes)
    name = points[0].recipe.name
    folder = out or RUNS / f"{name}-sweep{'-smoke' * smoke}"
    _claim(folder)
    if smoke:
        points = [
            replace(point, recipe=resolve(small))
            for point, small in zip(points, smoke_grid(points, folder / "smoke"), strict=True)
        ]
    called = str(recipe) if isinstance(recipe, str | Path) else name
    typed = _Typed(called, tuple(overrides), tuple(imports), smoke, out)
    command = shlex.join(argv) if argv else typed.sweep(grid)
    display = Display(quiet=quiet)
    try:
        work = _Sweep(folder, smoke, tuple(imports), display)
        work.make(points, count)
        for point in points:
            work.finish(point, command if smoke else typed.run(point, name), quiet=quiet)
    finally:
        display.close()
    content = sweep_content(points, work.made, grid, command=command, smoke=smoke)
    write_sweep(content, folder)
    return SweepResult(content, folder, time.monotonic() - started, work.cached)


@dataclass(frozen=True)
class _Typed:
    """What to type to get the sweep, or one of its points, again."""

    recipe: str
    overrides: tuple[str, ...]
    imports: tuple[str, ...]
    smoke: bool
    out: Path | None

    def sweep(self, grid: Axes) -> str:
        """The sweep."""
        axes = [axis_text(key, values) for key, values in grid.items()]
        out = ["--out", str(self.out)] if self.out else []
        words = ["paredown", "sweep", self.recipe, *self.overrides, *["--smoke"] * self.smoke]
        return shlex.join([*words, *self._imports(), *out, "--grid", *axes])

    def run(self, point: Point, name: str) -> str:
        """A point as a run of its own, which finds the sweep's stages."""
        values = [as_text(key, value) for key, value in point.values.items()]
        out = ["--out", str(self.out.parent / name)] if self.out else []
        words = ["paredown", "run", self.recipe, *self.overrides, *values]
        return shlex.join([*words, *self._imports(), *out])

    def _imports(self) -> list[str]:
        return [word for module in self.imports for word in ("--import", module)]


def _searched_alone(recipe: Recipe) -> Recipe:
    """A recipe whose search makes its trials one by one: points are made beside each other."""
    budget = recipe.budget
    if budget is None:
        return recipe
    if (budget.processes or 1) > 1:
        raise RecipeError(
            f"budget.processes {budget.processes}: the points of a sweep are made at the same time "
            "already. Leave it out, and say --processes."
        )
    return recipe.model_copy(update={"budget": budget.model_copy(update={"processes": 1})})


def _processes(points: Sequence[Point], asked: int | None) -> int:
    """How many points are made at the same time; one where a search times what it tries."""
    if asked is not None and asked < 1:
        raise RecipeError(f"--processes: expected 1 or more, got {asked}.")
    if any(point.recipe.budget and point.recipe.budget.timed for point in points):
        if asked is not None and asked > 1:
            raise RecipeError(
                f"--processes {asked}: the budget bounds a time, and a busy machine tells none. "
                "Leave it out; the points are made one by one."
            )
        return 1
    return min(asked or processes_here(), len(points))


def _claim(folder: Path) -> None:
    """Makes the sweep's folder, or makes sure that it is one."""
    if (folder / "report.json").exists() or (folder / "student").exists():
        raise RecipeError(
            f"--out '{folder}' is the folder of a run, and a sweep makes folders of runs in it. "
            "Name a new or an empty one."
        )
    claim(folder)


@dataclass
class _Sweep:
    """A sweep at work: what became of its points so far.

    Attributes:
        folder: The sweep's.
        smoke: Whether it is not to be judged.
        imports: Extensions that are in use.
        display: Where progress is told.
        made: By point: its report or error, and its scores on the validation rows.
        cached: Whether everything was there already.
    """

    folder: Path
    smoke: bool
    imports: tuple[str, ...]
    display: Display
    made: dict[str, Made] = field(default_factory=dict)
    cached: bool = True

    def make(self, points: Sequence[Point], processes: int) -> None:
        """Makes the students of all points, and scores them on the validation rows."""
        missing = [point for point in points if not self._there(point)]
        if not missing:
            return
        self.cached = False
        for name in (JSON, PAGE):  # of an earlier sweep, which this one is about to replace
            (self.folder / name).unlink(missing_ok=True)
        self.display.say(f"{len(points)} points, {len(missing)} of them to be made")
        for point in missing:
            self._record(point)
        missing = [point for point in missing if point.name not in self.made]
        if processes > 1 and len(missing) > 1:
            self._make_beside(missing, min(processes, len(missing)))
        for point in missing:
            if point.name not in self.made:
                self.display.say(point.name)
                self.made[point.name] = make_point(self._task(point), self.display)[0]

    def _task(self, point: Point, stop: str | None = None, make: bool = True) -> Task:
        stop = stop or ("evaluate" if point.recipe.evaluate.latency_rows else "report")
        return Task(point.recipe, self.folder.parent, self.imports, self.smoke, stop, make)

    def _there(self, point: Point) -> bool:
        try:
            made, _ = make_point(self._task(point, make=False), self.display)
        except NotMade:
            return False
        if made.error is None:
            self.made[point.name] = made
        return made.error is None

    def _record(self, point: Point) -> None:
        """Makes data, teacher and recorded outputs of a point; of most, those of the one before."""
        made, _ = make_point(self._task(point, stop="prune"), self.display)
        if made.error is not None:
            self._fail(point, made)

    def _fail(self, point: Point, made: Made) -> None:
        self.made[point.name] = made
        self.display.say(f"  failed: {point.name}. {made.error}")

    def _make_beside(self, points: Sequence[Point], processes: int) -> None:
        # What they use at the same time cannot be told apart.
        tasks = [replace(self._task(point), metered=False) for point in points]
        try:
            with TrialPool(processes) as pool, self.display.task("points") as bar:
                for done, (number, (made, stages)) in enumerate(pool.run(make_point, tasks), 1):
                    point = points[number]
                    for stage, seconds in stages:
                        self.display.say(f"  {stage:<12} {seconds:8.1f} s  {point.name}")
                    if made.error is not None:
                        self._fail(point, made)
                    self.made[point.name] = made
                    bar.update(done, len(tasks))
        except WorkersDied as error:
            self.display.say(f"  points go on one by one: a process that made them ended ({error})")

    def finish(self, point: Point, command: str, *, quiet: bool) -> None:
        """Evaluates a point, and fills its run's folder."""
        made = self.made[point.name]
        if made.error is not None:
            return
        folder = self.folder / point.name
        try:
            claim(folder)
            result = run_resolved(
                point.recipe,
                folder,
                command=command,
                root=self.folder.parent,
                smoke=self.smoke,
                imports=self.imports,
                quiet=quiet,
            )
        except PareError as error:
            self._fail(point, replace(made, error=str(error)))
            return
        self.cached = self.cached and result.cached
        student = _digest(folder / "student")
        self.made[point.name] = replace(made, report=result.report, student=student)


def _digest(student: Path) -> str:
    """A hash of a student's weights."""
    digest = hashlib.sha256()
    for path in sorted(student.rglob("*.safetensors")):
        digest.update(path.relative_to(student).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
