"""What a chat server answers: its shape checked, and what is recorded of it.

The schema is OpenAI's chat completion object. A token's log-probabilities are recorded as a list of
entries, the chosen token's first and then the server's alternatives; an entry is
``[text, log-probability]``, and ``[text, log-probability, bytes in hex]`` where the bytes are not
those of the text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class WrongShape(Exception):
    """A body that is not a chat completion; the message says what is wrong with it."""


@dataclass(frozen=True)
class Entry:
    """One token and its log-probability, as the server spells it.

    Attributes:
        text: The token as text.
        log_prob: Its log-probability, in nats; servers send −9999 for "very unlikely".
        raw: Its bytes where they are not the text's; None otherwise.
    """

    text: str
    log_prob: float
    raw: bytes | None = None

    def row(self) -> list[Any]:
        """The entry as it is recorded."""
        number = round(self.log_prob, 6)
        return [self.text, number] if self.raw is None else [self.text, number, self.raw.hex()]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Entry:
        """Reads an entry back."""
        return cls(row[0], float(row[1]), bytes.fromhex(row[2]) if len(row) > 2 else None)


@dataclass(frozen=True)
class Answer:
    """One answer, as recorded.

    Attributes:
        key: The row it belongs to.
        text: What the server wrote; empty where it wrote nothing.
        finish: Why it stopped: ``stop``, ``length``, ``content_filter``, …; None if not said.
        refusal: What it wrote instead of an answer, or None.
        reasoning: What it wrote before the answer, where the server tells it apart; or None.
        prompt_tokens: Tokens of the prompt by the server's count; None if not told.
        completion_tokens: Tokens of the answer by the server's count; None if not told.
        tokens: For each token its entries, the chosen one first; None without log-probabilities.
    """

    key: str
    text: str
    finish: str | None
    refusal: str | None
    reasoning: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    tokens: tuple[tuple[Entry, ...], ...] | None

    def row(self) -> dict[str, Any]:
        """The answer as a JSON object; what is not there is left out."""
        fields: dict[str, Any] = {"key": self.key, "text": self.text, "finish": self.finish}
        optional = {
            "refusal": self.refusal,
            "reasoning": self.reasoning,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }
        fields |= {name: value for name, value in optional.items() if value is not None}
        if self.tokens is not None:
            fields["tokens"] = [[entry.row() for entry in token] for token in self.tokens]
        return fields

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Answer:
        """Reads an answer back."""
        tokens = row.get("tokens")
        return cls(
            row["key"],
            row["text"],
            row["finish"],
            row.get("refusal"),
            row.get("reasoning"),
            row.get("prompt_tokens"),
            row.get("completion_tokens"),
            None
            if tokens is None
            else tuple(tuple(Entry.from_row(entry) for entry in token) for token in tokens),
        )


def parse_answer(key: str, body: str) -> Answer:
    """Reads the body of a chat completion.

    Args:
        key: The row that was asked for.
        body: What the server sent.

    Returns:
        The answer; ``tokens`` is None where the server sent no log-probabilities.

    Raises:
        WrongShape: If it is not one.
    """
    try:
        content = json.loads(body)
    except ValueError as error:
        start = " ".join(body[:60].split())
        raise WrongShape(f"the body is not JSON (it begins '{start}')") from error
    if not isinstance(content, dict):
        raise WrongShape("the body is not a JSON object")
    choices = content.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise WrongShape("there are no 'choices'")
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise WrongShape("the choice has no 'message'")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    usage = content.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        key,
        _text(message, "content") or "",
        _text(choice, "finish_reason"),
        _text(message, "refusal"),
        reasoning if isinstance(reasoning, str) else None,
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        parse_tokens(choice.get("logprobs")),
    )


def _text(holder: Mapping[str, Any], name: str) -> str | None:
    value = holder.get(name)
    if value is not None and not isinstance(value, str):
        raise WrongShape(f"'{name}' is a {type(value).__name__}, expected text or null")
    return value


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def parse_tokens(logprobs: Any) -> tuple[tuple[Entry, ...], ...] | None:
    """For each token its entries, the chosen one first; None where there are none.

    Args:
        logprobs: A choice's ``logprobs``: an object whose ``content`` lists the tokens.

    Raises:
        WrongShape: If it is something else.
    """
    if not isinstance(logprobs, dict) or logprobs.get("content") is None:
        return None
    if not isinstance(logprobs["content"], list):
        raise WrongShape("'logprobs.content' is not a list")
    tokens = []
    for token in logprobs["content"]:
        chosen = _entry(token)
        others = token.get("top_logprobs") or []
        if not isinstance(others, list):
            raise WrongShape("'top_logprobs' is not a list")
        tokens.append((chosen, *(_entry(other) for other in others)))
    return tuple(tokens)


def _entry(value: Any) -> Entry:
    if not isinstance(value, dict) or not isinstance(value.get("token"), str):
        raise WrongShape("an entry of 'logprobs' has no 'token'")
    number, raw = value.get("logprob"), value.get("bytes")
    if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number):
        raise WrongShape("an entry of 'logprobs' has no number as 'logprob'")
    # rounding at the server can put a certain token's log-probability just above 0
    if number > 1e-3:
        raise WrongShape(f"an entry of 'logprobs' has the log-probability {number}, above 0")
    text: str = value["token"]
    if raw is not None:
        if not isinstance(raw, list) or not all(type(b) is int and 0 <= b < 256 for b in raw):
            raise WrongShape("an entry of 'logprobs' has 'bytes' that are no bytes")
        raw = None if bytes(raw) == text.encode("utf-8", "surrogatepass") else bytes(raw)
    return Entry(text, max(min(float(number), 0.0), -9999.0), raw)
