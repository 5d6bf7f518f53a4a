"""Two processes share a run and leave one; a launch that meant two and got one fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paredown.distill.outputs import TeacherOutputs

Command = Callable[..., Any]
# What makes a smoke run short: nothing to export, nothing to time.
SHORT = ("export=[]", "evaluate.resamples=100", "evaluate.latency_rows=0")


OPTIONS = (
    "search_query",
    "--smoke",
    "capture.shard_rows=64",
    "capture.precision=fp32",
    "distill.precision=fp32",
    *SHORT,
)


def two(port: int) -> list[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    return [*launch, "--num_processes", "2", "--main_process_port", str(port)]


def test_two_processes_end_with_one_report(paredown: Command, tmp_path: Path) -> None:
    both = paredown(
        "run", *OPTIONS, "--out", "two/run", launcher=two(29611), ACCELERATE_USE_CPU="true"
    )
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("Smoke run, not judged") == 1
    stages = tmp_path / "two/run/stages"
    for name in ("capture", "distill"):
        record = json.loads((stages / name / "stage.json").read_text())
        assert record["world_size"] == 2, name
    outputs = TeacherOutputs(stages / "capture")
    assert {shard["rank"] for shard in outputs.manifest["shards"]} == {0, 1}

    one = paredown("run", *OPTIONS, "--out", "one/run")
    assert one.returncode == 0, one.stderr
    alone = TeacherOutputs(tmp_path / "one/run/stages/capture")
    for stream in alone.streams:
        difference = outputs.values(outputs.items(stream)) - alone.values(alone.items(stream))
        assert np.abs(difference).max() <= 1e-5


def test_a_launch_that_meant_two_and_got_one_fails(paredown: Command, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    failed = paredown("run", *OPTIONS, "--out", "run", launcher=launch)
    assert failed.returncode == 1
    assert "names several processes, but one was started" in failed.stderr
    assert not (tmp_path / "run").exists()
