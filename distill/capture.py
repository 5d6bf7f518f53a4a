"""Recording a teacher: each distinct text once, sorted by length, shard by shard.

Shards are dealt out over the processes of a launch; nothing is gathered in memory. A shard that
is whole is never computed again, so a capture that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..eval.batching import length_order, token_batches
from ..eval.errors import RunError
from ..eval.models import TextModel, autocast
from .outputs import FORMAT, TeacherOutputs
from .shards import note_of, notes_of, write_manifest, write_shard

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 4096  # texts held at a time while keys and lengths are made


@dataclass(frozen=True)
class Stream:
    """Rows whose texts the teacher is asked about.

    Attributes:
        name: Such as ``train.text``; names the rows in the outputs.
        texts: One text a row; a column of a memory-mapped data set will do.
        pairs: The second text of each row, or None.
        role: Whose prompt is put in front.
    """

    name: str
    texts: Sequence[str]
    pairs: Sequence[str] | None = None
    role: str = "text"

    def read(self, rows: Sequence[int]) -> tuple[list[str], list[str] | None]:
        """The texts, and the second texts, of some rows."""
        return _take(self.texts, rows), None if self.pairs is None else _take(self.pairs, rows)


def _take(texts: Sequence[str], rows: Sequence[int]) -> list[str]:
    if isinstance(texts, list):
        return [texts[i] for i in rows]
    return list(texts[list(rows)])  # type: ignore[call-overload]  # a data set's column


@dataclass(frozen=True)
class Items:
    """Distinct texts over several streams, in the order they are recorded.

    Attributes:
        stream: The stream of each item, (n,).
        row: Its row there, (n,).
        length: Its length in tokens, (n,).
        of: For each stream, the item of each of its rows.
    """

    stream: NDArray[np.int64]
    row: NDArray[np.int64]
    length: NDArray[np.int64]
    of: dict[str, NDArray[np.int64]]


def _keys(stream: Stream) -> NDArray[np.void]:
    """A 128-bit key of each row's role and texts: equal texts, equal keys."""
    out = bytearray()
    for start in range(0, len(stream.texts), BLOCK):
        texts, pairs = stream.read(range(start, min(start + BLOCK, len(stream.texts))))
        for i, text in enumerate(texts):
            parts = (stream.role, text, "" if pairs is None else pairs[i])
            key = "\0".join(f"{len(p)}:{p}" for p in parts).encode("utf-8", "surrogatepass")
            out += hashlib.blake2b(key, digest_size=16).digest()
    return np.frombuffer(bytes(out), dtype="V16")


def distinct_items(model: TextModel, streams: Sequence[Stream]) -> Items:
    """Finds the distinct texts of all streams and sorts them by length, longest first.

    Memory is 16 bytes a row and 24 an item.

    Raises:
        RunError: If there is no row at all.
    """
    keys = [_keys(stream) for stream in streams]
    every = np.concatenate(keys) if keys else np.empty(0, dtype="V16")
    if not len(every):
        raise RunError("There are no rows to record a teacher on.")
    found = np.unique(every, return_index=True, return_inverse=True)
    first: NDArray[np.int64] = found[1]
    inverse: NDArray[np.int64] = found[2]
    starts = np.cumsum([0] + [len(k) for k in keys])
    stream = np.searchsorted(starts, first, side="right") - 1
    row = first - starts[stream]
    length = np.empty(len(first), dtype=np.int64)
    for number, source in enumerate(streams):
        mine = np.flatnonzero(stream == number)
        for start in range(0, len(mine), BLOCK):
            part = mine[start : start + BLOCK]
            texts, pairs = source.read(row[part].tolist())
            encoded = model.tokenize(texts, pairs, source.role)
            length[part] = [len(e["input_ids"]) for e in encoded]
    # np.unique's order is that of the hashes: the same for the same texts, whatever their order.
    order = length_order(length)
    place: NDArray[np.int64] = np.empty_like(order)
    place[order] = np.arange(len(order))
    positions = place[inverse]
    of = {s.name: positions[starts[i] : starts[i + 1]] for i, s in enumerate(streams)}
    return Items(stream[order], row[order], length[order], of)


