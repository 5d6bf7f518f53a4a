"""Every cut of every architecture in the table: equal to the masked original, and stock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from paredown.eval.errors import RecipeError, RunError
from paredown.eval.models import TextModel
from paredown.eval.tasks import get_task
from paredown.prune import prune_model
from paredown.prune.anatomy import AXES, anatomy_of
from paredown.prune.architectures import ANATOMIES
from paredown.prune.surgery import Cut, cut_backbone

from .tiny_models import (
    CONFIGS,
    EXPERTS,
    HEADS,
    HIDDEN,
    LAYERS,
    VOCABULARY,
    WIDTH,
    Masks,
    answer,
    heads_of,
    ids,
    make,
)

EVERY = [(kind, axis) for kind, entry in ANATOMIES.items() for axis in entry.axes]
KEPT_HIDDEN = sorted(
    torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(3))[:24].tolist()
)


def chosen(kind: str, axis: str, other: int = 0) -> Cut:
    """A cut along one axis that differs from layer to layer; ``other`` keeps other parts."""
    layers = LAYERS + 2 if kind == "t5" else LAYERS

    def some(size: int, count: int, layer: int) -> list[int]:
        draw = torch.Generator().manual_seed(100 * other + layer)
        return sorted(torch.randperm(size, generator=draw)[:count].tolist())

    if axis == "layers":
        return Cut(layers=[0, 1 + (other % 2)])
    if axis == "decoder_layers":
        return Cut(decoder_layers=[0])
    if axis == "intermediate_size":
        size = 4 * HIDDEN if kind == "gpt2" else WIDTH
        return Cut(channels=[some(size, 24, i) for i in range(layers)])
    if axis == "attention_heads":
        if kind == "t5":
            return Cut(heads=[[0, 2 + other]] * layers)
        groups = [[[0, 3], [1, 2], [0, 2]], [[1, 2], [0, 3], [1, 3]]][other % 2]
        return Cut(heads=groups)
    if axis == "kv_heads":
        return Cut(kv_heads=[[(i + other) % 2] for i in range(layers)])
    if axis == "hidden_size":
        kept = KEPT_HIDDEN if not other else some(HIDDEN, 24, 9)
        if anatomy_of(make(kind).config).attention.head_dim is None:
            return Cut(hidden=kept, heads=[some(HEADS, 3, i) for i in range(layers)])
        return Cut(hidden=kept)
    if axis == "experts":
        dense = CONFIGS[kind].get("mlp_only_layers", [])
        return Cut(experts=[[] if i in dense else some(EXPERTS, 4, i) for i in range(layers)])
    return Cut(vocabulary=[0, 1, 2, *(3 + i for i in some(VOCABULARY - 3, 37, 7))])


def masked(model: Any, what: Cut) -> Masks:
    """Takes out of the original what the cut takes out."""
    masks = Masks(model)
    for stack, kept in enumerate((what.layers, what.decoder_layers)):
        if kept is not None:
            masks.skip(stack, kept)
    if what.channels is not None:
        masks.channels(what.channels)
    if what.kv_heads is not None:
        masks.heads([[h for h in range(HEADS) if h // 2 in kv] for kv in what.kv_heads])
    if what.heads is not None:
        masks.heads(what.heads)
    if what.hidden is not None:
        masks.hidden(what.hidden)
    if what.experts is not None:
        masks.experts(what.experts)
    return masks


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def numbers(kind: str, head: str, s: dict[str, int]) -> int:
    """Parameters by hand. ``s``: layers, width, heads, kv, hidden, vocabulary, experts, decoder."""
    h, f, v, n = s["hidden"], s["width"], s["vocabulary"], s["layers"]
    positions = 40
    if kind in ("bert", "roberta", "xlm-roberta", "distilbert"):
        total = v * h + positions * h + (0 if kind == "distilbert" else 2 * h) + 2 * h
        total += n * (4 * (h * h + h) + 2 * h + (h * f + f) + (f * h + h) + 2 * h)
        square = h * h + h
        if head == "AutoModel":
            return total + (0 if kind == "distilbert" else square)
        if head == "AutoModelForSequenceClassification":
            return total + square + 2 * h + 2
        return total + square + 2 * h + v  # the decoder is the embedding
    if kind == "modernbert":
        total = v * h + h + n * (3 * h * h + h * h + h + 2 * f * h + f * h) + (n - 1) * h + h
        if head == "AutoModel":
            return total
        return total + h * h + h + (2 * h + 2 if "Sequence" in head else v)
    if kind == "gpt2":
        total = v * h + positions * h + 2 * h
        total += n * (4 * h + 3 * h * h + 3 * h + h * h + h + h * f + f + f * h + h)
        return total + (2 * h if "Sequence" in head else 0)
    if kind == "t5":
        attention = 4 * h * s["heads"] * 12
        ffn = 3 * h * f
        total = v * h + n * (attention + ffn + 2 * h) + h + 32 * s["heads"]
        total += s["decoder"] * (2 * attention + ffn + 3 * h) + h + 32 * s["heads"]
        return total
    d = 8 if kind == "qwen2" else 12
    attention = 2 * h * s["heads"] * d + 2 * h * s["kv"] * d
    attention += (s["heads"] + 2 * s["kv"]) * d if kind == "qwen2" else 0
    attention += 2 * d if kind in ("qwen3", "gemma3_text", "qwen3_moe") else 0
    norms = (4 if kind == "gemma3_text" else 2) * h
    ffn = [3 * h * f] * n
    if kind == "mixtral":
        ffn = [s["experts"] * (3 * h * f + h)] * n
    if kind == "qwen3_moe":
        sparse = s["experts"] * (3 * h * 20 + h)
        ffn = [3 * h * f if i == 1 else sparse for i in range(LAYERS)]
        ffn = ffn if n == LAYERS else [ffn[0], ffn[1]]
    total = v * h + n * (attention + norms) + sum(ffn) + h
    tied = kind == "gemma3_text"
    return total + (2 * h if "Sequence" in head else 0 if tied else v * h)


def sizes(kind: str, what: Cut) -> dict[str, int]:
    lists = what.heads or what.kv_heads
    heads = HEADS if lists is None else len(lists[0]) * (2 if what.heads is None else 1)
    kv = 2 if what.kv_heads is None else len(what.kv_heads[0])
    return {
        "layers": LAYERS if what.layers is None else len(what.layers),
        "decoder": 2 if what.decoder_layers is None else 1,
        "width": (4 * HIDDEN if kind == "gpt2" else WIDTH)
        if what.channels is None
        else len(what.channels[0]),
        "heads": heads,
        "kv": kv,
        "hidden": HIDDEN if what.hidden is None else len(what.hidden),
        "vocabulary": VOCABULARY if what.vocabulary is None else len(what.vocabulary),
        "experts": EXPERTS if what.experts is None else 4,
    }


@pytest.mark.parametrize(("kind", "axis"), EVERY)
def test_a_cut_equals_the_masked_original(kind: str, axis: str, tmp_path: Path) -> None:
    for head in heads_of(kind):
        model = make(kind, head)
        what = chosen(kind, axis)
        small = cut_backbone(model, what)
        kept = what.vocabulary
        tokens = ids(kept)
        new = tokens if kept is None else torch.searchsorted(torch.tensor(kept), tokens)
        found = answer(small, new)
        whole = answer(model, tokens)

        def read(logits: torch.Tensor, kept: Sequence[int] | None = kept, what: Cut = what) -> Any:
            if kept is not None and logits.shape[-1] == VOCABULARY:
                return logits[..., kept]
            if what.hidden is not None and logits.shape[-1] == HIDDEN:
                return logits[..., what.hidden]
            return logits

        masks = masked(model, what)
        assert difference(found, read(answer(model, tokens))) <= 1e-5
        masks.undo()
        assert difference(answer(model, tokens), whole) == 0
        if axis == "vocabulary":
            wrong = [*kept[:3], *(i - 1 if i - 1 not in kept else i for i in kept[3:])]
            control = torch.tensor(wrong)[torch.searchsorted(torch.tensor(kept), tokens)]
            assert difference(found, read(answer(model, control))) > 1e-2
        elif axis != "decoder_layers":
            masks = masked(model, chosen(kind, axis, other=1))
            assert difference(found, read(answer(model, tokens))) > 1e-2
            masks.undo()
        if axis in ("layers", "decoder_layers"):
            assert difference(found, whole) > 1e-2

        small.save_pretrained(tmp_path / head)
        again, info = getattr(transformers, head).from_pretrained(
            tmp_path / head, output_loading_info=True, attn_implementation="eager"
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert difference(answer(again.eval(), new), found) == 0
        count = sum(p.numel() for p in again.parameters())
        assert count == numbers(kind, head, sizes(kind, what)), head
        assert count < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ANATOMIES)
def test_an_axis_that_no_stock_checkpoint_holds_is_refused_by_name(kind: str) -> None:
    entry = ANATOMIES[kind]
    for axis in sorted(set(AXES) - set(entry.axes)):
        with pytest.raises(RecipeError, match=f"{kind} cannot be cut along '{axis}'") as caught:
            entry.field(axis)
        assert ", ".join(entry.axes) in str(caught.value)


@pytest.mark.parametrize("kind", [k for k, e in ANATOMIES.items() if e.attention.head_dim is None])
def test_heads_that_are_tied_to_the_hidden_size_are_not_cut_alone(kind: str) -> None:
    with pytest.raises(RecipeError, match=r"heads shrink with `hidden_size` only"):
        cut_backbone(make(kind), Cut(heads=[[0, 1]] * LAYERS))
    with pytest.raises(RunError, match="24 hidden channels go with 3 heads, and 4 are kept"):
        cut_backbone(make(kind), Cut(hidden=list(range(24))))


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_hidden_size_that_the_heads_do_not_divide_is_refused(kind: str) -> None:
    with pytest.raises(RunError, match="multiple of its heads; 30 and 4"):
        cut_backbone(make(kind), Cut(hidden=list(range(30))))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_a_hidden_size_that_grouped_products_refuse_is_refused(kind: str) -> None:
    with pytest.raises(RunError, match="multiple of 8"):
        cut_backbone(make(kind), Cut(hidden=list(range(12))))


def test_texts_do_not_choose_the_parts_of_a_t5(tiny_model: Any) -> None:
    base = tiny_model("roberta", get_task("retrieval"))
    model = TextModel(make("t5"), base.tokenizer, base.signal, base.encoding)
    with pytest.raises(RecipeError, match=r"t5 is an encoder and a decoder.*cut_backbone"):
        prune_model(model, ["a file", "a list"], layers=2)


@pytest.mark.parametrize("kind", ["modernbert", "t5"])
def test_a_first_layer_with_a_duty_stays(kind: str) -> None:
    with pytest.raises(RecipeError, match=r"first layer of a .* must stay"):
        cut_backbone(make(kind), Cut(layers=[1, 2]))


def test_a_t5_cannot_decode_deeper_than_it_encodes() -> None:
    with pytest.raises(RecipeError, match=r"more decoder layers \(2\) than encoder layers \(1\)"):
        cut_backbone(make("t5"), Cut(layers=[0]))


def test_the_heads_of_a_t5_are_the_same_in_all_layers() -> None:
    with pytest.raises(RunError, match="share position biases"):
        cut_backbone(make("t5"), Cut(heads=[[0, 1], [0, 1], [0, 2], [0, 1], [0, 1]]))


@pytest.mark.parametrize("heads", [[0, 1], [0, 1, 2]])
def test_unequal_groups_of_heads_are_refused(heads: list[int]) -> None:
    with pytest.raises(RunError, match="equally many query heads must stay"):
        cut_backbone(make("qwen3"), Cut(heads=[heads] * LAYERS))


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_heads_without_groups_take_their_keys_with_them(kind: str) -> None:
    model = make(kind, num_key_value_heads=HEADS)
    what = Cut(heads=[[0, 2, 3], [1, 2, 3], [0, 1, 2]])
    small = cut_backbone(model, what)
    assert small.config.num_key_value_heads == small.config.num_attention_heads == 3
    masks = masked(model, what)
    assert difference(answer(small), answer(model)) <= 1e-5
    masks.undo()


def test_fewer_experts_than_answer_a_token_are_refused() -> None:
    with pytest.raises(RunError, match="at least 2"):
        cut_backbone(make("mixtral"), Cut(experts=[[0]] * LAYERS))


@pytest.mark.parametrize("kind", ANATOMIES)
@pytest.mark.parametrize("tied", [True, False])
def test_everything_at_once(kind: str, tied: bool, tmp_path: Path) -> None:
    """Tied and untied: two cuts, one after the other, give what one cut gives."""
    head = [h for h in heads_of(kind) if "Sequence" not in h][-1]
    model = make(kind, head, tie_word_embeddings=tied)
    parts: dict[str, Any] = {}
    for axis in ANATOMIES[kind].axes:
        if axis not in ("layers", "decoder_layers", "kv_heads"):
            found = chosen(kind, axis)
            for name in found.index_map():
                parts.setdefault(name, getattr(found, name))
    what = Cut(**parts)
    small = cut_backbone(model, what)
    masks = masked(model, what)
    tokens = ids(what.vocabulary)
    new = torch.searchsorted(torch.tensor(what.vocabulary), tokens)
    whole = answer(model, tokens)
    masks.undo()
    whole = whole[..., what.vocabulary] if whole.shape[-1] == VOCABULARY else whole
    assert difference(answer(small, new), whole) <= 1e-4 * max(1.0, float(whole.abs().max()))
    both = cut_backbone(small, Cut(layers=[0, 2]))
    assert (
        difference(
            answer(both, new), answer(cut_backbone(model, Cut(**parts_of(parts, kind))), new)
        )
        == 0
    )
    both.save_pretrained(tmp_path)
    again = getattr(transformers, head).from_pretrained(tmp_path, attn_implementation="eager")
    assert difference(answer(again.eval(), new), answer(both, new)) == 0


def parts_of(parts: dict[str, Any], kind: str) -> dict[str, Any]:
    """The same with the layers 0 and 2 (of a T5: of its encoder) alone."""
    kept = [0, 2, 3, 4] if kind == "t5" else [0, 2]
    per_layer = ("channels", "heads", "experts")
    found = {n: [v[i] for i in kept] if n in per_layer else v for n, v in parts.items()}
    return found | {"layers": [0, 2]}
