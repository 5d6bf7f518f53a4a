"""The errors a person sees, and the exit code each one ends the command line with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PareError(Exception):
    """Something a person can act on: one message saying what, where and what to do."""

    exit_code = 1


class RecipeError(PareError):
    """A recipe or argument is wrong, or names something that cannot be (exit code 2)."""

    exit_code = 2


class DataError(PareError):
    """The content of a data file cannot be used (exit code 1)."""


class RunError(PareError):
    """A stage failed while it ran; what was finished before it is kept (exit code 1)."""


class TargetNotMet(PareError):
    """The verdict, or a gate's criterion, was not met (exit code 3)."""

    exit_code = 3


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
