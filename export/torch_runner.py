"""A stock checkpoint, run on PyTorch with the methods of an exported graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..eval.errors import DataError, RecipeError, RunError
from ..eval.generating import generate
from ..eval.models import TextModel, load_model
from ..eval.tasks import Task, get_task
from .check import next_logits
from .folder import Answering
from .generator import Answer, turns_of
from .predict import PredictError, Predictor

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 32


class CheckpointPredictor(Predictor):
    """A checkpoint that gives classes or embeddings, behind the interface of an exported graph."""

    def __init__(self, folder: Path, settings: dict[str, Any], model: TextModel) -> None:
        role = "query" if model.signal == "embedding" else "text"
        self.folder, self.model, self.batch = folder, model, BATCH
        self.settings = settings | {"width": model.width, "labels": model.labels, "role": role}

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, role: str | None = None
    ) -> list[dict[str, list[int]]]:
        """Turns texts into rows of ids, unpadded, cut to the model's length."""
        return self.model.tokenize(texts, pairs, role or self.settings["role"])

    def collate(self, rows: Sequence[dict[str, list[int]]]) -> Any:
        """Pads rows on the right into tensors of (B, T)."""
        return self.model.collate(rows)

    def forward(self, batch: Any) -> NDArray[np.float32]:
        """Runs the model on a padded batch: (B, T) each to (B, W)."""
        with torch.inference_mode():
            return np.asarray(self.model(**batch).values.float().numpy(), dtype=np.float32)


class CheckpointGenerator:
    """A checkpoint that writes, behind the interface of an exported language model."""

    def __init__(self, settings: dict[str, Any], model: TextModel) -> None:
        chats = bool(model.tokenizer.chat_template)
        how = Answering(
            int(settings["max_new_tokens"]),
            settings["form"] or ("messages" if chats else "text"),
            settings.get("template_arguments") or {},
        )
        self.settings = settings | {"width": model.width, "form": how.form}
        self.model, self.longest = model, how.max_new_tokens
        self.dialogues = how.dialogues(model)

    def prompt_ids(self, prompt: Any) -> list[int]:
        """The tokens that the model goes on from."""
        if self.dialogues.form == "messages":
            prompt = json.dumps(turns_of(prompt), ensure_ascii=False)
        elif not isinstance(prompt, str):
            raise PredictError("This model was trained on texts, not on messages; give a prompt.")
        try:
            return self.dialogues.prompt_ids(prompt)
        except DataError as error:
            raise PredictError(str(error)) from error

    def signal(self, prompts: Sequence[list[int]]) -> NDArray[np.float32]:
        """Logits of the token behind each prompt, (n, V) float32."""
        return np.concatenate([next_logits(self.model, ids) for ids in prompts])

    def answers(
        self,
        prompts: Sequence[list[int]],
        *,
        max_new_tokens: int | None = None,
        batch: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Greedy answers, in the order of the prompts."""
        longest = max_new_tokens or self.longest
        size = max((len(ids) for ids in prompts), default=0) + longest
        found = generate(
            self.model,
            prompts,
            max_new_tokens=longest,
            batch_tokens=(batch or BATCH) * size,
            progress=progress,
        )
        return [Answer(one.ids, one.text, one.finished) for one in found]


def open_checkpoint(folder: Path, settings: dict[str, Any], threads: int | None) -> Any:
    """Opens the folder of an export that is a checkpoint.

    Raises:
        RunError: If it is none, or of another task than it says.
    """
    try:
        task = get_task(settings["task"])
        if task.signal != settings["signal"]:
            raise RecipeError(f"task {task.name} gives {task.signal}, not {settings['signal']}.")
        return open_model(folder, task, settings, threads)
    except RecipeError as error:
        raise RunError(f"paredown.json of '{folder}': {error}") from error


def open_model(
    folder: Path, task: Task, settings: dict[str, Any], threads: int | None
) -> CheckpointPredictor | CheckpointGenerator:
    """Loads a checkpoint for a task, with all cores if no threads are named.

    Settings are those of ``paredown.json``; of a language model ``form`` may be None, which is
    ``messages`` where the tokenizer has a chat template.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    model = load_model(folder, task, max_length=settings.get("max_length"))
    if task.signal == "token_distribution":
        return CheckpointGenerator(settings, model)
    return CheckpointPredictor(folder, settings, model)
