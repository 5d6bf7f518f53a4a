"""The rows of a generation task as a model's tokens, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..distill.capture import Stream
from ..distill.examples import Examples
from ..eval.data import Data
from ..eval.dialogues import Dialogues, Example
from ..eval.errors import RunError
from ..eval.models import TextModel
from ..eval.splits import stable_hash
from .schema import Generation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def dialogues_of(
    model: TextModel, data: Data, settings: Generation, max_length: int | None = None
) -> Dialogues:
    """How a task's prompts and completions are written for a model."""
    limit = model.encoding.max_length
    return Dialogues(
        model.tokenizer,
        data.info["form"],
        min(limit, max_length) if max_length else limit,
        template=settings.template,
        train_on=settings.train_on,
    )


ROW = {"train": "Training row", "validation": "Validation row", "test": "Test row"}
"""What a row of each split is called in messages."""


def whole_examples(dialogues: Dialogues, rows: Any, split: str = "train") -> Iterator[Example]:
    """Each row's prompt with its completion.

    Raises:
        RunError: If a row has none.
    """
    for number, (prompt, completion) in enumerate(
        zip(rows["prompt"], rows["completion"], strict=True)
    ):
        if not completion:
            raise RunError(
                f"{ROW[split]} {number} has no completion to learn; set capture.over: generations "
                "(the teacher writes them), or give it one."
            )
        yield dialogues.example(prompt, completion, f"{ROW[split]} {number}")


def prompt_examples(dialogues: Dialogues, rows: Any, split: str = "train") -> Iterator[Example]:
    """Each row's prompt alone."""
    for number, prompt in enumerate(rows["prompt"]):
        ids = dialogues.prompt_ids(prompt, f"{ROW[split]} {number}")
        yield Example(ids, [0] * len(ids), False)


def recorded_streams(data: Data) -> dict[str, range]:
    """The rows that are recorded, by split, one after the other; no test row is touched."""
    train, validation = len(data.split("train")), len(data.split("validation"))
    return {"train": range(train), "validation": range(train, train + validation)}


def examples_of(
    dialogues: Dialogues, data: Data, splits: Sequence[str], folder: Path, prompts: bool = False
) -> Examples:
    """The rows of some splits as tokens on disk."""
    made = prompt_examples if prompts else whole_examples

    def every() -> Iterator[Example]:
        for split in splits:
            yield from made(dialogues, data.split(split), split)

    return Examples(every(), folder)


class _Texts(Sequence[str]):
    """Prompts with their completions as one text each, cut somewhere within the completion.

    What a model is calibrated on ends where its next token is asked for, and that should be
    anywhere in an answer, not always behind it.
    """

    def __init__(
        self, data: Data, tokenizer: PreTrainedTokenizerFast, settings: Generation
    ) -> None:
        self.rows = data.split("train")
        self.data, self.tokenizer, self.settings = data, tokenizer, settings

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, list):
            return [self[i] for i in at]
        row = self.rows[at]
        prompt, completion = str(row["prompt"]), str(row["completion"])
        text = written(self.tokenizer, self.data, self.settings, prompt)
        return text + completion[: stable_hash(f"{at}:{prompt}") % (len(completion) + 1)]


def written(
    tokenizer: PreTrainedTokenizerFast, data: Data, settings: Generation, prompt: str
) -> str:
    """A prompt as text, without what the tokenizer puts in front of any text."""
    if data.info["form"] == "text":
        return prompt
    import json

    text = str(
        tokenizer.apply_chat_template(
            json.loads(prompt), tokenize=False, add_generation_prompt=True, **settings.template
        )
    )
    return text.removeprefix(str(tokenizer.bos_token or ""))


def calibration_stream(data: Data, model: TextModel, settings: Generation) -> Stream:
    """The texts that a cut is calibrated on."""
    texts: Any = _Texts(data, model.tokenizer, settings)
    return Stream("train.text", texts)


def vocabulary_texts(
    data: Data, model: TextModel, settings: Generation, captured: Path
) -> Iterator[str]:
    """Every text that the training rows are made of, for a cut of the vocabulary.

    Args:
        data: The rows.
        model: The model to cut.
        settings: How prompts are written.
        captured: The folder of what the teacher wrote, which is learned too.
    """
    from ..distill.token_outputs import TokenOutputs

    rows = data.split("train")
    for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True):
        yield written(model.tokenizer, data, settings, prompt)
        yield completion
    outputs = TokenOutputs(captured)
    for item in range(len(outputs)):
        (record,) = outputs.get([item])
        if record.text:
            yield record.text
