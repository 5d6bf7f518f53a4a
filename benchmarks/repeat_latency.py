"""Does a latency repeat? The same measurement twice, and how far apart the two came out.

    python benchmarks/repeat_latency.py

Needs the `demo` extra. Times the packaged MiniLM on single queries and in batches, in PyTorch and
as ONNX (fp32 and int8), as an evaluation does it, and then all again with new processes. On an
idle machine the medians of both must lie within 10 % of each other; how busy it was is recorded.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recording import record, row

from paredown.eval.checkpoints import find_checkpoint
from paredown.eval.python_docs import build
from paredown.eval.tasks import RETRIEVAL
from paredown.eval.timing import Engine, measure
from paredown.export import FORMATS, export_model

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
EXPORTED = ("onnx", "onnx-int8")


def engines_of(checkpoint: Path, folder: Path, texts: Sequence[str]) -> list[Engine]:
    """The checkpoint on each runtime."""
    found = [Engine("pytorch", str(checkpoint), options={"task": "retrieval", "role": "query"})]
    for fmt in EXPORTED:
        export_model(checkpoint, RETRIEVAL, fmt, folder / fmt, sample_texts=texts[:16])
        loader = str(FORMATS[fmt].loader)
        found.append(Engine(fmt, str(folder / fmt), loader, {"role": "query"}))
    return found


def case(entry: dict[str, Any]) -> str:
    """What a measurement is called."""
    return f"{entry['side']}, {entry['scenario'].replace('_', ' ')}, p50"


def busy(entries: Sequence[dict[str, Any]]) -> float:
    """The highest share of the processors that others used, before or meanwhile."""
    return max(max(e["busy_before"], e["busy_during"] or 0.0) for e in entries)


def main() -> None:
    """Measures twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400, help="single rows of each engine")
    options = parser.parse_args()
    texts = [r.query for r in build().rows][:512]
    with tempfile.TemporaryDirectory() as folder:
        engines = engines_of(find_checkpoint(MODEL), Path(folder), texts)
        first, again = (
            measure(engines, texts, runs=options.runs, offline_rows=256) for _ in range(2)
        )
    rows = [
        row(case(before), [after["p50"]], [before["p50"]], "ms")
        for before, after in zip(first, again, strict=True)
    ]
    record(
        "repeat_latency",
        rows,
        expected="ratios of 0.9 to 1.1 on an idle machine (peer: the first time)",
        busy=busy([*first, *again]),
    )


if __name__ == "__main__":
    main()
