"""Every criterion against its formula, written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from paredown.eval.encoding import Encoding
from paredown.eval.errors import RecipeError
from paredown.eval.models import TextModel
from paredown.eval.tasks import get_task
from paredown.prune.calibration import batches_of, distance, signals
from paredown.prune.criteria import CRITERIA, Criterion, axis_importance, register_criterion

from .tiny_models import HEADS, HIDDEN, LAYERS, WIDTH, make

Make = Callable[..., TextModel]
TEXTS = [f"{a} {b} file" for a in ("open", "sort", "how do I") for b in ("a", "the bank")]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Make) -> PreTrainedTokenizerFast:
    found: PreTrainedTokenizerFast = tiny_model("roberta", get_task("retrieval")).tokenizer
    return found


def subject(kind: str, tokenizer: PreTrainedTokenizerFast) -> tuple[TextModel, list[Any]]:
    backbone = make(kind, "AutoModelForSequenceClassification", vocab_size=len(tokenizer),
                    pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    model = TextModel(backbone, tokenizer, "class_logits", Encoding(24)).eval()
    return model, batches_of(model, model.tokenize(TEXTS))


def cross_entropy(model: TextModel, batch: dict[str, Tensor]) -> Tensor:
    logits = model(**batch).values
    return nn.functional.cross_entropy(logits, logits.detach().argmax(-1) * 0)


def read_by(model: TextModel, batches: list[Any], path: str) -> list[Tensor]:
    """What goes into a module of each layer, over all tokens."""
    found: list[list[Tensor]] = [[] for _ in range(LAYERS)]
    layers = model.backbone.base_model.get_submodule(
        "encoder.layer" if hasattr(model.backbone.base_model, "encoder") else "layers"
    )
    for batch in batches:
        mask = batch["attention_mask"].bool()
        handles = [
            layer.get_submodule(path).register_forward_pre_hook(
                lambda m, a, i=i, mask=mask: found[i].append(a[0][mask])
            )
            for i, layer in enumerate(layers)
        ]
        with torch.no_grad():
            model(**batch)
        for handle in handles:
            handle.remove()
    return [torch.cat(parts) for parts in found]


def test_magnitude(tokenizer: PreTrainedTokenizerFast) -> None:
    model, batches = subject("bert", tokenizer)
    found = axis_importance(model, "intermediate_size", batches, "magnitude")
    for layer, scores in zip(model.backbone.bert.encoder.layer, found, strict=True):
        into, out = layer.intermediate.dense, layer.output.dense
        expected = (into.weight**2).sum(1) + into.bias**2 + (out.weight**2).sum(0)
        assert np.allclose(scores, expected.sqrt().detach().numpy(), rtol=1e-5)
    (layers,) = axis_importance(model, "layers", batches, "magnitude")
    first = sum(
        float((p.detach() ** 2).sum()) for p in model.backbone.bert.encoder.layer[0].parameters()
    )
    assert layers[0] == pytest.approx(first**0.5, rel=1e-5)


def test_magnitude_of_gated_channels_and_groups(tokenizer: PreTrainedTokenizerFast) -> None:
    model, batches = subject("modernbert", tokenizer)
    found = axis_importance(model, "intermediate_size", batches, "magnitude")
    for layer, scores in zip(model.backbone.model.layers, found, strict=True):
        up = (layer.mlp.Wi.weight**2).sum(1)
        expected = up[:WIDTH] + up[WIDTH:] + (layer.mlp.Wo.weight**2).sum(0)
        assert np.allclose(scores, expected.sqrt().detach().numpy(), rtol=1e-5)
    model, batches = subject("llama", tokenizer)
    found = axis_importance(model, "kv_heads", batches, "magnitude")
    attention = model.backbone.model.layers[0].self_attn
    both = (attention.k_proj.weight**2).sum(1) + (attention.v_proj.weight**2).sum(1)
    expected = both.reshape(2, -1).sum(1).sqrt()
    assert np.allclose(found[0], expected.detach().numpy(), rtol=1e-5)


def test_activation_and_wanda(tokenizer: PreTrainedTokenizerFast) -> None:
    model, batches = subject("bert", tokenizer)
    layers = model.backbone.bert.encoder.layer
    reads = read_by(model, batches, "output.dense")
    mean = axis_importance(model, "intermediate_size", batches, "activation")
    wanda = axis_importance(model, "intermediate_size", batches, "wanda")
    for layer, read, first, second in zip(layers, reads, mean, wanda, strict=True):
        assert np.allclose(first, read.abs().mean(0).numpy(), rtol=1e-4)
        weight = layer.output.dense.weight.abs().sum(0).detach()
        expected = weight * read.pow(2).mean(0).sqrt()  # ‖x‖ over √tokens, the same for all
        assert np.allclose(second, expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize(("axis", "count"), [("attention_heads", HEADS), ("kv_heads", 2)])
def test_heads_sum_their_channels(
    axis: str, count: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, batches = subject("qwen3", tokenizer)
    reads = read_by(model, batches, "self_attn.o_proj")
    found = axis_importance(model, axis, batches, "activation")
    for read, scores in zip(reads, found, strict=True):
        expected = read.abs().mean(0).reshape(count, -1).sum(1)
        assert np.allclose(scores, expected.numpy(), rtol=1e-4)


def test_taylor(tokenizer: PreTrainedTokenizerFast) -> None:
    model, batches = subject("bert", tokenizer)
    before = [p.requires_grad for p in model.parameters()]
    found = axis_importance(model, "intermediate_size", batches, "taylor", loss=cross_entropy)
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())
    expected = np.zeros(WIDTH)
    layer = model.backbone.bert.encoder.layer[1]
    into, out = layer.intermediate.dense, layer.output.dense
    model.requires_grad_(True)
    for batch in batches:
        model.zero_grad()
        cross_entropy(model, batch).backward()
        each = (into.weight * into.weight.grad).sum(1) + into.bias * into.bias.grad
        each = each + (out.weight * out.weight.grad).sum(0)
        expected += each.abs().detach().numpy() / len(batches)
    assert np.allclose(found[1], expected, rtol=1e-3, atol=1e-7)


def test_taylor_guesses_a_small_change(tokenizer: PreTrainedTokenizerFast) -> None:
    """Shrinking one head's output projection by a thousandth changes the loss as foretold."""
    model, batches = subject("qwen3", tokenizer)
    (layers,) = axis_importance(model, "layers", batches[:1], "taylor", loss=cross_entropy)
    batch = batches[0]
    with torch.no_grad():
        whole = float(cross_entropy(model, batch).double())
        for parameter in model.backbone.model.layers[1].parameters():
            parameter.mul_(1 - 1e-3)
        changed = float(cross_entropy(model, batch).double())
    assert abs(changed - whole) == pytest.approx(1e-3 * layers[1], rel=0.1)


