"""Two cuts are told as one: the composed map cuts the original to the same model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.prune import compose
from paredown.prune.anatomy import anatomy_of
from paredown.prune.surgery import Cut, cut_backbone

from .tiny_models import make


@st.composite
def some(draw: st.DrawFn, size: int, least: int = 1, multiple: int = 1) -> list[int]:
    """At least so many of ``range(size)``, rising."""
    count = draw(st.integers(-(-least // multiple), size // multiple)) * multiple
    return sorted(draw(st.permutations(range(size)))[:count])


@st.composite
def cuts(draw: st.DrawFn, model: Any) -> Cut:
    """A cut along some of the axes of a Llama."""
    anatomy, config = anatomy_of(model.config), model.config
    layers = draw(some(anatomy.size(config, "layers")))
    heads, groups = anatomy.heads(config), anatomy.kv_heads(config)
    chosen = draw(st.sets(st.sampled_from(["layers", "channels", "hidden", "kv_heads", "heads"])))
    depth = len(layers) if "layers" in chosen else anatomy.size(config, "layers")
    width = anatomy.size(config, "intermediate_size")
    count = draw(st.integers(1, width))
    channels = [sorted(draw(st.permutations(range(width)))[:count]) for _ in range(depth)]
    kept = draw(st.integers(1, groups))
    kv = [sorted(draw(st.permutations(range(groups)))[:kept]) for _ in range(depth)]
    each = heads // groups
    per = draw(st.integers(1, each))
    queries = []
    for one in kv if "kv_heads" in chosen else [list(range(groups))] * depth:
        parts = [sorted(draw(st.permutations(range(each)))[:per]) for _ in one]
        queries.append([g * each + i for g, part in zip(one, parts, strict=True) for i in part])
    hidden = draw(some(anatomy.size(config, "hidden_size"), 8, 8))
    return Cut(
        layers=layers if "layers" in chosen else None,
        channels=channels if "channels" in chosen else None,
        hidden=hidden if "hidden" in chosen else None,
        kv_heads=kv if "kv_heads" in chosen else None,
        heads=queries if "heads" in chosen else None,
    )


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_two_cuts_and_the_composed_one_give_the_same_model(kind: str, data: st.DataObject) -> None:
    model = make(kind)
    first = data.draw(cuts(model))
    middle = cut_backbone(model, first)
    second = data.draw(cuts(middle))
    twice = cut_backbone(middle, second)
    anatomy = anatomy_of(model.config)
    heads = anatomy.heads(model.config), anatomy.kv_heads(model.config)
    once = cut_backbone(model, Cut(**compose(first.index_map(), second.index_map(), *heads)))
    assert once.config.to_dict() == twice.config.to_dict()
    theirs = twice.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in once.state_dict().items())


def test_nothing_and_a_cut_is_the_cut() -> None:
    assert compose(None, None) == {}
    assert compose({"vocabulary": [2, 4, 6]}, None) == {"vocabulary": [2, 4, 6]}
    assert compose({"vocabulary": [2, 4, 6]}, {"vocabulary": [0, 2], "layers": [1]}) == {
        "vocabulary": [2, 6],
        "layers": [1],
    }
