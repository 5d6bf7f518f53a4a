"""`--import`: modules of the user's that register tasks, losses, metrics, criteria or formats."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from ..eval.errors import RecipeError


def import_extensions(modules: Iterable[str]) -> None:
    """Imports modules that register tasks, losses, metrics or formats.

    The current folder is looked in last, so that a file beside the recipe is found.

    Raises:
        RecipeError: If a module is not there, or fails to import.
    """
    here = str(Path.cwd())
    for module in modules:
        if here not in sys.path and "" not in sys.path:
            sys.path.append(here)
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module}.".startswith(f"{error.name}."):
                advice = (
                    "there is no such module. Name it as Python does (my_package.my_module), "
                    "installed or in the current folder."
                )
            else:
                advice = f"it imports '{error.name}', which is not installed."
            raise RecipeError(f"--import {module}: {advice}") from error
