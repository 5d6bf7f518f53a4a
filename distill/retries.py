"""When a request is tried again, how long to wait before it, and what to say when it is not."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_BACKOFF_S = 60.0
# a server of another kind answers these to any POST; trying again changes nothing
_NEVER_AGAIN = {501, 505}
_AGAIN = {408, 409, 425, 429}


@dataclass(frozen=True)
class Failure:
    """One attempt that brought no answer.

    Attributes:
        why: What happened, for a person, the key taken out.
        again: Whether another attempt may do better.
        wait_s: How long the server asks to wait; None where it does not.
        shape: Whether the server answered, but not as a chat server does.
        billed: Whether the server may have done, and counted, the work.
        prompt_tokens: What a server that answered says it read, if it does.
        completion_tokens: What it says it wrote.
    """

    why: str
    again: bool
    wait_s: float | None = None
    shape: bool = False
    billed: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that a response asks to wait (RFC 9110, 10.2.3: seconds or a date).

    Args:
        headers: The response's; ``retry-after-ms``, which some servers send, comes first.
        now: The time that a date is compared with; the clock's by default.

    Returns:
        Seconds ≥ 0; None where nothing was asked, or nothing that can be read.
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except (TypeError, ValueError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def backoff_s(attempt: int, first_s: float, jitter: random.Random) -> float:
    """Seconds before a retry: first · 2^attempt, at most a minute, times a draw from [½, 1].

    Args:
        attempt: 0 for the first retry.
        first_s: Seconds before it.
        jitter: Keeps requests that failed together from coming back together.
    """
    longest = min(first_s * 2.0 ** min(attempt, 30), max(LONGEST_BACKOFF_S, first_s))
    return longest * jitter.uniform(0.5, 1.0)


def server_message(body: str) -> str:
    """What an error's body says, in one line of at most 300 characters."""
    text = body
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if isinstance(content, dict):
        error = content.get("error", content)
        if isinstance(error, dict):
            error = error.get("message") or error.get("detail") or error
        text = error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:299] + "…"


def status_failure(
    status: int,
    headers: Mapping[str, str],
    body: str,
    *,
    url: str,
    key_env: str | None,
    asks_logprobs: bool,
) -> Failure:
    """What a response that is no success means.

    Args:
        status: Its HTTP status.
        headers: Its headers.
        body: Its body.
        url: The base URL asked.
        key_env: The variable that holds the key, if one was sent.
        asks_logprobs: Whether the request asked for log-probabilities.
    """
    said = server_message(body)
    told = f"{status}: {said}" if said else str(status)
    page = body.lstrip()[:1] == "<"
    if 300 <= status < 400:
        return Failure(
            f"{url} answers with a redirect ({status}), which is not followed: it could take the "
            "key elsewhere. Set teacher.endpoint.base_url to the address it leads to.",
            again=False,
        )
    if status in (401, 403):
        which = f"the key in {key_env}" if key_env else "a request without a key"
        todo = (
            "Check the variable"
            if key_env
            else "Name the key's variable in teacher.endpoint.key_env"
        )
        return Failure(f"{url} refuses {which} ({told}). {todo}.", again=False)
    if status in (404, 405, *_NEVER_AGAIN) and (page or status != 404):
        return Failure(
            f"{url} is no chat server: POST {url.rstrip('/')}/chat/completions answers {told}. "
            "teacher.endpoint.base_url is an OpenAI-compatible server's, and mostly ends in /v1.",
            again=False,
        )
    if status == 404:
        return Failure(
            f"{url} does not find what was asked ({told}). Check teacher.model, and that "
            "teacher.endpoint.base_url is what /chat/completions follows (it mostly ends in /v1).",
            again=False,
        )
    if asks_logprobs and status in (400, 422) and "logprob" in body.lower():
        return Failure(
            f"{url} refuses log-probabilities ({told}). Lower teacher.endpoint.top_logprobs to "
            "what it "
            "gives; with 0, texts alone are recorded, for a loss that needs no more.",
            again=False,
        )
    if status == 429 and "insufficient_quota" in body:
        return Failure(f"{url}: the account's quota is used up ({told}).", again=False)
    if status >= 500 or status in _AGAIN:
        return Failure(f"{url} answers {told}", again=True, wait_s=retry_after_s(headers))
    return Failure(f"{url} refuses the request ({told}).", again=False)
