"""Calibration and surgery: seconds and peak memory, from a model in memory to a checked checkpoint.

    python benchmarks/calibration.py
    python benchmarks/calibration.py --only minilm-ffn llama-layers-bfloat16

Needs the `demo` extra. Each case runs in a process of its own, so that its peak resident memory
(VmHWM) is its own. The seconds are those of `prune_model`, which draws, calibrates, chooses, fits
and cuts, and of `save_model`, which reloads what it wrote with stock transformers; making the model
is told apart. The Llama has the shape of Llama-3.2-1B, random weights, and a byte-level tokenizer
trained here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from recording import write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, LlamaConfig, PreTrainedTokenizerFast

from paredown.eval.checkpoints import find_checkpoint, save_model
from paredown.eval.encoding import Encoding
from paredown.eval.hardware import resolve_precision
from paredown.eval.models import TextModel, load_model
from paredown.eval.python_docs import build
from paredown.eval.tasks import RETRIEVAL
from paredown.prune import prune_model

TOKENS = 8192
MINILM: dict[str, dict[str, Any]] = {
    "layers": {"layers": [0, 5], "intermediate_size": 576},
    "ffn": {"intermediate_size": 512},
    "hidden": {"hidden_size": 192},
    "all": {"hidden_size": 192, "intermediate_size": 512, "layers": 3},
}
LLAMA: dict[str, dict[str, Any]] = {
    "layers": {"intermediate_size": 4096, "layers": 12},
    "kv": {"intermediate_size": 4096, "kv_heads": 4},
    "hidden": {"intermediate_size": 4096, "hidden_size": 1536},
}
CASES = [
    *(f"minilm-{name}" for name in MINILM),
    *(f"llama-{name}-{dtype}" for dtype in ("bfloat16", "float32") for name in LLAMA),
]
BOUNDS = {"minilm": {"seconds": 20, "gb": None}, "llama": {"seconds": 360, "gb": 14}}


def minilm() -> TextModel:
    """The packaged MiniLM."""
    return load_model(find_checkpoint("sentence-transformers/all-MiniLM-L6-v2"), RETRIEVAL)


def llama(texts: list[str], dtype: str, depth: int = 16) -> TextModel:
    """A model of Llama-3.2-1B's shape with random weights, for embeddings."""
    tokenizer = byte_pairs(texts)
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=depth,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    backbone = AutoModel.from_config(config, dtype=getattr(torch, dtype))
    return TextModel(backbone, tokenizer, "embedding", Encoding(128, "mean", True, {})).eval()


def byte_pairs(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 8,192 tokens that puts one token in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=8192,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )


def enough(model: TextModel, texts: list[str]) -> list[str]:
    """So many texts that what is fitted on, four in five of them, has `TOKENS` tokens."""
    taken, tokens = [], 0
    for text, row in zip(texts, model.tokenize(texts), strict=True):
        if 0.8 * tokens >= TOKENS:
            break
        taken.append(text)
        tokens += len(row["input_ids"])
    return taken


def peak_gb() -> float:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e9


def measure(case: str) -> dict[str, Any]:
    """Runs one case in this process."""
    kind, name, *dtype = case.split("-")
    rows = [row for row in build().rows if row.text]
    started = time.perf_counter()
    if kind == "minilm":
        model, sizes = minilm(), MINILM[name]
        texts = enough(model, list(dict.fromkeys(row.query for row in rows[:5000])))
    else:
        documents = list(dict.fromkeys(row.text for row in rows))
        model, sizes = llama(documents[:2000], dtype[0]), LLAMA[name]
        texts = enough(model, documents[:2000])
    found: dict[str, Any] = {
        "case": case,
        "sizes": sizes,
        "make_s": time.perf_counter() - started,
        "made_gb": peak_gb(),
    }
    precision = resolve_precision("auto").name
    started = time.perf_counter()
    pruned = prune_model(model, texts, **sizes, calibration_rows=len(texts), precision=precision)
    found["prune_s"] = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        save_model(pruned.model, Path(folder) / "student")
        found["save_s"] = time.perf_counter() - started
    found["seconds"] = found["prune_s"] + found["save_s"]
    found["gb"] = peak_gb()
    found["load"] = os.getloadavg()[0]
    facts = {name: pruned.facts[name] for name in ("distance", "calibration", "parameters")}
    return found | facts


def main() -> None:
    """Runs the cases, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES, help="cases to run")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case)))
        return
    found = []
    for case in options.only:
        command = [sys.executable, __file__, "--case", case]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        line = json.loads(done.stdout.splitlines()[-1])
        bound = BOUNDS[case.partition("-")[0]]
        line["bound"] = bound
        line["met"] = line["seconds"] < bound["seconds"] and line["gb"] < (bound["gb"] or 1e9)
        found.append(line)
        print(f"  {case}: {line['seconds']:.1f} s, {line['gb']:.2f} GB", flush=True)
    expected = "MiniLM under 20 s; Llama-3.2-1B's shape under 360 s and 14 GB, on 2 cores"
    write("calibration", found, tokens=TOKENS, expected=expected)


if __name__ == "__main__":
    main()
