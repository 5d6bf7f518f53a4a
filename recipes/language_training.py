"""What trainings of language models share: the rows, the validation, and the saving."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..eval.checkpoints import save_model
from ..eval.data import Data
from ..eval.generating import generate
from ..eval.metrics import score_texts
from ..eval.models import TextModel
from ..eval.tasks import GENERATION
from .flops_spent import language_flops, training_flops
from .language_data import dialogues_of
from .schema import Distill, Finetune, Generation
from .stage_teacher import CHECKPOINT
from .store import Context

if TYPE_CHECKING:
    from peft import LoraModel
    from transformers import PreTrainedModel

    from ..distill.language import Term
    from ..distill.language_rows import LanguageRows
    from ..distill.language_trainer import OnPolicy
    from ..distill.trainer import Trained

VALIDATED = 512
"""Validation rows that are answered after each epoch, at most."""


def metric_names(asked: Sequence[str], target: str | None) -> list[str]:
    """The metrics of a generation task: its own, and those that the recipe names."""
    target = target or GENERATION.default_metric
    return list(dict.fromkeys([*GENERATION.metrics, *asked, target]))


@dataclass(frozen=True)
class AnswersValidation:
    """Answers validation rows while a model is trained.

    Attributes:
        data: The rows.
        settings: How prompts are written and answers made.
        metrics: Names of the metrics.
        precision: Of the forward passes.
    """

    data: Data
    settings: Generation
    metrics: Sequence[str]
    precision: str

    def __call__(self, model: TextModel) -> dict[str, float]:
        """Each metric over the validation rows, or over some spread evenly among many."""
        rows = self.data.split("validation")
        if len(rows) > VALIDATED:
            rows = rows.select(np.linspace(0, len(rows) - 1, VALIDATED).astype(int))
        dialogues = dialogues_of(model, self.data, self.settings)
        prompts = [dialogues.prompt_ids(prompt, i) for i, prompt in enumerate(rows["prompt"])]
        training = model.training
        answers = generate(
            model.eval(),
            prompts,
            max_new_tokens=self.settings.max_new_tokens,
            precision=self.precision,
            settings=self.settings.settings,
        )
        model.train(training)
        texts = [answer.text for answer in answers]
        return score_texts(texts, rows["completion"][:], list(self.metrics)).values()


def train_and_save(
    context: Context,
    model: TextModel,
    rows: LanguageRows,
    terms: Sequence[Term],
    settings: Distill | Finetune,
    validate: AnswersValidation,
    *,
    seed: int,
    metric: str,
    where: str,
    teacher: TextModel | None = None,
    shared: int | None = None,
    on_policy: OnPolicy | None = None,
    layers: Mapping[int, int] | None = None,
    teacher_hidden: int = 0,
    adapters: LoraModel | None = None,
    after_step: Any = None,
) -> Trained:
    """Trains a language model and saves the best epoch's weights as a stock checkpoint."""
    import torch

    from ..distill.arguments import training_arguments
    from ..distill.language import LanguageDistiller
    from ..distill.language_trainer import LanguageTrainer
    from ..distill.sharding import whole_model
    from ..distill.trainer import run, set_dropout

    scratch = context.out / "training"
    if isinstance(settings, Distill) and settings.dropout is not None:
        set_dropout(model, settings.dropout)
    arguments = training_arguments(
        scratch,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup if isinstance(settings, Distill) else 0.1,
        precision=settings.precision,
        seed=seed,
        metric=metric,
        world_size=context.world.size,
        extra=settings.arguments,
        where=where,
    )
    plain = adapters is None and on_policy is None
    one_pass = language_flops(model, rows.examples) if plain else None
    torch.manual_seed(seed)  # the projections' weights
    trainer = LanguageTrainer(
        LanguageDistiller(model, terms, teacher, shared, layers, teacher_hidden),
        arguments,
        rows,
        validate,
        settings.optimizer,
        on_policy,
    )
    trained = run(trainer, model, context.world.barrier, context.bar.update, after_step)
    context.world.barrier()  # until all have read the best checkpoint
    whole = whole_model(model, context.world.main)
    if context.world.main:
        if adapters is not None:
            whole.backbone = cast("PreTrainedModel", adapters.merge_and_unload())
        save_model(whole.cpu(), context.out / CHECKPOINT)
        history = json.dumps(trained.history, indent=1)
        (context.out / "history.json").write_text(history, encoding="utf-8")
        shutil.rmtree(scratch)
        context.facts.update(
            steps=trained.steps,
            best_validation=trained.best_metric,
            resumed_from=trained.resumed_from,
            truncated=rows.examples.truncated,
            flops=training_flops(
                one_pass, len(rows), trained.steps, settings.batch_size, settings.arguments
            ),
        )
    return trained
