"""A 0.6 B student and a 1.7 B teacher of Qwen3's shape on one GPU, beside TRL's GKD trainer.

    python benchmarks/gpu_distill.py
    python benchmarks/gpu_distill.py --quick --cpu   # tiny shapes, for whether it runs

Needs the `bench` extra (TRL) and a GPU of 80 GB; with less, lower ``--batch``. Random weights, rows
of 2,048 tokens, generalised JSD with β = 0.5. Both sides train the student in bf16 autocast with
AdamW on float32 weights; the teacher is in bf16. `gkd` says what else is the same. Three trainings
in turns, as in lm_distill. Model FLOPs utilisation counts what the models need and nothing that is
done twice: 6 FLOPs per student parameter and token, 2 per teacher parameter where it is live, and
causal attention; divided by ``--peak-tflops``, or by what a large bf16 product reaches on this GPU.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gkd import Done, Work, apart, examples_of, model_of, ours, record_teacher, silence, theirs
from recording import in_turns, record, row, show

from paredown.eval.models import TextModel

QWEN = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
FULL: dict[str, Any] = {
    "vocabulary": 151_936, "length": 2048, "prompt": 128, "steps": 10,
    "student": {**QWEN, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28},
    "teacher": {**QWEN, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28},
}  # fmt: skip
TINY = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
QUICK: dict[str, Any] = {
    "vocabulary": 2048, "length": 64, "prompt": 8, "steps": 2,
    "student": {**TINY, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2},
    "teacher": {**TINY, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2},
}  # fmt: skip
KEPT = 32
EXPECTED = "tokens per second at least TRL's with the teacher live, at less peak memory"
NO_GPU = (
    "gpu_distill needs a GPU (CUDA), and torch finds none here. To see whether the script itself "
    "runs: python benchmarks/gpu_distill.py --quick --cpu"
)


def work_of(size: dict[str, Any], batch: int, folder: Path) -> Work:
    """Models and rows, on the GPU where there is one."""
    vocabulary, length = size["vocabulary"], size["length"]
    common = {"vocab_size": vocabulary, "tie_word_embeddings": True}
    student = model_of("qwen3", size["student"] | common, spread=0.6, length=length, seed=0)
    teacher = model_of(
        "qwen3", size["teacher"] | common, spread=3.0, length=length, seed=1, dtype=torch.bfloat16
    )
    rows = size["steps"] * batch
    examples = examples_of(rows, (length, length), size["prompt"], vocabulary, folder / "rows")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Work(student, teacher.to(device), examples, batch, "bf16", learning_rate=1e-4)


def flops(model: TextModel, length: int) -> float:
    """FLOPs per token of a forward pass: two per parameter, and causal attention.

    A tied head is the embeddings, so each parameter is in one product. At a mean of length / 2
    positions seen, attention takes 2 products of 2 · (length / 2) · heads · head_dim FLOPs a layer.
    """
    config = model.config
    width = config.num_attention_heads * config.head_dim
    parameters = sum(p.numel() for p in model.parameters())
    return float(2 * parameters + config.num_hidden_layers * 2 * length * width)


def reached_tflops(size: int = 8192) -> float:
    """What a large product in bf16 reaches here, in 10¹² FLOPs per second."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(20):
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.mm(a, b)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds) / 1e12


def compare(work: Work, size: dict[str, Any], rounds: int, peak: float, folder: Path) -> Any:
    """Runs the sides in turns; the rows, and what else was found."""
    outputs, seconds = record_teacher(work, folder / "outputs", KEPT)
    last: dict[str, Done] = {}

    def rate(name: str) -> float:
        try:
            last[name] = {
                "trl": lambda: theirs(work),
                "live": lambda: ours(work),
                "recorded": lambda: ours(work, outputs),
            }[name]()
        except torch.cuda.OutOfMemoryError:
            if name != "trl":
                raise
            return math.nan
        return last[name].rate

    found = in_turns({n: partial(rate, n) for n in ("trl", "live", "recorded")}, rounds)
    forward, more = flops(work.student, size["length"]), flops(work.teacher, size["length"])
    needed = {"trl": 3 * forward + more, "live": 3 * forward + more, "recorded": 3 * forward}
    rows = []
    for name, case in (("live", "teacher live"), ("recorded", f"recorded top-{KEPT}")):
        rows.append(beside(case, found[name], found["trl"], "tokens/s"))
        if peak:
            share = {n: 100 * needed[n] / peak / 1e12 for n in needed}
            used = {n: [share[n] * x for x in found[n]] for n in (name, "trl")}
            rows.append(beside(case, used[name], used["trl"], "% of the FLOPs reached"))
        memory = {n: last[n].peak / 1e9 if n in last else math.nan for n in (name, "trl")}
        if memory[name]:
            rows.append(beside(case, [memory[name]], [memory["trl"]], "GB at most"))
    facts: dict[str, Any] = {"recording_seconds": seconds, "peak_tflops": peak}
    if "trl" in last:
        facts |= apart(last["live"], last["trl"])
    return rows, facts


def beside(case: str, ours: list[float], peer: list[float], unit: str) -> dict[str, Any]:
    """A row; without the peer's figure where memory did not suffice for it."""
    made = row(case, ours, peer, unit)
    if any(math.isnan(x) for x in peer):
        made |= {"peer": None, "ratio": None, "ratios": []}
    return made


def main() -> None:
    """Runs the sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny shapes; nothing is recorded")
    parser.add_argument("--cpu", action="store_true", help="without a GPU; with --quick only")
    parser.add_argument("--batch", type=int, default=2, help="rows a step")
    parser.add_argument("--rounds", type=int, default=0, help="times each side runs")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU's data sheet, bf16, dense")
    options = parser.parse_args()
    if options.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    on_gpu = torch.cuda.is_available()
    if options.cpu and not options.quick:
        parser.error("--cpu is for --quick: the full shapes take hours on a CPU")
    if not on_gpu and not options.cpu:
        sys.exit(NO_GPU)
    silence()
    size = QUICK if options.quick else FULL
    folder = Path(tempfile.mkdtemp())
    peak = options.peak_tflops or (reached_tflops() if on_gpu else 0.0)
    work = work_of(size, options.batch, folder)
    counts = [sum(p.numel() for p in m.parameters()) for m in (work.student, work.teacher)]
    print(f"student {counts[0]:,}, teacher {counts[1]:,} parameters", flush=True)
    rounds = options.rounds or (1 if options.quick else 3)
    rows, facts = compare(work, size, rounds, peak, folder)
    shutil.rmtree(folder)
    if options.quick:
        show("gpu_distill, tiny shapes: not recorded", rows)
        return
    gpu = torch.cuda.get_device_name()
    record(
        "gpu_distill", rows, size=size, batch=options.batch, parameters=counts, gpu=gpu,
        expected=EXPECTED, **facts,
    )  # fmt: skip


if __name__ == "__main__":
    main()
