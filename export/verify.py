"""Runs the golden rows of this folder again: does its model answer here as where it was made?

    python verify.py
    python verify.py --flip-rate 0.1 --threads 4

Exit code 0: it does. 3: more decisions differ than the folder states, or a value differs by more
than its tolerance. 1: a file is missing, damaged or was changed. 2: a wrong argument, or no golden
rows. It needs what predict.py needs.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MANIFEST = "golden.json"
ROWS = "golden.jsonl"
VERSION = 1
LARGEST = 64 << 20  # bytes of golden.json, or of golden.jsonl: more is no such file
TIE = 1e-5  # scores this near, relative to the best, are the same decision
NOTICED = 1e-4  # a difference of values that is more than the rounding of the recorded ones
SHOWN = 5
TEXT_CHARACTERS = 80
INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "sve"),
)
"""Instructions that decide how a runtime multiplies matrices of 8 bits, as Linux names them."""


class VerifyError(Exception):
    """Something a person can act on; ``exit_code`` is 1 for damage and 2 for a wrong argument."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Verified(NamedTuple):
    """What came out.

    Attributes:
        rows: Golden rows.
        differ: How many are decided otherwise than where the folder was made.
        allowed: The largest share of them that may be.
        max_difference: The largest difference of a value; None for models that write texts.
        tolerance: What it may be; None where it is told and not judged.
        machine: What differs between the two machines, one sentence each.
        differing: The first few rows that differ: ``row``, ``text``, ``then`` and ``now``.
        exact: Whether the format computes in full precision.
    """

    rows: int
    differ: int
    allowed: float
    max_difference: float | None
    tolerance: float | None
    machine: list[str]
    differing: list[dict[str, Any]]
    exact: bool

    @property
    def met(self) -> bool:
        """Whether the model answers here as it did there."""
        near = (
            self.max_difference is None
            or self.tolerance is None
            or self.max_difference <= self.tolerance
        )
        return self.differ <= self.allowed * self.rows and near

    @property
    def lines(self) -> list[str]:
        """All of it in words."""
        share = self.differ / self.rows
        found = [
            f"decisions: {self.differ} of {self.rows} golden rows differ ({share:.2%}; "
            f"{self.allowed:.2%} may)"
        ]
        if self.max_difference is not None:
            may = "not judged" if self.tolerance is None else f"{self.tolerance:.1e} may be"
            found.append(f"values: the largest difference is {self.max_difference:.2g} ({may})")
        found += [
            f"  row {one['row']}: {_short(one['text'])}: {_short(one['then'])} there, "
            f"{_short(one['now'])} here"
            for one in self.differing
        ]
        found.append("machines: " + ("; ".join(self.machine) or "nothing that is known differs"))
        noticed = self.differ or self.machine or (self.max_difference or 0) > NOTICED
        if not self.exact and noticed:
            found.append(
                "int8 results depend on the processor: how products of 8 bits are summed and "
                "rounded is its own. Measure the format on this processor (paredown export), or "
                "deploy the one in full precision."
            )
        return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}…"


def machine(runtime: str) -> dict[str, Any]:
    """What a result in 8 bits can depend on: processor, system, and versions of the runtime."""
    names = ["torch", "transformers"] if runtime == "pytorch" else [runtime]
    versions = {}
    for name in [*names, "tokenizers", "numpy"]:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    model, flags = _processor()
    return {
        "processor": model,
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _processor() -> tuple[str, set[str]]:
    """The processor's name, and its instructions where Linux lists them."""
    found: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip().lower(), value.strip())
    name = found.get("model name") or platform.processor() or platform.machine()
    return name, set(found.get("flags", found.get("features", "")).lower().split())


