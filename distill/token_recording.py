"""Recording token distributions: record by record, or shard by shard over several processes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.checkpoints import sha256
from ..eval.errors import RunError
from .hidden_encoding import HiddenEncoding, save
from .shards import MANIFEST, note_of, notes_of, replace_json, write_manifest, write_shard
from .token_encoding import Encoding, TopKEncoding
from .token_outputs import FORMAT, HIDDEN, Record, TokenOutputs

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from .token_targets import TopK

BEGUN = "begun.json"
"""What a folder was begun for, until its manifest says it."""


class TokenOutputsWriter:
    """Writes records shard by shard; goes on where an earlier try was stopped.

    Either one process adds records one after the other, from `next_item` on:

        for row in rows[writer.next_item:]:
            writer.add(writer.record(…))

    or several share the shards of a known number of items:

        for number, items in writer.pending(len(rows)):
            writer.write(number, [writer.record(…) for i in items])

    Then `finish`, in one process. What is recorded is a function of the records alone, so a folder
    that was gone on with has the same bytes as one that was not.

    Attributes:
        next_item: How many items whole shards hold from the first on: where `add` has to go on.
    """

    def __init__(
        self,
        out: Path,
        *,
        identity: Mapping[str, Any],
        encoding: Encoding | None = None,
        hidden: Mapping[int, HiddenEncoding] | None = None,
        shard_items: int = 256,
        shard_bytes: int = 2**28,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Opens the folder, or makes it.

        Args:
            out: The folder; shards that are whole in it are kept.
            identity: What the outputs belong to (teacher, tokenizer, template, data, …).
            encoding: How distributions are written; None where only texts are recorded.
            hidden: How the hidden states of some layers are written.
            shard_items: Items in a shard.
            shard_bytes: `add` ends a shard earlier where its blobs reach this.
            rank: This process.
            world_size: Processes that share the work.

        Raises:
            RunError: If the folder is finished, or was begun for something else.
        """
        self._out, self._encoding = out, encoding
        self._hidden = dict(hidden or {})
        self._shard_items, self._shard_bytes = shard_items, shard_bytes
        self._rank, self._world_size = rank, world_size
        out.mkdir(parents=True, exist_ok=True)
        if (out / MANIFEST).exists():
            raise RunError(f"The teacher outputs in '{out}' are finished; read them, or delete it.")
        self._facts: dict[str, Any] = {
            **identity,
            "signal": "text" if encoding is None else "token_distribution",
            "encoding": None if encoding is None else encoding.spec,
            "vocabulary": None if encoding is None else encoding.vocabulary,
            "hidden_layers": sorted(self._hidden),
        }
        self._begin()
        self._waiting: list[Record] = []
        self._waiting_bytes = 0
        self._next_shard, self.next_item = 0, 0
        while (note := note_of(out, self._next_shard)) is not None:
            self._next_shard += 1
            self.next_item += int(note["items"])

    def _begin(self) -> None:
        """Marks the folder as belonging to this, or makes sure that it does."""
        # Each process writes its own, so that none replaces what another reads.
        mine = self._out / f"{HIDDEN}.{self._rank}"
        if self._hidden:
            save(self._hidden, mine)
            self._facts["hidden_sha256"] = sha256(mine)
        begun, earlier = self._facts, _read(self._out / BEGUN)
        for key in sorted(begun.keys() | earlier.keys()) if earlier else ():
            if earlier.get(key) != _plain(begun.get(key)):
                mine.unlink(missing_ok=True)
                raise RunError(
                    f"The teacher outputs in '{self._out}' were begun for another {key}: "
                    f"{earlier.get(key)!r} there, {begun.get(key)!r} now. Delete that folder and "
                    "run again."
                )
        if self._hidden:
            mine.replace(self._out / HIDDEN)
        if not earlier and self._rank == 0:
            replace_json(self._out / BEGUN, begun)

    def record(
        self,
        ids: Sequence[int],
        spans: Sequence[tuple[int, int]],
        *,
        key: str,
        logits: Tensor | None = None,
        listed: TopK | None = None,
        states: Mapping[int, Tensor] | None = None,
        text: str | None = None,
    ) -> Record:
        """Makes a record, encoded as this writer does.

        Args:
            ids: Token ids of prompt and completion, (L,).
            spans: The tokens that the teacher was asked about.
            key: Names the row: the draws of `sampled` depend on it.
            logits: Of those T tokens, given what is before each, (T, V).
            listed: What a server lists of them instead, for the encoding `topk`.
            states: By layer, the token vectors that they were predicted from, (T, H).
            text: What the teacher wrote.

        Raises:
            RunError: If logits or states are not of T tokens, or cannot be encoded.
        """
        bare = Record(ids, spans, text)
        sizes = {"logits": None if logits is None else len(logits)}
        sizes |= {"log-probabilities": None if listed is None else len(listed)}
        sizes |= {f"hidden states of layer {n}": len(s) for n, s in (states or {}).items()}
        for name, size in sizes.items():
            if size is not None and size != bare.tokens:
                raise RunError(f"Row {key}: {name} of {size} tokens for spans of {bare.tokens}.")
        blob = None
        if logits is not None:
            if self._encoding is None:
                raise RunError("Logits were given to record, and no encoding to record them in.")
            blob = self._encoding.encode(logits, key)
        if listed is not None:
            if not isinstance(self._encoding, TopKEncoding):
                raise RunError(
                    "Listed log-probabilities were given to an encoding other than topk."
                )
            blob = self._encoding.encode_listed(listed)
        hidden = {n: self._hidden[n].encode(s) for n, s in (states or {}).items()}
        return Record(ids, spans, text, blob, hidden)

    def add(self, record: Record) -> None:
        """Adds the next record; it is on disk when its shard is full.

        Raises:
            RunError: If its spans are not within it, or a layer's hidden states are missing.
        """
        self._check(record)
        self._waiting.append(record)
        self._waiting_bytes += len(record.blob or b"") + sum(map(len, record.hidden.values()))
        if len(self._waiting) >= self._shard_items or self._waiting_bytes >= self._shard_bytes:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._write(self._next_shard, self._waiting)
            self._next_shard += 1
            self.next_item += len(self._waiting)
            self._waiting, self._waiting_bytes = [], 0

    def pending(self, items: int) -> Iterator[tuple[int, range]]:
        """This process's shards that are not whole yet, each with the items that belong in it.

        Args:
            items: Items in all.
        """
        for number, start in enumerate(range(0, items, self._shard_items)):
            part = range(start, min(start + self._shard_items, items))
            if number % self._world_size == self._rank:
                note = note_of(self._out, number)
                if note is None or note["items"] != len(part):
                    yield number, part

    def write(self, number: int, records: Sequence[Record]) -> None:
        """Writes the shard of some items.

        Raises:
            RunError: As `add`.
        """
        for record in records:
            self._check(record)
        self._write(number, records)

    def _check(self, record: Record) -> None:
        flat = [place for span in record.spans for place in span]
        inside = not flat or (flat[0] >= 1 and flat[-1] <= len(record.ids))
        if not inside or any(a >= b for a, b in record.spans) or flat != sorted(flat):
            raise RunError(
                f"Expected spans that ascend within tokens 1 to {len(record.ids)}, got "
                f"{list(record.spans)}."
            )
        if set(record.hidden) != set(self._hidden):
            raise RunError(
                f"Expected hidden states of layers {sorted(self._hidden)}, got "
                f"{sorted(record.hidden)}."
            )

    def _write(self, number: int, records: Sequence[Record]) -> None:
        blobs = [record.blob for record in records if record.blob is not None]
        facts = {
            "tokens": sum(record.tokens for record in records),
            "encoded_tokens": sum(r.tokens for r in records if r.blob is not None),
            "blob_bytes": sum(map(len, blobs)),
            "hidden_bytes": sum(len(b) for r in records for b in r.hidden.values()),
            "rank": self._rank,
        }
        write_shard(self._out, number, _batch(records, sorted(self._hidden)), facts)

    def finish(
        self, streams: Mapping[str, Sequence[int] | NDArray[np.int64]], **facts: Any
    ) -> TokenOutputs:
        """Writes what is left and the manifest, which makes the folder whole.

        Args:
            streams: For each stream the item of each of its rows; −1 for a row left out.
            facts: For the manifest, such as ``divergence``, measured on a sample of rows.

        Raises:
            RunError: If a shard is missing, or a stream names an item that there is not.
        """
        self._flush()
        notes = notes_of(self._out)
        missing = [n for n, note in enumerate(notes) if note["file"] != f"shard-{n:05d}.arrow"]
        if missing or not notes:
            first = missing[0] if missing else 0
            raise RunError(
                f"Shard {first} of the teacher outputs in '{self._out}' is missing: a process "
                "stopped before it was written, or there were no rows. Run again."
            )
        items = sum(int(note["items"]) for note in notes)
        for name, rows in streams.items():
            of = np.asarray(rows, dtype=np.int64)
            if len(of) and not (of.min() >= -1 and of.max() < items):
                raise RunError(f"Stream '{name}' names items beyond the {items} recorded.")
            np.save(self._out / f"rows-{name}.npy", of)
        total = {k: sum(int(note[k]) for note in notes) for k in _SUMS}
        write_manifest(
            self._out,
            {
                "format": FORMAT,
                **self._facts,
                "streams": {name: len(rows) for name, rows in streams.items()},
                "items": items,
                "tokens": total["tokens"],
                "encoded_tokens": total["encoded_tokens"],
                "bytes_per_token": _ratio(total["blob_bytes"], total["encoded_tokens"]),
                "hidden_bytes_per_token": _ratio(total["hidden_bytes"], total["tokens"]),
                "file_bytes_per_token": _ratio(total["bytes"], total["tokens"]),
                "world_size": self._world_size,
                **facts,
            },
        )
        (self._out / BEGUN).unlink(missing_ok=True)
        return TokenOutputs(self._out)


_SUMS = ("bytes", "tokens", "encoded_tokens", "blob_bytes", "hidden_bytes")


def _ratio(size: int, tokens: int) -> float | None:
    """Bytes per token; None where there is none of either."""
    return size / tokens if size and tokens else None


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples are lists there."""
    return json.loads(json.dumps(value))


def _batch(records: Sequence[Record], layers: Sequence[int]) -> pa.RecordBatch:
    """Records as Arrow; binaries have 64-bit offsets, since full distributions pass 2 GB soon."""
    import pyarrow as pa

    ids = [np.asarray(record.ids, dtype=np.int32) for record in records]
    spans = [np.asarray(record.spans, dtype=np.int32).reshape(-1) for record in records]
    numbers = pa.list_(pa.int32())
    columns = {
        "ids": pa.array(ids, type=numbers),
        "spans": pa.array(spans, type=numbers),
        "text": pa.array([record.text for record in records], type=pa.string()),
        "blob": pa.array([record.blob for record in records], type=pa.large_binary()),
    }
    for layer in layers:
        blobs = [record.hidden[layer] for record in records]
        columns[f"hidden_{layer}"] = pa.array(blobs, type=pa.large_binary())
    return pa.record_batch(columns)
