"""An endpoint's key, address and settings: what is unsafe is refused, and nothing shows the key."""

from __future__ import annotations

import json
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the `endpoint` extra is not installed")

from paredown.distill.answer_log import read_answers
from paredown.distill.endpoint import record_answers
from paredown.distill.endpoint_settings import EndpointSettings
from paredown.eval.errors import RecipeError, RunError

from .endpoint_rows import SECRET, rows, settings, spellings
from .fault_server import (
    Reply,
    completion,
    serving,
)


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    return SECRET


@pytest.mark.parametrize("status", [200, 400])
def test_escapes_do_not_carry_the_key_into_an_error(
    status: int, tmp_path: Path, secret: str
) -> None:
    escaped = "".join(f"\\u{ord(c):04x}" for c in secret)
    reply = Reply(status, body=f'{{"error": {{"message": "{"x" * 290} {escaped}"}}}}')
    with serving(lambda number, body: reply) as server:
        once = settings(server, key_env="TEACHER_KEY", retries=0)
        with pytest.raises(RunError, match="xxx") as raised:
            record_answers(rows(1), once, tmp_path)
    assert not [spelling for spelling in spellings() if spelling in str(raised.value)]
    assert "***" in str(raised.value)


def test_a_missing_variable_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        for value in (None, "", "  "):
            monkeypatch.delenv("TEACHER_KEY", raising=False)
            if value is not None:
                monkeypatch.setenv("TEACHER_KEY", value)
            with pytest.raises(RecipeError, match=r"teacher\.endpoint\.key_env.*TEACHER_KEY"):
                record_answers(rows(1), settings(server, key_env="TEACHER_KEY"), tmp_path / "x")
        monkeypatch.setenv("TEACHER_KEY", "läßt grüßen")
        with pytest.raises(RecipeError, match="holds no key") as raised:
            record_answers(rows(1), settings(server, key_env="TEACHER_KEY"), tmp_path / "x")
        assert "grüßen" not in str(raised.value)
    assert server.requests == 0 and not (tmp_path / "x").exists()


def test_a_bad_key_is_said_and_not_shown(
    tmp_path: Path, secret: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {secret}"}})
    with serving(lambda number, _: Reply(401, body=body)) as server:
        chosen = settings(server, key_env="TEACHER_KEY")
        with pytest.raises(RunError, match=r"refuses the key in TEACHER_KEY \(401") as raised:
            record_answers(rows(3), chosen, tmp_path)
    assert set(server.keys) == {f"Bearer {secret}"}
    trace = "".join(
        traceback.TracebackException.from_exception(raised.value, capture_locals=True).format()
    )
    for shown in (trace, repr(chosen), repr(chosen.key()), str(chosen.key()), caplog.text):
        for spelling in spellings():
            assert spelling not in shown.replace(repr(body), "").replace(f"secret = {secret!r}", "")


def test_a_key_that_the_server_repeats_is_in_no_file(tmp_path: Path, secret: str) -> None:
    with serving(lambda number, body: completion(f"your key is {secret}!")) as server:
        record_answers(rows(2), settings(server, key_env="TEACHER_KEY"), tmp_path)
    for path in tmp_path.rglob("*"):
        for spelling in spellings():
            assert spelling not in path.read_text(), path
    assert {answer.text for answer in read_answers(tmp_path)} == {"your key is ***!"}


def test_settings_that_spell_the_key_out_are_refused(tmp_path: Path, secret: str) -> None:
    with serving() as server:
        leaky = settings(server, key_env="TEACHER_KEY", extra_body={"auth": secret})
        with pytest.raises(RecipeError, match="spell out the key") as raised:
            record_answers(rows(1), leaky, tmp_path / "x")
    assert secret not in str(raised.value) and not (tmp_path / "x").exists()


def test_a_redirect_does_not_take_the_key_along(tmp_path: Path, secret: str) -> None:
    with serving() as other:
        there = Reply(307, {"Location": f"{other.url}/chat/completions"})
        with (
            serving(lambda number, body: there) as server,
            pytest.raises(RunError, match=r"redirect \(307\), which is not followed"),
        ):
            record_answers(rows(1), settings(server, key_env="TEACHER_KEY"), tmp_path)
        assert other.requests == 0


def test_the_environment_of_another_service_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another-service")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-another-service")
    with serving() as server:
        record_answers(rows(1), settings(server), tmp_path)
    assert "of-another-service" not in "".join(server.headers)


@pytest.mark.parametrize(
    ("url", "fields", "said"),
    [
        ("localhost:8000", {}, "expected http:// or https://"),
        ("ftp://host/v1", {}, "expected http:// or https://"),
        ("https://", {}, "expected http:// or https://"),
        ("https://[::1/v1", {}, "no address"),
        ("https://me:hunter2@host/v1", {}, "user name or password"),
        ("https://host/v1?api_key=hunter2", {}, "query"),
        ("http://example.org/v1", {"key_env": "K"}, "plain http"),
        ("https://host/v1", {"key_env": "K", "allow_plain_http": True}, "no effect"),
        ("http://localhost/v1", {"allow_plain_http": True}, "no effect"),
    ],
)
def test_an_address_that_cannot_be_or_is_unsafe_is_refused(
    url: str, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said) as raised:
        EndpointSettings(url, "tiny", **fields)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_a_key_may_go_over_http_to_this_machine(host: str) -> None:
    EndpointSettings(f"http://{host}:8000/v1", "tiny", key_env="K")
    EndpointSettings("http://example.org/v1", "tiny", key_env="K", allow_plain_http=True)


def test_all_wrong_settings_are_said_at_once() -> None:
    with pytest.raises(RecipeError) as raised:
        EndpointSettings(
            "https://host/v1",
            "",
            concurrency=0,
            retries=-1,
            timeout_s=float("nan"),
            top_logprobs=-2,
            budget_usd=1.0,
            extra_body={"stream": True, "temperature": 1, "x": {1, 2}},
        )
    said = str(raised.value)
    for name in (
        *("model", "concurrency", "retries", "timeout_s", "top_logprobs"),
        *(
            "usd_per_million_input",
            "max_tokens",
            "extra_body sets 'stream'",
            "teacher.endpoint.temperature",
        ),
    ):
        assert name in said
    assert "JSON cannot hold" in said
