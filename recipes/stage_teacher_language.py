"""Stage ``teacher`` of a generation task, where the recipe trains it on the task first."""

from __future__ import annotations

from typing import Any

import torch

from ..eval.checkpoints import find_checkpoint
from ..eval.data import Data
from ..eval.generation_cost import check_cost_known
from ..eval.models import load_model
from ..eval.tasks import get_task
from .language_data import dialogues_of, examples_of
from .language_training import AnswersValidation, metric_names, train_and_save
from .new_model import write_new_model
from .schema import Generation, Recipe
from .stage_teacher import CHECKPOINT, identity, model_options, write_record
from .store import Context, Folder, Stage


def language_teacher_stage(recipe: Recipe, data: Folder) -> Stage:
    """Trains a checkpoint, or a model made from nothing, on the rows' completions."""
    teacher, settings = recipe.teacher, recipe.teacher.finetune
    generation = recipe.generation or Generation()
    assert settings is not None
    said: dict[str, Any] = {**model_options(teacher), "task": recipe.task, "seed": recipe.seed}
    said |= {"finetune": settings.model_dump(), "generation": generation.model_dump()}
    metric = recipe.target.metric or get_task(recipe.task).default_metric
    said["metric"] = metric
    found = None
    if teacher.new is not None:
        said["new"] = teacher.new.model_dump()
    else:
        assert teacher.model is not None
        found = find_checkpoint(teacher.model, teacher.revision)
        said["identity"] = identity(found)

    def work(context: Context) -> None:
        # The Trainer takes seconds to import, which a finished run need not wait for.
        from ..distill.chunked import TokenTerm
        from ..distill.language_rows import LanguageRows

        rows = Data.open(context.inputs["data"])
        scratch = context.out / "training"
        source = found
        if teacher.new is not None:
            source = scratch / "new"
            if context.world.main:
                scratch.mkdir(parents=True, exist_ok=True)
                write_new_model(teacher.new, rows, recipe.seed, source)
            context.world.barrier()
        assert source is not None
        torch.manual_seed(recipe.seed)
        model = load_model(source, get_task(recipe.task), **model_options(teacher))
        check_cost_known(model.config)
        dialogues = dialogues_of(model, rows, generation)
        examples = examples_of(dialogues, rows, ["train"], scratch / f"tokens-{context.world.rank}")
        train_and_save(
            context,
            model,
            LanguageRows(examples, int(model.tokenizer.pad_token_id or 0)),
            [TokenTerm("cross_entropy")],
            settings,
            AnswersValidation(rows, generation, metric_names((), metric), settings.precision),
            seed=recipe.seed,
            metric=metric,
            where="teacher.finetune",
        )
        if context.world.main:
            write_record(context.out, CHECKPOINT, recipe)

    return Stage("teacher", "stage_teacher_language", said, {"data": data}, work, shared=True)
