"""What a recording has used and may still use, in requests, tokens and money, across restarts.

Before a request goes out, the most it can use is reserved; when it is over, what it used takes the
reservation's place. Both are lines of a file, so a request that a kill cut off counts in full.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .answer_log import AppendOnly, damaged

LEDGER = "ledger.jsonl"
# a chat template writes a role and markers around each message, and some a system prompt of theirs
TEMPLATE_TOKENS, MESSAGE_TOKENS = 64, 16


@dataclass(frozen=True)
class Budget:
    """The most a recording may use; None is no limit.

    Attributes:
        requests: Requests, retries included.
        tokens: Tokens of prompts and answers together.
        usd: Money.
        usd_per_million_input: Price of a million prompt tokens; 0 where not told.
        usd_per_million_output: Price of a million answer tokens; 0 where not told.
    """

    requests: int | None = None
    tokens: int | None = None
    usd: float | None = None
    usd_per_million_input: float = 0.0
    usd_per_million_output: float = 0.0

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost, in US dollars."""
        return (
            prompt_tokens * self.usd_per_million_input
            + completion_tokens * self.usd_per_million_output
        ) / 1e6


def most_prompt_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """An upper bound of a prompt's tokens: no token is shorter than a byte.

    Args:
        messages: The chat so far.

    Returns:
        The bytes of the messages and an allowance for the template's own tokens.
    """
    text = sum(len(json.dumps(m, ensure_ascii=False).encode("utf-8", "replace")) for m in messages)
    return text + MESSAGE_TOKENS * len(messages) + TEMPLATE_TOKENS


class Ledger:
    """Use so far, with what is in flight reserved in full.

    Attributes:
        budget: The limits.
        requests: Requests, of all parts; likewise the next two.
        prompt_tokens: Tokens sent.
        completion_tokens: Tokens answered.
        own: Of these, what this part used: requests, tokens sent, tokens answered.
        in_flight: Reservations of this process that are still open.
    """

    def __init__(self, folder: Path, budget: Budget, part: str = "") -> None:
        """Opens the folder's ledger and counts what earlier runs used.

        Args:
            folder: Where it is.
            budget: The limits, for all parts together.
            part: Of the recording: what is asked now is noted as its own.

        Raises:
            RunError: If it is damaged.
        """
        self.budget, self.part = budget, part
        self.in_flight: dict[int, tuple[int, int]] = {}
        self._file = AppendOnly(folder / LEDGER)
        used: dict[int, tuple[int, int]] = {}
        mine: set[int] = set()
        for row in self._file.rows:
            try:
                number = int(row["request"])
                prompt, completion = row["most"] if "most" in row else row["used"]
                used[number] = int(prompt), int(completion)
                if row.get("of", "") == part:
                    mine.add(number)
            except (KeyError, TypeError, ValueError):
                self._file.close()
                raise damaged(self._file.path, "a line is not the ledger's") from None
        self._file.rows = []
        self.requests = len(used)
        self._next = max(used, default=-1) + 1
        self.prompt_tokens = sum(prompt for prompt, _ in used.values())
        self.completion_tokens = sum(completion for _, completion in used.values())
        sums = [sum(used[number][side] for number in mine) for side in (0, 1)]
        self.own = (len(mine), sums[0], sums[1])

    @property
    def usd(self) -> float:
        """Money used or reserved."""
        return self.budget.price(self.prompt_tokens, self.completion_tokens)

    def _count(self, requests: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Adds to what all parts used, and to this part's."""
        self.requests += requests
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        before = self.own
        self.own = (
            before[0] + requests,
            before[1] + prompt_tokens,
            before[2] + completion_tokens,
        )

    def exceeded_by(self, prompt_tokens: int, completion_tokens: int) -> str | None:
        """The first limit that a request of this size could pass: a name, or None."""
        budget = self.budget
        prompt = self.prompt_tokens + prompt_tokens
        completion = self.completion_tokens + completion_tokens
        if budget.requests is not None and self.requests + 1 > budget.requests:
            return "requests"
        if budget.tokens is not None and prompt + completion > budget.tokens:
            return "tokens"
        # a hair of slack: a budget of exactly so many requests is not lost to rounding
        if budget.usd is not None and budget.price(prompt, completion) > budget.usd * (1 + 1e-12):
            return "usd"
        return None

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Notes a request that is about to go out; gives its number."""
        number, self._next = self._next, self._next + 1
        self._write(number, "most", prompt_tokens, completion_tokens)
        self.in_flight[number] = (prompt_tokens, completion_tokens)
        self._count(1, prompt_tokens, completion_tokens)
        return number

    def settle(self, number: int, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Notes what a request used; None leaves its reservation as what it used."""
        prompt, completion = self.in_flight.pop(number)
        used_prompt = prompt if prompt_tokens is None else prompt_tokens
        used_completion = completion if completion_tokens is None else completion_tokens
        self._write(number, "used", used_prompt, used_completion)
        self._count(0, used_prompt - prompt, used_completion - completion)

    def _write(self, number: int, what: str, prompt: int, completion: int) -> None:
        part = {"of": self.part} if self.part else {}
        self._file.append(json.dumps({"request": number, what: [prompt, completion], **part}))

    def sync(self) -> None:
        """Waits until the ledger is on the disk."""
        self._file.sync()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
