"""The command ``paredown sweep``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ..eval.errors import RunError

if TYPE_CHECKING:
    from .sweep import SweepResult

WIDTH = 132
"""Columns of the table where there is no terminal."""


class GridCommand(TyperCommand):
    """A command whose ``--grid`` takes every word up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the words after the command."""
        return super().parse_args(ctx, spread(args))


def spread(words: list[str]) -> list[str]:
    """Writes ``--grid`` in front of each of the words that follow it.

    Examples:
        >>> spread(["r", "seed=1", "--grid", "a=1,2", "b=3,4", "--smoke"])
        ['r', 'seed=1', '--grid', 'a=1,2', '--grid', 'b=3,4', '--smoke']
    """
    found: list[str] = []
    inside = False
    for word in words:
        if word == "--grid":
            inside = True
            continue
        inside = inside and not word.startswith("-")
        found += ["--grid", word] if inside else [word]
    # one that nothing follows is for the parser to tell
    return [*found, "--grid"] if words and words[-1] == "--grid" else found


def sweep(
    recipe: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe, or a file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[a.b=c]...", help="Keys to override at every point."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="a.b=v,v...",
            help="Axes, each a key and its values; every word up to the next option is one.",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(help="Points made at the same time [as many as the machine bears]."),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Run on a tiny random model, without network.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The sweep's folder [runs/NAME-sweep]."),
    ] = None,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="A module that registers tasks, losses, metrics or formats; repeat for more.",
        ),
    ] = None,
) -> None:
    """Run a recipe at every point of a grid, or what is left of it.

    Draws the front of quality against cost: sweep.html. A point that fails does not stop the
    others; the exit code is 1 then.
    """
    from .api import sweep as sweep_recipe
    from .cli import Interrupted
    from .grid import parse_grid

    try:
        result = sweep_recipe(
            recipe,
            parse_grid(grid or ()),
            overrides or (),
            out=out,
            smoke=smoke,
            processes=processes,
            imports=imports or (),
            argv=["paredown", *sys.argv[1:]],
        )
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted. What was finished is kept; the same command goes on from there."
        ) from None
    _announce(result)


def _announce(result: SweepResult) -> None:
    from rich.console import Console

    from .sweep_page import PAGE, print_sweep

    sweep = result.sweep
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:  # a log has no edge
        console.width = WIDTH
    print_sweep(sweep, console)
    if result.cached:
        print(f"Nothing to do: this sweep was finished before ({result.seconds:.1f} s).")
    print(f"Sweep: {result.folder / PAGE}")
    problems = []
    if sweep["failed"]:
        problems.append(f"{sweep['failed']} of {len(sweep['points'])} points failed")
    if sweep["same"]:
        problems.append("some points are the same student")
    if problems:
        raise RunError(f"{' and '.join(problems)}, as told above. What was finished is kept.")
