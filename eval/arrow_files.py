"""Arrow stream files written a batch at a time, with a digest of what went into them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

BATCH_ROWS = 1024

LABELLED = pa.schema([("text", pa.string()), ("label", pa.int64())])
LABELLED_PAIRS = pa.schema(
    [("text", pa.string()), ("text_pair", pa.string()), ("label", pa.int64())]
)
QUERIES = pa.schema(
    [
        ("query", pa.string()),
        ("relevant", pa.list_(pa.int64())),
        ("grades", pa.list_(pa.int64())),
    ]
)
PROMPTS = pa.schema([("prompt", pa.string()), ("completion", pa.string()), ("slice", pa.string())])
COLLECTION = pa.schema([("text", pa.string()), ("id", pa.string())])


class ArrowFiles:
    """Writes ``<name>.arrow`` files of one folder.

    Use it in a ``with`` block; the files are whole when it ends.

    Attributes:
        rows: Rows written so far, by file.
    """

    def __init__(self, folder: Path, schemas: dict[str, pa.Schema]) -> None:
        """Opens one file for each schema."""
        self.rows: Counter[str] = Counter()
        self._schemas = schemas
        self._digests = {name: hashlib.sha256() for name in schemas}
        self._waiting: dict[str, list[tuple[Any, ...]]] = {name: [] for name in schemas}
        self._files = {
            name: pa.ipc.new_stream(str(folder / f"{name}.arrow"), schema)
            for name, schema in schemas.items()
        }

    def __enter__(self) -> ArrowFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for name, file in self._files.items():
            if kind is None:
                self._flush(name)
            file.close()

    def add(self, name: str, *values: Any) -> None:
        """Adds a row to a file, its values in the order of the file's columns."""
        waiting = self._waiting[name]
        waiting.append(values)
        if len(waiting) >= BATCH_ROWS:
            self._flush(name)

    def _flush(self, name: str) -> None:
        waiting, self._waiting[name] = self._waiting[name], []
        if not waiting:
            return
        self.rows[name] += len(waiting)
        for row in waiting:
            self._digests[name].update(json.dumps(row).encode() + b"\n")
        schema = self._schemas[name]
        cells = zip(*waiting, strict=True)
        arrays = [pa.array(c, type=field.type) for c, field in zip(cells, schema, strict=True)]
        self._files[name].write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))

    def fingerprint(self, *facts: str | Iterable[str] | None) -> str:
        """Returns a sha256 over every row of every file, and the facts given."""
        contents = {name: digest.hexdigest() for name, digest in self._digests.items()}
        known = [fact if fact is None or isinstance(fact, str) else list(fact) for fact in facts]
        return hashlib.sha256(json.dumps([known, contents], sort_keys=True).encode()).hexdigest()
