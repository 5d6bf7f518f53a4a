"""Fewer heads, hidden channels and experts: what is chosen, and that the fit helps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from paredown.eval.checkpoints import save_model
from paredown.eval.encoding import Encoding
from paredown.eval.errors import RecipeError
from paredown.eval.models import TextModel
from paredown.eval.tasks import get_task
from paredown.prune import (
    CRITERIA,
    Criterion,
    axis_importance,
    calibration,
    compensation,
    prune_model,
    register_criterion,
)
from paredown.prune.anatomy import anatomy_of
from paredown.prune.calibration import LayerRunner, batches_of, sample_rows, signals
from paredown.prune.choices import States, choose_heads
from paredown.prune.importance import choose_by_score
from paredown.prune.least_squares import Moments
from paredown.prune.rotation import Turn, can_rotate, principal_basis
from paredown.prune.surgery import Cut, cut

from .tiny_models import HIDDEN, make

Make = Callable[..., TextModel]
WORDS = ["how", "do", "I", "open", "a", "file", "sort", "list", "of", "keys", "bank", "account"]
TEXTS = [" ".join([WORDS[i % 12], WORDS[i // 12], *WORDS[i % 5 : i % 7]]) for i in range(120)]
NARROW: dict[str, dict[str, int]] = {
    "bert": {"hidden_size": 16},
    "roberta": {"hidden_size": 16},
    "distilbert": {"hidden_size": 16},
    "modernbert": {"hidden_size": 16},
    "gpt2": {"hidden_size": 16},
    "llama": {"hidden_size": 16, "attention_heads": 2},
    "mistral": {"hidden_size": 24, "kv_heads": 1},
    "qwen2": {"hidden_size": 16},
    "qwen3": {"attention_heads": 2},
    "gemma3_text": {"hidden_size": 16, "kv_heads": 1},
    "qwen3_moe": {"hidden_size": 24, "experts": 4},
    "mixtral": {"hidden_size": 24, "experts": 4},
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Make) -> PreTrainedTokenizerFast:
    """Word pieces, below id 60."""
    found: PreTrainedTokenizerFast = tiny_model("roberta", get_task("retrieval")).tokenizer
    return found


def text_model(kind: str, tokenizer: PreTrainedTokenizerFast, task: str = "retrieval") -> TextModel:
    """A tiny model of any architecture that answers texts."""
    names = {"retrieval": "AutoModel", "classification": "AutoModelForSequenceClassification"}
    changes: dict[str, Any] = {"num_labels": 3, "pad_token_id": tokenizer.pad_token_id}
    backbone = make(kind, names[task], vocab_size=len(tokenizer), **changes)
    encoding = Encoding(24, "mean", True, {}) if task == "retrieval" else Encoding(24)
    return TextModel(backbone, tokenizer, get_task(task).signal, encoding).eval()


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_a_fit_brings_what_remains_nearer(
    kind: str, task: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Any
) -> None:
    model = text_model(kind, tokenizer, task)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = prune_model(model, TEXTS, **NARROW[kind])  # type: ignore[arg-type]
    plain = prune_model(model, TEXTS, compensate=False, **NARROW[kind])  # type: ignore[arg-type]
    found = pruned.facts["distance"]
    assert found["as_cut"] == pytest.approx(plain.facts["distance"]["as_cut"], rel=1e-4)
    _, held = sample_rows(model, TEXTS, None, None, 1024, 0)
    rows = batches_of(model, held)
    whole, *others = (signals(m, rows, "fp32") for m in (model, pruned.model, plain.model))
    given, as_cut = (calibration.distance(model.signal, whole, other) for other in others)
    assert as_cut == pytest.approx(found["as_cut"], rel=1e-3, abs=1e-6)
    assert given == pytest.approx(min(found["as_cut"], found["fitted"]), rel=1e-3, abs=1e-6)
    if "experts" in NARROW[kind]:  # a router that asks others is no matter of least squares
        assert given <= as_cut * (1 + 1e-6)
    else:
        assert found["fitted"] < 0.95 * found["as_cut"]
    after = pruned.facts["shapes"]["after"]
    assert {axis: after[axis] for axis in NARROW[kind]} == NARROW[kind]
    assert pruned.model.width == model.width
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    save_model(pruned.model, tmp_path / "small")


@pytest.mark.parametrize("sizes", [{"layers": [0, 2]}, {"experts": 4}, {"layers": 2, "experts": 4}])
def test_layers_and_experts_of_a_mixture_are_not_fitted_and_it_is_said(
    sizes: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = text_model("qwen3_moe", tokenizer)
    pruned = prune_model(model, TEXTS, **sizes)
    plain = prune_model(model, TEXTS, compensate=False, **sizes)
    for one in (pruned, plain):
        assert one.facts["distance"]["fit_used"] is False and "fitted" not in one.facts["distance"]
    weights = plain.model.state_dict()
    assert all(torch.equal(value, weights[n]) for n, value in pruned.model.state_dict().items())


def test_all_axes_at_once(tokenizer: PreTrainedTokenizerFast, tmp_path: Any) -> None:
    model = text_model("llama", tokenizer)
    sizes = {"layers": 2, "intermediate_size": 24, "hidden_size": 16, "kv_heads": 1}
    pruned = prune_model(model, TEXTS, vocabulary="task", **sizes)  # type: ignore[arg-type]
    kept = pruned.index_map
    assert [len(kept[name]) for name in ("layers", "channels", "kv_heads")] == [2, 2, 2]
    assert kept["hidden"] == list(range(16))  # of the principal directions
    assert pruned.facts["parameters"]["after"] < 0.5 * pruned.facts["parameters"]["before"]
    save_model(pruned.model, tmp_path / "small")


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2"])
def test_the_hidden_size_is_cut_with_layers_and_channels(
    kind: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Any
) -> None:
    model = text_model(kind, tokenizer)
    sizes = {"layers": [0, 2], "intermediate_size": 24, "hidden_size": 16}
    pruned = prune_model(model, TEXTS, **sizes)  # type: ignore[arg-type]
    found = pruned.facts["distance"]
    assert found["fitted"] < found["as_cut"]
    assert [len(kept) for kept in pruned.index_map["heads"]] == [2, 2]
    save_model(pruned.model, tmp_path / "small")


@pytest.mark.parametrize("sizes", [{"hidden_size": 16}, {"kv_heads": 1}, {"attention_heads": 2}])
def test_many_channels_are_chosen_by_contribution_and_cut_at_once(
    sizes: dict[str, int],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    monkeypatch.setattr(compensation, "LARGE", 8)
    model = text_model("llama", tokenizer)
    texts = TEXTS[:6]
    pruned = prune_model(model, texts, intermediate_size=24, **sizes)  # type: ignore[arg-type]
    rows, _ = sample_rows(model, texts, None, None, 1024, 0)
    runner = LayerRunner(model, anatomy_of(model.config), batches_of(model, rows), "fp32")
    assert compensation.too_many(40, runner.tokens)
    for number, kept in enumerate(pruned.index_map["channels"]):
        down = model.backbone.layers[number].mlp.down_proj
        seen: list[torch.Tensor] = []
        handle = down.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        for batch in runner.batches:
            model(**batch)
        handle.remove()
        masks = [batch["attention_mask"].bool() for batch in runner.batches]
        read = torch.cat([one[mask] for one, mask in zip(seen, masks, strict=True)])
        scores = read.square().mean(0) * down.weight.square().sum(0)
        assert kept == choose_by_score(scores.detach().double().numpy(), 24)
    assert pruned.model.config.intermediate_size == 24
    save_model(pruned.model, tmp_path / "small")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_is_computed_again_is_what_is_kept(
    kind: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = text_model(kind, tokenizer)
    kept = prune_model(model, TEXTS, hidden_size=16).model.predict(TEXTS)
    monkeypatch.setattr(calibration, "KEPT", 0)
    again = prune_model(model, TEXTS, hidden_size=16).model.predict(TEXTS)
    assert np.abs(again - kept).max() < 1e-4


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_layers_run_one_by_one_give_the_models_signal(
    kind: str, task: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = text_model(kind, tokenizer, task)
    batches = batches_of(model, model.tokenize(TEXTS[:20]))
    runner = LayerRunner(model, anatomy_of(model.config), batches, "fp32")
    found = []
    for batch, states in enumerate(runner.inputs):
        for number, layer in enumerate(runner.layers):
            states = runner.run(layer, number, batch, states)
        found.append(runner.finish(batch, states))
    assert torch.allclose(torch.cat(found), signals(model, batches, "fp32"), atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral"])
@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_a_turned_model_answers_as_before(
    kind: str, task: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = text_model(kind, tokenizer, task)
    anatomy = anatomy_of(model.config)
    expected = model.predict(TEXTS)
    basis, _ = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, dtype=torch.float64))
    assert can_rotate(model, anatomy)
    turned, _ = cut(model, Cut(hidden=range(HIDDEN)), turn=Turn(model, anatomy, basis))
    embeddings = turned.backbone.get_input_embeddings().weight
    assert not torch.allclose(embeddings, model.backbone.get_input_embeddings().weight, atol=0.1)
    assert np.abs(turned.predict(TEXTS) - expected).max() < 1e-4


@pytest.mark.parametrize("kind", ["bert", "gpt2", "gemma3_text", "modernbert"])
def test_what_cannot_be_turned_is_not(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = text_model(kind, tokenizer)
    assert not can_rotate(model, anatomy_of(model.config))


def test_a_tied_head_is_not_turned() -> None:
    def model(tied: bool) -> Any:
        backbone = make("llama", "AutoModelForCausalLM", tie_word_embeddings=tied)
        return type("Model", (), {"backbone": backbone, "config": backbone.config})()

    assert can_rotate(model(False), anatomy_of(model(False).config))
    assert not can_rotate(model(True), anatomy_of(model(True).config))


def test_principal_directions_hold_most_of_the_states() -> None:
    states = torch.randn(500, 6, dtype=torch.float64) @ torch.randn(6, 12, dtype=torch.float64)
    basis = principal_basis(states.T @ states / 500)
    assert torch.allclose(basis.T @ basis, torch.eye(12, dtype=torch.float64), atol=1e-10)
    turned = states @ basis
    assert turned[:, 6:].abs().max() < 1e-6
    assert (turned.pow(2).mean(0).diff() <= 1e-9).all()


def test_heads_are_chosen_as_by_trying_all() -> None:
    """Two of four heads, against least squares on every pair."""
    draw = torch.Generator().manual_seed(0)
    read = torch.randn(400, 8, generator=draw) @ torch.randn(8, 8, generator=draw)
    wrote = read @ torch.randn(8, 5, generator=draw)
    moments = Moments(8, 5)
    moments.add(read, wrote, torch.ones(400))
    found = choose_heads(moments, 2, [range(4)], [2])

    def error(kept: tuple[int, ...]) -> float:
        some = read[:, [h * 2 + i for h in kept for i in range(2)]].double()
        some = torch.cat([some, torch.ones(400, 1).double()], 1)
        left = wrote.double() - some @ torch.linalg.lstsq(some, wrote.double()).solution
        return float((left**2).sum())

    errors = sorted((error(kept), kept) for kept in itertools.combinations(range(4), 2))
    assert tuple(found) in [kept for _, kept in errors[:2]]


def test_of_each_group_as_many_heads_stay() -> None:
    moments = Moments(8, 5)
    moments.add(torch.randn(50, 8), torch.randn(50, 5), torch.ones(50))
    found = choose_heads(moments, 2, [range(2), range(2, 4)], [1, 1])
    assert len(found) == 2 and found[0] < 2 <= found[1]


def test_experts_that_are_asked_most_stay(tokenizer: PreTrainedTokenizerFast) -> None:
    model = text_model("mixtral", tokenizer)
    anatomy = anatomy_of(model.config)
    layers = list(anatomy.layers_of(model.backbone))
    rows = model.tokenize(TEXTS[:30])
    states = States(LayerRunner(model, anatomy, batches_of(model, rows), "fp32"), layers, anatomy)
    assert all(share is not None and share.sum() == pytest.approx(1.0) for share in states.experts)
    pruned = prune_model(model, TEXTS[:30], experts=3)
    assert [len(kept) for kept in pruned.index_map["experts"]] == [3, 3, 3]


@pytest.mark.parametrize(
    ("kind", "sizes", "said"),
    [
        ("bert", {"attention_heads": 2}, r"bert cannot be cut along 'attention_heads': its heads"),
        ("bert", {"experts": 2}, "cannot be cut along 'experts'"),
        ("bert", {"hidden_size": 32}, "asks for 32 hidden channels and the model has 32"),
        ("qwen3", {"attention_heads": 3}, "multiple of 2"),
        ("qwen3", {"kv_heads": 2}, "asks for 2 key and value heads"),
        ("mixtral", {"experts": 1}, "2 answer each token"),
        ("mixtral", {"intermediate_size": 16}, "cannot be cut along 'intermediate_size'"),
    ],
)
def test_wrong_sizes_are_refused(
    kind: str, sizes: dict[str, int], said: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RecipeError, match=said):
        prune_model(text_model(kind, tokenizer), TEXTS, **sizes)  # type: ignore[arg-type]


def test_heads_are_rounded_with_the_hidden_size(tokenizer: PreTrainedTokenizerFast) -> None:
    pruned = prune_model(text_model("bert", tokenizer), TEXTS, hidden_size=21)
    assert pruned.model.config.hidden_size == 24
    assert pruned.model.config.num_attention_heads == 3
    assert pruned.facts["rounded"]["hidden_size"] == {"asked": 21, "used": 24, "multiple_of": 8}


@pytest.mark.parametrize("name", ["magnitude", "activation", "wanda", "taylor"])
@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_a_criterion_chooses_what_is_kept(
    name: str, kind: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = text_model(kind, tokenizer)
    anatomy = anatomy_of(model.config)

    def loss(model: TextModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).values[:, :4].sum()

    sizes = {"intermediate_size": 16, "hidden_size": 16}
    sizes |= {"kv_heads": 1} if kind == "qwen3" else {}
    pruned = prune_model(model, TEXTS, importance=name, loss=loss, **sizes)  # type: ignore[arg-type]
    rows, _ = sample_rows(model, TEXTS, None, None, 1024, 0)
    batches = batches_of(model, rows)
    said = axis_importance(model, "intermediate_size", batches, name, loss=loss)
    best = [choose_by_score(one, 16) for one in said]
    assert pruned.index_map["channels"] == best
    (hidden,) = axis_importance(model, "hidden_size", batches, name, loss=loss)
    assert pruned.index_map["hidden"] == choose_by_score(hidden, 16)
    assert anatomy.size(pruned.model.config, "hidden_size") == 16


@pytest.mark.parametrize("name", [None, "magnitude", "block_influence"])
def test_a_first_layer_that_must_stay_is_chosen(
    name: str | None, tokenizer: PreTrainedTokenizerFast
) -> None:
    for layers in (1, 2):
        pruned = prune_model(
            text_model("modernbert", tokenizer), TEXTS, layers=layers, importance=name
        )
        assert pruned.index_map["layers"][0] == 0
        assert len(pruned.index_map["layers"]) == layers


def test_heads_are_chosen_by_the_fit_where_a_criterion_cannot(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paredown.prune.criteria.CRITERIA", dict(CRITERIA))
    monkeypatch.setattr("paredown.prune.fitting.CRITERIA", dict(CRITERIA))
    entry = Criterion("last", lambda s: [np.arange(float(s.count()))], ("hidden_size",))
    register_criterion(entry)
    pruned = prune_model(text_model("bert", tokenizer), TEXTS, hidden_size=16, importance="last")
    assert pruned.index_map["hidden"] == list(range(16, 32))
    assert [len(kept) for kept in pruned.index_map["heads"]] == [2, 2, 2]
