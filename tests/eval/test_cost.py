"""FLOPs by formula equal what torch counts; parameters and bytes are those of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from paredown.eval.cost import (
    artefact_bytes,
    artefact_parameters,
    count_flops,
    flops_per_example,
    row_flops,
)
from paredown.eval.encoding import Encoding
from paredown.eval.errors import RecipeError, RunError
from paredown.eval.models import TextModel
from paredown.eval.tasks import Signal

VOCABULARY = 40
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")


def config_of(kind: str, layers: int, heads: int, intermediate: int, classes: int) -> Any:
    """A tiny config; distilbert names its sizes otherwise."""
    names = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": 8 * heads}
    names["intermediate_size"] = intermediate
    if kind in DECODERS:
        names |= {"num_key_value_heads": 1, "head_dim": 6, "pad_token_id": 1}
    if kind == "distilbert":
        names = {"n_layers": layers, "n_heads": heads, "dim": 8 * heads, "hidden_dim": intermediate}
    return AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, max_position_embeddings=64, num_labels=classes, **names
    )


def tiny(config: Any, signal: Signal, dense: int | None = None, pooling: Any = "mean") -> TextModel:
    """A random model of that config with a tokenizer of single words."""
    words = {"[UNK]": 0, "[PAD]": 1, "a": 2}
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
    )
    auto: Any = AutoModel if signal == "embedding" else AutoModelForSequenceClassification
    layer = torch.nn.Linear(config.hidden_size, dense) if dense else None
    encoding = Encoding(48, pooling if signal == "embedding" else None, True)
    return TextModel(auto.from_config(config), tokenizer, signal, encoding, layer).eval()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["bert", "roberta", "xlm-roberta", "distilbert", *DECODERS]),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    intermediate=st.integers(1, 40),
    classes=st.integers(2, 5),
    length=st.integers(1, 48),
    signal=st.sampled_from(["embedding", "class_logits"]),
    dense=st.sampled_from([None, 5]),
)
def test_formula_equals_the_counter_exactly(
    kind: str,
    layers: int,
    heads: int,
    intermediate: int,
    classes: int,
    length: int,
    signal: Signal,
    dense: int | None,
) -> None:
    dense = dense if signal == "embedding" else None
    config = config_of(kind, layers, heads, intermediate, classes)
    model = tiny(config, signal, dense)
    row = {name: [0] * length for name in model.inputs}
    expected = count_flops(model, row)
    found = flops_per_example(config, [length], signal, num_labels=classes, dense=dense)
    assert found.tolist() == [expected]
    assert row_flops(model, [length]).tolist() == [expected]


def test_attention_by_plain_matrix_products_counts_the_same() -> None:
    config = config_of("bert", 2, 2, 24, 3)
    model = tiny(config, "class_logits")
    model.backbone.set_attn_implementation("eager")
    row = {name: [0] * 9 for name in model.inputs}
    assert count_flops(model, row) == flops_per_example(config, 9, "class_logits")


def test_the_pooler_an_embedding_does_not_use_is_not_counted_and_stays() -> None:
    config = config_of("bert", 1, 1, 8, 2)
    model = tiny(config, "embedding")
    pooler = model.backbone.pooler
    assert pooler is not None
    count_flops(model, {name: [0] * 3 for name in model.inputs})
    assert model.backbone.pooler is pooler


def test_an_architecture_without_formula_is_named_and_counted_instead() -> None:
    config = AutoConfig.for_model(
        "electra",
        vocab_size=VOCABULARY,
        embedding_size=16,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    with pytest.raises(RecipeError, match="electra"):
        flops_per_example(config, [3], "embedding")
    twin = config_of("bert", 2, 2, 24, 2)
    lengths = [7, 3, 7, 1]
    counted = row_flops(tiny(config, "embedding"), lengths)
    assert counted.tolist() == flops_per_example(twin, lengths, "embedding").tolist()


def test_no_rows_cost_nothing() -> None:
    config = config_of("bert", 1, 1, 8, 2)
    assert flops_per_example(config, [], "embedding").shape == (0,)


def test_parameters_and_bytes_are_those_of_the_saved_files(tmp_path: Path) -> None:
    model = tiny(config_of("roberta", 1, 2, 24, 3), "class_logits")
    model.backbone.save_pretrained(str(tmp_path))
    assert artefact_parameters(tmp_path) == sum(p.numel() for p in model.backbone.parameters())
    size = (tmp_path / "model.safetensors").stat().st_size
    assert artefact_bytes(tmp_path) == size
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes(b"12345")
    assert artefact_bytes(tmp_path) == size + 5


def test_bytes_of_an_onnx_folder_include_its_external_data(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"123")
    (tmp_path / "model.onnx.data").write_bytes(b"4567")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    assert artefact_bytes(tmp_path) == 7
    with pytest.raises(RunError, match="safetensors"):
        artefact_parameters(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no weights"):
        artefact_bytes(tmp_path)


def test_formula_is_vectorised_over_lengths() -> None:
    config = config_of("distilbert", 2, 2, 24, 3)
    lengths = np.arange(1, 40)
    whole = flops_per_example(config, lengths, "class_logits", num_labels=3)
    each = [int(flops_per_example(config, n, "class_logits", num_labels=3)) for n in lengths]
    assert whole.dtype == np.int64
    assert whole.tolist() == each
