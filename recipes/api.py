"""The command line's functions, for Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..eval.errors import RecipeError, TargetNotMet
from ..eval.hardware import bound_shape_caches
from .extensions import import_extensions

if TYPE_CHECKING:
    from .pipeline import RunResult
    from .schema import Recipe
    from .sweep import SweepResult


def check(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    imports: Sequence[str] = (),
    **values: Any,
) -> Recipe:
    """Loads a recipe and checks everything that needs no data and no model.

    Args:
        recipe: Name of a shipped recipe, a file, a mapping, or a recipe.
        overrides: ``a.b=c`` texts, or a mapping of ``a.b`` to values.
        imports: Modules to import first.
        values: Further overrides of top-level keys, such as ``seed=1``.

    Raises:
        RecipeError: With every problem at once.
    """
    from .loading import load_recipe

    import_extensions(imports)
    if values:
        loaded = load_recipe(recipe, overrides)
        return load_recipe(loaded, values)
    return load_recipe(recipe, overrides)


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    out: str | Path | None = None,
    smoke: bool = False,
    strict: bool = False,
    imports: Sequence[str] = (),
    argv: Sequence[str] | None = None,
    announce: Callable[[RunResult], None] | None = None,
    **values: Any,
) -> RunResult:
    """Runs a recipe, or what is left of it.

    Args:
        recipe: Name of a shipped recipe, a file, a mapping, or a recipe.
        overrides: ``a.b=c`` texts, or a mapping of ``a.b`` to values.
        out: The run's folder; ``runs/<name>`` if None.
        smoke: Run every stage on a tiny random model and made-up rows, without judging.
        strict: Raise where the target is not met.
        imports: Modules to import first.
        argv: The command to record in the report, if it was one.
        announce: Called with the result before ``strict`` judges it.
        values: Further overrides of top-level keys, such as ``seed=1``.

    Returns:
        The report, the run's folder, the seconds it took, and whether it was finished already.

    Raises:
        PareError: If the recipe is wrong, a stage fails, or (``strict``) the target is not met.

    Examples:
        ``paredown.run("search_query", seed=1)``, ``paredown.run("my.yaml", {"prune.layers": 3})``
    """
    if smoke and strict:
        raise RecipeError("A smoke run never judges, so --strict has no effect with it. Drop one.")
    bound_shape_caches()
    checked = check(recipe, overrides, imports=imports, **values)
    from .pipeline import run_recipe

    result = run_recipe(
        checked, out=None if out is None else Path(out), smoke=smoke, argv=argv, imports=imports
    )
    if announce is not None:
        announce(result)
    if strict and result.report is not None:
        _require_target(result.report, result.folder)
    return result


def _require_target(report: Mapping[str, Any], folder: Path) -> None:
    from .gate import outcome_of

    outcome, reasons = outcome_of(report)
    if outcome != "pass":
        page = folder / "report.html"
        raise TargetNotMet(f"The target is not met ({outcome}): {' '.join(reasons)} See {page}.")


def sweep(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    grid: Mapping[str, Sequence[Any]],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    out: str | Path | None = None,
    smoke: bool = False,
    processes: int | None = None,
    imports: Sequence[str] = (),
    argv: Sequence[str] | None = None,
    quiet: bool = False,
) -> SweepResult:
    """Runs a recipe at every point of a grid, or what is left of it, and draws the front.

    Args:
        recipe: Name of a shipped recipe, a file, a mapping, or a recipe.
        grid: Values by key, two or more of each.
        overrides: ``a.b=c`` texts, or a mapping of ``a.b`` to values, for all points.
        out: The sweep's folder; ``runs/<name>-sweep`` if None. Stages lie beside it, and are shared
            with the runs there.
        smoke: Run every point on a tiny random model and made-up rows, without judging.
        processes: Points made at the same time; as many as the machine bears if None.
        imports: Modules to import first.
        argv: The command to record, if it was one.
        quiet: Show nothing.

    Returns:
        The content of ``sweep.json``, the sweep's folder, the seconds it took, and whether all was
        there already. A point that failed has its ``error``; it does not stop the others.

    Raises:
        PareError: If the grid or a point of it is no recipe; nothing was run then.

    Examples:
        ``paredown.sweep("search_query", {"prune.layers": [1, 2, 3]})``
    """
    bound_shape_caches()
    import_extensions(imports)
    from .grid import as_text
    from .sweep import run_sweep

    if isinstance(overrides, Mapping):
        overrides = [as_text(key, value) for key, value in overrides.items()]
    return run_sweep(
        recipe,
        grid,
        [overrides] if isinstance(overrides, str) else overrides,
        out=None if out is None else Path(out),
        smoke=smoke,
        processes=processes,
        imports=imports,
        argv=argv,
        quiet=quiet,
    )


def report(run: str | Path) -> dict[str, Any]:
    """Reads a finished run's report.

    Raises:
        RunError: If there is none, or it cannot be used.
    """
    from .gate import read_report

    return read_report(run)


def list_recipes() -> dict[str, str]:
    """The shipped recipes by name, each with the sentence its file opens with."""
    from .loading import packaged_recipes

    return {
        name: text.splitlines()[0].removeprefix("#").strip()
        for name, text in packaged_recipes().items()
    }
