"""What a person sees of a running stage; everything else goes into the stage's log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_EVERY = 15.0  # seconds between lines where there is no terminal


class Display:
    """Shows stages and their progress: bars on a terminal, a line every so often elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        # A copy of stderr, because `log_to` turns the real one towards the stage's log.
        self._stream = os.fdopen(os.dup(_stderr_fd()), "w", encoding="utf-8", errors="replace")
        terminal = sys.stderr.isatty()
        self.console = Console(
            file=self._stream, quiet=quiet, force_terminal=terminal, soft_wrap=not terminal
        )
        self.terminal = terminal
        self.quiet = quiet

    def close(self) -> None:
        """Gives the copy of stderr back."""
        self._stream.close()

    def say(self, text: str, style: str | None = None) -> None:
        """Prints a line as it is, without markup."""
        self.console.print(text, style=style, markup=False, highlight=False)

    @contextlib.contextmanager
    def task(self, name: str) -> Iterator[Bar]:
        """Shows the progress of one stage until the block ends."""
        if not self.terminal or self.quiet:
            yield Bar(self, name, None, 0)
            return
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as shown:
            yield Bar(self, name, shown, shown.add_task(name, total=None, rate=""))


class Bar:
    """The progress of one stage."""

    def __init__(self, display: Display, name: str, shown: Progress | None, task: Any) -> None:
        self._display = display
        self._name = name
        self._shown = shown
        self._task = task
        self._started: tuple[float, int] | None = None
        self._said = time.monotonic()

    def update(self, done: int, total: int, what: str = "") -> None:
        """Says that ``done`` of ``total`` are finished; ``what`` names the step it is at."""
        now = time.monotonic()
        if self._started is None or done < self._started[1]:
            self._started = (now, done)
        elapsed, since = now - self._started[0], done - self._started[1]
        rate = since / elapsed if elapsed > 0 and since else 0.0
        label = f"{self._name} {what}".strip()
        if self._shown is not None:
            text = f"{rate:,.0f}/s" if rate else ""
            self._shown.update(
                self._task, completed=done, total=total, description=label, rate=text
            )
        elif now - self._said >= LOG_EVERY:
            self._said = now
            left = f", about {(total - done) / rate:.0f} s left" if rate else ""
            pace = f" at {rate:,.1f}/s" if rate else ""
            self._display.say(f"  {label}: {done:,} of {total:,}{pace}{left}")


def _stderr_fd() -> int:
    try:
        return sys.stderr.fileno()
    except (OSError, AttributeError, ValueError):  # a notebook's stream has no descriptor
        return 2


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Sends all output of the block, that of C libraries too, to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    level = root.level
    saved = [os.dup(1), os.dup(2)]
    streams = sys.stdout, sys.stderr
    with path.open("a", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        root.addHandler(handler)
        root.setLevel(min(level, logging.INFO) if level else logging.INFO)
        try:
            with warnings.catch_warnings():
                yield
        finally:
            sys.stdout, sys.stderr = streams
            root.removeHandler(handler)
            root.setLevel(level)
            handler.close()
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)
