"""Teachers whose texts are on file: prompts with completions, with or without log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..eval.errors import RecipeError
from ..eval.generation_rows import split_messages
from ..eval.problems import Problems
from ..eval.tables import open_table
from .chat_answers import Answer, WrongShape, parse_tokens


def read_answers(path: Path, name: str) -> dict[str, Answer]:
    """The recorded answer of each prompt.

    Args:
        path: JSONL or Parquet with the columns ``prompt`` (a text, or the turns before the answer)
            and ``completion``, and perhaps
            ``logprobs``: for each token of the completion an object with ``token``, ``logprob`` and
            ``top_logprobs``, as chat servers send them in ``choices[0].logprobs.content``.
        name: The recipe's key, for errors.

    Returns:
        By prompt.

    Raises:
        RecipeError: If a column is missing.
        DataError: If a row is not what its column says; all of them in one message.
    """
    table = open_table(path, name)
    lacking = [column for column in ("prompt", "completion") if column not in table.columns]
    if lacking:
        raise RecipeError(
            f"{name} ({path.name}): no column {' or '.join(map(repr, lacking))}; expected prompt "
            "and completion, and logprobs where there are any. "
            f"It has: {', '.join(table.columns)}."
        )
    wanted = ["prompt", "completion", *(["logprobs"] if "logprobs" in table.columns else [])]
    problems = Problems()
    found: dict[str, Answer] = {}

    def report(place: int, what: str) -> None:
        problems.add_row(table.name, f"{table.unit} {place}", what)

    for place, (prompt, completion, *rest) in table.read(wanted, report):
        if not isinstance(completion, str) or not completion:
            report(place, "no completion; every recorded prompt needs what the teacher answered")
            continue
        try:
            text = _prompt(prompt)
        except ValueError as error:
            report(place, f"prompt: {error}")
            continue
        if text in found and found[text].text != completion:
            report(place, "the prompt has another answer on file above")
            continue
        try:
            tokens = parse_tokens(_content(rest[0])) if rest and rest[0] is not None else None
        except WrongShape as error:
            report(place, f"logprobs: {error}")
            continue
        found[text] = Answer(str(place), completion, None, None, None, None, None, tokens)
    problems.raise_if_any()
    return found


def _prompt(cell: Any) -> str:
    """A prompt as the data folder has it.

    Raises:
        ValueError: If it is neither a text nor turns that ask for an answer.
    """
    if isinstance(cell, str):
        return cell
    prompt, answer = split_messages(cell)
    if prompt is None:
        raise ValueError("it is empty")
    if answer is not None:
        raise ValueError("the conversation ends with an answer; the completion has a column")
    return prompt


def _content(value: Any) -> Mapping[str, Any]:
    """The list of tokens, whether it stands alone or in the object that servers send."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise WrongShape("it is text, and no JSON") from error
    return value if isinstance(value, Mapping) else {"content": value}
