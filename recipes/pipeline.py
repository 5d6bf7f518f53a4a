"""A recipe from top to bottom: which stages there are, and the folder a run leaves."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..eval.errors import RunError
from ..eval.timing import Worker
from .attribution import BASE, base_stage, round_of
from .baselines import BASELINES
from .contenders import Contender
from .generation_rules import generates
from .layer_maps import hidden_layers
from .ledger import spent_record
from .progress import Display
from .resolving import resolve
from .run_folder import claim, fill
from .schedule import student_stages
from .schema import Recipe
from .search import search
from .smoke import smoke_recipe, write_stand_ins
from .stage_baseline import baseline_stage
from .stage_capture import capture_stage
from .stage_capture_answers import capture_answers_stage
from .stage_capture_tokens import capture_tokens_stage
from .stage_data import data_stage
from .stage_distill import distill_stage
from .stage_distill_tokens import distill_tokens_stage
from .stage_evaluate import evaluate_stage, evaluation
from .stage_evaluate_rows import evaluate_rows_stage
from .stage_evaluate_teacher import FILE, evaluate_teacher_stage
from .stage_export import EXPORTED, export_stage
from .stage_finetune import finetune_stage
from .stage_report import report_stage
from .stage_teacher import CHECKPOINT, teacher_checkpoint, teacher_record, teacher_stage
from .stage_teacher_language import language_teacher_stage
from .store import Folder, Stage, Store
from .world import World, join_world

RUNS = Path("runs")
TIMED_EXPORT, INT8 = "onnx", "onnx-int8"


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Attributes:
        report: The content of ``report.json`` (None in all processes of a launch but the first).
        folder: The run's folder.
        seconds: How long it took.
        cached: Whether everything was there already.
    """

    report: dict[str, Any] | None
    folder: Path
    seconds: float
    cached: bool


def run_recipe(
    recipe: Recipe,
    *,
    out: Path | None = None,
    smoke: bool = False,
    argv: Sequence[str] | None = None,
    imports: Sequence[str] = (),
    quiet: bool = False,
) -> RunResult:
    """Runs every stage of a recipe that is not there yet, and fills the run's folder.

    Args:
        recipe: A checked recipe.
        out: The run's folder; ``runs/<name>`` if None. Stages are shared by all runs beside it.
        smoke: Run on a tiny random model and made-up rows, without judging.
        argv: The command, for the report.
        imports: Extensions that are in use; their sources count among the stages' own.
        quiet: Show nothing.

    Raises:
        PareError: If a stage fails; what was finished before it is kept.
    """
    started = time.monotonic()
    world = join_world()
    resolved = resolve(recipe)
    folder = out or RUNS / (f"{recipe.name}-smoke" if smoke else recipe.name)
    if world.main:
        claim(folder)
        if smoke:
            write_stand_ins(resolved, folder / "smoke")
    world.barrier()
    if smoke:
        resolved = resolve(smoke_recipe(resolved, folder / "smoke"))
    command = shlex.join(argv) if argv else f"paredown run {recipe.name}" + " --smoke" * smoke
    result = run_resolved(
        resolved, folder, command=command, smoke=smoke, imports=imports, quiet=quiet, world=world
    )
    return replace(result, seconds=time.monotonic() - started)


def run_resolved(
    recipe: Recipe,
    folder: Path,
    *,
    command: str,
    root: Path | None = None,
    smoke: bool = False,
    imports: Sequence[str] = (),
    quiet: bool = False,
    world: World | None = None,
) -> RunResult:
    """Runs what is left of a recipe that is resolved, into a folder that was claimed.

    Args:
        recipe: Resolved; of a smoke run, on its stand-ins.
        folder: The run's.
        command: What to type to get this report.
        root: Where the store is; beside the run's folder if None.
        smoke: Whether it is not to be judged.
        imports: Extensions that are in use.
        quiet: Show nothing.
        world: The processes that take part; this one alone if None.

    Raises:
        PareError: If a stage fails; what was finished before it is kept.
    """
    started = time.monotonic()
    world = world or World()
    display = Display(quiet=quiet or not world.main)
    try:
        display.say(f"{recipe.name}: {recipe.task}, into {folder}")
        store = Store(root or folder.parent, display, world, imports)
        run = Run(recipe, store, command, smoke)
        report = run.stages()
        finished = store.cached
        if world.main:
            student = run.students[0][1]
            fill(folder, recipe, run.made, student, run.exports, report)
        world.barrier()
    finally:
        display.close()
    content = json.loads((report.path / "report.json").read_text(encoding="utf-8"))
    seconds = time.monotonic() - started
    return RunResult(content if world.main else None, folder, seconds, finished)


def _teacher_stage(recipe: Recipe, data: Folder) -> Stage:
    """The teacher as it is, or trained on the task first."""
    if recipe.teacher.finetune is None:
        return teacher_stage(recipe, data)
    return (language_teacher_stage if generates(recipe) else finetune_stage)(recipe, data)


