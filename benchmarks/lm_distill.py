"""A student language model beside TRL's GKD trainer: teacher live, and from recorded outputs.

    python benchmarks/lm_distill.py
    python benchmarks/lm_distill.py --quick          # a small size, for whether it runs

Needs the `bench` extra (TRL). Llama-shaped models with random weights, a teacher of four times the
student's parameters, a vocabulary of 32,768, rows of 224 to 320 tokens of which all but 32 are
learned, generalised JSD with β = 0.5 (GKD's default). Three trainings in turns: TRL's with its live
teacher, ours with the teacher live, ours from its 32 largest log-probabilities on disk, which are
recorded once before; `gkd` says what is the same on all sides. A figure is all tokens of the rows,
prompts included, by the seconds of the training's call. Loss curves, and what the training
did to the weights, are compared with TRL's where the teacher is live; top-k outputs leave the tail
to the student, which is another objective.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gkd import Done, Work, apart, examples_of, model_of, ours, record_teacher, silence, theirs
from recording import in_turns, record, row, show

FULL: dict[str, Any] = {
    "vocabulary": 32_768, "lengths": (224, 320), "prompt": 32, "rows": 64, "batch": 8,
    "student": (256, 704, 4), "teacher": (512, 1408, 9),
}  # fmt: skip
QUICK = FULL | {
    "vocabulary": 8_192, "lengths": (64, 96), "rows": 32,
    "student": (64, 176, 2), "teacher": (192, 512, 2),
}  # fmt: skip
KEPT = 32
EXPECTED = (
    "at least 1.0 × TRL's tokens per second with the teacher live, 1.8 × from recorded outputs; "
    "loss curves that agree"
)


def llama(size: tuple[int, int, int], vocabulary: int) -> dict[str, Any]:
    """The sizes of a Llama: width, FFN, layers."""
    hidden, intermediate, layers = size
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 32,
        "tie_word_embeddings": True,
    }


def work_of(size: dict[str, Any], precision: str, beta: float, folder: Path) -> Work:
    """Models and rows."""
    vocabulary, longest = size["vocabulary"], size["lengths"][1]
    made = [
        model_of("llama", llama(size[who], vocabulary), spread=spread, length=longest, seed=seed)
        for seed, (who, spread) in enumerate((("student", 0.3), ("teacher", 3.0)))
    ]
    examples = examples_of(
        size["rows"], size["lengths"], size["prompt"], vocabulary, folder / "rows"
    )
    return Work(*made, examples, size["batch"], precision, beta)


def compare(work: Work, rounds: int, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Runs the three sides in turns; the rows, and what else was found."""
    outputs, seconds = record_teacher(work, folder / f"outputs-{work.precision}", KEPT)
    print(f"  recorded in {seconds:.1f} s, {work.tokens / seconds:,.1f} tokens/s", flush=True)
    last: dict[str, Done] = {}

    def side(name: str, run: Callable[[], Done]) -> Callable[[], float]:
        def rate() -> float:
            last[name] = run()
            return last[name].rate

        return rate

    found = in_turns(
        {
            "trl": side("trl", lambda: theirs(work)),
            "live": side("live", lambda: ours(work)),
            "recorded": side("recorded", lambda: ours(work, outputs)),
        },
        rounds,
    )
    name = f"{work.precision}, "
    rows = [
        row(f"{name}teacher live", found["live"], found["trl"], "tokens/s"),
        row(f"{name}recorded top-{KEPT}", found["recorded"], found["trl"], "tokens/s"),
    ]
    # what recording costs belongs to the first student that is trained on it
    once = [work.tokens / (work.tokens / rate + seconds) for rate in found["recorded"]]
    rows.append(
        row(f"{name}recorded, the recording (once for all students) counted in",
            once, found["trl"], "tokens/s")
    )  # fmt: skip
    facts = {
        "recording_seconds": seconds,
        "losses": {name: done.losses for name, done in last.items()},
        **apart(last["live"], last["trl"]),
    }
    print(
        f"  teacher live, beside TRL: losses {facts['losses_apart']:.1e} apart at most, "
        f"changes of the weights {facts['changes_apart']:.1e}",
        flush=True,
    )
    return rows, facts


def main() -> None:
    """Runs the sides in each precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small size")
    parser.add_argument("--rounds", type=int, default=0, help="times each side runs")
    parser.add_argument("--beta", type=float, default=0.5, help="of the JSD; 0 is forward KL")
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=("fp32", "bf16"))
    options = parser.parse_args()
    silence()
    size = QUICK if options.quick else FULL
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp())
    for precision in options.precisions:
        work = work_of(size, precision, options.beta, folder)
        counts = [sum(p.numel() for p in m.parameters()) for m in (work.student, work.teacher)]
        print(f"{precision}: student {counts[0]:,}, teacher {counts[1]:,} parameters", flush=True)
        found, facts[precision] = compare(
            work, options.rounds or (1 if options.quick else 3), folder
        )
        facts[precision]["parameters"] = counts
        rows += found
    shutil.rmtree(folder)
    if options.quick:
        show("lm_distill, a small size: not recorded", rows)
        return
    record(
        "lm_distill", rows, size=size, beta=options.beta, threads=torch.get_num_threads(),
        expected=EXPECTED, **facts,
    )  # fmt: skip


if __name__ == "__main__":
    main()
