"""An exported language model as a library and as a timed engine; imports no torch by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..eval.errors import RunError
from .generator import Answer
from .predict import PredictError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Writes(Protocol):
    """What answers tokenised prompts: `generator.Generator`, or a checkpoint's stand-in for it."""

    settings: dict[str, Any]

    def prompt_ids(self, prompt: Any) -> list[int]:
        """The tokens that the model goes on from."""

    def signal(self, prompts: Sequence[list[int]]) -> NDArray[np.float32]:
        """Logits of the token behind each prompt, (n, V)."""

    def answers(
        self,
        prompts: Sequence[list[int]],
        *,
        max_new_tokens: int | None = None,
        batch: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Greedy answers, in the order of the prompts."""


class TextRunner:
    """An exported model that answers prompts.

    Attributes:
        generator: What does.
        runtime: What runs its graph, such as ``onnxruntime``.
        settings: The content of ``paredown.json``.
        precision: Of its weights.
    """

    def __init__(self, generator: Writes, runtime: str) -> None:
        self.generator = generator
        self.runtime = runtime
        self.settings = generator.settings
        self.precision = str(generator.settings["precision"])

    def signal(
        self,
        texts: Sequence[Any],
        pairs: Sequence[str] | None = None,
        role: str | None = None,
        batch: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Logits of the token behind each prompt, (n, V) float32."""
        if pairs is not None:
            raise RunError("A language model is given prompts alone, without a second text.")
        step = batch or 32
        parts = [np.empty((0, int(self.settings["width"])), dtype=np.float32)]
        ids = self._ids(texts)
        for start in range(0, len(ids), step):
            parts.append(self.generator.signal(ids[start : start + step]))
            if progress is not None:
                progress(len(parts[-1]))
        return np.concatenate(parts)

    def generate(
        self,
        texts: Sequence[Any],
        *,
        max_new_tokens: int | None = None,
        batch: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Greedy answers to prompts, in their order.

        Args:
            texts: Prompts; or turns of conversations (lists of ``{"role", "content"}``, or JSON of
                one) where the model was trained on messages.
            max_new_tokens: Tokens of an answer, at most; the folder's own if None.
            batch: Prompts answered together; the folder's own if None.
            progress: Called with the number of prompts done.

        Raises:
            RunError: If a prompt has no tokens or leaves no room for an answer.
        """
        return self.generator.answers(
            self._ids(texts), max_new_tokens=max_new_tokens, batch=batch, progress=progress
        )

    def predict(self, texts: Sequence[Any], **options: Any) -> list[dict[str, Any]]:
        """Answers as predict.py prints them: ``{"text", "finished"}`` a prompt."""
        found = self.generate(texts, **options)
        return [{"text": answer.text, "finished": answer.finished} for answer in found]

    def run(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Answer]:
        """Prompts to answers, as one batch."""
        return self.model_only(texts)()

    def model_only(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> Callable[[], list[Answer]]:
        """Tokenises, and returns the answering of that one batch."""
        ids = self._ids(texts)
        return lambda: self.generator.answers(ids, batch=len(ids))

    def first_token(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
        """Prompts to the first token of each answer."""
        ids = self._ids(texts)
        return self.generator.answers(ids, max_new_tokens=1, batch=len(ids))

    def tokens(self, answers: Sequence[Answer]) -> int:
        """Tokens that were written, those that ended an answer included."""
        return sum(len(answer.ids) + answer.finished for answer in answers)

    def _ids(self, prompts: Sequence[Any]) -> list[list[int]]:
        found = []
        for row, prompt in enumerate(prompts):
            try:
                found.append(self.generator.prompt_ids(prompt))
            except PredictError as error:
                where = f"Row {row}: " if len(prompts) > 1 else ""  # one needs no number
                raise RunError(f"{where}{error}.") from error
        return found
