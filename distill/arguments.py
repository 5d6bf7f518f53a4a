"""The arguments of a training: paredown's defaults, and which fields a recipe may set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..eval.errors import RecipeError, nearest

# Fields that other parts of the recipe set; two places for one thing would contradict each other.
RESERVED = {
    "output_dir": "--out",
    "seed": "seed",
    "data_seed": "seed",
    "bf16": "precision",
    "fp16": "precision",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup",
    "train_sampling_strategy": "nothing (paredown's own sampler resumes exactly)",
    "remove_unused_columns": "nothing (rows have no columns here)",
    "metric_for_best_model": "target.metric",
    "use_cpu": "ACCELERATE_USE_CPU=true in the environment",
    "push_to_hub": "nothing (a run publishes nothing)",
}


# Fields that the Trainer reads in places that paredown replaces.
WITHOUT_EFFECT = {
    "label_smoothing_factor": "the losses of distill.losses are used as they are",
    "eval_on_start": "the student as cut is always evaluated",
    "push_to_hub_model_id": "a run publishes nothing",
    "include_for_metrics": "validation uses the task's metrics",
    **dict.fromkeys(
        (
            "per_device_eval_batch_size",
            "bf16_full_eval",
            "fp16_full_eval",
            "eval_accumulation_steps",
            "prediction_loss_only",
            "batch_eval_metrics",
            "do_predict",
        ),
        "validation is paredown's own",
    ),
    "do_train": "distill trains",
    "do_eval": "validation follows eval_strategy",
    "resume_from_checkpoint": "a run goes on from its last checkpoint by itself",
    "ignore_data_skip": "a resumed run always goes on at the row where it was stopped",
}


def check_argument(name: str) -> None:
    """Checks the name of a training argument.

    Raises:
        RecipeError: If it is no field of ``TrainingArguments``, or another key sets it.
    """
    known = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    if name in WITHOUT_EFFECT:
        raise RecipeError(f"TrainingArguments.{name} has no effect: {WITHOUT_EFFECT[name]}.")
    if name in RESERVED:
        raise RecipeError(f"TrainingArguments.{name} is set by {RESERVED[name]}.")
    if name not in known:
        raise RecipeError(f"TrainingArguments has no field '{name}'.{nearest(name, known)}")


def training_arguments(
    folder: Path,
    *,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    warmup: float,
    precision: str,
    seed: int,
    metric: str,
    world_size: int = 1,
    extra: Mapping[str, Any] | None = None,
    where: str = "distill",
) -> TrainingArguments:
    """Builds the Trainer's arguments; every field but the reserved ones can be set by ``extra``.

    Args:
        folder: Where checkpoints go while training.
        epochs: Passes over the rows.
        batch_size: Rows a step, over all processes.
        learning_rate: The highest.
        warmup: Share of the steps until it is reached.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        seed: Of the order of rows, and of dropout.
        metric: Validation metric of which the best checkpoint is kept.
        world_size: Processes of the launch.
        extra: ``distill.arguments`` of the recipe.
        where: The section of the recipe, for errors.

    Raises:
        RecipeError: For an unknown or reserved field, a value the Trainer refuses, or a batch size
            that the processes cannot share evenly.
    """
    extra = dict(extra or {})
    for name in extra:
        check_argument(name)
    if batch_size % world_size:
        raise RecipeError(
            f"{where}.batch_size is {batch_size} rows over all processes; "
            f"{world_size} processes cannot share it evenly."
        )
    defaults: dict[str, Any] = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.01,
        "report_to": "none",
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "greater_is_better": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "logging_nan_inf_filter": False,
    }
    try:
        return TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size // world_size,
            learning_rate=learning_rate,
            warmup_steps=warmup,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
            metric_for_best_model=f"eval_{metric}",
            **{**defaults, **extra},
        )
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{where}.arguments: {error}") from error
