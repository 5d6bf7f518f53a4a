"""An endpoint teacher: each row once, within the budget, whatever the server does, and no key."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

pytest.importorskip("openai", reason="the `endpoint` extra is not installed")

from paredown.distill.answer_log import AppendOnly, read_answers
from paredown.distill.chat_answers import Answer, Entry, WrongShape, parse_answer
from paredown.distill.endpoint import BudgetSpent, Request, Summary, record_answers
from paredown.distill.endpoint_settings import EndpointSettings
from paredown.distill.retries import backoff_s, retry_after_s
from paredown.distill.spending import Budget, Ledger, most_prompt_tokens
from paredown.eval.errors import RecipeError, RunError

from .fault_server import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    FaultServer,
    Reply,
    completion,
    logprobs,
    serving,
)

SECRET = 'sk-never/"shown"-0123456789'


def rows(count: int) -> list[Request]:
    return [Request(f"row-{n}", [{"role": "user", "content": f"ask {n}"}]) for n in range(count)]


def settings(server: FaultServer, **fields: Any) -> EndpointSettings:
    fields = {"first_wait_s": 0.001, "timeout_s": 10.0, **fields}
    return EndpointSettings(server.url, "tiny", **fields)


def recorded(folder: Path) -> Counter[str]:
    return Counter(answer.key for answer in read_answers(folder))


def test_each_row_is_asked_once_and_recorded(tmp_path: Path) -> None:
    seen: list[int] = []
    with serving() as server:
        fields = {"temperature": 0.5, "seed": 3, "max_tokens": 9, "extra_body": {"top_k": 4}}
        summary = record_answers(rows(30), settings(server, **fields), tmp_path, seen.append)
    answers = {answer.key: answer for answer in read_answers(tmp_path)}
    assert set(answers) == {f"row-{n}" for n in range(30)}
    assert answers["row-3"] == Answer("row-3", "so: ask 3", "stop", None, None, 7, 3, None)
    assert set(server.asked.values()) == {1}
    assert server.bodies[0] == {
        "model": "tiny",
        "messages": server.bodies[0]["messages"],
        **{"temperature": 0.5, "seed": 3, "max_tokens": 9, "top_k": 4},
    }
    assert seen[-1] == 30 and seen == sorted(seen)
    assert (summary.recorded, summary.missing, summary.requests, summary.retries) == (30, 0, 30, 0)
    assert summary.prompt_tokens == 30 * PROMPT_TOKENS
    assert summary.completion_tokens == 30 * ANSWER_TOKENS
    assert json.loads((tmp_path / "summary.json").read_text())["recorded"] == 30


def test_no_more_requests_are_in_flight_than_were_allowed(tmp_path: Path) -> None:
    with serving(lambda number, body: Reply(wait_s=0.01)) as server:
        record_answers(rows(20), settings(server, concurrency=4), tmp_path)
    assert server.most_in_flight == 4


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    with serving() as server:
        record_answers(rows(5), settings(server), tmp_path)
        summary = record_answers(rows(8), settings(server, concurrency=2), tmp_path)
    assert server.requests == 8
    assert (summary.earlier, summary.recorded) == (5, 8)


def test_it_works_where_an_event_loop_runs_already(tmp_path: Path) -> None:
    import asyncio

    async def notebook(server: FaultServer) -> Summary:
        return record_answers(rows(3), settings(server), tmp_path)

    with serving() as server:
        assert asyncio.run(notebook(server)).recorded == 3


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


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_loses_no_row(fault: str, tmp_path: Path) -> None:
    with serving(lambda number, body: FAULTS[fault]() if number % 4 == 1 else None) as server:
        short = settings(server, timeout_s=0.2, concurrency=2)
        summary = record_answers(rows(9), short, tmp_path)
    assert recorded(tmp_path) == {f"row-{n}": 1 for n in range(9)}
    assert summary.retries == server.requests - 9 > 0
    assert summary.requests == server.requests


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lasting_fault_is_one_clear_error(fault: str, tmp_path: Path) -> None:
    with serving(lambda number, body: FAULTS[fault]()) as server:
        short = settings(server, timeout_s=0.1, concurrency=1, retries=1)
        with pytest.raises(RunError, match="goes on from there") as raised:
            record_answers(rows(3), short, tmp_path)
    assert server.requests == 2
    assert server.url in str(raised.value)
    assert raised.value.__cause__ is None and raised.value.__context__ is None


def test_retry_after_is_waited_for_by_every_worker(tmp_path: Path) -> None:
    with serving(lambda n, body: Reply(429, {"Retry-After": "0.4"}) if n == 0 else None) as server:
        record_answers(rows(3), settings(server, concurrency=1), tmp_path)
    first, second = server.times[:2]
    assert second - first >= 0.4


def test_a_server_that_says_tomorrow_is_not_waited_for(tmp_path: Path) -> None:
    with (
        serving(lambda number, body: Reply(429, {"Retry-After": "86400"})) as server,
        pytest.raises(RunError, match=r"asks to wait 86,400 s.*teacher\.longest_wait_s"),
    ):
        record_answers(rows(3), settings(server), tmp_path)


NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@given(st.integers(0, 10**6))
def test_retry_after_in_seconds_and_as_a_date_say_the_same(seconds: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert retry_after_s({"retry-after": date}, NOW) == seconds
    assert retry_after_s({"retry-after": str(seconds)}, NOW) == seconds
    assert retry_after_s({"retry-after-ms": str(seconds * 1000)}, NOW) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "soon", "nan", "inf", "-3", "Tue, 99 Foo 2026"])
def test_a_retry_after_that_says_nothing_is_none(value: str) -> None:
    assert retry_after_s({"retry-after": value}, NOW) is None


def test_a_date_gone_by_is_no_wait() -> None:
    date = format_datetime(NOW - timedelta(days=1), usegmt=True)
    assert retry_after_s({"retry-after": date}, NOW) == 0


@given(st.integers(0, 10_000), st.floats(0.001, 30), st.integers())
def test_backoff_doubles_up_to_a_minute(attempt: int, first: float, seed: int) -> None:
    wait = backoff_s(attempt, first, random.Random(seed))
    whole = min(first * 2 ** min(attempt, 40), 60)
    assert whole / 2 <= wait <= whole


# --- the budget


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        ({"budget_requests": 11}, 11),
        ({"budget_tokens": 400}, None),
        (
            {"budget_usd": 4e-4, "usd_per_million_input": 1.0, "usd_per_million_output": 1.0},
            None,
        ),
    ],
    ids=["requests", "tokens", "usd"],
)
def test_a_budget_is_never_passed_and_raising_it_goes_on(
    limit: dict[str, Any], most: int | None, tmp_path: Path
) -> None:
    def faulty(number: int, body: dict[str, Any]) -> Reply | None:
        return Reply(500) if number % 5 == 2 else None

    with serving(faulty) as server:
        small = settings(server, max_tokens=ANSWER_TOKENS, concurrency=3, **limit)
        for _ in range(3):  # earlier attempts count: a second try does not spend more
            with pytest.raises(BudgetSpent, match=r"Raise teacher\.budget_") as raised:
                record_answers(rows(60), small, tmp_path)
        summary = raised.value.summary
        assert summary.requests == server.requests
        assert summary.recorded == sum(recorded(tmp_path).values()) > 5
        assert summary.missing == 60 - summary.recorded > 0
        assert f"budget_{summary.stopped_by}" in next(iter(limit))
        tokens = summary.prompt_tokens + summary.completion_tokens
        assert tokens == summary.recorded * (PROMPT_TOKENS + ANSWER_TOKENS)
        assert tokens <= 400
        assert most is None or summary.requests == most
        if most is None:  # no room was given away: one more request could have passed the limit
            assert tokens + most_prompt_tokens(rows(60)[59].messages) + ANSWER_TOKENS > 400
        raised_limit = {n: v * 100 if n.startswith("budget") else v for n, v in limit.items()}
        record_answers(
            rows(60), settings(server, max_tokens=ANSWER_TOKENS, **raised_limit), tmp_path
        )
    assert recorded(tmp_path) == {f"row-{n}": 1 for n in range(60)}


def test_what_a_kill_cut_off_counts_in_full(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, Budget(tokens=100))
    ledger.settle(ledger.reserve(30, 10), 5, 5)
    ledger.reserve(30, 10)
    ledger.close()
    again = Ledger(tmp_path, Budget(tokens=100))
    assert (again.requests, again.prompt_tokens, again.completion_tokens) == (2, 35, 15)
    assert again.exceeded_by(25, 25) is None
    assert again.exceeded_by(26, 25) == "tokens"
    again.close()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans()), max_size=30))
def test_the_ledger_never_lets_a_limit_pass(uses: list[tuple[int, int, bool]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        budget = Budget(12, 300, 4e-4, 1.0, 2.0)
        ledger = Ledger(Path(folder), budget)
        for prompt, completion_tokens, known in uses:
            if ledger.exceeded_by(prompt, completion_tokens) is None:
                number = ledger.reserve(prompt, completion_tokens)
                half = (prompt // 2, completion_tokens // 2) if known else (None, None)
                ledger.settle(number, *half)
            assert ledger.requests <= 12
            assert ledger.prompt_tokens + ledger.completion_tokens <= 300
            assert ledger.usd <= 4e-4 * (1 + 1e-9)
        state = (ledger.requests, ledger.prompt_tokens, ledger.completion_tokens)
        ledger.close()
        again = Ledger(Path(folder), budget)
        assert (again.requests, again.prompt_tokens, again.completion_tokens) == state
        again.close()


def test_a_server_that_counts_no_tokens_is_charged_the_most(tmp_path: Path) -> None:
    with serving(lambda number, body: completion("yes", usage=False)) as server:
        summary = record_answers(rows(3), settings(server, max_tokens=50), tmp_path)
    assert summary.uncounted == 3
    assert summary.completion_tokens == 150
    assert summary.prompt_tokens == sum(most_prompt_tokens(r.messages) for r in rows(3))


# --- what answers are


def test_unusual_answers_are_recorded_and_counted(tmp_path: Path) -> None:
    odd = {
        "ask 0": completion("cut", finish="length"),
        "ask 1": completion("", finish="content_filter"),
        "ask 2": completion(None, message={"refusal": "no"}),
        "ask 3": completion(""),
    }
    with serving(lambda number, body: odd.get(body["messages"][-1]["content"])) as server:
        summary = record_answers(rows(5), settings(server), tmp_path)
    assert summary.recorded == 5
    assert (summary.truncated, summary.filtered) == (1, 1)
    assert (summary.refused, summary.empty) == (1, 3)
    refusals = {answer.key: answer.refusal for answer in read_answers(tmp_path)}
    assert refusals["row-2"] == "no" and refusals["row-4"] is None


def test_log_probabilities_are_recorded_token_by_token(tmp_path: Path) -> None:
    given = logprobs(
        ("ye", -0.1, [("ye", -0.1), ("no", -2.5)]), ("s", 0.0, [("s", 0.0), ("p", -9999.0)])
    )
    given["content"][0]["top_logprobs"][1]["bytes"] = [0xE4, 0xBD]
    with serving(lambda number, body: completion("yes", logprobs=given)) as server:
        record_answers(rows(1), settings(server, top_logprobs=2), tmp_path)
    assert server.bodies[0]["logprobs"] is True and server.bodies[0]["top_logprobs"] == 2
    (answer,) = read_answers(tmp_path)
    assert answer.tokens == (
        (Entry("ye", -0.1), Entry("ye", -0.1), Entry("no", -2.5, b"\xe4\xbd")),
        (Entry("s", 0.0), Entry("s", 0.0), Entry("p", -9999.0)),
    )


entries = st.builds(
    Entry,
    st.text(st.characters(exclude_categories=["Cs"])),
    st.floats(-9999, 0).map(lambda value: round(value, 6)),
    st.none() | st.binary(),
)


@settings_of_hypothesis(max_examples=30)
@given(st.text(), st.lists(st.lists(entries, min_size=1, max_size=3).map(tuple), max_size=4))
def test_an_answer_comes_back_as_it_was(text: str, tokens: Any) -> None:
    answer = Answer("k", text, "stop", None, "thought", 1, None, tuple(tokens))
    assert Answer.from_row(json.loads(json.dumps(answer.row()))) == answer


@given(st.text() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_any_body_is_an_answer_or_of_the_wrong_shape(body: str) -> None:
    with pytest.raises(WrongShape):
        parse_answer("k", body)


# --- the log


@given(st.integers(0, 200))
def test_a_torn_last_line_is_dropped_and_nothing_else(torn: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        lines = [json.dumps({"n": n, "text": "x" * n}) for n in range(6)]
        whole = "".join(f"{line}\n" for line in lines).encode()
        path.write_bytes(whole[: len(whole) - torn])
        kept = path.read_bytes().count(b"\n")
        log = AppendOnly(path)
        assert [row["n"] for row in log.rows] == list(range(kept))
        log.append('{"n": -1}')
        log.close()
        assert [json.loads(line)["n"] for line in path.open()] == [*range(kept), -1]


def test_a_damaged_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    with serving() as server:
        record_answers(rows(3), settings(server), tmp_path)
        path = tmp_path / "answers.jsonl"
        path.write_text(path.read_text().replace("\n", "oops\n", 1))
        with pytest.raises(RunError, match="line 1 is not a JSON object"):
            record_answers(rows(3), settings(server), tmp_path)


def test_answers_of_two_teachers_are_not_mixed(tmp_path: Path) -> None:
    with serving() as server:
        record_answers(rows(1), settings(server), tmp_path)
        with pytest.raises(RunError, match="recorded with request"):
            record_answers(rows(2), settings(server, temperature=0.7), tmp_path)
        changed = [Request("row-0", [{"role": "user", "content": "something else"}])]
        with pytest.raises(RunError, match="recorded for other messages"):
            record_answers(changed, settings(server), tmp_path)
        assert server.requests == 1


def test_two_rows_of_one_key_are_refused(tmp_path: Path) -> None:
    with serving() as server, pytest.raises(RecipeError, match="have the key 'row-0'"):
        record_answers([*rows(1), *rows(1)], settings(server), tmp_path)


def test_two_recordings_into_one_folder_are_refused(tmp_path: Path) -> None:
    with serving() as server:

        def second(recorded: int) -> None:
            record_answers(rows(1), settings(server), tmp_path)

        with pytest.raises(RunError, match="Another process records"):
            record_answers(rows(1), settings(server), tmp_path, second)


# --- no chat server, no log-probabilities, a bad key


def test_an_endpoint_that_is_no_chat_server_is_named(tmp_path: Path) -> None:
    http = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    SimpleHTTPRequestHandler.log_message = lambda *_: None  # type: ignore[method-assign]
    Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        with pytest.raises(RunError, match=r"is no chat server.*teacher\.base_url"):
            record_answers(rows(2), EndpointSettings(url, "tiny"), tmp_path)
    finally:
        http.shutdown()
        http.server_close()


def test_a_page_with_status_200_is_no_chat_server(tmp_path: Path) -> None:
    page = Reply(body="<html>welcome</html>", kind="text/html")
    with (
        serving(lambda number, body: page) as server,
        pytest.raises(RunError, match=r"no chat server.*<html>welcome.*teacher\.base_url"),
    ):
        record_answers(rows(2), settings(server), tmp_path)
    assert server.requests <= 2 * 4


def test_nobody_at_the_address_is_said(tmp_path: Path) -> None:
    nobody = EndpointSettings("http://127.0.0.1:9/v1", "tiny", retries=1, first_wait_s=0.001)
    with pytest.raises(RunError, match="cannot be reached"):
        record_answers(rows(2), nobody, tmp_path)


@pytest.mark.parametrize(
    ("reply", "gave"),
    [
        (completion("yes"), "gave none"),
        (completion("yes", logprobs={"content": []}), "gave none"),
        (completion("yes", logprobs=logprobs(("yes", -0.1, []))), "chosen tokens alone"),
        (
            Reply(422, body='{"detail": "Unsupported fields: logprobs"}'),
            "refuses log-probabilities",
        ),
        (
            Reply(400, body='{"error": {"message": "top_logprobs must be at most 5"}}'),
            "refuses log-probabilities .*at most 5",
        ),
    ],
    ids=["none", "empty", "chosen alone", "refused", "too many"],
)
def test_an_endpoint_without_log_probabilities_is_said(
    reply: Any, gave: str, tmp_path: Path
) -> None:
    with (
        serving(lambda number, body: reply) as server,
        pytest.raises(RunError, match=rf"{gave}.*teacher\.top_logprobs"),
    ):
        record_answers(rows(2), settings(server, top_logprobs=20, concurrency=1), tmp_path)
    assert server.requests == 1
    assert not recorded(tmp_path)


@pytest.mark.parametrize(
    ("status", "said"),
    [(400, "refuses the request"), (404, "teacher.model"), (413, "refuses the request")],
)
def test_a_refused_request_is_not_tried_again(status: int, said: str, tmp_path: Path) -> None:
    reply = Reply(status, body='{"error": {"message": "prompt of 9000 tokens is too long"}}')
    with (
        serving(lambda number, body: reply) as server,
        pytest.raises(RunError, match=rf"row-0.*{status}: prompt of 9000.*") as raised,
    ):
        record_answers(rows(1), settings(server), tmp_path)
    assert said in str(raised.value)
    assert server.requests == 1


# --- the key


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


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    return SECRET


def spellings() -> list[str]:
    return [SECRET, json.dumps(SECRET)[1:-1], "never/", "sk-never", "0123456789"]


def test_a_missing_variable_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        for value in (None, "", "  "):
            monkeypatch.delenv("TEACHER_KEY", raising=False)
            if value is not None:
                monkeypatch.setenv("TEACHER_KEY", value)
            with pytest.raises(RecipeError, match=r"teacher\.key_env.*TEACHER_KEY"):
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
    with serving() as server:
        record_answers(rows(1), settings(server), tmp_path)
    assert "sk-of-another-service" not in str(server.keys)


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
        *("usd_per_million_input", "max_tokens", "extra_body sets 'stream'", "teacher.temperature"),
    ):
        assert name in said
    assert "JSON cannot hold" in said


# --- killed, and run again

CHILD = """
import sys
from pathlib import Path
from paredown.distill.endpoint import Request, record_answers
from paredown.distill.endpoint_settings import EndpointSettings
url, folder, rows, concurrency, budget = sys.argv[1:]
settings = EndpointSettings(
    url, "tiny", key_env="TEACHER_KEY", concurrency=int(concurrency), first_wait_s=0.001,
    timeout_s=20, max_tokens=3, budget_requests=int(budget),
)
def row(n):
    return Request(f"row-{n}", [{"role": "user", "content": f"ask {n}"}])
