"""Every format × signal: exported, loaded again in a fresh process, and the same decisions."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.eval.cost import artefact_bytes
from paredown.eval.errors import RunError
from paredown.eval.models import load_model
from paredown.eval.tasks import get_task
from paredown.eval.timing import Engine, measure
from paredown.export import FORMATS, load

from .conftest import TEXTS, Exported

TASKS = ["classification", "retrieval"]
PROGRAM = Path(__file__).with_name("fresh_process.py")
WITHOUT_TORCH = ("onnx", "openvino")


def needs(fmt: str) -> None:
    """Skips a format whose packages are not installed, and says which."""
    missing = [name for name in FORMATS[fmt].modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed (extra {FORMATS[fmt].extra})")


def fresh(folder: Path, texts: list[Any], forbidden: str = "none") -> dict[str, Any]:
    """What a folder answers in a process of its own."""
    command = [sys.executable, str(PROGRAM), str(folder), forbidden]
    done = subprocess.run(
        command, input=json.dumps(texts), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("fmt", ["openvino", "executorch"])
def test_another_runtime_gives_the_same_signal_for_any_shape(
    fmt: str, task: str, exported: Exported
) -> None:
    needs(fmt)
    checkpoint, folder, facts = exported("bert", task, fmt)
    assert facts["max_difference"] <= facts["tolerance"]
    assert artefact_bytes(folder) == facts["bytes"] > 10_000
    model, runner = load_model(checkpoint, get_task(task)), load(folder, threads=1)
    assert (runner.runtime, runner.precision) == (fmt, "fp32")
    role = "query" if task == "retrieval" else "text"
    for texts in (TEXTS[:1], TEXTS, ["file " * 60, "x", "open"]):
        found = runner.signal(texts)
        np.testing.assert_allclose(found, model.predict(texts, role=role), atol=1e-4)
        np.testing.assert_allclose(runner.model_only(texts)(), found, atol=1e-5)
    assert runner.signal([]).shape == (0, runner.settings["width"])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("fmt", ["safetensors", "sentence-transformers"])
def test_a_checkpoint_is_an_export_too(fmt: str, task: str, exported: Exported) -> None:
    if get_task(task).signal not in FORMATS[fmt].signals:
        return
    checkpoint, folder, facts = exported("roberta", task, fmt)
    runner, model = load(folder), load_model(checkpoint, get_task(task))
    assert runner.runtime == "pytorch" and facts["rows_compared"] > 3
    role = "query" if task == "retrieval" else "text"
    np.testing.assert_allclose(runner.signal(TEXTS), model.predict(TEXTS, role=role), atol=1e-6)
    assert (folder / "README.md").exists() or fmt == "sentence-transformers"


@pytest.mark.parametrize(
    ("fmt", "task"),
    [
        ("onnx", "classification"),
        ("safetensors", "classification"),
        ("openvino", "retrieval"),
        ("executorch", "classification"),
    ],
)
def test_a_fresh_process_decides_alike(fmt: str, task: str, exported: Exported) -> None:
    needs(fmt)
    checkpoint, folder, _ = exported("bert", task, fmt)
    expected = load_model(checkpoint, get_task(task)).predict(
        TEXTS, role="query" if task == "retrieval" else "text"
    )
    found = fresh(folder, TEXTS, "torch,transformers" if fmt in WITHOUT_TORCH else "none")
    assert found["loaded"] == []
    np.testing.assert_allclose(np.asarray(found["values"]), expected, atol=1e-4)
    if task == "classification":
        labels = load(folder).settings["labels"]
        assert [a["label"] for a in found["answers"]] == [labels[i] for i in expected.argmax(1)]
    else:
        given = [a["embedding"] for a in found["answers"]]
        np.testing.assert_allclose(np.asarray(given), expected, atol=1e-4)


def test_openvino_sends_no_statistics(exported: Exported) -> None:
    needs("openvino")
    _, folder, _ = exported("bert", "classification", "openvino")
    assert fresh(folder, TEXTS[:1], "openvino_telemetry.main,openvino")["loaded"] == ["openvino"]


def test_openvino_is_timed_under_its_own_name(exported: Exported) -> None:
    needs("openvino")
    _, folder, _ = exported("bert", "classification", "openvino")
    entry = FORMATS["openvino"]
    (found,) = measure(
        [Engine("student", str(folder), entry.loader or "")], TEXTS,
        runs=4, rounds=1, warmup=1, scenarios=["single_stream"],
    )  # fmt: skip
    assert (found["runtime"], found["precision"]) == (entry.runtime, entry.precision)
    assert found["peak_memory_bytes"] > 10**6 and found["p50"] > 0


def test_a_damaged_openvino_folder_is_one_message(exported: Exported, tmp_path: Path) -> None:
    needs("openvino")
    _, folder, _ = exported("bert", "classification", "openvino")
    for name, damage in (("model.xml", "cannot be loaded"), ("model.bin", "has no model.bin")):
        broken = tmp_path / name
        shutil.copytree(folder, broken)
        if name == "model.xml":
            (broken / name).write_text("<net></net>", encoding="utf-8")
        else:
            (broken / name).unlink()
        with pytest.raises(RunError, match=damage):
            load(broken)
    with pytest.raises(RunError, match="providers are ONNX Runtime's"):
        load(folder, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("task", TASKS)
def test_static_int8_is_calibrated_on_rows_and_answers_each_row_alone(
    task: str, exported: Exported, tmp_path: Path
) -> None:
    from paredown.export import export_model

    checkpoint, plain, _ = exported("bert", task, "onnx")
    options = {"calibration": "static", "calibration_rows": 5}
    pairs = (TEXTS * 3)[::-1] if task == "classification" else None
    facts = export_model(
        checkpoint, get_task(task), "onnx-int8", tmp_path / "static",
        sample_texts=TEXTS * 3, sample_pairs=pairs,
        threads=1, base=plain, options=options,
    )  # fmt: skip
    assert (facts["calibration"], facts["calibration_rows"]) == ("static", 5)
    assert facts["tolerance"] is None and facts["mean_cosine"] > 0.9
    assert facts["bytes"] < 0.95 * artefact_bytes(plain)
    runner = load(tmp_path / "static", threads=1)
    assert runner.precision == "int8" and runner.settings["batch"] > 1
    alone = np.concatenate([runner.signal([text]) for text in TEXTS])
    np.testing.assert_allclose(runner.signal(TEXTS), alone, atol=1e-5)
    _, dynamic, _ = exported("bert", task, "onnx-int8")
    assert np.abs(load(dynamic, threads=1).signal(TEXTS) - alone).max() > 0


def test_static_int8_without_texts_is_refused(exported: Exported, tmp_path: Path) -> None:
    from paredown.export import export_model

    checkpoint, plain, _ = exported("bert", "classification", "onnx")
    with pytest.raises(RunError, match="Static calibration needs texts"):
        export_model(
            checkpoint, get_task("classification"), "onnx-int8", tmp_path, sample_texts=[" "],
            base=plain, options={"calibration": "static"},
        )  # fmt: skip
