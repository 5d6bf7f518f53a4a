"""Shards of a folder: written beside and renamed, checksummed, made whole by a manifest.

    shard-00000.arrow …   one Arrow file of one record batch
    shard-00000.json …    its note: items, bytes, sha256; comes after it, and says it is whole
    manifest.json         holds all the notes, comes last, and makes the folder whole

A folder that was left in the middle is gone on with at the first shard without a note.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.checkpoints import sha256
from ..eval.errors import RunError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

MANIFEST = "manifest.json"


def damaged(path: Path, why: str) -> RunError:
    """The error for a shard that is not what was recorded."""
    return RunError(
        f"The recorded teacher outputs are damaged: {path.name} in {path.parent} ({why}). "
        f"Delete that folder and run again: only it is recorded anew."
    )


def open_shard(path: Path) -> pa.RecordBatch:
    """Maps a shard into memory; nothing is read until it is used.

    Raises:
        RunError: If the file is not a whole Arrow file.
    """
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return reader.get_batch(0)
    except (OSError, pa.ArrowInvalid) as error:
        raise damaged(path, str(error)) from error


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard is."""
    return folder / f"shard-{number:05d}.arrow"


def _note(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.json"


def note_of(folder: Path, number: int) -> dict[str, Any] | None:
    """The note of a shard that an earlier try finished; None where it did not."""
    note, file = _note(folder, number), shard_file(folder, number)
    if not (note.exists() and file.exists()):
        return None
    facts: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    return facts if facts["sha256"] == sha256(file) else None


def write_shard(
    folder: Path, number: int, batch: pa.RecordBatch, facts: Mapping[str, Any]
) -> pa.RecordBatch:
    """Writes a shard beside its place and renames it; its note comes last.

    Args:
        folder: The folder.
        number: The shard's.
        batch: Its items.
        facts: For its note, beside what this function knows.

    Returns:
        The batch as it is read.
    """
    import pyarrow as pa

    file = shard_file(folder, number)
    temporary = file.with_suffix(".tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    os.replace(temporary, file)
    note = {
        "file": file.name,
        "items": batch.num_rows,
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
        **facts,
    }
    replace_json(_note(folder, number), note)
    return open_shard(file)


def replace_json(path: Path, content: Any) -> None:
    """Writes JSON beside its place and renames it."""
    temporary = path.with_suffix(".note")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def notes_of(folder: Path) -> list[dict[str, Any]]:
    """The notes of all shards, in their order."""
    notes = sorted(folder.glob("shard-*.json"))
    return [json.loads(note.read_text(encoding="utf-8")) for note in notes]


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Gathers the shards' notes into the manifest, which makes the folder whole."""
    replace_json(folder / MANIFEST, {**content, "shards": notes_of(folder)})
    for note in folder.glob("shard-*.json"):
        note.unlink()


def read_manifest(
    folder: Path, known: int | str, expect: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The manifest of a finished folder.

    Args:
        folder: The folder.
        known: The format that the reader knows.
        expect: Entries that must be equal (teacher, tokenizer, data, …).

    Raises:
        RunError: If the folder is unfinished, of another format, or an entry differs.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise RunError(f"No recorded teacher outputs in '{folder}': {MANIFEST} is missing.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(path, str(error)) from error
    if manifest.get("format") != known:
        raise RunError(
            f"'{folder}' has teacher outputs of format {manifest.get('format')}; this "
            f"version reads {known}. Record them again."
        )
    for key, value in (expect or {}).items():
        if manifest.get(key) != value:
            raise RunError(
                f"The recorded teacher outputs in '{folder}' belong to another {key}: expected "
                f"{value!r}, recorded {manifest.get(key)!r}. Record them again."
            )
    return manifest


def stream_items(folder: Path, manifest: Mapping[str, Any], stream: str) -> NDArray[np.int64]:
    """The item of each row of a stream, (rows,), mapped from disk.

    Raises:
        RunError: If the stream was not recorded.
    """
    if stream not in manifest["streams"]:
        raise RunError(
            f"The teacher's outputs were not recorded for '{stream}', "
            f"only for {', '.join(manifest['streams'])}."
        )
    rows: NDArray[np.int64] = np.load(folder / f"rows-{stream}.npy", mmap_mode="r")
    return rows


def open_shards(folder: Path, manifest: Mapping[str, Any]) -> list[pa.RecordBatch]:
    """Checks every shard against its checksum and maps it into memory.

    Raises:
        RunError: If one is gone or damaged; it names it.
    """
    found = []
    for shard in manifest["shards"]:
        file = folder / str(shard["file"])
        if not file.exists():
            raise damaged(file, "the file is gone")
        if file.stat().st_size != shard["bytes"] or sha256(file) != shard["sha256"]:
            raise damaged(file, "size or checksum differ from the manifest")
        found.append(open_shard(file))
    return found
