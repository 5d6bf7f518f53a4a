"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..eval.errors import PareError, RecipeError, RunError
from . import cli_compare, cli_export
from .cli_gate import cache_key, gate
from .cli_sweep import GridCommand, sweep

if TYPE_CHECKING:
    from rich.console import Console

    from .pipeline import RunResult

app = typer.Typer(
    name="paredown",
    help="Pare a model down to one task, and prove what was kept and what was saved.",
    epilog="Exit codes: 0 done, 1 a run failed, 2 a wrong recipe or argument, 3 a target not met.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shipped = typer.Typer(help="The shipped recipes: list, show, copy, schema.", no_args_is_help=True)
app.add_typer(shipped, name="recipes")
cli_export.register(app)
cli_compare.register(app)

RecipeName = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe, or a file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[a.b=c]...", help="Keys to override, as in prune.layers=3 seed=1."),
]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="A module that registers tasks, losses, metrics or formats; repeat for more.",
    ),
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="The run's folder, as in runs/search_query.")
]


class Interrupted(PareError):
    """The person at the keyboard ended the command."""

    exit_code = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The words after ``paredown``; the process's own if None.

    Returns:
        The exit code: 0, or 1, 2, 3 as `PareError` and its kinds say, or 130 when interrupted.
    """
    atexit.register(gc.freeze)  # the last collection over all of torch's objects takes 2 s
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        command = typer.main.get_command(app)
        command.main(args=[word for word in words if word != "--debug"], prog_name="paredown")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        known = error if isinstance(error, PareError) else _disk_full(error)
        if debug or known is None:
            raise
        # a wrong recipe is wrong for every process; other failures may be one process's own
        if _rank() == 0 or known.exit_code != RecipeError.exit_code:
            which = "" if "RANK" not in os.environ else f" (process {_rank()})"
            print(f"paredown{which}: {known}", file=sys.stderr)
        return known.exit_code
    return 0


def _disk_full(error: Exception) -> PareError | None:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)
    if not full:
        return None
    return RunError(
        f"No space is left on the disk ({error}). Free some and give the same command again: "
        "what was finished is kept."
    )


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _console() -> Console:
    """Where results go; of several processes only the first one speaks."""
    from rich.console import Console

    return Console(quiet=_rank() != 0, highlight=False, soft_wrap=True)


def _print(*parts: Any) -> None:
    if _rank() == 0:
        print(*parts)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the code an error arose.")
    ] = False,
) -> None:
    if version:
        from .. import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Run every stage on a tiny random model, without network."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 if the target is not met.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The run's folder [runs/NAME].")
    ] = None,
    imports: Imports = None,
) -> None:
    """Run a recipe, or what is left of it.

    Teacher, capture, prune, distill, export, evaluate, report: a finished stage is kept and not
    done again.
    """
    from .api import run as run_recipe

    try:
        run_recipe(
            recipe,
            overrides or (),
            out=out,
            smoke=smoke,
            strict=strict,
            imports=imports or (),
            argv=["paredown", *sys.argv[1:]],
            announce=_announce,
        )
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted. What was finished is kept; the same command goes on from there."
        ) from None


def _announce(result: RunResult) -> None:
    if result.report is None:
        return
    from .report import print_summary

    print_summary(result.report, _console())
    smoke = result.report.get("smoke")
    if result.cached:
        _print(f"Nothing to do: this recipe was finished before ({result.seconds:.1f} s).")
    elif smoke:
        _print(f"Smoke run finished: every stage ran, in {result.seconds:.1f} s.")
    if smoke:
        _print(f"Outcome: {result.folder / 'report.json'}")
    else:
        _print_verdict(result.report, result.folder)


def _print_verdict(report: dict[str, Any], folder: Path) -> None:
    from .gate import outcome_of

    outcome, reasons = outcome_of(report)
    _print(f"Verdict: {outcome}.", *reasons)
    _print(f"Report: {folder / 'report.html'}")


@app.command()
def check(recipe: RecipeName, overrides: Overrides = None, imports: Imports = None) -> None:
    """Check a recipe: all its problems at once."""
    from .api import check as check_recipe

    checked = check_recipe(recipe, overrides or (), imports=imports or ())
    made = "made in the run" if checked.teacher.new is not None else "recorded outputs"
    teacher = checked.teacher.model or made
    _print(f"{recipe} is fine: {checked.name}, {checked.task}, teacher {teacher}.")
    _print("Rows and models are read when it runs.")


@app.command()
def report(run: RunFolder) -> None:
    """Show a finished run's figures, and where its page is."""
    from .gate import damage, read_report
    from .report import print_summary

    found = read_report(run)
    try:
        print_summary(found, _console())
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"The report of '{run}' {damage(error)}. Run the recipe again.") from None
    folder = run if run.is_dir() else run.parent
    if found.get("smoke"):
        _print(f"Report: {folder / 'report.html'} (a smoke run: no verdict)")
    else:
        _print_verdict(found, folder)


@app.command()
def doctor() -> None:
    """Show what a run would find here.

    Versions, devices, the precision chosen and why, whether the model hub answers.
    """
    from rich.table import Table

    from .doctor import examine, lines

    table = Table.grid(padding=(0, 2))
    for word, text in lines(examine()):
        table.add_row(word, text)
    _console().print(table, markup=False)


@shipped.command("list")
def list_shipped() -> None:
    """List the shipped recipes."""
    from .api import list_recipes

    found = list_recipes()
    width = max(map(len, found))
    for name, sentence in found.items():
        _print(f"{name:<{width}}  {sentence}")


@shipped.command()
def show(recipe: RecipeName) -> None:
    """Print a recipe as it was written."""
    from .loading import read_recipe_text

    _print(read_recipe_text(recipe)[0].rstrip("\n"))


@shipped.command()
def copy(
    recipe: RecipeName,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to [NAME.yaml here].")
    ] = None,
) -> None:
    """Copy a recipe to a file of yours, to change it."""
    from .loading import read_recipe_text

    text, _ = read_recipe_text(recipe)
    name = f"{Path(recipe).stem}.yaml"
    target = Path(name) if file is None else file / name if file.is_dir() else file
    try:
        with target.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise RecipeError(
            f"'{target}' is there already. Give another name, or remove it."
        ) from None
    except FileNotFoundError:
        raise RecipeError(f"There is no folder '{target.parent}' to copy to.") from None
    except OSError as error:
        raise RecipeError(f"Cannot write '{target}': {error.strerror}.") from None
    _print(f"Copied to {target}. Run it with: paredown run {target}")


@shipped.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors that complete and check YAML."""
    import json

    from .schema import json_schema

    _print(json.dumps(json_schema(), indent=2))


app.command(cls=GridCommand)(sweep)
app.command()(gate)
app.command("cache-key")(cache_key)
