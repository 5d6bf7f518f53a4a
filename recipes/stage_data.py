"""Stage ``data``: the rows of the task, split, checked and fingerprinted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..eval.data import DataSettings, prepare_data
from ..eval.sources import source_facts
from ..eval.tasks import get_task
from .schema import Recipe
from .store import Context, Stage


def data_settings(recipe: Recipe) -> DataSettings:
    """The recipe's data section as the data layer takes it."""
    data = recipe.data
    files = data.files.model_dump(exclude_none=True) if data.files else None
    return DataSettings(
        source=data.source,
        config=data.config,
        revision=data.revision,
        files=files,
        columns=data.columns,
        validation=data.validation,
        max_validation=data.max_validation,
    )


def data_stage(recipe: Recipe) -> Stage:
    """Reads the rows; the only stage but `evaluate` that sees test rows."""
    settings = data_settings(recipe)
    task = get_task(recipe.task)
    facts = source_facts(
        settings.source, settings.files, config=settings.config, revision=settings.revision
    )

    def work(context: Context) -> None:
        context.facts["rows"] = prepare_data(settings, task, context.out, seed=recipe.data.seed)[
            "rows"
        ]

    said: dict[str, Any] = {k: v for k, v in asdict(settings).items() if k != "files"}
    return Stage(
        "data",
        "stage_data",
        {
            "task": task.name,
            "seed": recipe.data.seed,
            **said,
            "source_facts": _without_paths(facts),
        },
        {},
        work,
    )


def _without_paths(facts: dict[str, Any]) -> dict[str, Any]:
    """A file is what is in it; where it lies changes nothing but its kind."""
    if "files" not in facts:
        return facts
    files = {
        key: {**{k: v for k, v in file.items() if k != "path"}, "name": str(file["path"])[-8:]}
        for key, file in facts["files"].items()
    }
    return {**facts, "files": files}