def capture(
    model: TextModel,
    streams: Sequence[Stream],
    out: Path,
    *,
    identity: Mapping[str, Any],
    precision: str = "fp32",
    batch_tokens: int = 8192,
    shard_rows: int = 4096,
    hidden_layers: Sequence[int] = (),
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] | None = None,
) -> TeacherOutputs | None:
    """Records a teacher's signal, and hidden states where asked for, on every text of the streams.

    Args:
        model: The teacher.
        streams: The rows; no test rows.
        out: The folder; shards that are whole in it are kept.
        identity: What the outputs belong to (teacher, tokenizer, data …), for the manifest.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_tokens: Rows × longest row of a batch, at most.
        shard_rows: Items in a shard.
        hidden_layers: Layers whose token vectors are kept (0 is the embeddings), as float16.
        rank: This process.
        world_size: Processes that share the work.
        barrier: Waits for all of them.
        progress: Called with tokens done and tokens in all, of this process.

    Returns:
        The outputs, on rank 0; None on the others.

    Raises:
        RunError: If an output is not a finite number, or a shard cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    items = distinct_items(model, streams)
    starts = list(range(0, len(items.row), shard_rows))
    mine = [number for number in range(len(starts)) if number % world_size == rank]
    parts = {n: slice(starts[n], starts[n] + shard_rows) for n in mine}
    total = sum(int(items.length[part].sum()) for part in parts.values())
    done = 0
    model.eval()
    for number, part in parts.items():
        if not _whole(out, number, len(items.row[part])):

            def report(tokens: int, base: int = done) -> None:
                if progress is not None:
                    progress(base + tokens, total)

            columns = _compute(
                model, streams, items, part, precision, batch_tokens, hidden_layers, report
            )
            _write_shard(out, number, columns, rank)
        done += int(items.length[part].sum())
        if progress is not None:
            progress(done, total)
    barrier()
    if rank != 0:
        return None
    for name, rows in items.of.items():
        np.save(out / f"rows-{name}.npy", rows)
    _write_manifest(
        out,
        {
            **identity,
            "signal": model.signal,
            "width": model.width,
            "precision": precision,
            "hidden_layers": list(hidden_layers),
            "hidden_size": int(model.config.hidden_size),
            "streams": {name: len(rows) for name, rows in items.of.items()},
            "items": len(items.row),
            "tokens": int(items.length.sum()),
            "world_size": world_size,
        },
    )
    return TeacherOutputs(out)


def record_given(
    values: Mapping[str, NDArray[np.float32]],
    out: Path,
    *,
    signal: str,
    identity: Mapping[str, Any],
    shard_rows: int = 4096,
) -> TeacherOutputs:
    """Writes outputs that were recorded elsewhere in the form that `capture` leaves.

    Args:
        values: For each stream the signal of its rows, (rows, W).
        out: The folder.
        signal: ``class_logits`` or ``embedding``.
        identity: What the outputs belong to, for the manifest.
        shard_rows: Rows in a shard.
    """
    out.mkdir(parents=True, exist_ok=True)
    widths = {block.shape[1] for block in values.values()}
    if len(widths) != 1:
        raise RunError(f"The recorded outputs differ in width between files: {sorted(widths)}.")
    every = np.concatenate(list(values.values()))
    starts = np.cumsum([0] + [len(block) for block in values.values()])
    for i, name in enumerate(values):
        np.save(out / f"rows-{name}.npy", np.arange(starts[i], starts[i + 1]))
    for number, start in enumerate(range(0, len(every), shard_rows)):
        _write_shard(out, number, {"values": every[start : start + shard_rows]}, rank=0)
    _write_manifest(
        out,
        {
            **identity,
            "signal": signal,
            "width": widths.pop(),
            "precision": "as recorded",
            "hidden_layers": [],
            "streams": {name: len(block) for name, block in values.items()},
            "items": len(every),
            "world_size": 1,
        },
    )
    return TeacherOutputs(out)


def _write_manifest(out: Path, content: Mapping[str, Any]) -> None:
    """Gathers the shards' notes into the manifest, which makes the outputs whole."""
    size = sum(int(note["bytes"]) for note in notes_of(out))
    rate = {"bytes_per_item": size / content["items"]}
    write_manifest(out, {"format": FORMAT, "encoding": "float32", **content, **rate})


@torch.inference_mode()
def _compute(
    model: TextModel,
    streams: Sequence[Stream],
    items: Items,
    part: slice,
    precision: str,
    batch_tokens: int,
    hidden_layers: Sequence[int],
    report: Callable[[int], None],
) -> dict[str, Any]:
    """One shard's columns: ``values`` (n, W) and lists of flat token vectors a layer."""
    stream, row, length = items.stream[part], items.row[part], items.length[part]
    encoded: list[Any] = [None] * len(row)
    for number, source in enumerate(streams):
        here = np.flatnonzero(stream == number)
        if len(here):
            texts, pairs = source.read(row[here].tolist())
            for place, ids in zip(here, model.tokenize(texts, pairs, source.role), strict=True):
                encoded[place] = ids
    values = np.empty((len(row), model.width), dtype=np.float32)
    hidden: dict[int, list[Any]] = {layer: [None] * len(row) for layer in hidden_layers}
    device, finished = model.backbone.device, 0
    for index in token_batches(length, batch_tokens):
        batch = {k: v.to(device) for k, v in model.collate([encoded[i] for i in index]).items()}
        with autocast(device, precision):
            output = model(**batch, output_hidden_states=bool(hidden_layers))
        values[index] = output.values.float().cpu().numpy()
        for layer in hidden_layers:
            states = output.hidden_states[layer].to(torch.float16).cpu().numpy()
            for place, vectors in zip(index, states, strict=True):
                hidden[layer][place] = vectors[: length[place]].reshape(-1)
        finished += int(length[index].sum())
        report(finished)
    if not np.isfinite(values).all():
        raise RunError(
            f"The teacher gave outputs that are not finite numbers in {precision}; "
            "set capture.precision to fp32 or bf16."
        )
    return {"values": values, **{f"hidden_{layer}": rows for layer, rows in hidden.items()}}


def _whole(out: Path, number: int, count: int) -> bool:
    """Whether a shard was finished by an earlier try."""
    note = note_of(out, number)
    return note is not None and bool(note["items"] == count)


def _write_shard(out: Path, number: int, columns: Mapping[str, Any], rank: int) -> None:
    """Writes a shard's columns: ``values`` of fixed width, and flat token vectors a layer."""
    import pyarrow as pa

    values = columns["values"]
    arrays: list[Any] = [pa.FixedSizeListArray.from_arrays(values.reshape(-1), values.shape[1])]
    arrays += [
        pa.array(rows, type=pa.list_(pa.float16())) for k, rows in columns.items() if k != "values"
    ]
    write_shard(out, number, pa.record_batch(arrays, names=list(columns)), {"rank": rank})
