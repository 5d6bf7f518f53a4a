"""A database on disk that rows pass through, so that memory does not grow with their number.

It lies in the folder that is being written, temporary files included, and is removed with the
end of the ``with`` block, whatever ends it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .splits import text_key

BATCH_ROWS = 2048
_CACHE_KIB = 64 * 1024


@contextlib.contextmanager
def staging(folder: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """Opens an empty database with a schema inside a folder, and removes it afterwards."""
    path = folder / ".staging.sqlite"
    remove_staging(folder)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        # Deprecated, and without a successor: sorting would otherwise spill into /tmp.
        connection.execute(f"PRAGMA temp_store_directory = '{_quoted(folder)}'")
        connection.executescript(schema)
        connection.execute("BEGIN")
        yield connection
    finally:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("PRAGMA temp_store_directory = ''")
        connection.close()
        remove_staging(folder)


def remove_staging(folder: Path) -> None:
    """Removes what a killed run left behind."""
    for path in folder.glob(".staging.sqlite*"):
        path.unlink(missing_ok=True)


def _quoted(folder: Path) -> str:
    return str(folder.resolve()).replace("'", "''")


def insert(
    connection: sqlite3.Connection, statement: str, rows: Iterable[tuple[Any, ...]]
) -> Iterator[int]:
    """Runs a statement for many rows in batches; yields how many have been done so far."""
    rows = iter(rows)
    done = 0
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        connection.executemany(statement, batch)
        done += len(batch)
        yield done


def row_key(*texts: str | None) -> bytes:
    """Returns 16 bytes that rows share whose texts count as the same (see ``text_key``)."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text_key(text or "").encode("utf-8")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def draw_of(key: bytes, seed: int) -> int:
    """Returns a row's place in the draw for validation: 63 bits of its key and the seed."""
    digest = hashlib.blake2b(key, digest_size=8, salt=seed.to_bytes(16, "little", signed=True))
    return int.from_bytes(digest.digest(), "little") >> 1
