"""Shapes that other runtimes do not hold are named, and no others."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from paredown.recipes.runtimes import runtime_notes

WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8}


def config(kind: str, **sizes: Any) -> dict[str, Any]:
    """A config as a checkpoint's folder has it."""
    found: dict[str, Any] = AutoConfig.for_model(kind, **{**WIDE, **sizes}).to_dict()
    return found


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_usual_shape_needs_no_note(kind: str) -> None:
    assert runtime_notes(config(kind, head_dim=64)) == []


@pytest.mark.parametrize("heads", [2, 4])
def test_a_head_dim_of_its_own_is_named_for_qwen2_alone(heads: int) -> None:
    cut = {"num_attention_heads": heads, "num_key_value_heads": 2, "head_dim": 64}
    (note,) = [n for n in runtime_notes(config("qwen2", **cut)) if "head_dim, vLLM" in n]
    assert f"{heads} heads of 64" in note and "hidden size 512" in note and "llama.cpp" in note
    for other in ("llama", "mistral", "qwen3"):
        assert not [n for n in runtime_notes(config(other, **cut)) if "vLLM" in n]


def test_the_layers_of_gemma_3_that_attend_to_all() -> None:
    def kinds(full: list[int], count: int) -> list[str]:
        return ["full_attention" if i in full else "sliding_attention" for i in range(count)]

    sizes = {"head_dim": 64, "num_hidden_layers": 7}
    assert runtime_notes(config("gemma3_text", layer_types=kinds([5], 7), **sizes)) == []
    (note,) = runtime_notes(config("gemma3_text", layer_types=kinds([2], 7), **sizes))
    assert "[2]" in note and "every 6th" in note
    assert not runtime_notes(config("llama", layer_types=kinds([2], 7), **sizes))


def test_widths_that_quantised_blocks_do_not_divide() -> None:
    (note,) = runtime_notes(config("llama", intermediate_size=1056, head_dim=64))
    assert "intermediate_size 1056" in note and "16 bits" not in note and "hidden" not in note
    (note,) = runtime_notes(config("llama", intermediate_size=1000, head_dim=64))
    assert "those of intermediate_size" in note and "16 bits" in note
    (note,) = runtime_notes(config("llama", hidden_size=288, num_attention_heads=4, head_dim=64))
    assert note.startswith("No multiple of 256: hidden_size 288. ")


def test_a_config_without_these_names_says_nothing() -> None:
    assert runtime_notes({"model_type": "gpt2", "n_embd": 30}) == []
