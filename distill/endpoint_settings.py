"""How an endpoint teacher is asked: address, sampling, limits, and the key that nothing shows.

The key is read from an environment variable when a recording starts. It is held by `Key`, which
shows it in no representation and takes it out of every text that is written or raised.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from ..eval.errors import RecipeError

HIDDEN = "***"
SHORTEST_KEY = 8
# what a field of the settings says already, or what would change the shape of an answer
_NOT_EXTRA = {
    "model": "teacher.model",
    "messages": "the data",
    "temperature": "teacher.endpoint.temperature",
    "top_p": "teacher.endpoint.top_p",
    "max_tokens": "teacher.endpoint.max_tokens",
    "seed": "teacher.endpoint.seed",
    "logprobs": "teacher.endpoint.top_logprobs",
    "top_logprobs": "teacher.endpoint.top_logprobs",
    "stream": "nothing: answers are read whole",
    "n": "nothing: one answer a row is recorded",
}


class Key:
    """A secret: usable, never shown.

    Attributes:
        variable: The environment variable it came from.
    """

    __slots__ = ("_value", "variable")

    def __init__(self, value: str, variable: str) -> None:
        self._value = value
        self.variable = variable

    def __repr__(self) -> str:
        return f"Key(from {self.variable})"

    def reveal(self) -> str:
        """The secret itself, for the client that sends it."""
        return self._value

    def redact(self, text: str) -> str:
        """A text with every spelling of the secret (plain, in JSON, in a URL) replaced."""
        forms = {self._value, json.dumps(self._value)[1:-1], quote(self._value, safe="")}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, HIDDEN)
        return text


@dataclass(frozen=True)
class EndpointSettings:
    """An OpenAI-compatible chat server and how it is asked.

    Fields are keys under ``teacher.endpoint``; the model's name is ``teacher.model``.

    Attributes:
        base_url: The address that ``/chat/completions`` follows, e.g. ``http://localhost:8000/v1``.
        model: The model's name at the server.
        key_env: The environment variable that holds the key; None for a server that needs none.
        concurrency: Requests in flight at once.
        timeout_s: Seconds a request may take, its answer included.
        retries: How often one request is tried again.
        first_wait_s: Seconds before the first retry; they double, with jitter, up to a minute.
        longest_wait_s: A Retry-After above this ends the recording.
        top_logprobs: Log-probabilities a token; 0 records texts alone.
        temperature: Sampling temperature; None for the server's default, as for the next three.
        top_p: Nucleus sampling.
        max_tokens: The longest answer, in tokens; needed for a budget in tokens or money.
        seed: The server's sampling seed.
        extra_body: Further fields of the request, passed through.
        budget_requests: At most so many requests, retries included.
        budget_tokens: At most so many tokens, prompts and answers together.
        budget_usd: At most so much money.
        usd_per_million_input: The price of a million prompt tokens.
        usd_per_million_output: The price of a million answer tokens.
        allow_plain_http: Send the key over http to another machine.
    """

    base_url: str
    model: str
    key_env: str | None = None
    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 600.0
    top_logprobs: int = 0
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    budget_requests: int | None = None
    budget_tokens: int | None = None
    budget_usd: float | None = None
    usd_per_million_input: float | None = None
    usd_per_million_output: float | None = None
    allow_plain_http: bool = False

    def __post_init__(self) -> None:
        """Checks all fields at once.

        Raises:
            RecipeError: If any cannot be; the message has a line for each.
        """
        problems = [*self._url_problems(), *self._number_problems(), *self._body_problems()]
        if problems:
            raise RecipeError("\n".join(problems))

    def _url_problems(self) -> list[str]:
        try:
            parts = urlsplit(self.base_url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            return [
                "teacher.endpoint.base_url is no address: expected e.g. http://localhost:8000/v1."
            ]
        if "@" in parts.netloc:  # not repeated in the message: it may hold a password
            return [
                "teacher.endpoint.base_url holds a user name or password; leave it out and name an "
                "environment variable with the key in teacher.endpoint.key_env."
            ]
        if parts.query or parts.fragment:
            return [
                "teacher.endpoint.base_url ends in a query ('?…') or fragment ('#…'), where keys "
                "hide; give "
                "the address alone, and a key through teacher.endpoint.key_env."
            ]
        if parts.scheme not in ("http", "https") or not host:
            return [
                f"teacher.endpoint.base_url is '{self.base_url}': expected http:// or https:// "
                "and a host, "
                "e.g. http://localhost:8000/v1."
            ]
        if self.key_env and parts.scheme == "http" and not _loopback(host):
            if not self.allow_plain_http:
                return [
                    f"teacher.endpoint.base_url is plain http to '{host}': the key in "
                    f"{self.key_env} would "
                    "be readable on the way. Use https, or set "
                    "teacher.endpoint.allow_plain_http: true."
                ]
        elif self.allow_plain_http:
            return [
                "teacher.endpoint.allow_plain_http has no effect: no key goes over http to "
                "another machine. "
                "Leave it out."
            ]
        return []

    def _number_problems(self) -> list[str]:
        least = {
            "concurrency": 1,
            "retries": 0,
            "top_logprobs": 0,
            "max_tokens": 1,
            "budget_requests": 1,
            "budget_tokens": 1,
        }
        problems = []
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                problems.append(f"teacher.endpoint.{name} is {value}: expected {low} or more.")
        for name in ("timeout_s", "first_wait_s", "longest_wait_s", "budget_usd"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                problems.append(f"teacher.endpoint.{name} is {value}: expected a number above 0.")
        prices = (self.usd_per_million_input, self.usd_per_million_output)
        if any(p is not None and not (math.isfinite(p) and p >= 0) for p in prices):
            problems.append(
                "teacher.endpoint.usd_per_million_input and …_output cannot be below 0."
            )
        if self.budget_usd is not None and None in prices:
            problems.append(
                "teacher.endpoint.budget_usd needs the prices: set "
                "teacher.endpoint.usd_per_million_input and "
                "teacher.endpoint.usd_per_million_output."
            )
        bounded = self.budget_usd is not None or self.budget_tokens is not None
        if bounded and self.longest_answer is None:
            problems.append(
                "A budget in tokens or money needs teacher.endpoint.max_tokens: what the next "
                "request may "
                "cost is not known otherwise."
            )
        return problems

    def _body_problems(self) -> list[str]:
        problems = [] if self.model else ["teacher.model is empty: name the server's model."]
        for name in sorted(set(self.extra_body) & set(_NOT_EXTRA)):
            problems.append(f"teacher.endpoint.extra_body sets '{name}'; use {_NOT_EXTRA[name]}.")
        try:
            json.dumps(dict(self.extra_body), allow_nan=False)
        except (TypeError, ValueError):
            problems.append("teacher.endpoint.extra_body has a value that JSON cannot hold.")
        return problems

    @property
    def longest_answer(self) -> int | None:
        """The longest answer in tokens, under whichever name it is sent; None if unbounded."""
        newer = self.extra_body.get("max_completion_tokens")
        bounds = [n for n in (self.max_tokens, newer) if isinstance(n, int)]
        return max(bounds) if bounds else None

    def body(self) -> dict[str, Any]:
        """What each request says beside its messages: all that an answer depends on."""
        named = {name: getattr(self, name) for name in ("temperature", "top_p", "max_tokens")}
        named["seed"] = self.seed
        body: dict[str, Any] = {"model": self.model}
        body |= {name: value for name, value in named.items() if value is not None}
        if self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return body | dict(self.extra_body)

    def key(self) -> Key | None:
        """Reads the key from the environment.

        Raises:
            RecipeError: If the variable is missing, is no key, or the settings spell the key out.
        """
        name = self.key_env
        if name is None:
            return None
        value = os.environ.get(name, "").strip()
        if not value:
            raise RecipeError(
                f"teacher.endpoint.key_env names the environment variable {name}, which is not "
                "set or "
                f"empty. Set it (export {name}=…), or leave teacher.endpoint.key_env out for a "
                "server that "
                "needs no key."
            )
        if len(value) < SHORTEST_KEY or not all("!" <= c <= "~" for c in value):
            raise RecipeError(
                f"The environment variable {name} (teacher.endpoint.key_env) holds no key: "
                "expected at "
                f"least {SHORTEST_KEY} printable ASCII characters without spaces. Leave "
                "teacher.endpoint.key_env out for a server that needs no key."
            )
        key = Key(value, name)
        spelled = json.dumps([self.base_url, name, self.body()], ensure_ascii=False)
        if key.redact(spelled) != spelled:
            raise RecipeError(
                f"The settings of the teacher spell out the key that {name} holds; take it out: "
                "the recipe and its run folder are files that others read."
            )
        return key


def _loopback(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
