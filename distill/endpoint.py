"""Asking an endpoint teacher: many chats at once, each recorded on arrival, within a budget."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from ..eval.errors import RecipeError, RunError
from .answer_log import SUMMARY, AnswerLog, prompt_digest
from .chat_answers import Answer
from .chat_client import ChatClient, Request
from .endpoint_settings import EndpointSettings, Key
from .retries import Failure, backoff_s
from .spending import Budget, Ledger, most_prompt_tokens

# a server that answers in another shape so often is of another kind
SHAPE_RETRIES = 3


@dataclass(frozen=True)
class Summary:
    """What a recording holds, and what it used since it was begun (earlier runs included).

    Attributes:
        rows: Rows that were to be asked for.
        recorded: Of these, rows that have an answer.
        earlier: Of these, rows that an earlier run had recorded.
        missing: Rows without an answer.
        requests: Requests sent, retries included.
        retries: Of this run's requests, those that were second or later tries.
        prompt_tokens: Tokens read, by the server's count or, where it gave none, at most.
        completion_tokens: Tokens written, likewise.
        usd: Money, by the prices in the settings.
        truncated: Answers that ended at the length limit.
        filtered: Answers that a content filter stopped.
        refused: Refusals.
        empty: Answers without text.
        uncounted: Answers that came without the number of their tokens.
        stopped_by: The limit that ended the recording: ``requests``, ``tokens`` or ``usd``.
    """

    rows: int
    recorded: int
    earlier: int
    missing: int
    requests: int
    retries: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    truncated: int = 0
    filtered: int = 0
    refused: int = 0
    empty: int = 0
    uncounted: int = 0
    stopped_by: str | None = None


class BudgetSpent(RunError):
    """The budget ends the recording before its last row.

    Attributes:
        summary: How far it came.
    """

    def __init__(self, summary: Summary, folder: Path, used: Ledger) -> None:
        self.summary = summary
        tokens = used.prompt_tokens + used.completion_tokens
        super().__init__(
            f"teacher.endpoint.budget_{summary.stopped_by} is spent: {summary.recorded:,} of "
            f"{summary.rows:,} rows are recorded, {summary.missing:,} are missing (so far "
            f"{used.requests:,} requests, {tokens:,} tokens, ${used.usd:.2f}; the next "
            "request could pass the limit). Raise "
            f"teacher.endpoint.budget_{summary.stopped_by} and run the same command again: it "
            "goes on from "
            f"there. The answers are in '{folder}'."
        )


def record_answers(
    requests: Iterable[Request],
    settings: EndpointSettings,
    folder: Path,
    progress: Callable[[int], None] | None = None,
    *,
    part: str = "",
) -> Summary:
    """Asks an endpoint for each row that has no answer in the folder yet.

    Every answer is on the disk before its place is given to the next request: after a kill, at
    most ``settings.concurrency`` rows are asked for again.

    Args:
        requests: The rows; read one at a time.
        settings: The server, and how it is asked.
        folder: Where the answers are, or will be; `read_answers` reads them.
        progress: Called with the number of rows recorded so far.
        part: Several parts may record their rows into one folder, one after the other: its budget
            is for all of them, and each part's summary tells its own use.

    Returns:
        What was recorded; no row is missing.

    Raises:
        RecipeError: If the key's variable is not set, the client is not installed, or two rows
            have one key.
        BudgetSpent: If the next request could pass the budget.
        RunError: If the server cannot be had, or is not what the settings say.
    """
    key = settings.key()
    _need_client()
    depends_on = {"base_url": settings.base_url, "request": settings.body()}
    log = AnswerLog(folder, depends_on, key.redact if key else str)
    try:
        ledger = Ledger(folder, _budget(settings), part)
        try:
            recording = _Recording(settings, key, log, ledger, progress)
            _run(recording, requests)
        finally:
            ledger.close()
    finally:
        log.close()
    summary = recording.summary()
    if summary.stopped_by is not None:
        raise BudgetSpent(summary, folder, ledger)
    whole = folder / (f"{part}-{SUMMARY}" if part else SUMMARY)
    beside = whole.with_suffix(".tmp")
    beside.write_text(json.dumps(asdict(summary), indent=1) + "\n", encoding="utf-8")
    os.replace(beside, whole)
    return summary


def _need_client() -> None:
    try:
        import openai  # noqa: F401
    except ImportError:
        raise RecipeError(
            "An endpoint teacher needs the openai client: pip install 'paredown[endpoint]'."
        ) from None


def _budget(settings: EndpointSettings) -> Budget:
    return Budget(
        settings.budget_requests,
        settings.budget_tokens,
        settings.budget_usd,
        settings.usd_per_million_input or 0.0,
        settings.usd_per_million_output or 0.0,
    )


def _run(recording: _Recording, requests: Iterable[Request]) -> None:
    """Runs the event loop; in a thread of its own where one is running already (a notebook)."""
    if not _loop_runs():
        asyncio.run(recording.run(requests))
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, recording.run(requests)).result()


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Recording:
    """One run over the rows: workers, each with at most one request in flight."""

    def __init__(
        self,
        settings: EndpointSettings,
        key: Key | None,
        log: AnswerLog,
        ledger: Ledger,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.settings, self.key, self.log, self.ledger = settings, key, log, ledger
        self.progress = progress or (lambda recorded: None)
        self.recorded = self.earlier = self.retries = 0
        self.keys: set[str] = set()
        self.failed: BaseException | None = None
        self.spent: str | None = None
        self.not_before = 0.0  # a server that says "later" says it to all workers
        self.written = self.synced = 0
        self.jitter = random.Random()

    async def run(self, requests: Iterable[Request]) -> None:
        """Asks for every row that is missing, until done, spent or failed."""
        self.changed, self.syncing = asyncio.Condition(), asyncio.Lock()
        todo = self._missing(requests)
        async with ChatClient(self.settings, self.key) as client:
            workers = range(self.settings.concurrency)
            await asyncio.gather(*(self._work(client, todo) for _ in workers))
        if self.failed is not None:
            raise self._failure(self.failed)
        for _ in todo:  # what the budget leaves is counted
            pass

    def _failure(self, error: BaseException) -> BaseException:
        if not isinstance(error, RunError):
            return error
        so_far = f"{len(self.log.done):,} rows are recorded"
        return RunError(
            f"{error} ({so_far} in '{self.log.folder}'; the same command goes on from there.)"
        )

    def _missing(self, requests: Iterable[Request]) -> Iterator[Request]:
        """The rows without an answer; all rows are counted on the way."""
        for request in requests:
            if request.key in self.keys:
                raise RecipeError(
                    f"Two rows to ask the teacher for have the key '{request.key}'; each row needs "
                    "a key of its own."
                )
            self.keys.add(request.key)
            recorded = self.log.done.get(request.key)
            if recorded is None:
                yield request
            elif recorded != prompt_digest(request.messages):
                raise RunError(
                    f"The row '{request.key}' was recorded for other messages than it has now: the "
                    "data have changed. Record into another folder."
                )
            else:
                self.earlier += 1
                self.recorded += 1

    async def _work(self, client: ChatClient, todo: Iterator[Request]) -> None:
        while self.failed is None and self.spent is None:
            try:
                request = next(todo, None)
                if request is None:
                    return
                await self._ask(client, request)
            except Exception as error:
                self.failed = self.failed or error
                async with self.changed:
                    self.changed.notify_all()

    async def _ask(self, client: ChatClient, request: Request) -> None:
        """Has one row answered and recorded, with retries."""
        shapes = attempt = 0
        while True:
            answer = await self._attempt(client, request)
            if answer is None:
                return
            if isinstance(answer, Answer):
                await self._record(answer, request)
                return
            shapes += answer.shape
            if answer.shape and shapes > min(SHAPE_RETRIES, self.settings.retries):
                raise RunError(
                    f"{self.settings.base_url} is no chat server, or is broken: {shapes} times the "
                    f"answer was no chat completion ({answer.why}). Check "
                    "teacher.endpoint.base_url: it is "
                    "what /chat/completions follows, and mostly ends in /v1."
                )
            if not answer.again:
                raise RunError(f"The row '{request.key}' has no answer: {answer.why}")
            if attempt >= self.settings.retries:
                raise RunError(
                    f"The row '{request.key}' has no answer after {attempt + 1} tries: "
                    f"{answer.why}. teacher.endpoint.retries, teacher.endpoint.timeout_s and a "
                    "smaller "
                    "teacher.endpoint.concurrency may help."
                )
            await self._wait(answer, attempt)
            attempt += 1
            if self.failed is not None:
                return
            self.retries += 1

    async def _wait(self, failure: Failure, attempt: int) -> None:
        asked, now = failure.wait_s, time.monotonic()
        if asked is not None and asked > self.settings.longest_wait_s:
            raise RunError(
                f"{failure.why}, and asks to wait {asked:,.0f} s. Run again then, or raise "
                f"teacher.endpoint.longest_wait_s (now {self.settings.longest_wait_s:g})."
            )
        if asked:
            self.not_before = max(self.not_before, now + asked)
        else:
            until = now + backoff_s(attempt, self.settings.first_wait_s, self.jitter)
            await self._sleep_until(lambda: until)

    async def _sleep_until(self, when: Callable[[], float]) -> None:
        """Sleeps in short steps, so that a failure elsewhere is not waited out."""
        while (left := when() - time.monotonic()) > 0 and self.failed is None:
            await asyncio.sleep(min(left, 0.5))

    async def _attempt(self, client: ChatClient, request: Request) -> Answer | Failure | None:
        """One request; None where the budget, or a failure elsewhere, does not let it go out."""
        most = (most_prompt_tokens(request.messages), self.settings.longest_answer or 0)
        await self._sleep_until(lambda: self.not_before)
        async with self.changed:
            # what is in flight is reserved in full, and mostly uses less: worth waiting for
            while (limit := self.ledger.exceeded_by(*most)) and self.ledger.in_flight:
                await self.changed.wait()
            if self.failed is not None:
                return None
            if limit is not None:
                self.spent = limit
                self.changed.notify_all()
                return None
            number = self.ledger.reserve(*most)
        result: Answer | Failure | None = None
        try:
            result = await client.send(request)
        finally:
            used: tuple[int | None, int | None] = (None, None)
            if isinstance(result, Answer) or (result is not None and result.billed):
                used = (result.prompt_tokens, result.completion_tokens)
            elif result is not None:
                used = (0, 0)
            self.ledger.settle(number, *used)
            async with self.changed:
                self.changed.notify_all()
        return result

    async def _record(self, answer: Answer, request: Request) -> None:
        """Writes an answer; returns when it is on the disk. One sync serves all that wait."""
        self.log.append(answer, prompt_digest(request.messages))
        self.written += 1
        mine = self.written
        async with self.syncing:
            if self.synced < mine:
                upto = self.written
                await asyncio.to_thread(self._sync)
                self.synced = upto
        self.recorded += 1
        self.progress(self.recorded)

    def _sync(self) -> None:
        self.ledger.sync()
        self.log.sync()

    def summary(self) -> Summary:
        """The state of the recording."""
        counts = Counter(kind for key in self.keys for kind in self.log.kinds.get(key, ()))
        requests, prompt_tokens, completion_tokens = self.ledger.own
        return Summary(
            rows=len(self.keys),
            recorded=self.recorded,
            earlier=self.earlier,
            missing=len(self.keys) - self.recorded,
            requests=requests,
            retries=self.retries,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            usd=self.ledger.budget.price(prompt_tokens, completion_tokens),
            stopped_by=self.spent,
            **counts,
        )
