"""The command ``paredown compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..eval.errors import RecipeError


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of finished runs.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page to write.")] = Path(
        "compare.html"
    ),
) -> None:
    """Compare finished runs over the same test rows.

    One table, one page, and for each pair of runs the difference with its 95 % interval.
    """
    from rich.console import Console

    from .compare import compare as compare_runs
    from .compare_page import print_comparison, write_comparison

    if out.is_dir():
        raise RecipeError(f"--out '{out}' is a folder; name the page's file, such as compare.html.")
    if not out.parent.is_dir():
        raise RecipeError(f"--out: there is no folder '{out.parent}'.")
    found = compare_runs(runs)
    write_comparison(found, out)
    print_comparison(found, Console(highlight=False, soft_wrap=True))
    print(f"Comparison: {out}")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(compare)
