"""Rows to ask for, how the tests ask, the faults they meet, and a key that nothing may show."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the `endpoint` extra is not installed")

from paredown.distill.answer_log import read_answers
from paredown.distill.endpoint import Request
from paredown.distill.endpoint_settings import EndpointSettings

from .fault_server import (
    FaultServer,
    Reply,
    completion,
)

SECRET = 'sk-never/"shown"-0123456789'


def rows(count: int) -> list[Request]:
    return [Request(f"row-{n}", [{"role": "user", "content": f"ask {n}"}]) for n in range(count)]


def settings(server: FaultServer, **fields: Any) -> EndpointSettings:
    fields = {"first_wait_s": 0.001, "timeout_s": 10.0, **fields}
    return EndpointSettings(server.url, "tiny", **fields)


def recorded(folder: Path) -> Counter[str]:
    return Counter(answer.key for answer in read_answers(folder))


FAULTS: dict[str, Callable[[], Reply]] = {
    "429": lambda: Reply(429, {"Retry-After": "0"}, '{"error": {"message": "slow down"}}'),
    "429 with a date": lambda: Reply(
        429, {"Retry-After": format_datetime(datetime.now(UTC), usegmt=True)}, "{}"
    ),
    "500": lambda: Reply(500, body="oh"),
    "503": lambda: Reply(503, body=""),
    "half a JSON": lambda: Reply(body='{"choices": [{"mess'),
    "cut off": lambda: Reply(cut=20),
    "wrong shape": lambda: Reply(body='{"choices": []}'),
    "a list": lambda: Reply(body="[]"),
    "content in parts": lambda: Reply(body=json.dumps(completion(None, message={"content": [1]}))),
    "HTML": lambda: Reply(body="<html>busy</html>", kind="text/html"),
    "hang-up": lambda: Reply(hang_up=True),
    "no answer": lambda: Reply(wait_s=0.4),
}


def spellings() -> list[str]:
    return [SECRET, json.dumps(SECRET)[1:-1], "never/", "sk-never", "0123456789"]
