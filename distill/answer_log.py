"""Answers of an endpoint on disk: appended as they arrive, each row once, whole after any kill.

recording.json    what the answers depend on: server, model, sampling
answers.jsonl     one answer a line, in the order of arrival
ledger.jsonl      what was asked and used, also by attempts that brought nothing
summary.json      written when every row is there
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..eval.errors import RunError
from .chat_answers import Answer

RECORDING = "recording.json"
ANSWERS = "answers.jsonl"
SUMMARY = "summary.json"
FORMAT = 1


class AppendOnly:
    """A file of JSON lines that is only ever added to.

    A line is handed to the system in one write, so that a killed process leaves at most one torn
    line, the last; `sync` brings what was written to the disk itself.

    Attributes:
        path: The file.
        rows: The whole lines that were there when it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, makes it if it is not there, and drops a torn last line.

        Raises:
            RunError: If a line before the last is damaged.
        """
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self.rows, whole = self._read()
            os.ftruncate(self._file, whole)
        except BaseException:
            os.close(self._file)
            raise

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """The whole lines, and the number of bytes they take."""
        rows, whole = [], 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise damaged(self.path, f"line {number} is not a JSON object")
                rows.append(row)
                whole += len(line)
        return rows, whole

    def append(self, line: str) -> None:
        """Adds one line.

        Raises:
            RunError: If the system does not take it (a full disk, …).
        """
        left = memoryview(line.encode("utf-8") + b"\n")
        whole = os.fstat(self._file).st_size
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            os.ftruncate(self._file, whole)  # the next line must not continue half of this one
            raise self._unwritable(error) from error

    def sync(self) -> None:
        """Waits until all that was added is on the disk.

        Raises:
            RunError: If the system cannot bring it there.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"'{self.path}' cannot be written ({error.strerror}). What was recorded is kept; "
            "make room and run the same command again."
        )

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def damaged(path: Path, why: str) -> RunError:
    """The error for a file that a kill alone cannot have left so."""
    return RunError(
        f"The recorded answers are damaged: {path.name} in '{path.parent}' ({why}). "
        "Mend that line or delete the folder; with the folder gone, everything is asked again."
    )


def prompt_digest(messages: Sequence[Mapping[str, Any]]) -> str:
    """A short digest of a prompt, by which a row recorded for other messages is noticed."""
    text = json.dumps(list(messages), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class AnswerLog:
    """The answers in one folder, open for adding.

    Attributes:
        folder: Where they are.
        done: For each key recorded, the digest of its prompt.
        kinds: For each answer that is counted as something beside an answer, as what.
    """

    def __init__(
        self, folder: Path, depends_on: Mapping[str, Any], redact: Callable[[str], str] = str
    ) -> None:
        """Opens the folder, makes it if it is not there, and locks it.

        Args:
            folder: Its path.
            depends_on: What the answers depend on; must equal that of the answers there.
            redact: Takes secrets out of what is written.

        Raises:
            RunError: If another process records there, the answers there come from another
                server or other settings, or are damaged.
        """
        self.folder = folder
        self._redact = redact
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"Another process records answers into '{folder}'; wait for it, or end it."
            ) from None
        try:
            self._same(depends_on)
            self._file = AppendOnly(folder / ANSWERS)
            self.kinds: dict[str, tuple[str, ...]] = {}
            self.done: dict[str, str] = {}
            for row in self._file.rows:
                self._note(row)
            self._file.rows = []  # log-probabilities of many rows are large
        except BaseException:
            self._lock.release()
            raise

    def _same(self, depends_on: Mapping[str, Any]) -> None:
        path = self.folder / RECORDING
        wanted = json.loads(json.dumps({"format": FORMAT, **depends_on}))  # keys become text
        if not path.exists():
            beside = path.with_suffix(".tmp")
            beside.write_text(self._redact(json.dumps(wanted, indent=1)) + "\n", encoding="utf-8")
            os.replace(beside, path)
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise damaged(path, "it is not JSON") from None
        for name in sorted(set(found) | set(wanted)):
            if found.get(name) != wanted.get(name):
                raise RunError(
                    f"The answers in '{self.folder}' were recorded with {name} "
                    f"{found.get(name)!r}, and now it is {wanted.get(name)!r}. Answers of two "
                    "teachers are not mixed: set it back, or record into another folder."
                )

    def _note(self, row: Mapping[str, Any]) -> None:
        key = row.get("key")
        if not isinstance(key, str) or key in self.done or not isinstance(row.get("text"), str):
            raise damaged(self.folder / ANSWERS, f"the row of key {key!r} is twice there or torn")
        self.done[key] = str(row.get("prompt"))
        if found := tuple(kinds(row)):
            self.kinds[key] = found

    def append(self, answer: Answer, prompt: str) -> None:
        """Adds an answer; it outlives a kill of this process from here on."""
        row = {**answer.row(), "prompt": prompt}
        self._file.append(self._redact(json.dumps(row, ensure_ascii=True, separators=(",", ":"))))
        self._note(row)

    def sync(self) -> None:
        """Waits until the answers are on the disk."""
        self._file.sync()

    def close(self) -> None:
        """Closes the file and gives the folder free."""
        self._file.close()
        self._lock.release()


def kinds(row: Mapping[str, Any]) -> Iterator[str]:
    """What a recorded answer is counted as, beside an answer."""
    if row.get("finish") == "length":
        yield "truncated"
    if row.get("finish") == "content_filter":
        yield "filtered"
    if row.get("refusal"):
        yield "refused"
    if not row["text"]:
        yield "empty"
    if row.get("prompt_tokens") is None or row.get("completion_tokens") is None:
        yield "uncounted"


def read_answers(folder: Path) -> Iterator[Answer]:
    """The recorded answers, one at a time, in the order of their arrival.

    Raises:
        RunError: If there are none, or a line before the last is damaged.
    """
    path = folder / ANSWERS
    if not path.exists():
        raise RunError(f"No recorded answers in '{folder}': {ANSWERS} is missing.")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                answer = Answer.from_row(json.loads(line))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise damaged(path, f"line {number}") from error
            yield answer
