"""Tiny language models, rows of unequal length, and trainers of them, for the tests beside this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paredown.distill.arguments import training_arguments
from paredown.distill.chunked import TokenTerm
from paredown.distill.examples import Examples
from paredown.distill.language import LanguageDistiller, token_terms
from paredown.distill.language_rows import LanguageRows
from paredown.distill.language_trainer import LanguageTrainer, OnPolicy
from paredown.distill.token_capture import capture_tokens
from paredown.distill.token_outputs import TokenOutputs
from paredown.eval.dialogues import Example
from paredown.eval.models import TextModel

WORDS = ["red", "blue", "green", "shoes", "size", "cheap", "new", "used", "brand", "shop"]


def make_examples(
    model: TextModel, folder: Path, count: int = 24, *, seed: int = 0, answers: bool = True
) -> Examples:
    """Prompts with completions of 1 to 7 words, so that rows have unequal numbers of tokens."""
    draw, tokenizer = np.random.default_rng(seed), model.tokenizer

    def ids(words: Any) -> list[int]:
        return list(tokenizer(" ".join(words), add_special_tokens=False)["input_ids"])

    def every() -> Any:
        for _ in range(count):
            prompt = [1, *ids(draw.choice(WORDS, 2))]
            answer = [*ids(sorted(draw.choice(WORDS, draw.integers(1, 8)))), 2]
            if not answers:
                answer = []
            yield Example(prompt + answer, [0] * len(prompt) + [1] * len(answer), False)

    return Examples(every(), folder)


def record(
    teacher: TextModel, examples: Examples, out: Path, encoding: Mapping[str, Any], **more: Any
) -> TokenOutputs:
    """The teacher's distributions over the examples' own completions."""
    found = capture_tokens(
        teacher,
        examples,
        {"train": range(len(examples))},
        out,
        identity={"teacher": "tiny"},
        encoding=encoding,
        **more,
    )
    assert found is not None
    return found


def recorded_rows(
    teacher: TextModel, folder: Path, encoding: Mapping[str, Any], count: int = 24
) -> LanguageRows:
    """Rows with what a teacher said of them."""
    examples = make_examples(teacher, folder / "tokens", count)
    outputs = record(teacher, examples, folder / "outputs", encoding)
    return LanguageRows(examples, 0, items=outputs.rows("train"), outputs=outputs)


def make_trainer(
    student: TextModel,
    rows: LanguageRows,
    folder: Path,
    losses: Mapping[str, Any] | None = None,
    *,
    teacher: TextModel | None = None,
    optimizer: str = "adamw",
    on_policy: OnPolicy | None = None,
    validate: Callable[[TextModel], dict[str, float]] = lambda _: {"exact_match": 0.0},
    **arguments: Any,
) -> LanguageTrainer:
    """A trainer in fp32 that logs every step."""
    settings: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup": 0.1,
        "seed": 0,
    }
    settings |= {key: arguments.pop(key) for key in list(arguments) if key in settings}
    return LanguageTrainer(
        LanguageDistiller(student, terms_of(losses), teacher),
        training_arguments(
            folder,
            precision="fp32",
            metric="exact_match",
            extra={"logging_strategy": "steps", "logging_steps": 1, **arguments},
            **settings,
        ),
        rows,
        validate,
        optimizer,
        on_policy,
    )


def terms_of(losses: Mapping[str, Any] | None = None) -> list[TokenTerm]:
    """The terms of a loss; forward KL where none is named."""
    return token_terms(losses or {"forward_kl": 1.0})


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of a model's weights."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_state(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same weights, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def logged(history: Sequence[Mapping[str, Any]], name: str = "loss") -> list[float]:
    """What was logged under a name, step by step."""
    return [float(line[name]) for line in history if name in line]


def full_logits(model: TextModel, batch: Mapping[str, Tensor]) -> Tensor:
    """The stock class's own logits where a learned token comes next, (N, V) float64."""
    logits = model.backbone(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).logits
    return torch.cat(
        [
            logits[row, at - 1].double()[None]
            for row, labels in enumerate(batch["labels"])
            for at in (labels != -100).nonzero()[:, 0].tolist()
        ]
    )
