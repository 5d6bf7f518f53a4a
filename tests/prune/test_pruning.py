"""The whole cut: what it gives, what it refuses, and that it is the same each time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paredown.eval.checkpoints import save_model
from paredown.eval.errors import RecipeError
from paredown.eval.models import TextModel
from paredown.eval.tasks import get_task
from paredown.prune import ANATOMIES, prune_model
from paredown.prune import calibration as calibration_module
from paredown.prune.calibration import HELD_OUT, sample_rows
from paredown.prune.surgery import Cut, cut

Make = Callable[..., TextModel]
KINDS = ("bert", "roberta", "distilbert")
WORDS = ["how", "do", "I", "open", "a", "file", "sort", "list", "of", "keys", "bank", "account"]
TEXTS = [" ".join([WORDS[i % 12], WORDS[i // 12], *WORDS[i % 5 : i % 7]]) for i in range(60)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["retrieval", "classification"])
@pytest.mark.parametrize("compensate", [True, False])
def test_a_cut_on_all_axes_is_a_stock_checkpoint(
    kind: str, task: str, compensate: bool, tiny_model: Make, tmp_path: Path
) -> None:
    model = tiny_model(kind, get_task(task))
    pruned = prune_model(
        model,
        TEXTS,
        layers=1,
        intermediate_size=24,
        vocabulary="task",
        vocabulary_texts=TEXTS[:10],
        compensate=compensate,
        precision="fp32",
    )
    save_model(pruned.model, tmp_path / "student")
    anatomy, config = ANATOMIES[kind], pruned.model.config
    after = {axis: anatomy.size(config, axis) for axis in anatomy.axes}
    assert after["layers"] == len(pruned.index_map["layers"]) == 1
    assert after["intermediate_size"] == len(pruned.index_map["channels"][0]) == 24
    assert after["vocabulary"] == len(pruned.index_map["vocabulary"])
    assert pruned.facts["shapes"] == {
        "before": {
            "layers": 2,
            "intermediate_size": 48,
            "hidden_size": 32,
            "vocabulary": model.config.vocab_size,
        },
        "after": after,
    }
    assert json.loads(json.dumps(pruned.facts)) == pruned.facts
    assert json.loads(json.dumps(pruned.index_map)) == pruned.index_map
    count = sum(p.numel() for p in pruned.model.parameters())
    assert pruned.facts["parameters"]["after"] == count


def from_held_out_rows(model: TextModel, student: TextModel) -> float:
    """How far a student's answers to the rows nothing is fitted on are from a model's."""
    _, held = sample_rows(model, TEXTS, None, None, 1024, 0)
    texts = [text for text in TEXTS if model.tokenize([text])[0] in held]
    expected, found = (one.predict(texts).astype(np.float64) for one in (model, student))
    if model.signal == "embedding":
        norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        return float((1 - (expected * found).sum(1) / norms).mean())
    p, q = (np.exp(one) / np.exp(one).sum(1, keepdims=True) for one in (expected, found))
    return float((p * np.log(p / q)).sum(1).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["retrieval", "classification"])
@pytest.mark.parametrize("sizes", [{"layers": 1}, {"intermediate_size": 24}, {"layers": [1]}])
def test_a_fit_is_never_worse_than_none(
    kind: str, task: str, sizes: dict[str, Any], tiny_model: Make
) -> None:
    model = tiny_model(kind, get_task(task))
    pruned = prune_model(model, TEXTS, **sizes)
    kept = {name: pruned.index_map.get(name) for name in ("layers", "channels")}
    plain, _ = cut(model, Cut(**kept))
    measured, as_cut = from_held_out_rows(model, pruned.model), from_held_out_rows(model, plain)
    assert measured <= as_cut + 1e-6
    found = pruned.facts["distance"]
    assert found["as_cut"] == pytest.approx(as_cut, abs=1e-5)
    if found["fit_used"]:
        assert found["fitted"] == pytest.approx(measured, abs=1e-5)
    else:
        assert measured == pytest.approx(as_cut, abs=1e-6)


def test_a_fit_helps(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    fitted = prune_model(model, TEXTS * 10, intermediate_size=24)
    plain = prune_model(model, TEXTS * 10, intermediate_size=24, compensate=False)
    assert fitted.facts["distance"]["fit_used"]
    assert fitted.facts["distance"]["fitted"] < 0.7 * plain.facts["distance"]["as_cut"]


def test_what_the_facts_say_is_what_the_cut_model_does(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    pruned = prune_model(model, TEXTS, layers=[0], intermediate_size=24, seed=3)
    _, held = sample_rows(model, TEXTS, None, None, 1024, 3)
    texts = [t for t in TEXTS if model.tokenize([t])[0] in held]
    expected, found = model.predict(texts), pruned.model.predict(texts)
    measured = float((1 - (expected * found).sum(1)).mean())
    assert pruned.facts["distance"]["fitted"] == pytest.approx(measured, abs=1e-5)


def test_the_original_is_not_changed(tiny_model: Make) -> None:
    model = tiny_model("roberta", get_task("retrieval"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config, vocab = model.config.to_dict(), model.tokenizer.get_vocab()
    prune_model(model, TEXTS, layers=1, intermediate_size=24, vocabulary="task")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.config.to_dict() == config and model.tokenizer.get_vocab() == vocab


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_input_gives_the_same_student(tiny_model: Make, precision: str) -> None:
    whole = tiny_model("bert", get_task("retrieval"))

    def student(seed: int = 1) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
        model = copy.deepcopy(whole)
        sizes: dict[str, Any] = {"layers": 1, "intermediate_size": 24, "vocabulary": "task"}
        found = prune_model(
            model, TEXTS, calibration_rows=20, seed=seed, precision=precision, **sizes
        )
        return found.model.state_dict(), found.index_map, found.facts

    weights, index_map, facts = student()
    torch.rand(7)
    again, same_map, same_facts = student()
    assert index_map == same_map and facts == same_facts
    assert all(torch.equal(v, again[k]) for k, v in weights.items())
    other, _, _ = student(seed=2)
    assert any(
        not torch.equal(v, other[k]) for k, v in weights.items() if v.shape == other[k].shape
    )


@pytest.mark.parametrize(
    ("asked", "round_to", "used"), [(20, None, 24), (19, None, 16), (3, None, 8), (19, 1, 19)]
)
def test_widths_are_rounded_and_it_is_said(
    asked: int, round_to: int | None, used: int, tiny_model: Make
) -> None:
    model = tiny_model("distilbert", get_task("retrieval"))
    pruned = prune_model(model, TEXTS, intermediate_size=asked, round_to=round_to)
    assert pruned.model.config.hidden_dim == used
    rounded = {"intermediate_size": {"asked": asked, "used": used, "multiple_of": 8}}
    assert pruned.facts.get("rounded") == (None if asked == used else rounded)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({}, "Nothing to cut"),
        ({"layers": 2}, r"asks for 2 layers and the model has 2"),
        ({"layers": 3}, r"asks for 3 layers and the model has 2"),
        ({"layers": 0}, r"asks for 0 layers"),
        ({"layers": -1}, r"asks for -1 layers"),
        ({"layers": [0, 1]}, "names all 2 layers"),
        ({"layers": [2]}, "layers 0 to 1"),
        ({"layers": [-1]}, "layers 0 to 1"),
        ({"layers": [1, 1]}, "each once"),
        ({"layers": []}, "layers 0 to 1"),
        ({"intermediate_size": 48}, r"asks for 48 channels and the model has 48"),
        ({"intermediate_size": 64}, r"asks for 64 channels"),
        ({"intermediate_size": 0}, r"asks for 0 channels"),
        ({"intermediate_size": 45}, "as a multiple of 8, is 48"),
        ({"intermediate_size": 24, "round_to": 0}, "round_to"),
    ],
)
def test_wrong_sizes_are_refused(sizes: dict[str, Any], said: str, tiny_model: Make) -> None:
    with pytest.raises(RecipeError, match=said):
        prune_model(tiny_model("bert", get_task("retrieval")), TEXTS, **sizes)


@pytest.mark.parametrize("texts", [[], ["one"], ["same"] * 5])
def test_calibration_on_one_text_is_refused(texts: list[str], tiny_model: Make) -> None:
    with pytest.raises(RecipeError, match="at least 2 different texts"):
        prune_model(tiny_model("bert", get_task("retrieval")), texts, layers=1)


def test_two_texts_are_enough(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("classification"))
    pruned = prune_model(model, ["a file", "b"], layers=1, intermediate_size=24)
    assert np.isfinite(pruned.model.predict(["a file"])).all()


def test_pairs_and_roles_reach_the_model(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("classification"))
    fit_rows, _ = sample_rows(model, TEXTS, TEXTS[::-1], None, 40, 0)
    assert any(1 in row["token_type_ids"] for row in fit_rows)
    model = tiny_model("bert", get_task("retrieval"))
    roles = ["query" if i % 2 else "document" for i in range(len(TEXTS))]
    rows = {
        json.dumps(r["input_ids"])
        for part in sample_rows(model, TEXTS, None, roles, 60, 0)
        for r in part
    }
    for text, role in zip(TEXTS, roles, strict=True):
        assert json.dumps(model.tokenize([text], None, role)[0]["input_ids"]) in rows


class Counted(Sequence[str]):
    """Texts on disk, as it were: says how many were read."""

    def __init__(self, size: int) -> None:
        self.size, self.read = size, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: Any) -> Any:
        self.read += 1
        return f"{WORDS[i % 12]} {WORDS[i // 12 % 12]} {WORDS[i // 144 % 12]}"


def test_only_the_drawn_texts_are_read(tiny_model: Make) -> None:
    texts = Counted(100_000)
    model = tiny_model("bert", get_task("retrieval"))
    rows, held = sample_rows(model, texts, None, None, 50, 0)
    assert texts.read <= 50 + HELD_OUT
    assert len(rows) <= 50 and 0 < len(held) <= HELD_OUT


def test_tokens_are_bounded(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_module, "MAX_TOKENS", 100)
    model = tiny_model("bert", get_task("retrieval"))
    rows, _ = sample_rows(model, TEXTS, None, None, 50, 0)
    assert 0 < sum(len(row["input_ids"]) for row in rows) <= 100
    facts = prune_model(model, TEXTS, layers=1, calibration_rows=40).facts["calibration"]
    assert facts["tokens"] <= 100
    assert facts["rows"] + facts["dropped_rows"] == 40
    monkeypatch.setattr(calibration_module, "MAX_TOKENS", 131_072)
    facts = prune_model(model, TEXTS, layers=1, calibration_rows=40).facts["calibration"]
    assert facts["rows"] == 40 and facts["dropped_rows"] == 0


def test_held_out_rows_are_not_fitted_on(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    rows, held = sample_rows(model, TEXTS * 2, None, None, 1024, 0)
    assert len(rows) + len(held) == len(TEXTS)
    assert not [row for row in held if row in rows]
