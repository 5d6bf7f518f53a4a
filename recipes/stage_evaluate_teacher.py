"""Stage ``evaluate-teacher``: what an endpoint answers to the test prompts, for evaluation."""

from __future__ import annotations

import json
from typing import Any

from ..eval.data import Data
from .schema import Generation, Recipe
from .stage_capture_answers import ask, asked
from .store import Context, Folder, Stage

FILE = "texts.json"
"""What was answered to each test row, in their order: a prompt may stand in several."""


def evaluate_teacher_stage(recipe: Recipe, data: Folder) -> Stage:
    """Asks the endpoint for the test rows."""
    generation = recipe.generation or Generation()
    assert recipe.teacher.endpoint is not None
    settings: dict[str, Any] = {
        "generation": generation.model_dump(),
        "endpoint": asked(recipe.teacher.endpoint),
        "model": recipe.teacher.model,
    }

    def work(context: Context) -> None:
        if context.world.main:
            rows = Data.open(context.inputs["data"])
            prompts = {"test": list(rows.split("test")["prompt"])}
            answers, summary = ask(recipe, rows, prompts, context, "evaluate-teacher")
            context.facts["endpoint"] = vars(summary)
            # What was refused is an answer like any other, and a wrong one.
            texts = ["" if answer.refusal else answer.text for answer in answers["test"]]
            (context.out / FILE).write_text(json.dumps(texts), encoding="utf-8")
        context.world.barrier()

    return Stage(
        "evaluate-teacher", "stage_evaluate_teacher", settings, {"data": data}, work, shared=True
    )
