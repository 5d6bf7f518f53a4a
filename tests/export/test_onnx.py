"""ONNX exports answer as the PyTorch models they came from."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paredown.eval.cost import artefact_bytes
from paredown.eval.errors import RunError
from paredown.eval.models import TextModel, load_model
from paredown.eval.tasks import get_task
from paredown.export import onnx as exporter
from paredown.export.graphs import plain_attention
from paredown.export.noise import into_log
from paredown.export.runner import load

from .conftest import LABELS, TEXTS, Exported

KINDS = ["bert", "roberta", "distilbert"]
TASKS = ["classification", "retrieval"]
SHAPES = [TEXTS[:1], TEXTS[1:2] * 3, TEXTS, ["file " * 60, "x", "open"], TEXTS * 12]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_gives_the_same_signal_for_any_shape(kind: str, task: str, exported: Exported) -> None:
    checkpoint, folder, facts = exported(kind, task, "onnx")
    model, runner = load_model(checkpoint, get_task(task)), load(folder, threads=1)
    assert facts["format"] == "onnx"
    assert facts["max_difference"] <= facts["tolerance"]
    assert facts["bytes"] == artefact_bytes(folder) < artefact_bytes(checkpoint) * 1.5
    for texts in SHAPES:
        role = "query" if task == "retrieval" else "text"
        found = runner.signal(texts)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, model.predict(texts, role=role), atol=1e-4)
        np.testing.assert_allclose(runner.model_only(texts)(), found, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_give_the_same_logits(kind: str, exported: Exported) -> None:
    checkpoint, folder, _ = exported(kind, "classification", "onnx")
    model, runner = load_model(checkpoint, get_task("classification")), load(folder, threads=1)
    pairs = TEXTS[::-1]
    found = runner.signal(TEXTS, pairs)
    np.testing.assert_allclose(found, model.predict(TEXTS, pairs), atol=1e-4)
    assert np.abs(found - runner.signal(TEXTS)).max() > 1e-3


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_is_tokenised_alike(text: str, exported: Exported) -> None:
    for kind, task in (("bert", "classification"), ("roberta", "classification")):
        checkpoint, folder, _ = exported(kind, task, "onnx")
        model = MODELS.setdefault(kind, load_model(checkpoint, get_task(task)))
        runner = RUNNERS.setdefault(kind, load(folder, threads=1))
        assert runner.predictor.tokenize([text]) == model.tokenize([text])


MODELS: dict[str, Any] = {}
RUNNERS: dict[str, Any] = {}


def test_roles_have_their_prompts(exported: Exported) -> None:
    checkpoint, folder, _ = exported("bert", "retrieval", "onnx")
    model, runner = load_model(checkpoint, get_task("retrieval")), load(folder, threads=1)
    for role in ("query", "document", "text"):
        found = runner.signal(TEXTS, role=role)
        np.testing.assert_allclose(found, model.predict(TEXTS, role=role), atol=1e-4)
    as_query, as_text = runner.signal(TEXTS), runner.signal(TEXTS, role="text")
    assert np.abs(as_query - as_text).max() > 1e-3


def test_the_folder_explains_itself_and_names_no_place(exported: Exported) -> None:
    checkpoint, folder, _ = exported("bert", "classification", "onnx")
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "model.onnx",
        "paredown.json",
        "predict.py",
        "tokenizer.json",
    }
    content = json.loads((folder / "paredown.json").read_text(encoding="utf-8"))
    assert content["labels"] == LABELS
    assert content["max_length"] == 24
    assert content["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer["truncation"] is None and tokenizer["padding"] is None
    for path in folder.iterdir():
        content_bytes = path.read_bytes()
        assert str(checkpoint.parent).encode() not in content_bytes
        assert b"site-packages" not in content_bytes
        assert str(Path(exporter.__file__).parents[1]).encode() not in content_bytes


@pytest.mark.parametrize("task", TASKS)
def test_names_of_inputs_axes_and_outputs_are_fixed(task: str, exported: Exported) -> None:
    _, folder, _ = exported("roberta", task, "onnx")
    graph = onnx.load(str(folder / "model.onnx"))
    onnx.checker.check_model(graph)

    def axes(value: Any) -> list[str | int]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    inputs = {value.name: axes(value) for value in graph.graph.input}
    assert inputs == {name: ["batch", "sequence"] for name in ("input_ids", "attention_mask")}
    outputs = {value.name: axes(value) for value in graph.graph.output}
    width = {"classification": 3, "retrieval": 12}[task]
    name = {"classification": "logits", "retrieval": "embedding"}[task]
    assert outputs == {name: ["batch", width]}


@pytest.mark.parametrize("task", TASKS)
def test_int8_is_smaller_and_close(task: str, exported: Exported) -> None:
    _, plain, _ = exported("bert", task, "onnx")
    _, folder, facts = exported("bert", task, "onnx-int8")
    weights = {i.data_type for i in onnx.load(str(folder / "model.onnx")).graph.initializer}
    assert weights & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    assert facts["bytes"] < 0.9 * artefact_bytes(plain)  # tiny models are mostly graph
    assert facts["tolerance"] is None
    assert facts["mean_cosine"] > 0.95
    runner, whole = load(folder, threads=1), load(plain, threads=1)
    assert runner.precision == "int8"
    found, expected = runner.signal(TEXTS), whole.signal(TEXTS)
    cosine = (found * expected).sum(1)
    cosine /= np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.9


def test_int8_made_from_the_fp32_export_is_the_traced_one(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint, plain, _ = exported("bert", "retrieval", "onnx")
    _, traced, expected = exported("bert", "retrieval", "onnx-int8")
    monkeypatch.setattr(exporter, "_trace", lambda model: pytest.fail("traced again"))
    options: dict[str, Any] = {"precision": "int8", "sample_texts": TEXTS, "threads": 1}
    facts = exporter.export_onnx(checkpoint, get_task("retrieval"), tmp_path, base=plain, **options)
    assert np.array_equal(load(tmp_path).signal(TEXTS), load(traced).signal(TEXTS))
    same = ("max_difference", "mean_cosine", "rows_compared", "opset")
    assert {name: facts[name] for name in same} == {name: expected[name] for name in same}
    assert not {path.name for path in tmp_path.iterdir()} ^ {p.name for p in traced.iterdir()}
    assert b"/home/" not in (tmp_path / "model.onnx").read_bytes()


def test_an_int8_answer_does_not_depend_on_its_neighbours(exported: Exported) -> None:
    _, folder, _ = exported("bert", "classification", "onnx-int8")
    runner = load(folder, threads=1)
    together = runner.signal(TEXTS)
    alone = np.concatenate([runner.signal([text]) for text in TEXTS])
    assert np.array_equal(together, alone)


def test_an_export_that_answers_otherwise_is_refused(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint, folder, _ = exported("bert", "classification", "onnx")
    other = onnx.load(str(folder / "model.onnx"))
    bias = next(i for i in other.graph.initializer if list(i.dims) == [3])  # the classes' bias
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), bias.name)
    )

    def save(graph: Any, out: Path) -> None:
        onnx.save(other, str(out / "model.onnx"))

    monkeypatch.setattr(exporter, "_trace", lambda *a, **k: None)
    monkeypatch.setattr(exporter, "_clean", lambda *a, **k: None)
    monkeypatch.setattr(exporter, "save_graph", save)
    task = get_task("classification")
    with pytest.raises(RunError, match=r"answers differently from PyTorch \(by 0\.01"):
        exporter.export_onnx(checkpoint, task, tmp_path / "out", precision="fp32", threads=1)


def test_a_model_has_its_own_attention_again(tiny_model: Callable[..., TextModel]) -> None:
    model = tiny_model("bert", get_task("classification"))
    ours = model.config._attn_implementation
    assert ours == "sdpa"
    with pytest.raises(RunError), plain_attention(model):
        assert model.config._attn_implementation == "eager"
        raise RunError("what the exporter says")
    assert model.config._attn_implementation == ours


def test_a_failing_exporter_is_one_message(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers.exporters.exporter_onnx import OnnxExporter

    def fail(*arguments: Any, **options: Any) -> None:
        raise ValueError("an operator is missing\nand much more")

    checkpoint, _, _ = exported("bert", "classification", "onnx")
    monkeypatch.setattr(OnnxExporter, "export", fail)
    with pytest.raises(RunError, match="bert model failed: ValueError: an operator is missing"):
        exporter.export_onnx(
            checkpoint, get_task("classification"), tmp_path / "out", precision="fp32"
        )


def test_noise_goes_to_the_log(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import os
    import sys
    import warnings

    logger = logging.getLogger("paredown.export.test")
    with caplog.at_level(logging.INFO, logger.name), into_log(logger):
        print("from Python")
        os.write(1, b"from C\n")
        os.write(2, b"from C, an error\n")
        warnings.warn("a warning", stacklevel=1)
        print("an error", file=sys.stderr)
    print("afterwards")
    assert capfd.readouterr() == ("afterwards\n", "")
    for said in ("from Python", "from C", "from C, an error", "a warning", "an error"):
        assert said in caplog.text


def test_noise_is_logged_when_a_block_fails(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("paredown.export.test")
    with caplog.at_level(logging.INFO, logger.name), pytest.raises(ValueError), into_log(logger):
        print("the reason")
        raise ValueError
    assert "the reason" in caplog.text
    assert capfd.readouterr() == ("", "")


def test_weights_too_large_for_one_file_go_beside_it(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint, folder, _ = exported("distilbert", "retrieval", "onnx")
    monkeypatch.setattr(exporter, "SINGLE_FILE_BYTES", 0)
    task = get_task("retrieval")
    facts = exporter.export_onnx(checkpoint, task, tmp_path / "out", precision="fp32", threads=1)
    beside = tmp_path / "out" / "model.onnx.data"
    assert beside.stat().st_size > 10_000
    assert facts["bytes"] > beside.stat().st_size
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    moved, whole = load(tmp_path / "elsewhere", threads=1), load(folder, threads=1)
    assert np.array_equal(moved.signal(TEXTS), whole.signal(TEXTS))
