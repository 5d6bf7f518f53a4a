"""Which of a file's columns are the task's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .errors import RecipeError, nearest
from .problems import Problems
from .tables import Table

Names = Mapping[str, str | Sequence[str]]
"""A task's column and the file's: one name, or several that are looked for in turn."""


def check_mapping(mapping: Names, known: Sequence[str]) -> None:
    """Checks that only columns of the task are mapped, each to a column of its own.

    Raises:
        RecipeError: With the nearest known column.
    """
    for column in mapping:
        if column not in known:
            raise RecipeError(
                f"data.columns.{column}: the task has no such column.{nearest(column, known)} "
                f"It has: {', '.join(known)}."
            )
    taken: dict[str, str] = {}
    for column in mapping:
        for name in alternatives(mapping, column):
            if name in taken:
                raise RecipeError(
                    f"data.columns: '{name}' stands for both '{taken[name]}' and '{column}'; "
                    "each needs a column of its own."
                )
            taken[name] = column


def alternatives(mapping: Names, column: str) -> tuple[str, ...]:
    """Returns the names to look for, in turn; a column that is not mapped keeps its own name."""
    named = mapping.get(column, column)
    return (named,) if isinstance(named, str) else tuple(named)


def find_columns(
    table: Table,
    mapping: Names,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    problems: Problems,
    mappable: Sequence[str] | None = None,
) -> dict[str, str | None]:
    """Returns the table's name of each column of the task, None for one that is not there.

    A required column that is missing, or an optional one that the recipe maps and is missing, is
    added to the problems as a RecipeError that lists the columns that are there. ``mappable`` are
    those that a recipe can map, if not all: the others are fixed by a layout.
    """
    found: dict[str, str | None] = {}
    for column in (*required, *optional):
        names = alternatives(mapping, column)
        found[column] = next((name for name in names if name in table.columns), None)
        if found[column] is None and (column in required or column in mapping):
            fixed = mappable is not None and column not in mappable
            problems.add(missing_column(table, column, names, fixed=fixed))
    return found


def missing_column(
    table: Table, column: str, names: Sequence[str], *, fixed: bool = False
) -> RecipeError:
    """Says which column a table lacks, which it has, and how to name the right one."""
    wanted = " or ".join(f"'{name}'" for name in names)
    near = next((near for name in names if (near := nearest(name, table.columns))), "")
    has = ", ".join(table.columns[:30]) + (", …" if len(table.columns) > 30 else "")
    advice = (
        "BEIR's layout has it." if fixed else f"Name the right one with data.columns.{column}=…"
    )
    return RecipeError(f"{table.name}: there is no column {wanted}; it has: {has}.{near} {advice}")
