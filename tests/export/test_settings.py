"""A folder may come from anywhere: what it says is checked, and told in one message."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paredown.eval.errors import RunError
from paredown.export import load
from paredown.export.settings import FILE, check_prepared, read_settings

from .conftest import LABELS, TEXTS, Exported

Change = Callable[..., Path]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**6) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def changed(exported: Exported, tmp_path: Path) -> Change:
    """Copies a classifier's ONNX folder with some of its settings changed; None drops one."""

    def change(**values: Any) -> Path:
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(exported("bert", "classification", "onnx")[1], folder)
        found = json.loads((folder / FILE).read_text(encoding="utf-8")) | values
        kept = {name: value for name, value in found.items() if value is not None}
        (folder / FILE).write_text(json.dumps(kept), encoding="utf-8")
        return folder

    return change


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 2}, r"was exported by a newer paredown \(settings version 2"),
        ({"version": None}, "has no version"),
        ({"version": True}, "has no version"),
        ({"format": None}, "has no 'format'"),
        ({"format": "onnxx"}, r"format 'onnxx', which is not known here\. Did you mean 'onnx'"),
        ({"format": "sentence-transformers"}, "which do not go together"),
        ({"signal": "smell"}, "has a signal 'smell' that is none of class_logits"),
        ({"width": "3"}, "has str where 'width' is int"),
        ({"width": 0}, "says width 0, and at least 1 is expected"),
        ({"width": 4}, "has not the 4 labels of its classes"),
        ({"width": 4, "labels": [*LABELS, "x"]}, "gives 3 numbers a row, and paredown.json says 4"),
        ({"labels": [1, 2, 3]}, "has not the 3 labels"),
        ({"inputs": ["input_ids"]}, "is another than paredown.json says: it takes input_ids"),
        ({"inputs": [["input_ids"]]}, r"has an input \['input_ids'\] that is none of input_ids"),
        ({"prompts": {"text": 3}}, "has a prompt that is no text"),
        ({"output": "embedding"}, "and gives logits; .* and embedding are expected"),
        ({"batch": 0}, "says batch 0"),
        ({"truncation_side": "middle"}, "cuts texts at their 'middle'"),
        ({"signal": "token_distribution"}, "has no 'layers'"),
    ],
)
def test_settings_that_cannot_be_are_told(
    values: dict[str, Any], message: str, changed: Change
) -> None:
    with pytest.raises(RunError, match=message):
        load(changed(**values), threads=1)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(["signal", "width", "inputs", "labels", "prompts", "pad_id", "x"]),
       value=JSON, whole=JSON)  # fmt: skip
def test_any_settings_are_read_or_refused(
    name: str, value: Any, whole: Any, exported: Exported, tmp_path: Path
) -> None:
    text = (exported("bert", "classification", "onnx")[1] / FILE).read_text(encoding="utf-8")
    for content in (json.loads(text) | {name: value}, whole):
        (tmp_path / FILE).write_text(json.dumps(content), encoding="utf-8")
        try:
            check_prepared(tmp_path, read_settings(tmp_path))
        except RunError as error:
            assert str(tmp_path) in str(error)


@pytest.mark.parametrize("name", [FILE, "tokenizer.json", "model.onnx"])
def test_a_file_that_is_absent_or_outside_is_told(
    name: str, changed: Change, tmp_path: Path
) -> None:
    folder = changed()
    (folder / name).rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=f"has no {name}"):
        load(folder)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=f"{name} of .* is a link to something outside the folder"):
        load(folder)


def test_no_folder_and_no_json_are_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no folder"):
        load(tmp_path / "nowhere")
    for text in ("[1]", "{", "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")):
        (tmp_path / FILE).write_text(text, encoding="utf-8")
        with pytest.raises(RunError, match=r"is no JSON object|is damaged"):
            load(tmp_path)


def test_a_missing_runtime_is_told_with_the_line_that_installs_it(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported("bert", "classification", "onnx")[1]
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    with pytest.raises(RunError, match=r"runs on onnxruntime: pip install 'paredown\[onnx\]'"):
        load(folder)


def test_a_classifier_writes_nothing_and_providers_are_onnx_runtimes(
    exported: Exported, changed: Change
) -> None:
    runner = load(exported("bert", "classification", "onnx")[1], threads=1)
    with pytest.raises(RunError, match=r"gives class_logits and writes no texts; use \.predict"):
        runner.generate(TEXTS)
    with pytest.raises(RunError, match="No provider 'Magic' here"):
        load(changed(), providers=["Magic"])
