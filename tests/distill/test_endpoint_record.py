"""What an endpoint recording is made of: answers, log and ledger, and how long it waits."""

from __future__ import annotations

import errno
import json
import os
import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

pytest.importorskip("openai", reason="the `endpoint` extra is not installed")

from paredown.distill.answer_log import AppendOnly
from paredown.distill.chat_answers import Answer, Entry, WrongShape, parse_answer
from paredown.distill.endpoint import Request, record_answers
from paredown.distill.retries import backoff_s, retry_after_s
from paredown.distill.spending import Budget, Ledger
from paredown.eval.errors import RecipeError, RunError

from .endpoint_rows import rows, settings
from .fault_server import (
    serving,
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


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AppendOnly(tmp_path / "log.jsonl")
    log.append('{"n": 1}')
    real = os.write

    def full(file: int, data: memoryview) -> int:
        if len(data) > 5:
            return real(file, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunError, match="No space left"):
        log.append('{"n": 222}')
    monkeypatch.undo()
    log.append('{"n": 3}')
    log.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"n": 1}\n{"n": 3}\n'


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
