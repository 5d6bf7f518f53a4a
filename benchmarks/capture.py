"""Capture beside a bare forward loop over the same sorted batches: what recording costs.

    python benchmarks/capture.py

Needs the `demo` extra. Capture reads, hashes, tokenises, sorts, computes, checks, writes and
checksums; the bare loop has its batches ready and does nothing with what comes out. Both run the
packaged MiniLM in the precision that `auto` takes.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from recording import in_turns, record, row

from paredown.distill.capture import Stream, capture, distinct_items
from paredown.eval.batching import token_batches
from paredown.eval.checkpoints import find_checkpoint
from paredown.eval.hardware import resolve_precision
from paredown.eval.models import TextModel, autocast, load_model
from paredown.eval.python_docs import build
from paredown.eval.tasks import RETRIEVAL

BATCH_TOKENS = 2048


def captured(model: TextModel, streams: list[Stream], precision: str, tokens: int) -> float:
    """Tokens per second of a capture, from texts to checked shards on disk."""
    folder = Path(tempfile.mkdtemp())
    started = time.perf_counter()
    capture(model, streams, folder, identity={}, precision=precision, batch_tokens=BATCH_TOKENS)
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return tokens / seconds


@torch.inference_mode()
def bare(model: TextModel, batches: list[dict[str, torch.Tensor]], tokens: int, p: str) -> float:
    """Tokens per second of forward passes alone."""
    started = time.perf_counter()
    for batch in batches:
        with autocast(model.backbone.device, p):
            model(**batch)
    return tokens / (time.perf_counter() - started)


def main() -> None:
    """Runs both sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=3000, help="texts recorded a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    precision = resolve_precision("auto").name
    model = load_model(find_checkpoint("sentence-transformers/all-MiniLM-L6-v2"), RETRIEVAL)
    rows = [r for r in build().rows if r.text][: options.texts // 2]
    streams = [
        Stream("train.query", [r.query for r in rows], role="query"),
        Stream("collection.text", [r.text for r in rows], role="document"),
    ]
    items = distinct_items(model, streams)
    tokens = int(items.length.sum())
    texts = [streams[s].texts[int(r)] for s, r in zip(items.stream, items.row, strict=True)]
    encoded = model.tokenize(texts)
    batches = [
        model.collate([encoded[i] for i in index])
        for index in token_batches(items.length, BATCH_TOKENS)
    ]
    bare(model, batches[-4:], tokens, precision)  # warm-up
    found = in_turns(
        {
            "capture": lambda: captured(model, streams, precision, tokens),
            "bare loop": lambda: bare(model, batches, tokens, precision),
        },
        options.rounds,
    )
    rows_found = [row(f"MiniLM, {precision}", found["capture"], found["bare loop"], "tokens/s")]
    record("capture", rows_found, texts=len(texts), tokens=tokens, expected="at least 0.9 x")


if __name__ == "__main__":
    main()
