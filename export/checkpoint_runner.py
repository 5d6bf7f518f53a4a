"""Runs a stock checkpoint as an export is run: the same methods, on PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..eval.errors import RecipeError, RunError
from ..eval.tasks import TASKS, Task
from .predict import answers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..eval.dialogues import Dialogues
    from ..eval.generating import Generated
    from ..eval.models import TextModel

HEADS = {"ForSequenceClassification": "classification", "ForCausalLM": "generation"}
"""Ends of a stock class's name, and the task it is for; other checkpoints give embeddings."""
MAX_NEW_TOKENS = 128


class CheckpointRunner:
    """A checkpoint that is loaded.

    Attributes:
        model: Its model.
        settings: What an export's ``paredown.json`` says of the same model, as far as it goes.
        dialogues: How prompts are written, of language models.
        max_new_tokens: Tokens of an answer, at most.
    """

    runtime = "pytorch"
    precision = "fp32"

    def __init__(
        self,
        model: TextModel,
        task: Task,
        dialogues: Dialogues | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self.model = model
        self.dialogues = dialogues
        self.max_new_tokens = max_new_tokens
        self.settings: dict[str, Any] = {
            "task": task.name,
            "signal": model.signal,
            "labels": model.labels,
            "width": model.width,
            "format": "checkpoint",
            "precision": self.precision,
            "role": "query" if model.signal == "embedding" else "text",
        }

    def signal(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        role: str | None = None,
        batch: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Class logits or embeddings of texts, (n, W) float32; see `TextModel.predict`."""
        tokens: dict[str, Any] = (
            {} if batch is None else {"batch_tokens": batch * self.model.encoding.max_length}
        )
        role = role or self.settings["role"]
        return self.model.predict(texts, pairs, str(role), progress=progress, **tokens)

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        index: Any = None,
        top: int | None = None,
        batch: int | None = None,
    ) -> list[dict[str, Any]]:
        """Answers texts as an export's predict.py prints them."""
        if self.dialogues is not None:
            found = self.generate(texts)
            return [{"text": answer.text, "finished": answer.finished} for answer in found]
        values = self.signal(texts, pairs, batch=batch)
        return answers_of(values, self.settings, index=index, top=top)

    def generate(self, texts: Sequence[str]) -> list[Generated]:
        """Greedy answers to prompts; where the model reads messages, to turns in JSON or a user's.

        Raises:
            RecipeError: If it is no language model.
        """
        from ..eval.generating import generate

        if self.dialogues is None:
            raise RecipeError(
                f"Only a language model generates; this one gives {self.model.signal}."
            )
        form = self.dialogues.form
        prompts = [as_turns(text) if form == "messages" else text for text in texts]
        ids = [self.dialogues.prompt_ids(prompt) for prompt in prompts]
        return generate(self.model, ids, max_new_tokens=self.max_new_tokens)


def as_turns(text: str) -> str:
    """Turns of a conversation as canonical JSON: those that the text holds, or it as a user's.

    Examples:
        >>> as_turns("hello")
        '[{"role": "user", "content": "hello"}]'
    """
    if text.lstrip().startswith("["):
        try:
            turns = json.loads(text)
        except (ValueError, RecursionError):
            turns = None
        if isinstance(turns, list) and turns and all(map(_is_turn, turns)):
            return text
    return json.dumps([{"role": "user", "content": text}], ensure_ascii=False)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(
        isinstance(turn.get(key), str) for key in ("role", "content")
    )


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a stock checkpoint, by its files' names."""
    return (folder / "config.json").is_file() and not (folder / "paredown.json").exists()


def task_of(folder: Path) -> Task:
    """The task a checkpoint is for: what its class's name or its sentence-transformers files say.

    Raises:
        RunError: If its config.json cannot be read.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name = str((config.get("architectures") or [""])[0])
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise RunError(f"'{path}' cannot be read: {error}") from error
    ending = next((task for end, task in HEADS.items() if name.endswith(end)), "retrieval")
    return TASKS[ending]


def load_checkpoint(
    folder: str | Path,
    task: Task | None = None,
    *,
    threads: int | None = None,
    form: Literal["text", "messages"] | None = None,
    template: Mapping[str, Any] | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_length: int | None = None,
) -> CheckpointRunner:
    """Loads a stock checkpoint to be run as an export is.

    Args:
        folder: The checkpoint, such as a run's ``student/``.
        task: What it does; found by its class if None.
        threads: Threads of torch; as they are if None.
        form: How a language model's prompts are written; as messages if None and its tokenizer has
            a chat template.
        template: Further arguments of the chat template.
        max_new_tokens: Tokens of an answer, at most.
        max_length: Tokens of a text, or None for the checkpoint's own limit.

    Raises:
        RunError: If it cannot be loaded.
    """
    import torch

    from ..eval.dialogues import Dialogues
    from ..eval.models import load_model

    folder = Path(folder)
    if threads is not None:
        torch.set_num_threads(threads)
    known = task or task_of(folder)
    model = load_model(folder, known, max_length=max_length)
    if model.signal != "token_distribution":
        return CheckpointRunner(model, known)
    form = form or ("messages" if model.tokenizer.chat_template else "text")
    dialogues = Dialogues(model.tokenizer, form, model.encoding.max_length, dict(template or {}))
    return CheckpointRunner(model, known, dialogues, max_new_tokens)
