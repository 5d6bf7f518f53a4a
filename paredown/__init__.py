"""Pares a model down to one task, and proves what was kept and what was saved.

What stands in `__all__` is loaded when it is first used, so that importing paredown is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .distill.losses import Loss, register_loss
    from .eval.errors import DataError, PareError, RecipeError, RunError, TargetNotMet
    from .eval.metrics import Metric, register_metric
    from .eval.tasks import Column, Task, register_task
    from .export.formats import Format, register_format
    from .prune.criteria import Criterion, register_criterion
    from .recipes.answering import predict, verify
    from .recipes.api import check, list_recipes, report, run, sweep
    from .recipes.deployment import export_run
    from .recipes.gate import gate
    from .recipes.schema import Recipe

_HOMES = {
    "check": "recipes.api",
    "list_recipes": "recipes.api",
    "report": "recipes.api",
    "run": "recipes.api",
    "sweep": "recipes.api",
    "gate": "recipes.gate",
    "export_run": "recipes.deployment",
    "predict": "recipes.answering",
    "verify": "recipes.answering",
    "Recipe": "recipes.schema",
    "Column": "eval.tasks",
    "Task": "eval.tasks",
    "register_task": "eval.tasks",
    "Metric": "eval.metrics",
    "register_metric": "eval.metrics",
    "Loss": "distill.losses",
    "register_loss": "distill.losses",
    "Criterion": "prune.criteria",
    "register_criterion": "prune.criteria",
    "Format": "export.formats",
    "register_format": "export.formats",
    "PareError": "eval.errors",
    "RecipeError": "eval.errors",
    "DataError": "eval.errors",
    "RunError": "eval.errors",
    "TargetNotMet": "eval.errors",
}

__all__ = [
    "Column",
    "Criterion",
    "DataError",
    "Format",
    "Loss",
    "Metric",
    "PareError",
    "Recipe",
    "RecipeError",
    "RunError",
    "TargetNotMet",
    "Task",
    "__version__",
    "check",
    "export_run",
    "gate",
    "list_recipes",
    "predict",
    "register_criterion",
    "register_format",
    "register_loss",
    "register_metric",
    "register_task",
    "report",
    "run",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "export":  # so that paredown.export.load needs no import of its own
        return importlib.import_module(".export", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'paredown' has no attribute '{name}'")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
