"""A teacher with another tokenizer, from checkpoints and rows to a student."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.eval.errors import RecipeError, RunError
from paredown.recipes.api import check, run
from paredown.recipes.smoke import write_model

Base = dict[str, Any]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """A student of 400 tokens learns from a teacher of 512."""
    for split, count in (("train", 48), ("test", 12)):
        words = ("open", "close", "find", "check")
        rows = [
            {
                "prompt": f"how do I {words[i % 4]} the {split} account {i}? ",
                "completion": f"{words[i % 4]} the account statement",
            }
            for i in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_model("llama", tmp_path / "teacher", 2, 32, 512)
    write_model("llama", tmp_path / "student", 2, 32, 400)
    return {
        "name": "translated",
        "task": "generation",
        "data": {"files": {s: str(tmp_path / f"{s}.jsonl") for s in ("train", "test")}},
        "teacher": {
            "model": str(tmp_path / "teacher"),
            "finetune": {"epochs": 4, "batch_size": 8, "learning_rate": 1e-2, "precision": "fp32"},
        },
        "student": {"model": str(tmp_path / "student")},
        "capture": {"precision": "fp32", "k": 8},
        "distill": {
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "losses": {"uld": 1.0, "cross_entropy": 1.0},
            "precision": "fp32",
            "arguments": {"logging_steps": 6},
        },
        "generation": {"max_new_tokens": 12},
        "evaluate": {"latency_rows": 0, "resamples": 100},
    }


def stage(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """A stage's folder below a runs root, and what it said."""
    for path in sorted(folder.rglob("stage.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if path.parent.name.startswith(f"{name}-") or found.get("stage") == name:
            return path.parent, found
    raise AssertionError(name)


def losses(folder: Path, name: str) -> list[float]:
    """A term's value each time it was logged."""
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    return [line[f"loss_{name}"] for line in history if f"loss_{name}" in line]


@pytest.mark.parametrize("capture", [{"k": 8}, {"encoding": "full", "k": None}])
def test_a_student_learns_from_a_teacher_with_another_tokenizer(
    base: Base, tmp_path: Path, capture: dict[str, Any]
) -> None:
    base["capture"] |= capture
    run(base, root=tmp_path / "runs")
    folder, said = stage(tmp_path / "runs", "distill")
    found = losses(folder, "uld")
    assert len(found) >= 3 and found[-1] < 0.5 * found[0]
    assert losses(folder, "cross_entropy")[-1] < losses(folder, "cross_entropy")[0]
    assert said["facts"]["aligned"] == pytest.approx(1.0)
