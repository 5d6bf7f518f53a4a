"""Small recipes of the task generation: rows, a tiny model, and a teacher that is on file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from paredown.eval.models import load_tokenizer
from paredown.recipes.smoke import write_model

Rows = list[dict[str, Any]]
TOPICS, ACTIONS = ("card", "cash", "rate", "loan"), ("open", "close", "find", "check")


def write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Rows as JSONL; the path as a recipe has it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(count: int, first: int = 0) -> Rows:
    """Prompts with their completions, each of one of two kinds."""
    found = []
    for i in range(first, first + count):
        topic, action = TOPICS[i % 4], ACTIONS[i // 4 % 4]
        found.append(
            {
                "prompt": f"how do I {action} the {topic} number {i} -> ",
                "completion": f"{topic} {action}",
                "slice": "even" if i % 2 == 0 else "odd",
            }
        )
    return found


def messages(rows: Rows) -> Rows:
    """The same rows as conversations."""
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in rows
    ]


def model(folder: Path, layers: int = 2, hidden: int = 32) -> str:
    """A tiny random Llama with a byte-level tokenizer and a chat template."""
    write_model("llama", folder, layers=layers, hidden=hidden)
    return str(folder)


def recipe(tmp_path: Path, train: Rows | None = None, test: Rows | None = None) -> dict[str, Any]:
    """A student of one layer cut from a teacher of two, on local rows."""
    return {
        "name": "answers",
        "task": "generation",
        "data": {
            "files": {
                "train": write(tmp_path / "train.jsonl", pairs(32) if train is None else train),
                "test": write(tmp_path / "test.jsonl", pairs(8, 100) if test is None else test),
            }
        },
        "teacher": {"model": model(tmp_path / "teacher")},
        "capture": {"encoding": "topk", "k": 8, "precision": "fp32"},
        "prune": {"layers": 1, "calibration_rows": 16},
        "distill": {
            "epochs": 1,
            "batch_size": 8,
            "losses": {"forward_kl": 1.0},
            "precision": "fp32",
        },
        "generation": {"max_new_tokens": 4},
        "evaluate": {"latency_rows": 0, "resamples": 100},
    }


def logprobs(tokenizer: str, text: str, width: int = 3) -> list[dict[str, Any]]:
    """What a server lists for each token of a text: its own, and the largest few."""
    known = load_tokenizer(Path(tokenizer))
    found = []
    for token in known(text, add_special_tokens=False)["input_ids"]:
        others = [other for other in ("a", "b", "c", "d") if other != known.decode([token])]
        spelled = [known.decode([token]), *others[: width - 1]]
        values = [math.log(0.7), *[math.log(0.2 / (width - 1))] * (width - 1)]
        top = [{"token": s, "logprob": v} for s, v in zip(spelled, values, strict=True)]
        found.append({**top[0], "top_logprobs": top})
    return found


def answered(path: Path, rows: Rows, answers: Sequence[str], tokenizer: str | None = None) -> str:
    """Recorded answers, with log-probabilities where there is a tokenizer to spell them."""
    lines = []
    for row, answer in zip(rows, answers, strict=True):
        line: dict[str, Any] = {"prompt": row["prompt"], "completion": answer}
        if tokenizer is not None:
            line["logprobs"] = {"content": logprobs(tokenizer, answer)}
        lines.append(line)
    return write(path, lines)
