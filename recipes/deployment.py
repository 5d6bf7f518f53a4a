"""`paredown export`: the student of a finished run in a format, judged before it is handed over."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ..eval.errors import RecipeError, RunError
from ..eval.hardware import environment
from ..eval.tasks import get_task
from ..export.formats import FORMATS, get_format
from . import figures
from .export_folder import as_text, check_target, place
from .extensions import import_extensions
from .finished_run import FinishedRun, open_run
from .generation_rules import generates
from .kept_exports import check_kept
from .progress import Display
from .stage_evaluate_export import evaluate_export_stage, measured
from .stage_export import EXPORTED, export_facts, export_stage
from .stage_teacher import CHECKPOINT
from .store import STAGES, Folder, NotMade, Stage, Store
from .world import World

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
FILE = "export.json"


class Measured(TypedDict):
    """The content of ``export.json``; a figure that was not measured is null.

    ``value``, ``student`` and ``teacher`` are the recipe's metric on all test rows; ``retention``
    is the export's value over the teacher's, with its paired 95 % interval. ``flip_rate`` is the
    share of test rows that the export decides otherwise than the student, and ``flip_rate_limit``
    what was allowed (null where nothing was). ``calibration_shift`` is the mean absolute change of
    the winning class's probability (classes only). Times are of one row after the other, one
    thread; bytes of memory are the whole process's. ``max_difference`` is of a value, from the
    student on training texts. ``measurements`` are as in report.json.
    """

    schema: int
    format: str
    task: str
    run: str
    smoke: bool
    precision: str | None
    metric: str
    examples: int
    value: float
    student: float
    teacher: float
    retention: float | None
    retention_ci95: list[float] | None
    flip_rate: float
    flip_rate_limit: float | None
    calibration_shift: float | None
    bytes: int
    max_difference: float | None
    latency_ms_p50: float | None
    examples_per_s: float | None
    peak_memory_bytes: int | None
    cold_start_s: float | None
    measurements: list[dict[str, Any]]
    environment: dict[str, Any]


def export_run(
    run: str | Path,
    fmt: str,
    out: str | Path,
    *,
    flip_rate: float | None = None,
    strict: bool = False,
    imports: Sequence[str] = (),
    quiet: bool = True,
) -> Measured:
    """Exports the student of a finished run, judges the export on the test rows, and writes it.

    What was made before (the export itself, where the recipe asked for it; the evaluation) is taken
    from the store, and what is made now is kept there.

    Args:
        run: The run's folder.
        fmt: A format's name, whether the recipe asked for it or not.
        out: A new or empty folder, or an earlier export, which is replaced.
        flip_rate: The largest share of test rows that the export may decide otherwise than the
            student. The recipe's ``evaluate.flip_rate`` for formats in full precision if None, and
            none for int8.
        strict: Hold int8 to the recipe's ``evaluate.flip_rate`` too.
        imports: Modules to import first.
        quiet: Show no progress.

    Returns:
        What was measured, as it is written to ``export.json`` in the folder.

    Raises:
        RecipeError: If an argument is wrong, or the format is unknown, does not fit, or lacks a
            package.
        RunError: If the run is not finished, the export fails or was changed in the store, or it
            changes more decisions than it may; nothing is written then.
    """
    target = Path(out)
    _check(flip_rate, strict)
    import_extensions(imports)
    found = open_run(run)
    entry = get_format(fmt, get_task(found.recipe.task))
    check_target(target)
    display = Display(quiet=quiet)
    try:
        store = Store(_root(found), display, World(), imports)
        folder = store.ensure(_stage(store, found, fmt, entry.base))
        check_kept(folder.path / EXPORTED)  # what is measured is kept under the stage's name
        judged = store.ensure(evaluate_export_stage(found, fmt, folder))
    finally:
        display.close()
    limit = _limit(found, fmt, flip_rate, strict)
    content = _content(found, fmt, folder, judged, limit)
    if limit is not None and content["flip_rate"] > limit:
        raise RunError(
            f"The {fmt} export decides {content['flip_rate']:.2%} of the test rows otherwise than "
            f"the student it was made from, and {limit:.2%} were allowed. Nothing was written to "
            f"'{target}'."
        )
    place(folder.path / EXPORTED, target, {FILE: as_text(content)})
    return content


def _root(run: FinishedRun) -> Path:
    """Where the run's store is: beside its folder, or further up where it is a sweep's point."""
    data = run.stage("data")
    if data.path.parent.name == STAGES:
        return data.path.parent.parent
    # The store is a link to a folder of another name, or the run has copies instead of links.
    name = f"data-{data.fingerprint}"
    above = (root for root in run.folder.parents if (root / STAGES / name).exists())
    return next(above, run.folder.parent)


def _check(flip_rate: float | None, strict: bool) -> None:
    if flip_rate is not None and not 0 <= flip_rate <= 1:
        raise RecipeError(f"--flip-rate is a share from 0 to 1, such as 0.01; got {flip_rate}.")
    if flip_rate is not None and strict:
        raise RecipeError(
            "--strict holds the export to the recipe's evaluate.flip_rate, and --flip-rate to "
            "another. Drop one."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("An export is made by one process; start it without a launcher.")


def _limit(run: FinishedRun, fmt: str, flip_rate: float | None, strict: bool) -> float | None:
    """The share of flips that is allowed, or None where nobody states one."""
    if flip_rate is not None:
        return flip_rate
    judged = strict or FORMATS[fmt].precision == "fp32"
    return float(run.recipe.evaluate.flip_rate) if judged else None


def _stage(store: Store, run: FinishedRun, fmt: str, base: str | None) -> Stage:
    """The export stage, as the run itself would make it."""
    data, student = run.stage("data"), run.student
    checkpoint = student.path / CHECKPOINT
    writes = run.recipe.generation if generates(run.recipe) else None
    options = dict(run.recipe.formats)

    def stage(name: str, of: Folder | None = None) -> Stage:
        return export_stage(
            run.recipe.task, name, data, student, checkpoint,
            base=of, options=options.get(name), writes=writes,
        )  # fmt: skip

    if base is None or base not in FORMATS:
        return stage(fmt)
    if base in options:
        return stage(fmt, run.stage(f"export-{base}"))
    try:
        return stage(fmt, store.found(stage(base)))
    except NotMade:
        return stage(fmt)


def _content(
    run: FinishedRun, fmt: str, export: Folder, judged: Folder, limit: float | None
) -> Measured:
    facts, found = export_facts(export.path), measured(judged.path)
    single = _timing(found, "single_stream")
    return {
        "schema": SCHEMA,
        "format": fmt,
        "task": run.recipe.task,
        "run": run.recipe.name,
        "smoke": bool(run.report.get("smoke")),
        "precision": facts.get("precision"),
        "metric": str(run.recipe.target.metric),
        "examples": found["examples"],
        "value": found["value"],
        "student": found["student"],
        "teacher": found["teacher"],
        "retention": found["retention"],
        "retention_ci95": found["retention_ci95"],
        "flip_rate": found["flip_rate"],
        "flip_rate_limit": limit,
        "calibration_shift": found["calibration_shift"],
        "bytes": int(facts["bytes"]),
        "max_difference": facts.get("max_difference"),
        "latency_ms_p50": single.get("p50"),
        "examples_per_s": _timing(found, "offline").get("examples_per_s"),
        "peak_memory_bytes": single.get("peak_memory_bytes"),
        "cold_start_s": single.get("cold_start_s"),
        "measurements": found["measurements"],
        "environment": environment(),
    }


def _timing(found: dict[str, Any], scenario: str) -> dict[str, Any]:
    return next((one for one in found["measurements"] if one["scenario"] == scenario), {})


def print_measured(content: Measured, out: Path, console: Console) -> None:
    """Prints what was measured as a small table."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for label, figure in lines(content):
        table.add_row(Text(label), Text(figure))
    console.print(Text(f"{content['run']} as {content['format']}", "bold"))
    console.print(table)
    if content["smoke"]:
        console.print("A smoke run: its model is random, and its figures mean nothing.")
    console.print(Text(f"Written to {out}. Where it is deployed: paredown verify {out}"))


def lines(content: Measured) -> list[tuple[str, str]]:
    """Each figure with its name, for people."""
    metric, limit = figures.metric_name(content["metric"]), content["flip_rate_limit"]
    allowed = "not judged" if limit is None else f"{figures.share(limit, 2)} allowed"
    ends = content["retention_ci95"]
    interval = f" (95 % interval {figures.span(ends)})" if ends else ""
    found = [
        ("test rows", figures.whole(content["examples"])),
        (f"{metric} of the export", figures.quality(content["value"])),
        (f"{metric} of the student", figures.quality(content["student"])),
        (f"{metric} of the teacher", figures.quality(content["teacher"])),
        ("kept of the teacher's", f"{figures.share(content['retention'])}{interval}"),
        ("decisions unlike the student's", f"{figures.share(content['flip_rate'], 2)} ({allowed})"),
    ]
    if content["calibration_shift"] is not None:
        found.append(("shift of the winning probability", f"{content['calibration_shift']:.4f}"))
    return [
        *found,
        ("latency p50, one thread", figures.digits(content["latency_ms_p50"], " ms")),
        ("peak memory", figures.size(content["peak_memory_bytes"])),
        ("weights", figures.size(content["bytes"])),
    ]
