"""Columns that test rows are judged apart by, read from where the rows came from.

They are no part of a task's data folder: which kinds of rows a report tells apart changes no row,
and must not have a teacher trained anew. The evaluation alone reads them.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .columns import Names, alternatives, find_columns
from .data import Data
from .errors import DataError, RecipeError, nearest
from .generation_rows import split_messages
from .problems import Problems
from .slices import MOST
from .staging import row_key
from .tables import Table, name_of, text_of
from .tasks import Task

KEY = "evaluate.slices"
TEXTS = ("text", "text_pair", "query", "prompt")


def read_slice_columns(
    tables: Mapping[str, Table], mapping: Names, task: Task, data: Data, names: Sequence[str]
) -> dict[str, list[str]]:
    """The values of some columns on each test row, in the order of the test rows.

    Rows are matched by their texts, as `splits.text_key` compares them; the rows of one text by
    their order. Of a query that stands in several rows, the first says what kind it is. In BEIR's
    layout the columns are those of the queries.

    Args:
        tables: Of the source that the data were made from.
        mapping: The recipe's ``data.columns``.
        task: Whose columns they are.
        data: What was made of the tables.
        names: Columns as the tables call them.

    Returns:
        By column, a value a test row; empty where a row has none.

    Raises:
        RecipeError: If a column is not there, or is one of the task's own.
        DataError: If a cell is no name, or a column has more than `slices.MOST` values.
    """
    table = tables.get("queries", tables["test"])
    if "queries" in tables:
        mapping = {"query": mapping.get("query", ("text", "query"))}
    _check_names(table, mapping, task, names)
    cells = _cells(table, mapping, data, names)
    values = [_values(cells, key, table) for key in _keys(data)]
    found = {name: [row[i] for row in values] for i, name in enumerate(names)}
    for name, column in found.items():
        if (count := len(set(column) - {""})) > MOST:
            raise DataError(
                f"{KEY}: '{name}' has {count:,} different values in the test rows, and at most "
                f"{MOST} are told apart. Name a column of kinds of rows."
            )
    return found


def _check_names(table: Table, mapping: Names, task: Task, names: Sequence[str]) -> None:
    own = {c.name: c.name for c in task.columns if c.kind in ("label", "slice")}
    for column in task.columns:
        there = (name for name in alternatives(mapping, column.name) if name in table.columns)
        own[next(there, "")] = column.name
    for name in names:
        if name not in table.columns:
            raise RecipeError(
                f"{KEY}: {table.name} has no column '{name}'; it has: "
                f"{', '.join(table.columns[:30])}.{nearest(name, table.columns)}"
            )
        if name in own:
            raise RecipeError(
                f"{KEY}: '{name}' is the task's own {own[name]}. Classes and the column slice are "
                "told apart by themselves, and texts are no kinds of rows; leave it out."
            )


def _cells(
    table: Table, mapping: Names, data: Data, names: Sequence[str]
) -> dict[bytes, deque[tuple[str, ...]]]:
    """The values of each row that has a text, by the key of its texts."""
    problems = Problems()
    roles = _roles(data)
    columns = find_columns(table, mapping, required=roles, problems=problems)
    problems.raise_if_any()

    def report(place: int, message: str) -> None:
        problems.add_row(table.name, f"{table.unit} {place}", message)

    found: dict[bytes, deque[tuple[str, ...]]] = defaultdict(deque)
    wanted = [str(columns[role]) for role in roles]
    for place, cells in table.read([*wanted, *names], report):
        texts, kinds = cells[: len(roles)], cells[len(roles) :]
        try:
            read = [_text(role, cell) for role, cell in zip(roles, texts, strict=True)]
            values = tuple(
                name_of(cell, table.label_names.get(name)) or ""
                for name, cell in zip(names, kinds, strict=True)
            )
        except ValueError as error:
            report(place, f"{KEY}: {error}")
            continue
        if all(text is not None for text in read):
            found[row_key(*read)].append(values)
    problems.raise_if_any()
    return found


def _roles(data: Data) -> list[str]:
    """The columns whose texts tell one row from another."""
    if data.info.get("form") == "messages":
        return ["messages"]
    return [name for name in data.info["columns"] if name in TEXTS]


def _text(role: str, cell: Any) -> str | None:
    return split_messages(cell)[0] if role == "messages" else text_of(cell)


def _keys(data: Data) -> Iterator[bytes]:
    roles = ["prompt"] if data.info.get("form") == "messages" else _roles(data)
    rows = data.split("test")
    for texts in zip(*(rows[role] for role in roles), strict=True):
        yield row_key(*texts)


def _values(
    cells: Mapping[bytes, deque[tuple[str, ...]]], key: bytes, table: Table
) -> tuple[str, ...]:
    rows = cells.get(key)
    if not rows:
        raise DataError(f"{table.name}: it has changed since its test rows were read; run again.")
    return rows.popleft() if len(rows) > 1 else rows[0]
