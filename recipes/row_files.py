"""Where rows come from and answers go: files, stdin and stdout, a row at a time."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from ..eval.errors import RecipeError
from ..export.predict import Row, checked, read_rows
from .whole_files import whole_file

PROMPTS = ("prompt", "messages", "text")
"""Keys of a language model's rows, in the order they are looked for."""


def prompt_rows(
    file: BinaryIO, kind: str, column: str | None, pair_column: str | None
) -> Iterator[Row]:
    """Yields a language model's rows: a prompt, or the turns of a conversation as JSON.

    Raises:
        RecipeError: If a second column is named.
    """
    if pair_column is not None:
        raise RecipeError("--pair-column is for models that read two texts; this one reads one.")
    if kind != "jsonl":
        yield from read_rows(file, kind, column or ("prompt" if kind != "txt" else None), None)
        return
    for row in read_rows(file, "txt", None, None):
        yield row if row.error is not None else _prompt(row.text, column)


def _prompt(line: str, column: str | None) -> Row:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(error=f"not JSON: {error}")
    if isinstance(found, dict):
        names = [column] if column else PROMPTS
        key = next((name for name in names if name in found), None)
        if key is None:
            there = ", ".join(map(str, found)) or "none"
            return Row(error=f"no key {' or '.join(names)} (there are: {there}); name it: --column")
        found = found[key]
    if isinstance(found, list):
        found = json.dumps(found, ensure_ascii=False)
    return checked(found, None)


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
