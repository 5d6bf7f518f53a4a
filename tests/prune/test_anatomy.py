"""What can be cut is in a table; what cannot is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from paredown.eval.errors import RecipeError
from paredown.prune.anatomy import AXES, anatomy_of
from paredown.prune.architectures import ANATOMIES

from .tiny_models import VOCABULARY, heads_of, make


@pytest.mark.parametrize("kind", ANATOMIES)
def test_every_tensor_of_every_head_is_in_the_table(kind: str) -> None:
    for head in heads_of(kind):
        model: Any = make(kind, head)
        anatomy = anatomy_of(model.config)
        sizes = anatomy.sizes(model.config)
        assert model.base_model.get_submodule(anatomy.embeddings).weight.shape[0] == VOCABULARY
        for number, stack in enumerate(anatomy.stacks):
            layers = anatomy.layers_of(model, number)
            assert len(layers) == sizes[stack.axis]
            names = {name for layer in layers for name, _ in layer.named_parameters()}
            assert not names - set(stack.tensors)
            for layer in layers:
                for path in filter(None, (stack.ffn_out, stack.attention_out, stack.ffn_norm)):
                    assert layer.get_submodule(path) is not None
        paths = tuple(f"{stack.path}." for stack in anatomy.stacks)
        prefix = f"{model.base_model_prefix}."
        rest = {name.removeprefix(prefix) for name in model.state_dict()}
        assert not {n for n in rest if not n.startswith(paths)} - set(anatomy.tensors)


def test_an_axis_that_does_not_exist_says_so() -> None:
    with pytest.raises(RecipeError, match=r"along 'depth': no such axis is known"):
        ANATOMIES["bert"].field("depth")


def test_a_misspelt_axis_gets_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'vocabulary'"):
        ANATOMIES["bert"].field("vocabulari")


def test_an_architecture_without_an_entry_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'opt'.*bert, roberta, .*gpt2"):
        anatomy_of(AutoConfig.for_model("opt"))


def architecture_table() -> str:
    """The table of docs/architectures.md."""
    lines = [f"| architecture | {' | '.join(AXES)} |", "|---" * (len(AXES) + 1) + "|"]
    for kind, entry in ANATOMIES.items():
        tied = entry.attention.head_dim is None
        cells = []
        for axis in AXES:
            with_hidden = axis == "attention_heads" and tied
            cells.append(f"`{entry.axes[axis]}`" if axis in entry.axes else "–")
            cells[-1] = "with `hidden_size`" if with_hidden else cells[-1]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_published_table_is_the_one_that_is_used() -> None:
    page = Path(__file__).parents[2] / "docs" / "architectures.md"
    assert architecture_table() in page.read_text(encoding="utf-8")