def machine_differences(made: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two answers of `machine`, one sentence each."""
    found = []
    for key in ("processor", "system"):
        if made.get(key) != here[key]:
            found.append(f"the {key} was {_short(made.get(key))}, here it is {here[key]}")
    before, now = set(map(str, made.get("instructions") or ())), set(here["instructions"])
    if before - now:
        found.append(f"it had {', '.join(sorted(before - now))}, this one has not")
    if now - before:
        found.append(f"this one has {', '.join(sorted(now - before))}, it had not")
    versions = made.get("versions") or {}
    for name, version in here["versions"].items():
        if versions.get(name) not in (None, version):
            found.append(f"{name} was {_short(versions[name])}, here it is {version}")
    return found


def is_inside(name: Any) -> bool:
    """Whether a name, joined to a folder, stays within it: relative, and without ``..``.

    Examples:
        >>> is_inside("1_Dense/config.json"), is_inside("../key"), is_inside("/etc/passwd")
        (True, False, False)
    """
    if not isinstance(name, str) or any(mark in name for mark in "\\:\0"):
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads ``golden.json``, and makes sure that it is one.

    Raises:
        VerifyError: If there is none, or it is damaged, names files outside the folder, or was made
            by a newer program.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = f"'{folder}' has no {MANIFEST}" if folder.is_dir() else f"There is no '{folder}'"
        raise VerifyError(f"{what}; give the folder of an export that carries golden rows.", 2)
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("version"), int):
            raise ValueError("it has no version")
        if found["version"] > VERSION:
            raise VerifyError(f"'{path}' was made by a newer paredown; verify it with that one.")
        files, made = found["files"], found["made_on"]
        if not isinstance(files, dict) or not isinstance(made, dict) or ROWS not in files:
            raise ValueError(f"it names no {ROWS}")
        if not isinstance(made.get("versions") or {}, dict):
            raise ValueError("versions is no object")
        if not isinstance(made.get("instructions") or [], list):
            raise ValueError("instructions is no list")
        if not isinstance(found["exact"], bool):
            raise ValueError("exact is neither true nor false")
        for key in ("flip_rate", "tolerance"):
            if not _is_number(found[key]) and not (key == "tolerance" and found[key] is None):
                raise ValueError(f"{key} is no number")
        if bad := [name for name in files if not is_inside(name)]:
            raise ValueError(f"it names a file outside the folder: {_short(bad[0])}")
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise VerifyError(f"'{path}' is damaged: {error}. Export the model again.") from None
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Makes sure that every file of the folder is there, and has the bytes it was exported with.

    Raises:
        VerifyError: Naming the files that are missing or were changed.
    """
    problems = []
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif sha256(path) != expected:
            problems.append(f"{name} was changed or is damaged")
    if problems:
        raise VerifyError(
            f"'{folder}' is not what was exported: {'; '.join(problems)}. Copy or export it again."
        )


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Reads ``golden.jsonl``.

    Raises:
        VerifyError: If a line is no golden row.
    """
    path = folder / ROWS
    rows = []
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                if not _is_row(row):
                    raise ValueError(f"line {number} is no golden row")
                rows.append(row)
        if not rows:
            raise ValueError("it is empty")
        paired = {"text_pair" in row for row in rows}
        if len(paired) != 1 or len({len(row.get("values", ())) for row in rows}) != 1:
            raise ValueError("its rows are not of one kind")
    except (OSError, ValueError, RecursionError) as error:
        raise VerifyError(f"'{path}' is damaged: {error}. Export the model again.") from None
    return rows


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or "decision" not in row:
        return False
    values = row.get("values", [])
    texts = [row.get("text"), row.get("text_pair", "")]
    numbers = isinstance(values, list) and all(map(_is_number, values))
    return numbers and all(isinstance(text, str) for text in texts)


def ask(model: Any, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32] | list[str]:
    """What a model says of golden rows: its signals (n, W), or the texts it writes."""
    texts = [row["text"] for row in rows]
    if model.settings["signal"] == "token_distribution":
        if hasattr(model, "generate"):
            return [str(getattr(answer, "text", answer)) for answer in model.generate(texts)]
        return [str(answer["text"]) for answer in model.predict(texts)]
    pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
    return np.asarray(model.signal(texts, pairs), dtype=np.float32)


def scores_of(
    values: NDArray[np.float32], golden: NDArray[np.float32], signal: str
) -> NDArray[np.float32]:
    """What decisions are the largest of: class logits, or likeness to other golden rows, (n, m).

    An embedding decides nothing by itself; which of the other rows, as they were recorded, it lies
    nearest to is a decision that needs no index.
    """
    if signal == "class_logits":
        return values
    scores: NDArray[np.float32] = values @ golden.T
    if len(golden) > 1:
        np.fill_diagonal(scores, -np.inf)
    return scores


def compare(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    manifest: Mapping[str, Any],
    flip_rate: float | None = None,
) -> Verified:
    """Asks a model for golden rows, and compares what it says with what they say.

    Args:
        model: With ``settings``, ``signal`` or ``generate``, and perhaps ``runtime``.
        rows: Of `read_rows`.
        manifest: Of `read_manifest`.
        flip_rate: Share of decisions that may differ; the manifest's if None.

    Raises:
        VerifyError: If the rows are not of this model.
    """
    signal = model.settings["signal"]
    said = ask(model, rows)
    largest = None
    if isinstance(said, list):
        now: list[Any] = said
        flips = [one["decision"] != text for one, text in zip(rows, said, strict=True)]
    else:
        golden = np.asarray([row.get("values", []) for row in rows], dtype=np.float32)
        if golden.shape != said.shape:
            raise VerifyError(
                f"The golden rows have values of shape {golden.shape}, the model gives "
                f"{said.shape}: they are of another model. Export it again."
            )
        difference = float(np.abs(said - golden).max())
        largest = difference if math.isfinite(difference) else math.inf
        labels = model.settings.get("labels") if signal == "class_logits" else None
        now, flips = _decided(scores_of(said, golden, signal), rows, labels)
    differing = [
        {"row": i + 1, "text": row["text"]}
        | {"then": _named(row["decision"], signal), "now": _named(now[i], signal)}
        for i, row in enumerate(rows)
        if flips[i]
    ]
    here = machine(str(getattr(model, "runtime", "onnxruntime")))
    return Verified(
        len(rows),
        len(differing),
        float(manifest["flip_rate"]) if flip_rate is None else flip_rate,
        largest,
        manifest["tolerance"],
        machine_differences(manifest["made_on"], here),
        differing[:SHOWN],
        manifest["exact"],
    )


def _named(decision: Any, signal: str) -> Any:
    """A decision as it is told: of embeddings, the number of the row that is nearest."""
    return f"nearest to row {decision + 1}" if signal == "embedding" else decision


def _decided(
    scores: NDArray[np.float32], rows: Sequence[Mapping[str, Any]], labels: Sequence[str] | None
) -> tuple[list[Any], list[bool]]:
    """Each row's decision now, and whether it is another than the recorded one."""
    best = scores.argmax(1)
    now: list[Any] = [labels[i] if labels else int(i) for i in best]
    flips = []
    for row, line, top in zip(rows, scores, best, strict=True):
        then = row["decision"]
        if labels:
            then = labels.index(then) if then in labels else -1
        if not isinstance(then, int) or not 0 <= then < len(line):
            raise VerifyError(f"A golden row decides {_short(row['decision'])}, which is none.")
        slack = TIE * max(1.0, abs(float(line[top])))
        flips.append(not float(line[top]) - float(line[then]) <= slack)
    return now, flips


def verify(folder: Path, load: Callable[[], Any], flip_rate: float | None = None) -> Verified:
    """Checks a folder's files, then its golden rows.

    Args:
        folder: Of an export.
        load: Gives the folder's model, with ``settings`` and ``signal`` or ``generate``; called
            once the files have been checked.
        flip_rate: Share of decisions that may differ; what the folder states if None.

    Raises:
        VerifyError: If the folder is damaged, or no export with golden rows.
    """
    if flip_rate is not None and not 0 <= flip_rate <= 1:
        raise VerifyError(f"--flip-rate is a share from 0 to 1, such as 0.05; got {flip_rate}.", 2)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    rows = read_rows(folder)
    return compare(load(), rows, manifest, flip_rate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program beside a folder's predict.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flip-rate", type=float, help="share of decisions that may differ")
    parser.add_argument("--threads", type=int, help="threads (default: all cores)")
    options = parser.parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads is a whole number of at least 1; got {options.threads}")
    folder = Path(__file__).parent
    writes = (folder / "generator.py").exists()
    program = importlib.import_module("generator" if writes else "predict")
    kind = program.Generator if writes else program.Predictor
    try:
        load = functools.partial(kind, folder, threads=options.threads)
        found = verify(folder, load, options.flip_rate)
    except (VerifyError, program.PredictError) as error:
        print(f"verify.py: {error}", file=sys.stderr)
        return int(getattr(error, "exit_code", 1))
    print("\n".join(found.lines))
    return 0 if found.met else 3


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    try:
        sys.exit(main())
    except ImportError as missing:
        print(f"verify.py: {missing}; pip install numpy onnxruntime tokenizers", file=sys.stderr)
        sys.exit(2)
