"""Files that are whole or as they were before: written under another name, and renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def whole_file(path: Path, errors: str = "strict") -> Iterator[IO[str]]:
    """Opens a file that gets its content, in UTF-8, once all is written.

    What is no regular file (a device, a pipe) is written straight, and never replaced. A link
    stays one: what it leads to is written. A file that was there keeps its permissions.

    Args:
        path: The file.
        errors: What becomes of characters that are not UTF-8; see `open`.

    Raises:
        OSError: If it cannot be written.
    """
    before = path.stat() if path.exists() else None
    if before is not None and not stat.S_ISREG(before.st_mode):
        with path.open("w", encoding="utf-8", errors=errors) as file:
            yield file
        return
    path = path.resolve()
    # A new name: it is nobody else's file, and no link that was left there is followed.
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("x", encoding="utf-8", errors=errors) as file:
            if before is not None:
                part.chmod(stat.S_IMODE(before.st_mode))
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(text: str, path: Path, errors: str = "strict") -> None:
    """Writes a file, whole or not at all; see `whole_file`."""
    with whole_file(path, errors) as file:
        file.write(text)
