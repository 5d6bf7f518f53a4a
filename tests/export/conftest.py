"""Exports of tiny checkpoints of three architectures, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paredown.eval.checkpoints import save_model
from paredown.eval.models import TextModel
from paredown.eval.tasks import get_task
from paredown.export import export_model

from ..conftest import LABELS, TEXTS

__all__ = ["LABELS", "TEXTS", "Exported"]

Exported = Callable[[str, str, str], tuple[Path, Path, dict[str, Any]]]


@pytest.fixture(scope="session")
def exported(
    tiny_model: Callable[..., TextModel], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """Gives (checkpoint, export, facts) of an architecture, a task and a format, each made once."""
    made: dict[tuple[str, str, str], tuple[Path, Path, dict[str, Any]]] = {}
    checkpoints: dict[tuple[str, str], Path] = {}

    def get(kind: str, task: str, fmt: str) -> tuple[Path, Path, dict[str, Any]]:
        if (kind, task) not in checkpoints:
            folder = tmp_path_factory.mktemp(f"{kind}-{task}") / "checkpoint"
            dense = 12 if kind == "roberta" and task == "retrieval" else None
            pooling = {"bert": "mean", "roberta": "cls", "distilbert": "max"}[kind]
            model = tiny_model(kind, get_task(task), dense=dense, pooling=pooling)
            with torch.no_grad():  # new models have biases at 0 and norms at 1, which test nothing
                for parameter in model.backbone.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(torch.randn_like(parameter) * 0.2)
            save_model(model, folder)
            checkpoints[kind, task] = folder
        key = (kind, task, fmt)
        if key not in made:
            source = checkpoints[kind, task]
            out = source.parent / fmt
            facts = export_model(source, get_task(task), fmt, out, sample_texts=TEXTS, threads=1)
            made[key] = (source, out, facts)
        return made[key]

    return get
