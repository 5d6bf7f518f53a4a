"""A stock checkpoint is run with the methods of an export, and answers as the model it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import paredown
from paredown.eval.errors import RecipeError, RunError
from paredown.eval.models import load_model
from paredown.eval.tasks import get_task
from paredown.export.opening import load_checkpoint, open_folder, task_of
from paredown.export.runner import Runner, load

from .conftest import TEXTS, Exported


@pytest.mark.parametrize("task", ["classification", "retrieval"])
def test_a_checkpoint_answers_as_its_export(task: str, exported: Exported) -> None:
    checkpoint, folder, _ = exported("bert", task, "onnx")
    runner, export = open_folder(checkpoint), open_folder(folder, threads=1)
    assert runner.runtime == "pytorch" and isinstance(export, Runner)
    for key in ("task", "signal", "labels", "width", "role"):
        assert runner.settings[key] == export.settings[key]
    np.testing.assert_allclose(runner.signal(TEXTS), export.signal(TEXTS), atol=1e-4)
    found, expected = runner.predict(TEXTS), export.predict(TEXTS)
    assert [sorted(one) for one in found] == [sorted(one) for one in expected]
    if task == "classification":
        assert [one["label"] for one in found] == [one["label"] for one in expected]
        with pytest.raises(RunError, match="writes no texts"):
            runner.generate(TEXTS)


def test_the_class_of_a_checkpoint_says_its_task(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    assert task_of(tiny_checkpoint("bert", "classification", "a")).name == "classification"
    assert task_of(tiny_checkpoint("roberta", "retrieval", "b", dense=12)).name == "retrieval"
    for content in ("", "[]", '{"architectures": 3}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(RunError, match="cannot be read"):
            task_of(tmp_path)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from paredown.recipes.smoke import write_model

    folder = tmp_path_factory.mktemp("writer") / "model"
    write_model("llama", folder, layers=1, hidden=32)
    return folder


def test_a_language_model_writes(writer: Path) -> None:
    from paredown.eval.dialogues import Dialogues
    from paredown.eval.generating import generate

    model = load_model(writer, get_task("generation"))
    prompts = ["how do I open the card", "find the bank"]
    runner = load_checkpoint(writer, form="text", max_new_tokens=3)
    dialogues = Dialogues(model.tokenizer, "text", model.encoding.max_length)
    ids = [dialogues.prompt_ids(prompt) for prompt in prompts]
    expected = [answer.text for answer in generate(model, ids, max_new_tokens=3)]
    assert [answer.text for answer in runner.generate(prompts)] == expected
    found = runner.predict(prompts)
    assert [one["text"] for one in found] == expected and set(found[0]) == {"text", "finished"}


def test_a_chat_template_makes_a_text_the_users_turn(writer: Path) -> None:
    runner = load_checkpoint(writer, max_new_tokens=3)
    assert runner.settings["form"] == "messages"
    turns = json.dumps([{"role": "user", "content": "find the bank"}])
    first, second = runner.generate(["find the bank", turns])
    assert first.ids == second.ids


def test_a_folder_without_a_model_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="There is no folder"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="holds no model that can be run"):
        open_folder(tmp_path)


def test_a_package_that_is_missing_is_named(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, _ = exported("bert", "classification", "onnx")

    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    monkeypatch.setattr("paredown.export.opening.load", missing)
    with pytest.raises(RunError, match=r"needs 'onnxruntime'.*pip install 'paredown\[onnx\]'"):
        open_folder(folder)


def test_load_is_public() -> None:
    assert paredown.export.load is load
