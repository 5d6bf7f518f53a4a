"""Keeps what libraries print out of the user's way: it goes to the log instead."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def into_log(logger: logging.Logger) -> Iterator[None]:
    """Collects all that is written to stdout and stderr, by Python or not, and logs it (INFO).

    The process's own file descriptors are replaced, because exporters write from C++ too, and
    through handlers that were made long before.

    Args:
        logger: Gets one record a line, when the block ends.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(_root_has_a_handler())
                stack.enter_context(_descriptors(file.fileno()))
                stack.enter_context(contextlib.redirect_stdout(file))
                stack.enter_context(contextlib.redirect_stderr(file))
                stack.enter_context(_warnings(file))
                stack.callback(file.flush)
                yield
        finally:
            file.seek(0)
            for line in file:
                if line.strip():
                    logger.info("%s", line.rstrip())


@contextlib.contextmanager
def _root_has_a_handler() -> Iterator[None]:
    """Without one, a library's ``logging.warning(…)`` would give it one that writes to our file."""
    guard = logging.NullHandler()
    logging.getLogger().addHandler(guard)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(guard)


@contextlib.contextmanager
def _warnings(file: TextIO) -> Iterator[None]:
    """Writes warnings into a file, each place's once; none becomes an error in here."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda *said, **_: print(
            warnings.formatwarning(*said[:4]), file=file
        )
        yield


@contextlib.contextmanager
def _descriptors(target: int) -> Iterator[None]:
    """Points descriptors 1 and 2 elsewhere for a while, where there are any."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    saved = {}
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed, as in a daemon
            saved[number] = os.dup(number)
            os.dup2(target, number)
    try:
        yield
    finally:
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)
