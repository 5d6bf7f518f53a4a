"""Timing: the protocol with a trivial engine, and how a worker's failure reaches a person."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.eval.errors import RecipeError, RunError
from paredown.eval.timing import Engine, Worker, decide, measure

ENGINES = """
import os, signal, sys, time

class Sleeper:
    runtime, precision = "sleep", "none"

    def __init__(self, path, threads, seconds=0.0, log=None):
        self.seconds, self.log, self.path, self.threads = seconds, log, path, threads
        self.note(f"threads {threads} {os.environ['OMP_NUM_THREADS']}")

    def note(self, line):
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{self.path} {line}\\n")

    def run(self, texts, pairs=None):
        print("a library that prints to stdout")
        self.note(f"run {'|'.join(texts)} {'|'.join(pairs or [])}")
        time.sleep(self.seconds * len(texts))
        if texts[0] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if texts[0] == "fail":
            raise ValueError("this row cannot be run")
        if texts[0] == "hang":
            time.sleep(60)

    def model_only(self, texts, pairs=None):
        return lambda: time.sleep(self.seconds * len(texts) / 2)

def load(path, *, threads, **options):
    return Sleeper(path, threads, **options)

def refuse(path, *, threads):
    print("looking for the weights", file=sys.stderr)
    raise FileNotFoundError(f"no weights in {path}")

def eat(path, *, threads):
    sys.stderr.write("about to leave\\n")
    sys.exit(7)

def modules(path, *, threads):
    heavy = [name for name in ("torch", "transformers", "scipy") if name in sys.modules]
    raise RuntimeError(f"imported: {heavy}")
