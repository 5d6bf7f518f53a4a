"""Finished runs of recipes beside each other: what was kept and saved, and how fast int8 is.

    paredown run search_query seeds=3
    paredown run query_intent seeds=3 data.files.train=… data.files.test=…
    python benchmarks/runs.py runs/search_query runs/query_intent

Nothing is measured here: the figures are those of each run's report.json; runs that were read
before and are not named keep their rows. The student in int8 on ONNX Runtime is held against the
teacher in PyTorch fp32, one thread each: how much sooner a single row is answered, and how many
times as many rows in batches, the latter also divided by what the FLOPs alone would give. By
arithmetic that quotient could be four: an instruction of AVX-512 VNNI multiplies 64 pairs of
numbers, one of AVX-512 in fp32 16. What lies below is what does not shrink with the model:
tokenising, embeddings, normalisation, the quantising itself. Times of a machine that was in use
before they were taken tell little.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recording import RESULTS, write
from rich.console import Console
from rich.table import Table

from paredown.recipes.gate import read_report

COLUMNS = (
    "run", "rows", "teacher", "kept (95 % interval)", "each seed", "FLOPs", "int8 kept",
    "one row, × sooner", "batches, × rows", "÷ FLOPs", "processor", "in use",
)  # fmt: skip
INT8 = ("student", "onnxruntime", "int8")
TEACHER = ("teacher", "pytorch", "fp32")


def row_of(folder: Path) -> dict[str, Any]:
    """The figures of a run."""
    report = read_report(folder)
    quality, ratio = report["quality"], report["cost"]["ratio"]["flops"]
    int8 = next((e for e in report["exports"] if e["format"] == "onnx-int8"), {})
    timed = {
        (one["side"], one["runtime"], one["precision"], one["scenario"]): one
        for one in report["measurements"]
    }

    def times(scenario: str, figure: str, inverse: bool) -> float | None:
        fast, slow = (timed.get((*side, scenario), {}).get(figure) for side in (INT8, TEACHER))
        if not fast or not slow:
            return None
        return float(slow / fast if inverse else fast / slow)

    return {
        "run": f"{report['recipe']['name']} ({folder.name})",
        "metric": quality["metric"],
        "examples": quality["examples"],
        "teacher": quality["teacher"],
        "retention": quality["retention"],
        "interval": quality["retention_ci95"],
        "seeds": [one["retention"] for one in quality["seeds"]],
        "std_seeds": quality["retention_std_seeds"],
        "baselines": {one["name"]: one["retention"] for one in quality["baselines"]},
        "slices": {
            one["name"]: {"teacher": one["teacher"], "student": one["student"], "rows": one["rows"]}
            for one in (quality.get("slices") or [])[:4]
        },
        "compute": ratio,
        "int8": int8.get("retention"),
        "sooner": times("single_stream", "p50", inverse=True),
        "throughput": times("offline", "examples_per_s", inverse=False),
        "processor": report["environment"]["processor"],
        "busy": max((one.get("busy_before") or 0 for one in timed.values()), default=None),
    }


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row for people."""
    low, high = row["interval"] or (None, None)
    times = ["" if row[name] is None else f"{row[name]:.1f}" for name in ("sooner", "throughput")]
    return [
        row["run"],
        f"{row['examples']:,}",
        f"{row['teacher']:.4f} {row['metric']}",
        f"{row['retention']:.4f}" + ("" if low is None else f" ({low:.4f} to {high:.4f})"),
        ", ".join(f"{kept:.4f}" for kept in row["seeds"]),
        f"{row['compute']:.4f}",
        "" if row["int8"] is None else f"{row['int8']:.4f}",
        *times,
        "" if row["throughput"] is None else f"{row['throughput'] * row['compute']:.1f}",
        row["processor"],
        "" if row["busy"] is None else f"{row['busy']:.0%}",
    ]


def earlier() -> list[dict[str, Any]]:
    """The rows that are there."""
    path = RESULTS / "runs.json"
    return json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []


def main() -> None:
    """Reads the runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    found = {row["run"]: row for row in map(row_of, parser.parse_args().runs)}
    rows = list(({row["run"]: row for row in earlier()} | found).values())
    table = Table(title="runs")
    for name in COLUMNS:
        table.add_column(name)
    for row in rows:
        table.add_row(*cells(row))
    Console(width=160).print(table)
    expected = (
        "query_filters: 0.96 kept at 0.25; int8 25 times sooner where at least 0.97 is kept, and "
        "at most 4 times the rows in batches that the FLOPs alone would give"
    )
    write("runs", rows, expected=expected)


if __name__ == "__main__":
    main()
