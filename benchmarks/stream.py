"""An exported folder's predict.py over a million rows, where only three packages are installed.

    python benchmarks/stream.py

Needs the `onnx` extra, and a package index: numpy, onnxruntime and tokenizers (with what they need)
go into an environment made for it, at the versions of constraints.txt, and nothing else. The models
are tiny and random, so that what grows with the rows would show. Memory is the most that the
process held (VmHWM), beside the same folder's over 10,000 rows; the time is from starting Python to
the end, of one row. Runs on Linux.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from recording import record

from paredown.eval.checkpoints import save_model
from paredown.eval.models import load_model
from paredown.eval.tasks import CLASSIFICATION, RETRIEVAL
from paredown.export import export_model
from paredown.recipes.smoke import ACTIONS, OBJECTS, TOPICS, write_model

ROOT = Path(__file__).parents[1]
PACKAGES = ("numpy", "onnxruntime", "tokenizers")
FEW, INDEXED, LIMIT_MB, START_S, STARTS = 10_000, 2_000, 500, 1.0, 5
# Runs a program as `python file` does, and says at the end what it held.
WATCHED = """
import atexit, runpy, sys
def held():
    line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM:"))
    print(line.split()[1], file=sys.stderr)
atexit.register(held)
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def environment(folder: Path) -> Path:
    """A Python with the three packages, and what they need, alone."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), *PACKAGES], check=True)
    for name in ("torch", "transformers", "paredown"):
        tried = subprocess.run([python, "-c", f"import {name}"], cwd=folder, capture_output=True)
        assert tried.returncode, f"{name} is installed where it must not be"
    return python


def texts(count: int) -> Iterator[str]:
    """Texts of 3 to 60 words, the same every time."""
    draw = random.Random(0)
    words = [*TOPICS, *ACTIONS, *OBJECTS, "how", "do", "I", "the", "number", "größe"]
    for number in range(count):
        size = 3 + int(57 * draw.random() ** 3)
        yield f"{' '.join(draw.choices(words, k=size))} {number}"


CASES = {
    "classes": ("classes, onnx", "classifier", CLASSIFICATION, "onnx"),
    "int8": ("classes, onnx-int8", "classifier", CLASSIFICATION, "onnx-int8"),
    "index": (f"top 10 of {INDEXED:,} texts, onnx", "encoder", RETRIEVAL, "onnx"),
}


def folders(place: Path, cases: list[str]) -> dict[str, tuple[Path, list[str]]]:
    """Exports of tiny models, with the options they are run with."""
    write_model("bert", place / "model", layers=2, hidden=32)
    labels = [f"class {i}" for i in range(20)]
    save_model(load_model(place / "model", CLASSIFICATION, labels=labels), place / "classifier")
    save_model(load_model(place / "model", RETRIEVAL), place / "encoder")
    some = list(texts(64))
    found = {}
    for name, checkpoint, task, fmt in (CASES[case] for case in cases):
        out = place / f"{checkpoint}-{fmt}"
        export_model(place / checkpoint, task, fmt, out, sample_texts=some)
        options = []
        if task is RETRIEVAL:
            vectors = np.random.default_rng(0).standard_normal((INDEXED, 32), np.float32)
            np.save(place / "index.npy", vectors)
            with (place / "texts.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": text}) + "\n" for text in texts(INDEXED))
            options = ["--index", str(place / "index.npy"), "--texts", str(place / "texts.jsonl")]
        found[name] = (out, options)
    return found


def run(python: Path, folder: Path, rows: Path, options: list[str]) -> tuple[float, float, int]:
    """Seconds, megabytes held at most, and rows answered; every one must be."""
    command = [str(python), "-c", WATCHED, str(folder / "predict.py"), *options, str(rows)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        blocks = iter(lambda: process.stdout.read(1 << 20), b"")  # type: ignore[union-attr]
        answered = sum(block.count(b"\n") for block in blocks)
        said = process.stderr.read().decode()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"predict.py ended with {process.returncode}: {said}")
    return seconds, int(said.split()[-1]) * 1024 / 1e6, answered


def main() -> None:
    """Streams the rows through each folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES])
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        python = environment(place / "venv")
        files = {count: place / f"{count}.txt" for count in (1, FEW, options.rows)}
        with files[options.rows].open("w", encoding="utf-8") as file:
            file.writelines(f"{text}\n" for text in texts(options.rows))
        for count in (1, FEW):
            with files[options.rows].open(encoding="utf-8") as file:
                files[count].write_text("".join(itertools.islice(file, count)), encoding="utf-8")
        for case, (folder, more) in folders(place, options.cases).items():
            starts = [run(python, folder, files[1], more)[0] for _ in range(STARTS)]
            _, few, _ = run(python, folder, files[FEW], more)
            seconds, held, answered = run(python, folder, files[options.rows], more)
            assert answered == options.rows, f"{answered} of {options.rows} rows were answered"
            rates[case] = round(options.rows / seconds, 1)
            start = statistics.median(starts)
            print(f"  {case}: {rates[case]:,.0f} rows/s, {held:.0f} MB", flush=True)
            for what, ours, peer, unit in (
                (f"{case}: {options.rows:,} rows", held, few, f"MB; peer: {FEW:,} rows"),
                (f"{case}: {options.rows:,} rows", held, LIMIT_MB, "MB; peer: the limit"),
                (f"{case}: one row, from start to end", start, START_S, "s; peer: the limit"),
            ):
                line = {"case": what, "ours": ours, "peer": peer, "unit": unit}
                found.append(line | {"ratio": ours / peer})
    expected = "no more memory than the limit, nor noticeably more than few rows take"
    record("stream", found, expected=expected, rows_per_second=rates)


if __name__ == "__main__":
    main()