"""


@pytest.fixture(autouse=True)
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a module of engines where the workers find it."""
    (tmp_path / "timed_engines.py").write_text(ENGINES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def engine(name: str, function: str = "load", **options: Any) -> Engine:
    """An engine of the module above."""
    return Engine(name, f"{name}/path", f"timed_engines:{function}", options)


FEW: dict[str, Any] = {"runs": 6, "rounds": 3, "warmup": 2, "batch": 2}


def test_each_engine_and_scenario_gives_one_measurement() -> None:
    found = measure(
        [engine("slow", seconds=0.02), engine("fast", seconds=0.002)], ["a", "b"], **FEW
    )
    assert [(m["side"], m["scenario"], m["batch"]) for m in found] == [
        ("slow", "single_stream", 1),
        ("fast", "single_stream", 1),
        ("slow", "offline", 2),
        ("fast", "offline", 2),
    ]
    slow, fast = found[0], found[1]
    assert (slow["runtime"], slow["precision"], slow["threads"]) == ("sleep", "none", 1)
    assert 20 <= slow["p50"] <= slow["p90"] <= slow["p95"] <= slow["p99"]
    assert slow["p50"] > 2 * fast["p50"]
    assert 10 <= slow["model_p50"] < slow["p50"]
    assert [m["model_p50"] for m in found[2:]] == [None, None]
    assert slow["examples_per_s"] <= 50
    assert (slow["runs"], slow["rounds"]) == (6, 3)
    assert slow["cold_start_s"] > 0.02
    assert slow["peak_memory_bytes"] > 1_000_000
    assert found[2]["p50"] >= 40  # a batch of two
    assert slow["load_average"] >= 0 and 0 <= slow["busy_before"] <= 1
    assert slow["busy_during"] is None or 0 <= slow["busy_during"] <= 1
    for entry in found:  # what the counters said, or that there are none
        assert (entry["energy_joules"] is None) == (entry["energy_source"] is None)


def test_the_highest_rate_within_a_bound_is_found() -> None:
    pair = [engine("fast", seconds=0.001), engine("slow", seconds=0.02)]
    found = measure(
        pair, ["a", "b"], scenarios=["single_stream"], server_ms=12.0, server_seconds=0.1, **FEW
    )
    assert [(m["side"], m["scenario"]) for m in found[2:]] == [
        ("fast", "server"),
        ("slow", "server"),
    ]
    fast, slow = found[2:]
    assert 10 < fast["rate_per_s"] < 1000 and fast["p99"] <= fast["bound_ms"] == 12.0
    assert fast["batch"] == 1 and fast["runtime"] == "sleep" and fast["runs"] >= 100
    assert slow["rate_per_s"] == 0 and slow["p50"] is None


def test_the_server_scenario_starts_from_single_rows() -> None:
    with pytest.raises(RecipeError, match="measure it too"):
        measure([engine("a")], ["x"], scenarios=["offline"], server_ms=5.0, **FEW)


@pytest.mark.parametrize("together", [False, True])
def test_engines_work_in_turns_and_never_at_once(tmp_path: Path, together: bool) -> None:
    log = tmp_path / "log.txt"
    pair = [engine("a", log=str(log)), engine("b", log=str(log))]
    measure(pair, ["x"], scenarios=["single_stream"], threads=2, together=together, **FEW)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [line[1:] for line in lines if line[1] == "threads"] == [["threads", "2", "2"]] * 2
    who = [line[0][0] for line in lines if line[1] == "run"]
    blocks = [name for i, name in enumerate(who) if i == 0 or who[i - 1] != name]
    assert blocks == ["a", "b"] * 4  # the first answer, then three rounds


def test_a_worker_started_ahead_takes_the_first_engine(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    pair = [engine("a", log=str(log)), engine("b", log=str(log))]
    with Worker(ahead=True) as spare:
        found = measure(pair, ["x"], scenarios=["single_stream"], spare=spare, **FEW)
        assert spare.process.poll() is None
    assert spare.process.poll() == 0
    assert [m["side"] for m in found] == ["a", "b"]
    assert found[0]["cold_start_s"] is None and found[1]["cold_start_s"] > 0.02
    assert found[0]["peak_memory_bytes"] > 5 * found[1]["peak_memory_bytes"]  # it has PyTorch


def test_offline_batches_hold_rows_of_like_length(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    texts = ["a", "bbbb", "cc", "dddd"]
    measure([engine("a", log=str(log))], texts, list("wxyz"), scenarios=["offline"], **FEW)
    runs = [line.split()[2:] for line in log.read_text().splitlines() if " run " in line]
    assert runs[-2:] == [["bbbb|dddd", "x|z"], ["cc|a", "y|w"]]


def test_a_loader_that_raises_is_told_with_its_last_lines() -> None:
    with pytest.raises(RunError) as caught:
        measure([engine("a", "refuse")], ["x"], **FEW)
    message = str(caught.value)
    assert "'a' (a/path)" in message
    assert "FileNotFoundError: no weights in a/path" in message
    assert "looking for the weights" in message


def test_a_loader_that_ends_the_process_is_told() -> None:
    with pytest.raises(RunError, match=r"exit code 7 during 'load'(.|\n)*about to leave"):
        measure([engine("a", "eat")], ["x"], **FEW)


def test_a_worker_that_is_killed_is_told() -> None:
    with pytest.raises(RunError, match="killed by signal 9"):
        measure([engine("a")], ["die"], **FEW)


def test_a_row_that_fails_is_told() -> None:
    with pytest.raises(RunError, match="ValueError: this row cannot be run"):
        measure([engine("a")], ["fail"], **FEW)


def test_a_worker_that_hangs_is_ended() -> None:
    with pytest.raises(RunError, match="no answer to 'rows' within 2 s"):
        measure([engine("a")], ["hang"], timeout=2.0, **FEW)


def test_a_worker_imports_no_heavy_library_by_itself() -> None:
    with pytest.raises(RunError, match=r"imported: \[\]"):
        measure([engine("a", "modules")], ["x"], **FEW)


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM, which is Linux's")
def test_the_parents_memory_is_not_the_workers() -> None:
    ballast = np.ones(300_000_000 // 8)
    found = measure([engine("a")], ["x"], scenarios=["single_stream"], **FEW)
    assert found[0]["peak_memory_bytes"] < ballast.nbytes


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(RecipeError, match="no rows"):
        measure([engine("a")], [])
    with pytest.raises(RecipeError, match="of_line"):
        measure([engine("a")], ["x"], scenarios=["of_line"])


def test_decisions_are_classes_or_top_answers() -> None:
    values = np.array([[0.0, 2.0], [3.0, 1.0]], dtype=np.float32)
    assert decide(values).tolist() == [1, 0]
    index = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0]], dtype=np.float32)
    assert decide(values, index).tolist() == [0, 1]


def test_no_worker_outlives_a_measurement(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with pytest.raises(RunError):
        measure([engine("a", log=str(log)), engine("b", "refuse")], ["x"], **FEW)
    if os.path.isdir("/proc"):
        alive = [
            name
            for name in os.listdir("/proc")
            if name.isdigit()
            and _parent(name) == os.getpid()
            and "paredown.eval.timing" in _line(name)
        ]
        assert alive == []


def _line(process: str) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def _parent(process: str) -> int:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return -1
    return int(stat.rsplit(")", 1)[1].split()[1])
