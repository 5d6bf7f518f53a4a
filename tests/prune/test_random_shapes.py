"""Random shapes of random architectures: cut, saved, reloaded, used, and cut again."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paredown.eval.errors import RecipeError
from paredown.prune.anatomy import anatomy_of
from paredown.prune.architectures import ANATOMIES
from paredown.prune.sizes import LARGE, checked_sizes
from paredown.prune.surgery import Cut, cut_backbone

from .tiny_models import CONFIGS, ENCODERS, VOCABULARY, make

HEADS_OF = {
    "encoder": ["AutoModelForSequenceClassification", "AutoModelForMaskedLM"],
    "decoder": ["AutoModelForSequenceClassification", "AutoModelForCausalLM"],
    "t5": ["AutoModelForSeq2SeqLM"],
}


@st.composite
def subsets(draw: st.DrawFn, size: int, count: int | None = None, first: bool = False) -> list[int]:
    """Rising numbers below ``size``: so many, or any number of them."""
    count = draw(st.integers(1, size)) if count is None else count
    chosen = draw(st.permutations(range(size)))[:count]
    return sorted({0, *chosen[: count - 1]} if first and 0 not in chosen else set(chosen))


@st.composite
def cuts(draw: st.DrawFn, kind: str, config: Any) -> Cut:
    """A cut along some of an architecture's axes."""
    anatomy = ANATOMIES[kind]
    axes = set(draw(st.lists(st.sampled_from(sorted(anatomy.axes)), min_size=1, unique=True)))
    parts: dict[str, Any] = {}
    sizes = {s.axis: anatomy.size(config, s.axis) for s in anatomy.stacks}
    for axis in ("layers", "decoder_layers"):
        if axis in axes:
            parts[axis] = draw(subsets(sizes[axis], first=anatomy.first_layer is not None))
            sizes[axis] = len(parts[axis])
    if sizes.get("decoder_layers", 0) > sizes["layers"]:  # refused; see test_architectures
        parts["decoder_layers"] = list(range(sizes["layers"]))
        sizes["decoder_layers"] = sizes["layers"]
    layers = sum(sizes.values())

    def each(size: int, count: int) -> list[list[int]]:
        return [draw(subsets(size, count)) for _ in range(layers)]

    if "intermediate_size" in axes:
        width = anatomy.size(config, "intermediate_size")
        parts["channels"] = each(width, draw(st.integers(1, width)))
    heads, groups = anatomy.heads(config), anatomy.kv_heads(config)
    if "kv_heads" in axes and groups < heads:
        groups = draw(st.integers(1, groups))
        parts["kv_heads"] = each(anatomy.kv_heads(config), groups)
        heads = heads // anatomy.kv_heads(config) * groups
    elif "attention_heads" in axes:
        if anatomy.attention.alike or groups == heads:
            count = draw(st.integers(1, heads))
            one = draw(subsets(heads, count))
            parts["heads"] = [one] * layers if anatomy.attention.alike else each(heads, count)
            heads = count
        else:
            share = heads // groups
            stay = draw(st.integers(1, share))
            parts["heads"] = [
                sorted(g * share + i for g in range(groups) for i in draw(subsets(share, stay)))
                for _ in range(layers)
            ]
            heads = groups * stay
    hidden = anatomy.size(config, "hidden_size")
    if "hidden_size" in axes:
        if anatomy.attention.head_dim is None:
            count = draw(st.integers(1, heads))
            parts["heads"] = each(heads, count)
            parts["hidden"] = draw(subsets(hidden, count * anatomy.head_dim(config)))
        else:
            step = heads if anatomy.attention.divides else 8 if "experts" in anatomy.axes else 1
            parts["hidden"] = draw(subsets(hidden, step * draw(st.integers(1, hidden // step))))
    elif anatomy.attention.divides and hidden % heads:
        parts.pop("heads", None)
        parts.pop("kv_heads", None)
    if "experts" in axes:
        count = draw(st.integers(2, anatomy.size(config, "experts")))
        size = anatomy.size(config, "experts")
        kept = parts.get("layers", range(sizes["layers"]))
        dense = set(config.mlp_only_layers or ()) if hasattr(config, "mlp_only_layers") else set()
        lists = [[] if i in dense else draw(subsets(size, count)) for i in kept]
        if any(lists):
            parts["experts"] = lists
    if "vocabulary" in axes:
        size = anatomy.size(config, "vocabulary")
        rest = draw(subsets(size - 3))
        parts["vocabulary"] = [0, 1, 2, *(3 + i for i in rest)]
    return Cut(**parts)


@torch.no_grad()
def used(model: Any) -> torch.Tensor:
    """What the model is for: classes, or text."""
    size = model.config.vocab_size
    tokens = torch.arange(12).reshape(2, 6) % max(1, size - 3) + min(3, size - 1)
    if model.can_generate():
        with torch.random.fork_rng():
            found: torch.Tensor = model.generate(
                tokens, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0
            )
        assert int(found.max()) < size
        return found
    logits: torch.Tensor = model(tokens, attention_mask=torch.ones_like(tokens)).logits
    assert torch.isfinite(logits).all()
    return logits


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(data=st.data())
def test_a_random_shape_is_a_checkpoint_that_can_be_used_and_cut_again(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(ANATOMIES)))
    sort = "t5" if kind == "t5" else "encoder" if kind in ENCODERS else "decoder"
    head = data.draw(st.sampled_from(HEADS_OF[sort]))
    model: Any = make(kind, head, tie_word_embeddings=data.draw(st.booleans()))
    what = data.draw(cuts(kind, model.config))
    small: Any = cut_backbone(model, what)
    with tempfile.TemporaryDirectory() as folder:
        small.save_pretrained(folder)
        again, info = getattr(transformers, head).from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager"
        )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours, theirs = small.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert torch.equal(used(small), used(again.eval()))
    sizes = anatomy_of(small.config).sizes(small.config)
    asked = {
        "layers": what.layers, "decoder_layers": what.decoder_layers,
        "hidden_size": what.hidden, "vocabulary": what.vocabulary,
        "intermediate_size": what.channels[0] if what.channels else None,
        "kv_heads": what.kv_heads[0] if what.kv_heads else None,
    }  # fmt: skip
    for axis, kept in asked.items():
        if kept is not None:
            assert sizes[axis] == len(kept), axis
    used(cut_backbone(again, data.draw(cuts(kind, again.config))))


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(sorted(ANATOMIES)),
    axis=st.sampled_from(["intermediate_size", "hidden_size"]),
    size=st.integers(1, 40),
    round_to=st.sampled_from([None, 1, 3, 8]),
)
def test_rounded_widths_are_multiples_and_smaller(
    kind: str, axis: str, size: int, round_to: int | None
) -> None:
    config = transformers.AutoConfig.for_model(kind, vocab_size=VOCABULARY, **CONFIGS[kind])
    anatomy = ANATOMIES[kind]
    try:
        found = checked_sizes(anatomy, config, LARGE - 1, {axis: size}, round_to)
    except RecipeError as error:
        assert "cannot be cut" in str(error) or "no cut" in str(error) or "asks for" in str(error)
        return
    used_size = getattr(found, axis)
    step = round_to or 8
    assert 0 < used_size < anatomy.size(config, axis)
    step = math.lcm(step, 8) if axis == "hidden_size" and "experts" in anatomy.axes else step
    if axis == "intermediate_size" or anatomy.attention.head_dim is not None:
        assert used_size % step == 0
    else:
        assert used_size % anatomy.head_dim(config) == 0
    assert abs(used_size - size) <= max(step * anatomy.heads(config), anatomy.head_dim(config))
    assert (used_size != size) == (axis in found.rounded)


@pytest.mark.parametrize("parameters", [LARGE - 1, LARGE + 1])
def test_widths_of_large_models_are_multiples_of_64(parameters: int) -> None:
    config = transformers.AutoConfig.for_model("bert")
    found = checked_sizes(ANATOMIES["bert"], config, parameters, {"intermediate_size": 1000}, None)
    assert found.intermediate_size == (1024 if parameters > LARGE else 1000)
