"""What can be cut is in a table; what cannot is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from paredown.eval.errors import RecipeError
from paredown.prune.anatomy import ANATOMIES, anatomy_of


@pytest.mark.parametrize("kind", ANATOMIES)
@pytest.mark.parametrize("head", [AutoModel, AutoModelForSequenceClassification])
def test_every_path_and_field_of_the_table_is_there(kind: str, head: Any) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 3, "n_heads": 4}
    model = head.from_config(AutoConfig.for_model(kind, vocab_size=50, **sizes))
    anatomy = anatomy_of(model.config)
    layers = anatomy.layers_of(model)
    width = anatomy.size(model.config, "intermediate_size")
    assert len(layers) == anatomy.size(model.config, "layers") == 3
    assert anatomy.size(model.config, "vocabulary") == 50
    assert model.base_model.get_submodule(anatomy.embeddings).weight.shape == (50, 32)
    for layer in layers:
        assert layer.get_submodule(anatomy.ffn_out).in_features == width
        assert all(layer.get_submodule(p).out_features == width for p in anatomy.ffn_in)
        assert anatomy.ffn_norm and layer.get_submodule(anatomy.ffn_norm).weight.shape == (32,)
    prefix = anatomy.layers_prefix(model)
    assert any(name.startswith(f"{prefix}0.") for name in model.state_dict())


@pytest.mark.parametrize("kind", ANATOMIES)
@pytest.mark.parametrize("axis", ["attention_heads", "hidden_size", "experts"])
def test_an_axis_no_stock_checkpoint_holds_is_refused(kind: str, axis: str) -> None:
    with pytest.raises(RecipeError, match=f"{kind}.*{axis}.*layers, intermediate_size, vocabulary"):
        ANATOMIES[kind].fields(axis)


def test_a_misspelt_axis_gets_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'vocabulary'"):
        ANATOMIES["bert"].fields("vocabulari")


def test_an_architecture_without_an_entry_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'gpt2'.*bert, roberta, distilbert"):
        anatomy_of(AutoConfig.for_model("gpt2"))