def test_block_influence(tokenizer: PreTrainedTokenizerFast) -> None:
    model, batches = subject("bert", tokenizer)
    (found,) = axis_importance(model, "layers", batches, "block_influence")
    reads = read_by(model, batches, "attention.self.query")
    near = nn.functional.cosine_similarity(reads[0], reads[1], dim=-1).mean()
    assert found[0] == pytest.approx(float(1 - near), rel=1e-4)
    assert found.shape == (LAYERS,)


def test_ablation(tokenizer: PreTrainedTokenizerFast) -> None:
    model, batches = subject("bert", tokenizer)
    reference = signals(model, batches, "fp32")
    found = axis_importance(model, "intermediate_size", batches, "ablation")
    out = model.backbone.bert.encoder.layer[2].output.dense
    weight = out.weight.detach().clone()
    with torch.no_grad():
        out.weight[:, 7] = 0
        expected = distance("class_logits", reference, signals(model, batches, "fp32"))
        out.weight.copy_(weight)
    assert found[2][7] == pytest.approx(expected, rel=1e-3)
    (own,) = axis_importance(model, "layers", batches, "ablation", loss=cross_entropy)
    assert own.shape == (LAYERS,) and np.isfinite(own).all()


@pytest.mark.parametrize("name", ["activation", "magnitude", "taylor"])
def test_experts(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model, batches = subject("qwen3_moe", tokenizer)
    loss = cross_entropy if name == "taylor" else None
    found = axis_importance(model, "experts", batches, name, loss=loss)
    assert [len(one) for one in found] == [6, 0, 6]
    if name == "activation":
        assert found[0].sum() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("name", ["activation", "wanda", "magnitude", "taylor"])
def test_hidden_channels(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model, batches = subject("llama", tokenizer)
    (found,) = axis_importance(model, "hidden_size", batches, name, loss=cross_entropy)
    assert found.shape == (HIDDEN,) and (found > 0).all()


@pytest.mark.parametrize(
    ("axis", "name", "said"),
    [
        ("layers", "activation", r"does not score layers; magnitude, taylor, block_influence"),
        ("layers", "block_influense", "Did you mean 'block_influence'"),
        ("hidden_size", "ablation", "does not score hidden_size"),
        ("layers", "taylor", "asks a loss"),
        ("experts", "magnitude", "cannot be cut along 'experts'"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    axis: str, name: str, said: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, batches = subject("bert", tokenizer)
    with pytest.raises(RecipeError, match=said):
        axis_importance(model, axis, batches, name)


def test_a_new_criterion_is_one_entry(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paredown.prune.criteria.CRITERIA", dict(CRITERIA))
    model, batches = subject("bert", tokenizer)
    register_criterion(Criterion("last", lambda s: [np.arange(float(s.count()))], ("layers",)))
    assert axis_importance(model, "layers", batches, "last")[0].tolist() == [0, 1, 2]
    with pytest.raises(RecipeError, match="exists already"):
        register_criterion(Criterion("last", lambda s: [], ("layers",)))
