"""Where rows come from and answers go: files, stdin and stdout, a row at a time."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from ..eval.errors import RecipeError
from ..export.predict import Row
from ..export.predict_text import read_prompts
from .whole_files import whole_file


def prompt_rows(
    file: BinaryIO, kind: str, column: str | None, pair_column: str | None
) -> Iterator[Row]:
    """Yields a language model's rows: a prompt, or the turns of a conversation as JSON.

    Raises:
        RecipeError: If a second column is named.
    """
    if pair_column is not None:
        raise RecipeError("--pair-column is for models that read two texts; this one reads one.")
    for prompt, error in read_prompts(file, kind, column):
        yield Row(error=error) if error is not None else Row(prompt)


@contextlib.contextmanager
def opened(source: Path | None) -> Iterator[BinaryIO]:
    """A file of rows; or stdin, which stays open."""
    if source is None:
        yield sys.stdin.buffer
        return
    with source.open("rb") as file:
        yield file


@contextlib.contextmanager
def written(out: str | Path | None) -> Iterator[IO[str]]:
    """A file that has its content once all is written (see `whole_file`); or stdout.

    Raises:
        RecipeError: If there is no folder to write to.
    """
    if out is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    path = Path(out)
    if not path.parent.is_dir():
        raise RecipeError(f"There is no folder '{path.parent}' to write to.")
    with whole_file(path) as file:
        yield file
