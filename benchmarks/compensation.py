"""Cuts re-fitted beside the same cuts as they are, before any training.

    python benchmarks/compensation.py                                    # python_docs
    python benchmarks/compensation.py --texts ../shared/data/banking77/train.csv

Needs the `demo` extra. The figure is 1 − cosine of the packaged MiniLM's embeddings to the uncut
model's, on texts that no cut was calibrated on. The re-fitted side is what paredown gives. The
other is `compensate: false`: as many layers and channels, those that are nearest without a fit.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recording import record, row

from paredown.eval.checkpoints import find_checkpoint
from paredown.eval.hardware import resolve_precision
from paredown.eval.models import TextModel, load_model
from paredown.eval.python_docs import build
from paredown.eval.tasks import RETRIEVAL
from paredown.prune import prune_model

CUTS: dict[str, dict[str, Any]] = {
    "FFN 1536 → 512": {"intermediate_size": 512},
    "6 → 3 layers": {"layers": 3},
    "hidden 384 → 256": {"hidden_size": 256},
    "hidden 384 → 192": {"hidden_size": 192},
}
EXPECTED = "FFN 1536 → 512: at most 0.35 of the cut as it is; the others below 1"


def texts_of(file: Path | None, count: int) -> list[str]:
    """Some texts in a seeded order: the first column of a CSV file, or python_docs' queries."""
    if file is None:
        texts = [one.query for one in build(max_unlabelled=0).rows]
    else:
        with file.open(encoding="utf-8", newline="") as source:
            texts = [line[0] for line in list(csv.reader(source))[1:]]
    distinct = sorted(set(texts))
    order = np.random.default_rng(0).permutation(len(distinct))[:count]
    return [distinct[i] for i in order]


def distance(model: TextModel, texts: list[str], whole: NDArray[np.float32]) -> float:
    """1 − cosine to the uncut model's embeddings, the mean over texts."""
    return float(1 - (model.predict(texts) * whole).sum(1).mean())


def main() -> None:
    """Cuts along one axis after the other, with and without the fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, help="a CSV file instead of python_docs")
    parser.add_argument("--rows", type=int, default=1024, help="calibration rows")
    parser.add_argument("--held", type=int, default=512, help="texts compared on")
    options = parser.parse_args()
    texts = texts_of(options.texts, 2 * options.rows + options.held)
    held, calibration = texts[: options.held], texts[options.held :]
    model = load_model(find_checkpoint("sentence-transformers/all-MiniLM-L6-v2"), RETRIEVAL)
    precision = resolve_precision("auto").name
    whole = model.predict(held)
    rows: list[dict[str, Any]] = []
    for case, sizes in CUTS.items():
        found = {}
        for compensate in (True, False):
            started = time.perf_counter()
            pruned = prune_model(
                model, calibration, compensate=compensate, calibration_rows=options.rows,
                precision=precision, **sizes,
            )  # fmt: skip
            found[compensate] = distance(pruned.model, held, whole)
            seconds = time.perf_counter() - started
            print(f"  {case}, fitted {compensate}: {found[compensate]:.4f}, {seconds:.0f} s")
        rows.append(row(case, [found[True]], [found[False]], "1 − cosine"))
    source = "python_docs" if options.texts is None else options.texts.name
    record("compensation", rows, texts=source, held_out=len(held), expected=EXPECTED)


if __name__ == "__main__":
    main()
