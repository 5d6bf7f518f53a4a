"""A sweep: one teacher for all points, nothing twice, and no point stops another."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.errors import RecipeError
from paredown.recipes import cli
from paredown.recipes.api import run, sweep
from paredown.recipes.trial_pool import TrialPool

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
            "finetune": {"epochs": 3, "learning_rate": 3e-3, "precision": "fp32"},
        },
        "capture": {"precision": "fp32"},
        "prune": {"calibration_rows": 16},
        "distill": {"epochs": 1, "losses": {"kl": 1.0}, "precision": "fp32"},
        "evaluate": {"latency_rows": 0, "resamples": 100},
    }


def stages(root: Path, name: str) -> list[Path]:
    return sorted((root / ".stages").glob(f"{name}-*"))


class Counter:
    """A counter of energy that has used another joule whenever it is read."""

    name, span = "made up", None

    def __init__(self) -> None:
        self.used = 0

    def read(self) -> int:
        self.used += 1_000_000
        return self.used


class PicklingPool(TrialPool):
    """Does its tasks here, but sends them and their results the way another process gets them."""

    def run(self, work: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for number, task in reversed(list(enumerate(tasks))):
            yield number, pickle.loads(pickle.dumps(work(pickle.loads(pickle.dumps(task)))))


def test_points_share_a_teacher_and_a_refused_shape_stops_none(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paredown.recipes.sweep.TrialPool", PicklingPool)
    root = tmp_path / "runs"
    grid = {"prune.intermediate_size": [16, 64, 32]}  # the model has 48
    result = sweep(base, grid, out=root / "small-sweep", processes=2, quiet=True)
    small, refused, large = result.sweep["points"]
    assert result.sweep["failed"] == 1 and not result.cached
    assert "asks for 64 channels and the model has 48" in refused["error"]
    for point in (small, large):
        folder = root / "small-sweep" / point["name"]
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        assert report["recipe"]["prune"]["intermediate_size"] in point["values"].values()
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


def test_points_that_are_made_at_the_same_time_have_no_energy_of_their_own(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paredown.recipes.sweep.TrialPool", PicklingPool)
    monkeypatch.setattr("paredown.recipes.store.run_counters", lambda processes: [Counter()])
    root = tmp_path / "runs"

    def joules(name: str) -> list[float | None]:
        records = [json.loads((path / "stage.json").read_text()) for path in stages(root, name)]
        return [record["energy_joules"] for record in records]

    beside = {"prune.intermediate_size": [16, 32]}
    sweep(base, beside, out=root / "beside", processes=2, quiet=True)
    assert joules("prune") == joules("distill") == joules("score") == [None, None]
    alone = [*joules("data"), *joules("teacher"), *joules("capture"), *joules("report")]
    assert len(alone) == 5 and all(alone)
    report = json.loads((root / "beside" / "intermediate_size-16" / "report.json").read_text())
    assert report["ledger"]["total"]["energy_joules"] is None

    sweep(base, {"prune.intermediate_size": [8, 16]}, out=root / "one", processes=1, quiet=True)
    assert joules("distill").count(None) == 2 and len(joules("distill")) == 3


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


def test_a_killed_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "search_query", *SHORT, "distill.texts=[queries]", "distill.epochs=1"]
    words += ["--smoke", "--grid", "prune.layers=1,2,[0]", "--processes", "1"]
    root = tmp_path / "runs"
    first = subprocess.Popen([sys.executable, "-m", "paredown", *words], stderr=subprocess.DEVNULL)
    while not stages(root, "distill"):
        assert first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    done = {path: path.stat().st_mtime_ns for path in stages(root, "distill")}
    assert not (root / "search_query-sweep-smoke" / "sweep.json").exists()
    assert cli.main(words) == 0
    seen = capfd.readouterr()
    assert "3 points, 3 of them to be made" in seen.err
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert len(stages(root, "distill")) == 3 and len(stages(root, "capture")) == 1
    found = json.loads((root / "search_query-sweep-smoke" / "sweep.json").read_text())
    assert found["smoke"] and found["failed"] == 0
    assert [point["name"] for point in found["points"]] == ["layers-1", "layers-2", "layers-0"]
    assert found["points"][0]["flops_ratio"] < found["points"][1]["flops_ratio"] < 1
    assert "A smoke run" in seen.out and "sweep.html" in seen.out
