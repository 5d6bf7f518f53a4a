"""The runner as a timed engine, beside PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paredown.eval.errors import RunError
from paredown.eval.timing import Engine, load_torch, measure
from paredown.export import FORMATS
from paredown.export.runner import load

from .conftest import TEXTS, Exported


@pytest.mark.parametrize("task", ["classification", "retrieval"])
def test_both_engines_decide_alike(task: str, exported: Exported, tmp_path: Path) -> None:
    checkpoint, folder, _ = exported("bert", task, "onnx")
    role = "query" if task == "retrieval" else "text"
    torch_engine = load_torch(str(checkpoint), task=task, role=role)
    runner = load(folder, threads=1, role=role)
    if task == "retrieval":
        np.testing.assert_allclose(torch_engine.run(TEXTS), runner.run(TEXTS), atol=1e-5)
        np.save(tmp_path / "index.npy", runner.signal(TEXTS))
        index = str(tmp_path / "index.npy")
        torch_engine = load_torch(str(checkpoint), task=task, role=role, index=index)
        runner = load(folder, threads=1, index=index)
        assert runner.run(TEXTS).tolist() == list(range(len(TEXTS)))
    assert torch_engine.run(TEXTS).tolist() == runner.run(TEXTS).tolist()
    np.testing.assert_allclose(
        torch_engine.model_only(TEXTS)(), runner.model_only(TEXTS)(), atol=1e-4
    )


def test_engines_are_measured_side_by_side(exported: Exported) -> None:
    checkpoint, folder, _ = exported("bert", "classification", "onnx")
    engines = [
        Engine("teacher", str(checkpoint), options={"task": "classification"}),
        Engine("onnx", str(folder), FORMATS["onnx"].loader or ""),
    ]
    found = measure(engines, TEXTS, runs=10, rounds=2, warmup=1, batch=4)
    by_side = {(m["side"], m["scenario"]): m for m in found}
    assert len(by_side) == 4
    pytorch, onnx = by_side["teacher", "single_stream"], by_side["onnx", "single_stream"]
    assert (pytorch["runtime"], pytorch["precision"]) == ("pytorch", "fp32")
    assert (onnx["runtime"], onnx["precision"]) == ("onnxruntime", "fp32")
    # Its worker never loads torch, so memory and cold start are a deployment's.
    assert onnx["peak_memory_bytes"] < 0.7 * pytorch["peak_memory_bytes"]
    assert pytorch["model_p50"] > 0 and onnx["model_p50"] > 0
    assert all(m["examples_per_s"] > 0 for m in found)


def test_progress_adds_up_and_no_texts_are_no_error(exported: Exported) -> None:
    _, folder, _ = exported("bert", "classification", "onnx")
    runner = load(folder, threads=1)
    done: list[int] = []
    found = runner.signal(TEXTS * 200, progress=done.append)
    assert sum(done) == len(TEXTS) * 200 and len(done) == 2
    np.testing.assert_allclose(found[-len(TEXTS) :], runner.signal(TEXTS), atol=1e-5)
    assert runner.signal([]).shape == (0, 3)


def test_a_folder_that_cannot_be_run_is_told_by_the_worker(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no paredown\.json"):
        measure([Engine("onnx", str(tmp_path), FORMATS["onnx"].loader or "")], ["x"])
