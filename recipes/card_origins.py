"""What the cards of a teacher, a base model and the data say: licence and language.

Only what lies on this machine is read: the card in a checkpoint's folder, in the package that
carries it, or in the hub's cache. What is not there is unknown, and said to be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..eval.checkpoints import packaged_copy
from ..eval.sources import BUILDERS, PYTHON_DOCS

CARD = "README.md"
UNKNOWN = "unknown"
OWN = "apache-2.0"  # of rows that this package makes up

_LONGEST = 200_000  # characters of a card that are read
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_WORD = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """What a card says.

    Attributes:
        name: What the recipe calls the model or the data.
        licence: The hub's name of its licence, or ``unknown``.
        languages: Codes of its languages; empty where it does not say.
        remark: What else is to be said of the licence.
    """

    name: str
    licence: str = UNKNOWN
    languages: tuple[str, ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class Origins:
    """Where a student comes from.

    Attributes:
        teacher: None for one that was recorded or made in the run.
        base: Whose weights the student started from, where that is not the teacher.
        data: The rows.
    """

    teacher: Origin | None = None
    base: Origin | None = None
    data: Origin | None = None

    @property
    def weights(self) -> Origin | None:
        """Whose weights the student has."""
        return self.base or self.teacher


def find_origins(recipe: Mapping[str, Any]) -> Origins:
    """Reads the cards that are at hand of what a resolved recipe names."""
    teacher, student = recipe.get("teacher") or {}, recipe.get("student") or {}
    data = recipe.get("data") or {}
    return Origins(
        teacher=_model(teacher.get("model"), teacher.get("revision")),
        base=_model(student.get("model"), student.get("revision")),
        data=_data(data),
    )


def on_hub(name: str | None) -> bool:
    """Whether a name is one of the model hub's, and no folder of this machine."""
    return bool(name and _HUB_NAME.fullmatch(name) and not Path(name).exists())


def hub_data(source: str | None) -> bool:
    """Whether a recipe's ``data.source`` is a data set of the hub."""
    return source not in (None, PYTHON_DOCS, *BUILDERS) and on_hub(source)


def _model(name: str | None, revision: str | None) -> Origin | None:
    if not name:
        return None
    folder = Path(name) if Path(name).is_dir() else None
    if folder is None:
        folder = _cached(name, "model", revision)
    if folder is None and revision is None:
        folder = packaged_copy(name)
    return _read(name, folder)


def _data(data: Mapping[str, Any]) -> Origin:
    source = data.get("source")
    if any((data.get("files") or {}).values()):
        return Origin("local files", remark="whoever gave the files knows")
    if source == PYTHON_DOCS:
        return Origin(source, "other", ("en",), "docstrings, each under its package's licence")
    if source in BUILDERS:
        return Origin(str(source), OWN, ("en",), "made up by paredown, no text of anybody's")
    if not source:
        return Origin("rows that the recipe does not name")
    return _read(source, _cached(source, "dataset", data.get("revision")))


def _cached(name: str, kind: str, revision: str | None) -> Path | None:
    """The folder of a card in the hub's cache."""
    if not on_hub(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, CARD, repo_type=kind, revision=revision)
    except ValueError:  # no name of the hub's after all
        return None
    return Path(found).parent if isinstance(found, str) else None


def _read(name: str, folder: Path | None) -> Origin:
    """What the card of a folder says of licence and language, as far as it can be understood."""
    try:
        path = (folder or Path()) / CARD
        text = path.read_text(encoding="utf-8")[:_LONGEST] if folder else ""
        header = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        said = yaml.safe_load(header[1]) if header else None
    except (OSError, ValueError, yaml.YAMLError):
        said = None
    said = said if isinstance(said, dict) else {}
    (licence,) = _words(said.get("license"))[:1] or (UNKNOWN,)
    (called,) = _words(said.get("license_name"))[:1] or ("",)
    return Origin(name, licence, tuple(_words(said.get("language"))), called)


def _words(value: Any) -> list[str]:
    """Short words of a card's field, which may be one or several."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str) and _WORD.fullmatch(item)]
