"""Texts outside a task: what a classifier should not be sure of."""

from __future__ import annotations

from pathlib import Path

from .columns import Names, find_columns
from .data import Data
from .errors import DataError
from .problems import Problems
from .staging import row_key
from .tables import open_table, text_of

KEY = "evaluate.out_of_scope"


def read_out_of_scope(path: Path, mapping: Names, data: Data) -> list[tuple[str, ...]]:
    """Reads the texts of a file that belong to no class of a classification task.

    Args:
        path: CSV, TSV, JSONL or Parquet with the task's text column (and its second); other
            columns, a label among them, are not read. Rows without a text are left out.
        mapping: The recipe's ``data.columns``.
        data: The task's rows.

    Returns:
        Each row's text, or text and second text.

    Raises:
        RecipeError: If the file or a column is missing.
        DataError: If no row has a text, or one is a row of the task.
    """
    table, problems = open_table(path, KEY), Problems()
    roles = [name for name in data.info["columns"] if name in ("text", "text_pair")]
    columns = find_columns(table, mapping, required=roles, problems=problems)
    problems.raise_if_any()

    def report(place: int, message: str) -> None:
        problems.add_row(table.name, f"{table.unit} {place}", message)

    rows: dict[bytes, tuple[str, ...]] = {}
    for place, cells in table.read([str(columns[role]) for role in roles], report):
        try:
            texts = [text_of(cell) for cell in cells]
        except ValueError as error:
            report(place, str(error))
            continue
        given = tuple(text for text in texts if text is not None)
        if len(given) == len(roles):
            rows.setdefault(row_key(*given), given)
    problems.raise_if_any()
    if not rows:
        raise DataError(f"{table.name}: no row has a text; expected some that are out of scope.")
    _check_apart(rows, roles, data, table.name)
    return list(rows.values())


def _check_apart(
    rows: dict[bytes, tuple[str, ...]], roles: list[str], data: Data, name: str
) -> None:
    """A row of the task, whatever its class, is within the scope."""
    for split, count in data.info["rows"].items():
        if not count:
            continue
        columns = data.split(split)
        for texts in zip(*(columns[role] for role in roles), strict=True):
            if (key := row_key(*texts)) in rows:
                raise DataError(
                    f"{name}: '{rows[key][0][:60]}' is a {split} row of the task, so it is not out "
                    "of its scope; leave it out of one of them."
                )
