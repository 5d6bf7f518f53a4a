"""``paredown.json`` of an exported folder: which format it is, and all that its graph leaves open.

A folder may come from anywhere, so what it says is checked before anything of it is used. It names
no file: what a format's files are called is fixed, and they must lie in the folder itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..eval.errors import RunError, nearest

FILE = "paredown.json"
SETTINGS_VERSION = 1
LARGEST = 64 << 20
"""Bytes of a settings file: labels and a chat template are in it, and no weights."""

COMMON: dict[str, type] = {"task": str, "signal": str, "format": str, "precision": str}
PREPARED: dict[str, type] = {
    "width": int, "inputs": list, "output": str, "max_length": int, "truncation_side": str,
    "pad_id": int, "pad_type_id": int, "prompts": dict, "role": str, "batch": int,
}  # fmt: skip
"""What says how a text is prepared for a graph that gives classes or an embedding."""
WRITTEN: dict[str, type] = {
    "width": int, "layers": int, "kv_heads": int, "head_dim": int, "max_length": int,
    "context": int, "max_new_tokens": int, "pad_id": int, "stop_ids": list, "form": str,
    "batch": int,
}  # fmt: skip
"""What says how an answer is written with a graph that gives the next token."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
KEYS = {"class_logits": PREPARED, "embedding": PREPARED, "token_distribution": WRITTEN}
FROM_ONE = ("width", "max_length", "batch", "layers", "kv_heads", "head_dim", "context",
            "max_new_tokens")  # fmt: skip


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes ``paredown.json``."""
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_settings(folder: Path) -> dict[str, Any]:
    """Reads what a folder says of itself.

    Raises:
        RunError: If it is no exported folder, is of a newer version, or says what cannot be.
    """
    if not folder.is_dir():
        raise RunError(f"There is no folder '{folder}'; give the folder of an export.")
    require_files(folder, [FILE])
    path = folder / FILE
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise RunError(f"A file of '{folder}' is damaged: {FILE}: {error}") from error
    if not isinstance(found, dict):
        raise _wrong(folder, "is no JSON object")
    version = found.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _wrong(folder, "has no version")
    if version > SETTINGS_VERSION:
        raise RunError(
            f"'{folder}' was exported by a newer paredown (settings version {version}; this one "
            f"reads up to {SETTINGS_VERSION}); upgrade paredown: pip install -U paredown."
        )
    _check(folder, found, COMMON)
    if found["signal"] not in KEYS:
        known = ", ".join(KEYS)
        raise _wrong(folder, f"has a signal '{found['signal']}' that is none of {known}")
    return found


def check_prepared(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes sure that settings say all that a graph leaves open, each in its type.

    Raises:
        RunError: Naming the first key that is missing or cannot be.
    """
    signal = settings["signal"]
    _check(folder, settings, KEYS[signal])
    for name in FROM_ONE:
        if name in KEYS[signal] and settings[name] < 1:
            raise _wrong(folder, f"says {name} {settings[name]}, and at least 1 is expected")
    (_check_written if signal == "token_distribution" else _check_texts)(folder, settings)


def _check_texts(folder: Path, settings: Mapping[str, Any]) -> None:
    """What says how a text is prepared for classes or an embedding."""
    unknown = [name for name in settings["inputs"] if name not in INPUTS]
    if unknown:
        raise _wrong(folder, f"has an input {unknown[0]!r} that is none of {', '.join(INPUTS)}")
    if not all(isinstance(text, str) for text in settings["prompts"].values()):
        raise _wrong(folder, "has a prompt that is no text")
    if settings["truncation_side"] not in ("left", "right"):
        raise _wrong(folder, f"cuts texts at their '{settings['truncation_side']}'")
    if settings["signal"] == "class_logits":
        labels = settings.get("labels")
        named = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        if not named or len(labels or ()) != settings["width"]:
            raise _wrong(folder, f"has not the {settings['width']} labels of its classes")


def _check_written(folder: Path, settings: Mapping[str, Any]) -> None:
    """What says how a prompt is written, and which tokens end its answer."""
    if not all(_is(one, int) for one in settings["stop_ids"]):
        raise _wrong(folder, "has something else than int in stop_ids")
    if settings["form"] not in ("text", "messages"):
        raise _wrong(folder, f"has a form '{settings['form']}' that is neither text nor messages")
    if settings["form"] == "messages" and not isinstance(settings.get("template"), str):
        raise _wrong(folder, "has no chat template, and its rows are messages")
    if not isinstance(settings.get("template_arguments") or {}, dict):
        raise _wrong(folder, "has template_arguments that are no object")


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Makes sure that files are there, and not links to something outside the folder.

    Raises:
        RunError: Naming the first that is not.
    """
    inside = folder.resolve()
    for name in names:
        path = folder / name
        if not path.is_file():
            there = [file.name for file in folder.iterdir()] if folder.is_dir() else []
            raise RunError(
                f"'{folder}' has no {name};{nearest(name, there)} give the folder of an export."
            )
        if not path.resolve().is_relative_to(inside):
            raise RunError(
                f"{name} of '{folder}' is a link to something outside the folder; copy the file."
            )


def _check(folder: Path, settings: Mapping[str, Any], keys: Mapping[str, type]) -> None:
    for name, kind in keys.items():
        if name not in settings:
            raise _wrong(folder, f"has no '{name}'")
        if not _is(settings[name], kind):
            raise _wrong(folder, f"has {type(settings[name]).__name__} where '{name}' is "
                                 f"{kind.__name__}")  # fmt: skip


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _wrong(folder: Path, what: str) -> RunError:
    return RunError(f"{FILE} of '{folder}' {what}; export the model again.")
