"""Two processes train a language model step by step as one does, and leave one stock checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paredown.eval.models import load_model
from paredown.eval.tasks import get_task

Command = Callable[..., Any]
LOGGED = ("logging_strategy=steps", "logging_steps=1")
OPTIONS = (
    *("query_filters", "--smoke", "evaluate.baselines=[]", "evaluate.latency_rows=0"),
    *("capture.precision=fp32", "distill.precision=fp32", "teacher.finetune.precision=fp32"),
    # Muon's matrices are orthogonalised in bf16, which makes small differences large ones.
    *("distill.optimizer=adamw", "teacher.finetune.optimizer=adamw"),
    # What a cut of widths keeps of random weights hangs on the last digits of the teacher's.
    "prune={layers: 1}",
    # The rows' own completions are far from random weights, a random teacher is not.
    "distill.losses={forward_kl: 1.0, cross_entropy: 1.0}",
    *(f"distill.arguments.{argument}" for argument in LOGGED),
)


def history(run: Path) -> list[dict[str, Any]]:
    stage = run / "stages/distill"
    return list(json.loads((stage / "history.json").read_text()))


def test_two_processes_learn_what_one_does(paredown: Command, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--main_process_port", "29613"]
    both = paredown("run", *OPTIONS, "--out", "two/run", launcher=launch, ACCELERATE_USE_CPU="true")
    assert both.returncode == 0, both.stderr
    one = paredown("run", *OPTIONS, "--out", "one/run")
    assert one.returncode == 0, one.stderr

    for run, size in (("one", 1), ("two", 2)):
        for stage in ("capture", "distill"):
            record = json.loads((tmp_path / run / "run/stages" / stage / "stage.json").read_text())
            assert record["world_size"] == size, (run, stage)
    steps = {run: history(tmp_path / run / "run") for run in ("one", "two")}
    for name in ("loss", "loss_forward_kl", "loss_cross_entropy"):
        alone, shared = ([s[name] for s in steps[run] if name in s] for run in ("one", "two"))
        assert len(alone) >= 20
        assert shared == pytest.approx(alone, abs=1e-4), name
    losses = [s["loss"] for s in steps["one"] if "loss" in s]
    assert losses[-1] < losses[0] - 0.01

    task = get_task("generation")
    mine, other = (load_model(tmp_path / run / "run/student", task) for run in ("one", "two"))
    assert list((tmp_path / "two/run/student").glob("*.safetensors")) == [
        tmp_path / "two/run/student/model.safetensors"
    ]
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, atol=1e-4, rtol=0)