def _capture_stage(recipe: Recipe, data: Folder, teacher: Folder) -> Stage:
    """What the teacher says, of each row or of each token."""
    layers = sorted(set(hidden_layers(recipe, teacher_checkpoint(teacher.path)).values()))
    if not generates(recipe):
        return capture_stage(recipe, data, teacher, layers)
    if recipe.teacher.kind == "checkpoint":
        return capture_tokens_stage(recipe, data, teacher, layers)
    return capture_answers_stage(recipe, data, teacher)


def _has_own_runtime(fmt: str | None) -> bool:
    """Whether an export is timed by itself: one that is loaded as its checkpoint is, is not."""
    from ..export import FORMATS

    return fmt is not None and FORMATS[fmt].loader is not None


class Run:
    """The stages of one recipe, made in order; what is made so far stands in its attributes."""

    def __init__(self, recipe: Recipe, store: Store, command: str, smoke: bool) -> None:
        self.recipe = recipe
        self.store = store
        self.command = command
        self.smoke = smoke
        self.made: dict[str, Folder] = {}
        self.students: list[tuple[int, Folder]] = []
        self.exports: dict[str, Folder] = {}
        self.search: dict[str, Any] | None = None

    def stages(self) -> Folder:
        """Makes every stage; the last is the report."""
        recipe, ensure = self.recipe, self.store.ensure
        data = self.made["data"] = ensure(data_stage(recipe))
        beside = evaluate_rows_stage(recipe, data)
        if beside is not None:
            self.made["evaluate-rows"] = ensure(beside)
        teacher = ensure(_teacher_stage(recipe, data))
        captured = ensure(_capture_stage(recipe, data, teacher))
        source = None
        if recipe.budget is not None:
            found = search(recipe, self.store, data, teacher, captured)
            source, self.search = found.base, found.told
            self.recipe = recipe = found.recipe
        cuts = student_stages(recipe, ensure, data, teacher, captured, source=source)
        made = self.made
        made |= {"teacher": teacher, "capture": captured, **cuts}
        pruned = cuts["prune"]
        contenders = [self._teacher(data, teacher)]
        distilled = distill_tokens_stage if generates(recipe) else distill_stage
        if recipe.distill is None:
            self.students = [(recipe.seed, pruned)]
        else:
            for seed in range(recipe.seed, recipe.seed + recipe.seeds):
                stage = distilled(recipe, data, teacher, captured, pruned, seed=seed)
                self.students.append((seed, ensure(stage)))
                made["distill" if seed == recipe.seed else f"distill-{seed}"] = self.students[-1][1]
        for seed, folder in self.students:
            contenders.append(self._model("student", folder, seed=seed))
        if recipe.distill is not None:
            contenders.append(self._model("pruned", pruned))
        contenders += self._between(data, cuts)
        if "labels" in recipe.evaluate.baselines:
            stage = distilled(
                recipe, data, teacher, captured, pruned, seed=recipe.seed, labels_only=True
            )
            made["distill-labels"] = ensure(stage)
            contenders.append(self._model("labels", made["distill-labels"]))
        contenders += self._off_the_shelf(data, teacher)
        with self._worker_ahead(pruned) as spare:
            made["evaluate"] = self._evaluated(made, contenders, spare)
        scored = evaluation(made["evaluate"].path)["contenders"]
        check_flips(scored, self.exports, recipe.evaluate.flip_rate)
        report = report_stage(
            recipe,
            dict(made),
            contenders,
            self.exports,
            command=self.command,
            smoke=self.smoke,
            search=self.search,
            trials=self._trials(),
        )
        made["report"] = ensure(report)
        return made["report"]

    def _off_the_shelf(self, data: Folder, teacher: Folder) -> Iterator[Contender]:
        """Makes the baselines that keep a model of their own kind."""
        for name in self.recipe.evaluate.baselines:
            if BASELINES[name].kept:
                folder = self.store.ensure(baseline_stage(self.recipe, name, data, teacher))
                self.made[folder.name] = folder
                yield Contender(name, folder.path)

    def _trials(self) -> list[dict[str, Any]]:
        """The records of the stages that a search made beside the run's own, for the ledger."""
        own = {folder.path for folder in self.made.values()}
        others = {f.path: f.record for f in self.store.given if f.path not in own}
        return [spent_record(others[path]) for path in sorted(others)]

    def _worker_ahead(self, before: Folder) -> contextlib.AbstractContextManager[Worker | None]:
        """While a smoke run exports, its timing worker imports PyTorch beside it."""
        wanted = self.smoke and self.store.world.main and not before.cached
        return Worker(ahead=True) if wanted else contextlib.nullcontext()

    def _evaluated(
        self, made: dict[str, Folder], contenders: list[Contender], spare: Worker | None
    ) -> Folder:
        """Exports the student, then scores and times everything; adds what it made to both."""
        # A smoke run's figures mean nothing: it times one side, and exports no teacher to time.
        sides = contenders[1:2] if self.smoke else contenders[:2]
        timed = [c for c in sides if not c.recorded]
        inputs = dict(made)
        for contender, folder in self._exported(made["data"], made["teacher"]):
            inputs[contender.name] = made[folder.name] = folder
            timed += [contender] if _has_own_runtime(contender.fmt) else []
            contenders += [contender] if contender.side != "teacher" else []
        return self.store.ensure(
            evaluate_stage(self.recipe, inputs, contenders, timed, smoke=self.smoke, spare=spare)
        )

    def _teacher(self, data: Folder, teacher: Folder) -> Contender:
        if self.recipe.teacher.kind == "endpoint":
            asked = self.store.ensure(evaluate_teacher_stage(self.recipe, data))
            self.made["evaluate-teacher"] = asked
            return Contender("teacher", asked.path / FILE, recorded=True)
        path = teacher_checkpoint(teacher.path)
        if path is not None:
            return Contender("teacher", path, symmetric=False)
        files = teacher_record(teacher.path)["files"]
        if "test" not in files:
            raise RunError(
                "The recorded teacher has no answers for the test rows, so nothing can be compared "
                "with it; add teacher.files.test."
            )
        return Contender("teacher", Path(files["test"]), recorded=True)

    def _model(
        self, side: Any, folder: Folder, seed: int | None = None, round: int | None = None
    ) -> Contender:
        # Trained on pairs alone, a model has an embedding space of its own.
        symmetric = self.recipe.symmetric or side == "labels"
        path = folder.path / CHECKPOINT
        return Contender(side, path, seed=seed, symmetric=symmetric, round=round)

    def _between(self, data: Folder, cuts: dict[str, Folder]) -> Iterator[Contender]:
        """The models that lie on the way to the student, to tell which step loses what."""
        stage = base_stage(self.recipe, data)
        if stage is not None:
            folder = self.made[BASE] = self.store.ensure(stage, "before fine-tuning")
            found = teacher_checkpoint(folder.path)
            assert found is not None  # of kind checkpoint, or there were nothing to fine-tune
            yield Contender("base", found)
        for name, folder in cuts.items():
            if (found_round := round_of(name)) is not None:
                side, number = found_round
                yield self._model(side, folder, round=number)

    def _exported(self, data: Folder, teacher: Folder) -> Iterator[tuple[Contender, Folder]]:
        """The student in every format; and the teacher, to time both on the same runtime."""
        from ..export import FORMATS

        name, student = self.recipe.task, self.students[0][1]
        asked = dict(self.recipe.formats)
        writes = self.recipe.generation if generates(self.recipe) else None
        bases = [FORMATS[fmt].base for fmt in asked]
        for fmt in sorted(asked, key=lambda fmt: fmt not in bases):  # what others are made from
            base = self.exports.get(FORMATS[fmt].base or "")
            stage = export_stage(
                name, fmt, data, student, student.path / CHECKPOINT,
                base=base, options=asked[fmt], writes=writes,
            )  # fmt: skip
            self.exports[fmt] = self.store.ensure(stage)
        self.exports = {fmt: self.exports[fmt] for fmt in asked}
        for fmt, folder in self.exports.items():
            path = folder.path / EXPORTED
            yield Contender("export", path, fmt, symmetric=self.recipe.symmetric), folder
        checkpoint, limit = teacher_checkpoint(teacher.path), self.recipe.teacher.max_length
        exported = None
        if TIMED_EXPORT in asked and checkpoint is not None and not self.smoke:
            stage = export_stage(
                name, TIMED_EXPORT, data, teacher, checkpoint,
                of="teacher", max_length=limit, writes=writes,
            )  # fmt: skip
            folder = self.store.ensure(stage)
            exported = folder
            yield Contender("teacher", folder.path / EXPORTED, TIMED_EXPORT), folder
        if "teacher_int8" in self.recipe.evaluate.baselines:
            assert checkpoint is not None  # the recipe was checked
            stage = export_stage(
                name, INT8, data, teacher, checkpoint, of="teacher", max_length=limit, base=exported
            )
            folder = self.store.ensure(stage)
            yield Contender("teacher_int8", folder.path / EXPORTED, INT8), folder


def check_flips(contenders: Mapping[str, Any], formats: Iterable[str], limit: float) -> None:
    """A full-precision export that decides otherwise than its student is not the student.

    Args:
        contenders: What the evaluation found of each.
        formats: Of the exports.
        limit: Share of the test rows that may be decided otherwise.

    Raises:
        RunError: Naming the format that is over the limit.
    """
    from ..export import FORMATS

    for fmt in formats:
        rate = contenders[f"export-{fmt}"]["flip_rate"]
        if FORMATS[fmt].precision == "fp32" and rate > limit:
            raise RunError(
                f"The {fmt} export decides {rate:.2%} of the test rows otherwise than the student "
                f"it was made from; evaluate.flip_rate allows {limit:.2%}."
            )
