"""A divergence and its gradients: chunked beside plain and beside TRL's chunked one.

    python benchmarks/loss_memory.py
    python benchmarks/loss_memory.py --quick         # a small size, for whether it runs

Needs the `bench` extra (TRL). Forward KL with a live teacher, gradients to hidden states and head.
Each side runs in a process of its own, in turns, so that its peak memory (VmHWM) is its own: the
peak above what the inputs took, gradients included. The seconds are of a second pass in the same
process, forward and backward. The gradients' error is |g − g₀| / |g₀| (norms), over hidden states
and over the head, the larger of the two; g₀ is the plain implementation's in float32, on the same
numbers. In bf16 all sides get the inputs rounded to bf16, and so does g₀.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recording import record, row, show
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from paredown.distill.chunked import TokenTerm, chunked_loss
from paredown.distill.heads import Head, LiveTeacher

FULL = {"vocabulary": 151_936, "hidden": 1024, "tokens": 2048}
QUICK = {"vocabulary": 20_000, "hidden": 128, "tokens": 512}
EXPECTED = (
    "in fp32: extra memory at most 1/6 of plain's and 1/2 of TRL's, time at most 0.9 × plain's and "
    "0.6 × TRL's, gradients within 1e-4 of plain's"
)
SIDES = ("plain", "ours", "trl")


def plain(hidden: Tensor, weight: Tensor, hidden_t: Tensor, weight_t: Tensor) -> Tensor:
    """Forward KL as one would write it: whole logits, two softmaxes, one sum."""
    student = (hidden @ weight.T).float().log_softmax(-1)
    with torch.no_grad():
        teacher = (hidden_t @ weight_t.T).float().log_softmax(-1)
    each = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True)
    return each.sum(-1).mean()


def ours(hidden: Tensor, weight: Tensor, hidden_t: Tensor, weight_t: Tensor) -> Tensor:
    """The same in chunks."""
    teacher = LiveTeacher(hidden_t, Head(weight_t))
    return chunked_loss(hidden, Head(weight), [TokenTerm("forward_kl")], teacher)


def trl(hidden: Tensor, weight: Tensor, hidden_t: Tensor, weight_t: Tensor) -> Tensor:
    """The same by TRL."""
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    except ImportError as error:
        sys.exit(f"This side needs TRL 1.16: pip install -e '.[bench]' ({error})")
    each, _ = ChunkedDivergenceFunction.apply(hidden, weight, None, hidden_t, weight_t, None, 0.0)
    loss: Tensor = each.mean()
    return loss


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "plain": plain,
    "ours": ours,
    "trl": trl,
}


def peak() -> int:
    """Peak resident memory of this process in bytes, since it was last set back."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def inputs(size: dict[str, int], dtype: torch.dtype) -> list[Tensor]:
    """Hidden states and heads whose logits are as spread as a language model's (std 3)."""
    made = torch.Generator().manual_seed(0)
    tokens, width, vocabulary = size["tokens"], size["hidden"], size["vocabulary"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made)

    hidden, weight = normal(tokens, width), normal(vocabulary, width).mul_(3 / width**0.5)
    hidden_t = normal(tokens, width).mul_(0.6).add_(hidden, alpha=0.8)
    weight_t = normal(vocabulary, width).mul_(1.8 / width**0.5).add_(weight, alpha=0.8)
    rounded = [x.bfloat16().to(dtype) for x in (hidden, weight, hidden_t, weight_t)]
    for x in rounded[:2]:
        x.requires_grad_()
    return rounded


def measure(side: str, size: dict[str, int], dtype: torch.dtype, keep: Path) -> dict[str, float]:
    """Runs one side in this process."""
    function, given = FUNCTIONS[side], inputs(size, dtype)
    # threads, code and the like are there before memory is looked at
    small = [x[:64].detach().requires_grad_(x.requires_grad) for x in given]
    function(*small).backward()
    before = rest()
    function(*given).backward()
    extra = peak() - before
    seconds = []
    for _ in range(2):
        given[0].grad = given[1].grad = None
        started = time.perf_counter()
        loss = function(*given)
        loss.backward()
        seconds.append(time.perf_counter() - started)
    found = {"extra_gb": extra / 1e9, "seconds": min(seconds), "loss": loss.item()}
    gradients = {n: x.grad for n, x in zip("hw", given[:2], strict=True) if x.grad is not None}
    if not keep.exists():
        save_file(gradients, keep)
    with safe_open(keep, "pt") as truth:
        found["error"] = max(distance(g, truth.get_tensor(n)) for n, g in gradients.items())
    return found


def rest() -> int:
    """Resident memory now; the peak is counted anew from here, where the system lets one."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        print("the peak cannot be set back here: it may be too high", file=sys.stderr)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def distance(found: Tensor, truth: Tensor) -> float:
    """|g − g₀| / |g₀|, in parts, in float64."""
    above = below = 0.0
    for a, b in zip(found.split(4096), truth.split(4096), strict=True):
        above += float((a.double() - b.double()).square().sum())
        below += float(b.double().square().sum())
    return float((above / below) ** 0.5)


def run(side: str, dtype: str, keep: Path, options: argparse.Namespace) -> dict[str, float]:
    """Runs one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--dtype", dtype, "--keep", str(keep)]
    command += ["--quick"] if options.quick else []
    command += ["--threads", str(options.threads)] if options.threads else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"  {side}, {dtype}: {found['seconds']:.2f} s, {found['extra_gb']:.3f} GB extra, "
        f"error {found['error']:.1e}",
        flush=True,
    )
    return found


def compare(dtype: str, truth: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs all sides in turns in one precision, and makes the rows."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for turn in range(options.rounds):
        for side in SIDES[:: 1 if turn % 2 == 0 else -1]:
            found[side].append(run(side, dtype, truth, options))
    rows: list[dict[str, Any]] = []
    for peer in ("plain", "trl"):
        for key, unit in (("extra_gb", "GB extra"), ("seconds", "s"), ("error", "1e-6, error")):
            scale = 1e6 if key == "error" else 1
            ours, theirs = ([scale * one[key] for one in found[s]] for s in ("ours", peer))
            if key == "error" and min(theirs) == 0:  # plain in fp32 is what errors are counted from
                rows.append({**row("", ours, ours, unit), "peer": 0.0, "ratio": None, "ratios": []})
            else:
                rows.append(row("", ours, theirs, unit))
            rows[-1]["case"] = f"{dtype}, beside {peer}: {unit}"
    return rows


def main() -> None:
    """Runs the sides, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small size")
    parser.add_argument("--rounds", type=int, default=3, help="times each side runs")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; its own choice")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.side:
        dtype = getattr(torch, options.dtype)
        print(json.dumps(measure(options.side, size, dtype, options.keep)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder) / "gradients.safetensors"
        run("plain", "float32", truth, options)  # leaves the gradients that errors are counted from
        for dtype in ("float32", "bfloat16"):
            rows += compare(dtype, truth, options)
    if options.quick:
        show("loss_memory, a small size: not recorded", rows)
        return
    record("loss_memory", rows, size=size, threads=torch.get_num_threads(), expected=EXPECTED)


if __name__ == "__main__":
    main()
