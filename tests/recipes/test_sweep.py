"""A sweep: one teacher for all points, nothing twice, and no point stops another."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.errors import RecipeError
from paredown.recipes.api import run, sweep

Command = Callable[..., Any]
SHORT = ("export=[]", "evaluate.resamples=100", "evaluate.latency_rows=0")


@pytest.fixture
def base(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> dict[str, Any]:
    """A classifier of width 48 and two layers, on local rows."""
    kinds = ("open the account", "close the card", "find the bank")
    rows = [{"text": f"{kinds[i % 3]} {i}", "label": kinds[i % 3].split()[0]} for i in range(72)]
    for name, some in {"train": rows[:54], "test": rows[54:]}.items():
        text = "".join(json.dumps(row) + "\n" for row in some)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {
        "name": "small",
        "task": "classification",
        "data": {"files": {n: str(tmp_path / f"{n}.jsonl") for n in ("train", "test")}},
        "teacher": {
            "model": str(tiny_checkpoint("bert", "classification")),
            "finetune": {"epochs": 1, "precision": "fp32"},
        },
        "capture": {"precision": "fp32"},
        "prune": {"calibration_rows": 16},
        "distill": {"epochs": 1, "losses": {"kl": 1.0}, "precision": "fp32"},
        "evaluate": {"latency_rows": 0, "resamples": 100},
    }


def stages(root: Path, name: str) -> list[Path]:
    return sorted((root / ".stages").glob(f"{name}-*"))


def test_points_share_a_teacher_and_a_refused_shape_stops_none(
    base: dict[str, Any], tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    grid = {"prune.intermediate_size": [16, 64, 32]}  # the model has 48
    result = sweep(base, grid, out=root / "small-sweep", processes=1, quiet=True)
    small, refused, large = result.sweep["points"]
    assert result.sweep["failed"] == 1 and not result.cached
    assert "asks for 64 channels and the model has 48" in refused["error"]
    for point in (small, large):
        folder = root / "small-sweep" / point["name"]
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        assert (
            report["recipe"]["prune"]["intermediate_size"]
            == (point["values"]["prune.intermediate_size"])
        )
        assert report["quality"]["student"] == point["student"]
        assert (folder / "student" / "model.safetensors").exists()
        assert point["validation_agreement"] is not None
    assert small["flops_ratio"] < large["flops_ratio"] < 1
    assert small["validation_flops"] < large["validation_flops"]
    assert "flops" in small["fronts"] and "latency" not in small["fronts"]
    assert [len(stages(root, name)) for name in ("data", "teacher", "capture")] == [1, 1, 1]
    assert len(stages(root, "distill")) == 2
    assert json.loads((root / "small-sweep" / "sweep.json").read_text()) == result.sweep

    before = sorted((root / ".stages").iterdir())
    good = {"prune.intermediate_size": [16, 32]}
    again = sweep(base, good, out=root / "small-sweep", quiet=True)
    assert again.cached and again.sweep["failed"] == 0
    assert sorted((root / ".stages").iterdir()) == before
    alone = run(base, {"prune.intermediate_size": 16}, out=root / "small")
    assert alone.report is not None
    made = {stage["name"]: stage["cached"] for stage in alone.report["stages"]}
    assert all(made.values())  # a point is an ordinary run


def test_a_run_s_folder_and_a_launch_are_refused(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"prune.layers": [1, [0]]}
    (tmp_path / "run" / "student").mkdir(parents=True)
    with pytest.raises(RecipeError, match="is the folder of a run"):
        sweep(base, grid, out=tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(RecipeError, match="other things in it"):
        sweep(base, grid, out=tmp_path / "other")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="start it without a launcher"):
        sweep(base, grid, out=tmp_path / "new")


# Kills its own process when it has made the first of several students, once.
KILLER = """
import os, signal
import paredown.recipes.store as store

if os.environ.get("KILL"):
    original = store.Store._work

    def wrapped(self, stage, *rest):
        original(self, stage, *rest)
        if stage.name == "distill":
            os.kill(os.getpid(), signal.SIGKILL)

    store.Store._work = wrapped
"""


def test_a_killed_sweep_goes_on_with_other_processes(paredown: Command, tmp_path: Path) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    words = ["sweep", "search_query", *SHORT, "distill.texts=[queries]", "--smoke"]
    words += ["--import", "killer", "--grid", "prune.layers=1,2,[0]"]
    killed = paredown(*words, "--processes", "1", KILL="1")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    root = tmp_path / "runs"
    assert len(stages(root, "distill")) == 1
    assert not (root / "search_query-sweep-smoke" / "sweep.json").exists()
    (first,) = stages(root, "distill")
    when = first.stat().st_mtime_ns
    again = paredown(*words, "--processes", "2")
    assert again.returncode == 0, again.stderr
    assert "3 points, 2 of them to be made" in again.stderr
    assert first.stat().st_mtime_ns == when
    assert len(stages(root, "distill")) == 3 and len(stages(root, "capture")) == 1
    found = json.loads((root / "search_query-sweep-smoke" / "sweep.json").read_text())
    assert found["smoke"] and found["failed"] == 0
    assert [point["name"] for point in found["points"]] == ["layers-1", "layers-2", "layers-0"]
    assert found["points"][0]["flops_ratio"] < found["points"][1]["flops_ratio"] < 1
    assert "A smoke run" in again.stdout and "sweep.html" in again.stdout
