"""An endpoint teacher: each row once, within the budget, whatever the server does, and no key."""

from __future__ import annotations

import json
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("openai", reason="the `endpoint` extra is not installed")

from paredown.distill.answer_log import read_answers
from paredown.distill.chat_answers import Answer, Entry
from paredown.distill.endpoint import BudgetSpent, Summary, record_answers
from paredown.distill.endpoint_settings import EndpointSettings
from paredown.distill.spending import most_prompt_tokens
from paredown.eval.errors import RunError

from .endpoint_rows import FAULTS, recorded, rows, settings
from .fault_server import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    FaultServer,
    Reply,
    completion,
    logprobs,
    serving,
)


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


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_loses_no_row(fault: str, tmp_path: Path) -> None:
    with serving(lambda number, body: FAULTS[fault]() if number % 4 == 1 else None) as server:
        patience = 0.2 if fault == "no answer" else 10.0  # a busy machine is late, too
        short = settings(server, timeout_s=patience, concurrency=2)
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
        pytest.raises(RunError, match=r"asks to wait 86,400 s.*teacher\.endpoint\.longest_wait_s"),
    ):
        record_answers(rows(3), settings(server), tmp_path)


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
            with pytest.raises(BudgetSpent, match=r"Raise teacher\.endpoint\.budget_") as raised:
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


# --- no chat server, no log-probabilities, a bad key


def test_an_endpoint_that_is_no_chat_server_is_named(tmp_path: Path) -> None:
    http = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    SimpleHTTPRequestHandler.log_message = lambda *_: None  # type: ignore[method-assign]
    Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        with pytest.raises(RunError, match=r"is no chat server.*teacher\.endpoint\.base_url"):
            record_answers(rows(2), EndpointSettings(url, "tiny"), tmp_path)
    finally:
        http.shutdown()
        http.server_close()


def test_a_page_with_status_200_is_no_chat_server(tmp_path: Path) -> None:
    page = Reply(body="<html>welcome</html>", kind="text/html")
    with (
        serving(lambda number, body: page) as server,
        pytest.raises(
            RunError, match=r"no chat server.*<html>welcome.*teacher\.endpoint\.base_url"
        ),
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
        pytest.raises(RunError, match=rf"{gave}.*teacher\.endpoint\.top_logprobs"),
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


def test_parts_of_a_recording_share_its_budget_and_tell_their_own_use(tmp_path: Path) -> None:
    every = rows(9)
    with serving() as server:
        asked = settings(server, budget_requests=6)
        first = record_answers(every[:4], asked, tmp_path, part="first")
        with pytest.raises(BudgetSpent, match="so far 6 requests") as raised:
            record_answers(every[4:], asked, tmp_path, part="second")
        assert (first.requests, raised.value.summary.requests) == (4, 2) and server.requests == 6
        more = settings(server, budget_requests=9)
        second = record_answers(every[4:], more, tmp_path, part="second")
        again = record_answers(every[:4], more, tmp_path, part="first")
    assert (second.rows, second.requests, second.earlier) == (5, 5, 2)
    assert (again.rows, again.requests, again.earlier) == (4, 4, 4)


def test_whole_numbers_as_keys_of_a_request_do_not_stop_the_next_run(tmp_path: Path) -> None:
    with serving() as server:
        asked = settings(server, extra_body={"logit_bias": {50256: -100}})
        record_answers(rows(2), asked, tmp_path)
        assert record_answers(rows(4), asked, tmp_path).earlier == 2