requests = map(row, range(int(rows)))
print(record_answers(requests, settings, Path(folder), lambda done: print(done)))
"""


def test_2000_rows_killed_three_times_are_each_recorded_once(tmp_path: Path, secret: str) -> None:
    total, concurrency, kills = 2000, 16, [400, 900, 1500]
    folder = tmp_path / "runs" / "answers"
    faults = [FAULTS[name] for name in FAULTS if name != "no answer"]
    asked_before: list[Counter[str]] = []
    failed: Counter[str] = Counter()

    def faulty(number: int, body: dict[str, Any]) -> Reply | None:
        if number % 50 == 25:  # 2 % of the requests
            failed[body["messages"][-1]["content"]] += 1
            return faults[number // 50 % len(faults)]()
        return None

    with serving(faulty) as server, (tmp_path / "output").open("wb") as output:
        command = [sys.executable, "-c", CHILD, server.url, str(folder), str(total)]

        def start(budget: int) -> subprocess.Popen[bytes]:
            words = [*command, str(concurrency), str(budget)]
            return subprocess.Popen(words, stdout=output, stderr=output, env=dict(os.environ))

        for kill_at in kills:
            child = start(5000)
            while server.requests < kill_at and child.poll() is None:
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            asked_before.append(Counter(server.asked))
        # the budget counts what the killed runs asked: this one is spent at once
        used = sum(1 for line in (folder / "ledger.jsonl").open() if '"most"' in line)
        assert server.requests <= used <= server.requests + 3 * concurrency
        child = start(used)
        assert child.wait() == 1
        assert server.requests == sum(asked_before[-1].values())
        child = start(5000)
        assert child.wait() == 0, (tmp_path / "output").read_text()[-2000:]

    assert recorded(folder) == {f"row-{n}": 1 for n in range(total)}
    again = server.asked - Counter({f"ask {n}": 1 for n in range(total)}) - failed
    assert sum(again.values()) <= len(kills) * concurrency
    summary = json.loads((folder / "summary.json").read_text())
    assert server.requests <= summary["requests"] <= server.requests + len(kills) * concurrency
    assert set(server.keys) == {f"Bearer {secret}"}
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        text = path.read_text()
        assert not [spelling for spelling in spellings() if spelling in text], path
