"""Golden rows: texts that an export carries with its own answers, to be run again elsewhere.

A folder gets ``golden.jsonl`` (the rows) and ``golden.json`` (what they were made on, what may
differ, and the sha256 of every file); where it has a predict.py, a verify.py stands beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.errors import RunError
from .formats import FORMATS
from .verify import MANIFEST, ROWS, VERSION, ask, machine, scores_of, sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 1e-4
"""What a value of a full-precision export may differ by, relative to the largest."""
FLIP_RATES = {True: 0.005, False: 0.05}
"""Shares of decisions that may differ elsewhere, by whether the format is exact: of 64 rows none,
or three."""
WRITTEN_FLIP_RATES = {True: 0.07, False: 0.25}
"""The same of texts, in which one near tie changes all that follows: of 16 rows one, or four."""
DECISIONS = {
    "class_logits": "class",
    "embedding": "nearest other golden row",
    "token_distribution": "text",
}
CHECK = """
## Is it the same here?

    python verify.py

runs the rows of `golden.jsonl` again and compares the answers with those of the machine that made
the export.
"""


def write_golden(folder: Path, fmt: str, model: Any, rows: Sequence[Mapping[str, str]]) -> None:
    """Adds golden rows to an exported folder, and seals it.

    Args:
        folder: Of the export; its files are complete.
        fmt: The format's name. One in int8 is not held to the values, which depend on the
            processor.
        model: The export as it is run: ``settings``, ``signal`` or ``generate``, and ``runtime``.
        rows: Each with ``text`` and perhaps ``text_pair``; at least one.

    Raises:
        RunError: If a value is not finite.
    """
    signal, exact = str(model.settings["signal"]), FORMATS[fmt].precision == "fp32"
    said = ask(model, rows)
    if isinstance(said, list):
        lines = [{**row, "decision": text} for row, text in zip(rows, said, strict=True)]
        tolerance, rates = None, WRITTEN_FLIP_RATES
    else:
        lines, largest = _with_values(rows, said, signal, model.settings.get("labels"))
        tolerance, rates = TOLERANCE * max(1.0, largest) if exact else None, FLIP_RATES
    with (folder / ROWS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if (folder / "predict.py").exists():
        shutil.copyfile(Path(__file__).with_name("verify.py"), folder / "verify.py")
        with (folder / "README.md").open("a", encoding="utf-8") as file:
            file.write(CHECK)
    about = {
        "version": VERSION,
        "format": fmt,
        "signal": signal,
        "rows": len(lines),
        "decision": DECISIONS[signal],
        "exact": exact,
        "flip_rate": rates[exact],
        "tolerance": tolerance,
        "made_on": machine(str(model.runtime)),
    }
    seal(folder, about)


def _with_values(
    rows: Sequence[Mapping[str, str]],
    values: NDArray[np.float32],
    signal: str,
    labels: Sequence[str] | None,
) -> tuple[list[dict[str, Any]], float]:
    """Golden rows with values of six digits, and the largest of them."""
    if not np.isfinite(values).all():
        raise RunError("The export gives numbers that are not finite, so it has no golden rows.")
    rounded = [[float(f"{value:.6g}") for value in line] for line in values.tolist()]
    kept = np.asarray(rounded, dtype=np.float32)  # what the rows will be compared with
    best = scores_of(values, kept, signal).argmax(1)
    decided: list[Any] = best.tolist()
    if signal == "class_logits" and labels:
        decided = [labels[i] for i in best]
    lines = [
        {**row, "values": line, "decision": decision}
        for row, line, decision in zip(rows, rounded, decided, strict=True)
    ]
    return lines, float(np.abs(kept).max())


def seal(folder: Path, about: Mapping[str, Any], names: Iterable[str] | None = None) -> None:
    """Writes ``golden.json``: what is given, and the sha256 of the folder's other files.

    Args:
        folder: Of the export.
        about: The other keys of the file; ``files`` is made anew.
        names: The files that belong to the export, relative to the folder; all if None.
    """
    if names is None:
        names = files_of(folder)
    files = {name: sha256(folder / name) for name in sorted(names) if name != MANIFEST}
    text = json.dumps({**about, "files": files}, indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def seal_again(folder: Path) -> None:
    """Counts the files of a folder with golden rows anew, after one was replaced."""
    manifest = folder / MANIFEST
    if manifest.exists():
        about = json.loads(manifest.read_text(encoding="utf-8"))
        about.pop("files", None)
        seal(folder, about)


def files_of(folder: Path) -> list[str]:
    """The files of a folder, relative to it, without what Python leaves behind."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(name.as_posix() for name in found if "__pycache__" not in name.parts)
