"""A loss on hidden states for a language model, from recorded states, through a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from paredown.distill.language_trainer import LanguageTrainer
from paredown.eval.errors import RecipeError, RunError
from paredown.recipes.api import check, run
from paredown.recipes.smoke import write_model

Base = dict[str, Any]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """A student of one layer, cut from a teacher of three."""
    for split, count in (("train", 40), ("test", 8)):
        words = ("open", "close", "find", "check")
        rows = [
            {
                "prompt": f"how do I {words[i % 4]} the {split} account {i}? ",
                "completion": f"{words[i % 4]} the account statement",
            }
            for i in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_model("llama", tmp_path / "teacher", 3, 32)
    return {
        "name": "layers",
        "task": "generation",
        "data": {"files": {s: str(tmp_path / f"{s}.jsonl") for s in ("train", "test")}},
        "teacher": {"model": str(tmp_path / "teacher")},
        "capture": {"precision": "fp32", "k": 8, "shard_rows": 16},
        "prune": {"layers": [0]},
        "distill": {
            "epochs": 3,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "losses": {"forward_kl": 1.0, "hidden_mse": {"weight": 1.0, "layers": {1: 3}}},
            "precision": "fp32",
            "arguments": {"logging_steps": 5},
        },
        "generation": {"max_new_tokens": 8},
        "evaluate": {"latency_rows": 0, "resamples": 100},
    }


def record(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stages" / stage / "stage.json").read_text())
    return found


@pytest.mark.parametrize("capture", [{"hidden_rank": 12}, {"encoding": "text", "k": None}])
def test_the_student_learns_the_teachers_states(
    base: Base, tmp_path: Path, capture: dict[str, Any]
) -> None:
    base["capture"] |= capture
    if "encoding" in capture:  # hidden states without distributions
        del base["distill"]["losses"]["forward_kl"]
    run(base, out=tmp_path / "run")
    said = record(tmp_path / "run", "capture")["hidden"]
    assert list(said) == ["3"]
    rank = capture.get("hidden_rank", said["3"]["rank"])
    assert said["3"]["bytes_per_token"] == rank + 2 and 0 < said["3"]["error"] < 0.5
    folder = tmp_path / "run" / "stages" / "distill"
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    found = [line["loss_hidden_mse"] for line in history if "loss_hidden_mse" in line]
    assert found[-1] < 0.6 * found[0]
    names = load_file(folder / "checkpoint" / "model.safetensors")
    assert not [name for name in names if "projection" in name]


def test_a_training_that_was_stopped_goes_on_with_its_projections(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(base, out=tmp_path / "whole" / "run")
    loss, steps = LanguageTrainer.compute_loss, [0]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        if steps[0] == 8:
            raise RunError("interrupted")
        return loss(*args, **kwargs)

    with monkeypatch.context() as stopped, pytest.raises(RunError, match="interrupted"):
        stopped.setattr(LanguageTrainer, "compute_loss", interrupted)
        run(base, out=tmp_path / "part" / "run")
    run(base, out=tmp_path / "part" / "run")
    assert record(tmp_path / "part" / "run", "distill")["resumed_from"]
    weights = [
        (
            tmp_path / name / "run" / "stages" / "distill" / "checkpoint" / "model.safetensors"
        ).read_bytes()
        for name in ("whole", "part")
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.on_policy": 0.5}, "nothing is of what the student writes"),
        ({"prune": {"hidden_size": 16}}, r"prune\.hidden_size cuts the student's"),
        ({"distill.losses": {"hidden_mse": {"weight": 1, "layers": "first"}}}, "uniform, last"),
        (
            {
                "teacher": {"kind": "recorded", "files": {"train": "t.jsonl", "test": "t.jsonl"}},
                "student": {"model": "tiny"},
            },
            "a teacher of kind recorded does not give",
        ),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(
    base: Base, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check(base, changes)
