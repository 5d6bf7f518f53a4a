"""Something wrong with a recipe: where, and what to do."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """Something wrong with a recipe.

    Attributes:
        path: The keys from the top of the recipe down to what is wrong.
        message: What was expected, what came, what to do.
        line: Line of the file where the path alone does not tell it.
    """

    path: tuple[str | int, ...]
    message: str
    line: int | None = None

    @property
    def key(self) -> str:
        """The path as it is written on the command line."""
        return ".".join(map(str, self.path))

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.path else self.message
