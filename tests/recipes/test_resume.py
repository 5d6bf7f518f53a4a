"""A run that is killed goes on where it was and ends with the same student, byte for byte."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

Command = Callable[..., Any]
# What makes a smoke run short: nothing to export, nothing to time.
SHORT = ("export=[]", "evaluate.resamples=100", "evaluate.latency_rows=0")

# Kills its own process at a place that an environment variable names, once.
KILLER = """
import os, signal
from pathlib import Path

AT = os.environ.get("KILL_AT", "")

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def after(module, name, count, attribute=None):
    owner = getattr(module, attribute) if attribute else module
    original, calls = getattr(owner, name), [0]
    def wrapped(*args, **kwargs):
        result = original(*args, **kwargs)
        calls[0] += 1
        if calls[0] == count:
            kill()
        return result
    setattr(owner, name, wrapped)

if AT == "capture":
    import paredown.distill.capture as module
    after(module, "_write_shard", 2)
elif AT == "between":
    import paredown.recipes.store as module
    after(module, "_work", 2, "Store")  # capture's and prune's
elif AT == "second epoch":
    import paredown.distill.trainer as module
    after(module, "compute_loss", STEPS, "DistillTrainer")
"""
OPTIONS = (
    "--smoke",
    "--import",
    "killer",
    "capture.shard_rows=64",
    "distill.precision=bf16",
    "distill.dropout=0.1",
    "distill.texts=[queries]",
    "distill.epochs=2",
    *SHORT,
)


def digest(run: Path) -> str:
    return hashlib.sha256((run / "student" / "model.safetensors").read_bytes()).hexdigest()


def test_killed_anywhere_the_rerun_gives_the_same_student(
    paredown: Command, tmp_path: Path
) -> None:
    # 192 rows less a tenth, by 16: 11 steps an epoch.
    (tmp_path / "killer.py").write_text(KILLER.replace("STEPS", "16"))
    whole = paredown("run", "search_query", *OPTIONS, "--out", "whole/run")
    assert whole.returncode == 0, whole.stderr
    stages = tmp_path / "killed" / ".stages"
    for place in ("capture", "between", "second epoch"):  # each goes on where the last was killed
        killed = paredown("run", "search_query", *OPTIONS, "--out", "killed/run", KILL_AT=place)
        assert killed.returncode == -signal.SIGKILL, (place, killed.stderr)
        finished = {p.name.split("-")[0] for p in stages.glob("[a-z]*-*")}
        unfinished = {p.name.split("-")[0] for p in stages.glob(".*-*") if p.is_dir()}
        if place == "capture":
            assert finished == {"data", "teacher"} and unfinished == {".capture"}
            assert list(stages.glob(".capture-*/shard-*.arrow"))
        elif place == "between":
            assert finished == {"data", "teacher", "capture", "prune"} and not unfinished
        else:
            assert unfinished == {".distill"}
            assert list(stages.glob(".distill-*/training/checkpoint-*"))
    again = paredown("run", "search_query", *OPTIONS, "--out", "killed/run")
    assert again.returncode == 0, again.stderr
    assert digest(tmp_path / "killed/run") == digest(tmp_path / "whole/run")
    assert not list(stages.glob("distill-*/training"))
