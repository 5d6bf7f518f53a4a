"""Everything that is wrong with the data, gathered so that a person sees all of it at once."""

from __future__ import annotations

from .errors import DataError, PareError, RecipeError

SHOWN_ROWS = 5


class Problems:
    """Collects errors, and raises them together.

    Errors of single rows are counted, and the first few of each table shown, so that a file with
    a million bad rows gives a short message and takes no memory.
    """

    def __init__(self) -> None:
        self._errors: list[PareError] = []
        self._rows: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, error: PareError) -> None:
        """Adds an error of a whole table or recipe key."""
        self._errors.append(error)

    def add_row(self, table: str, place: str, message: str) -> None:
        """Adds an error of one row; ``place`` is for example ``line 3``."""
        self._counts[table] = self._counts.get(table, 0) + 1
        shown = self._rows.setdefault(table, [])
        if len(shown) < SHOWN_ROWS:
            shown.append(f"{place}: {message}")

    def raise_if_any(self) -> None:
        """Raises what was collected as one error.

        Raises:
            RecipeError: If one of the errors is one.
            PareError: Otherwise, of the kind of the first error.
        """
        errors = [*self._errors]
        for table, shown in self._rows.items():
            more = self._counts[table] - len(shown)
            lines = [*shown, f"and {more} more rows"] if more else shown
            message = "; ".join(lines) if len(lines) == 1 else "".join(f"\n    {x}" for x in lines)
            errors.append(DataError(f"{table}: {message}"))
        if not errors:
            return
        kind = RecipeError if any(isinstance(e, RecipeError) for e in errors) else type(errors[0])
        if len(errors) == 1:
            raise kind(str(errors[0]))
        listed = "\n".join(f"- {error}" for error in errors)
        raise kind(f"{len(errors)} problems with the data:\n{listed}")
