"""The table of formats, and how what cannot be exported is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.eval.errors import RecipeError, RunError
from paredown.eval.models import load_model
from paredown.eval.tasks import get_task
from paredown.export import FORMATS, Format, export_model, get_format, register_format
from paredown.export import sentence_transformers as folder_export

from .conftest import TEXTS, Exported


def test_an_unknown_format_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'onnx-int4'.*Did you mean 'onnx-int8'"):
        get_format("onnx-int4", get_task("retrieval"))


def test_sentence_transformers_is_refused_for_classification(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"gives class_logits\. Choose among executorch, onnx, onnx-int8"
    ):
        export_model(
            tmp_path, get_task("classification"), "sentence-transformers", tmp_path, sample_texts=[]
        )


def test_a_missing_package_is_told_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(RecipeError, match=r"needs onnxscript: pip install 'paredown\[onnx\]'"):
        get_format("onnx", get_task("retrieval"))


def test_a_new_format_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(checkpoint: Path, task: Any, out: Path, **options: Any) -> dict[str, Any]:
        return {
            "bytes": 1,
            "seconds": 0.0,
            "max_difference": 0.0,
            "samples": options["sample_texts"],
        }

    monkeypatch.setattr("paredown.export.formats.FORMATS", dict(FORMATS))
    entry = register_format(Format("mine", write, ("embedding",)))
    facts = export_model(tmp_path, get_task("retrieval"), "mine", tmp_path, sample_texts=["a"])
    assert (facts["format"], facts["samples"]) == ("mine", ["a"])
    assert register_format(entry) is entry
    with pytest.raises(RecipeError, match="exists already"):
        register_format(Format("mine", write, ("class_logits",)))


@pytest.mark.parametrize("kind", ["bert", "roberta"])  # roberta: pooling cls and a Dense module
def test_sentence_transformers_folder_gives_the_same_embeddings(
    kind: str, exported: Exported
) -> None:
    checkpoint, folder, facts = exported(kind, "retrieval", "sentence-transformers")
    assert facts["max_difference"] <= 1e-5
    installed = importlib.util.find_spec("sentence_transformers") is not None
    assert facts["verified_with"] == ("sentence-transformers" if installed else "paredown")
    task = get_task("retrieval")
    found, expected = (load_model(path, task).predict(TEXTS) for path in (folder, checkpoint))
    assert np.array_equal(found, expected)


def test_a_sentence_transformers_folder_that_differs_is_refused(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint, _, _ = exported("bert", "retrieval", "sentence-transformers")
    monkeypatch.setattr(
        folder_export, "_encode", lambda folder, texts: np.zeros((len(texts), 32), np.float32)
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RunError, match="gives other embeddings"):
        folder_export.export_sentence_transformers(
            checkpoint, get_task("retrieval"), tmp_path / "o"
        )
