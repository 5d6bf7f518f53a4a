"""Pooling, normalisation, prompts and length survive a save, and hostile files are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from paredown.eval.checkpoints import find_checkpoint, packaged_copy, save_model
from paredown.eval.encoding import Encoding
from paredown.eval.errors import RunError
from paredown.eval.models import TextModel, load_model, pool
from paredown.eval.tasks import CLASSIFICATION, RETRIEVAL
from paredown.eval.timing import load_torch

Make = Callable[..., TextModel]
TEXTS = ["open the file", "a bank account, closed", "x"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("dense", [None, 12])
def test_an_embedding_survives_a_save(
    tiny_model: Make, tmp_path: Path, pooling: str, dense: int | None
) -> None:
    model = tiny_model("bert", RETRIEVAL, pooling=pooling, dense=dense)
    prompts = {"query": "q: ", "document": "d: ", "text": "t: "}
    model.encoding = Encoding(20, model.encoding.pooling, pooling != "cls", prompts)
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m", RETRIEVAL)
    assert again.encoding == model.encoding and again.width == (dense or 32)
    for role in prompts:
        assert np.array_equal(again.predict(TEXTS, None, role), model.predict(TEXTS, None, role))
        assert not np.allclose(again.predict(TEXTS, None, role), again.predict(TEXTS, None, "none"))


def test_pooling_does_not_see_padding(tiny_model: Make) -> None:
    model = tiny_model("bert", RETRIEVAL)
    alone = np.concatenate([model.predict([text]) for text in TEXTS])
    assert np.abs(model.predict(TEXTS) - alone).max() <= 1e-5
    states, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert torch.allclose(pool(states, mask, "mean")[0], states[0, :2].mean(0))
    assert torch.equal(pool(states, mask, "max")[1], states[1, 0])
    assert torch.equal(pool(states, mask, "cls"), states[:, 0])


def test_a_classifier_keeps_its_labels_and_length(tiny_model: Make, tmp_path: Path) -> None:
    model = tiny_model("distilbert", CLASSIFICATION)
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m", CLASSIFICATION)
    assert again.labels == model.labels and again.encoding.max_length == model.encoding.max_length
    modes = {path.stat().st_mode for path in (tmp_path / "m").rglob("*") if path.is_file()}
    assert len(modes) == 1  # weights that only their owner may read serve nobody


def test_a_model_is_timed_at_the_length_it_is_scored_at(tiny_model: Make, tmp_path: Path) -> None:
    save_model(tiny_model("bert", RETRIEVAL), tmp_path / "m")
    engine = load_torch(str(tmp_path / "m"), task="retrieval", model={"max_length": 4})
    assert engine.model.encoding.max_length == 4
    save_model(engine.model, tmp_path / "limited")  # what its export is made from
    assert load_model(tmp_path / "limited", RETRIEVAL).encoding.max_length == 4


def test_a_module_outside_the_folder_is_refused(tiny_model: Make, tmp_path: Path) -> None:
    save_model(tiny_model("bert", RETRIEVAL), tmp_path / "m")
    path = tmp_path / "m" / "modules.json"
    modules = json.loads(path.read_text())
    modules[1]["path"] = "../elsewhere"
    path.write_text(json.dumps(modules))
    with pytest.raises(RunError, match="outside the checkpoint folder"):
        load_model(tmp_path / "m", RETRIEVAL)


def test_weights_that_stock_loading_would_invent_are_refused(
    tiny_model: Make, tmp_path: Path
) -> None:
    save_model(tiny_model("bert", RETRIEVAL), tmp_path / "m")
    with pytest.raises(RunError, match="random weights would stand in"):
        load_model(tmp_path / "m", CLASSIFICATION)


def test_a_shape_that_loads_but_computes_otherwise_is_caught(
    tiny_model: Make, tmp_path: Path
) -> None:
    model = tiny_model("bert", RETRIEVAL)
    for layer in model.backbone.encoder.layer:  # four heads in memory, the config says two
        model.backbone.config.num_attention_heads = 2
        layer.attention.self.num_attention_heads = 4
    with pytest.raises(RunError, match="answers differently"):
        save_model(model, tmp_path / "m")


def test_a_packaged_copy_with_other_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "fake_minilm"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").write_bytes(b"not the hub's")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        "paredown.eval.checkpoints.PACKAGED", {"a/b": ("fake_minilm", "model", "00" * 32)}
    )
    with pytest.raises(RunError, match="not the hub's"):
        packaged_copy("a/b")


def test_a_name_that_is_nowhere_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"not on this machine .* path of a folder"):
        find_checkpoint("nobody/no-such-model")
