"""FLOPs and bytes of answers equal those of real cached generation; timing counts tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import AutoConfig, DynamicCache

from paredown.eval.checkpoints import save_model
from paredown.eval.errors import RecipeError
from paredown.eval.generating import generate
from paredown.eval.generation_cost import (
    answer_flops,
    cache_bytes,
    generation_engine,
    measure_generation,
    windows,
)
from paredown.eval.models import TextModel
from paredown.eval.timing_worker import Worker, load_generation

from .generation_models import KINDS, language_model

MORE: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "qwen2": {"head_dim": 8},
    "mixtral": {
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "experts_implementation": "eager",
    },
    "qwen3_moe": {
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "mlp_only_layers": [1],
        "experts_implementation": "eager",
    },
}


def endless(kind: str) -> TextModel:
    """A model with a token that ends an answer which it never writes."""
    model = language_model(kind, **MORE.get(kind, {}))
    with torch.no_grad():
        model.head.weight[2] = 0
        model.head.weight[7] = 3.0 * model.head.weight[7]
    model.backbone.generation_config.eos_token_id = None
    return model


def counted(model: TextModel, prompt: int, new: int) -> int:
    """FLOPs as torch counts them in a real generation of one row."""

    def attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={kernel: attention})
    with counter:
        (answer,) = generate(model, [[1, *range(10, 9 + prompt)]], max_new_tokens=new)
    assert len(answer.ids) + answer.finished == new
    return int(counter.get_total_flops())


@pytest.mark.parametrize("kind", [*KINDS, *MORE])
def test_flops_are_those_of_a_real_cached_generation(kind: str) -> None:
    model = endless(kind)
    for prompt, new in ((1, 1), (5, 7), (12, 4), (3, 12)):
        prefill, decode = answer_flops(model.config, [prompt], [new])
        assert prefill.dtype == decode.dtype == np.int64
        assert counted(model, prompt, 1) == prefill[0]
        assert counted(model, prompt, new) == prefill[0] + decode[0]


@settings(max_examples=50)
@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    new=st.integers(0, 40),
    window=st.sampled_from([None, 1, 5, 16]),
)
def test_decode_is_the_sum_of_its_steps(prompts: list[int], new: int, window: int | None) -> None:
    kinds = ["full_attention" if window is None else "sliding_attention", "full_attention"]
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=11,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=3,
        layer_types=kinds,
        sliding_window=window,
        use_sliding_window=window is not None,
    )
    _, decode = answer_flops(config, prompts, [new] * len(prompts))
    for prompt, found in zip(prompts, decode, strict=True):
        expected = 0
        for i in range(1, new):
            expected += 2 * (2 * 8 * 6 + 2 * 8 * 3) * 2 + 2 * 3 * 2 * 8 * 6 + 2 * 8 * 11
            expected += 4 * 6 * (min(prompt + i, window or 10**9) + prompt + i)
        assert found == expected


@pytest.mark.parametrize("kind", [*KINDS, *MORE])
def test_bytes_are_those_of_the_cache(kind: str) -> None:
    model = endless(kind)
    cache = DynamicCache(config=model.config)
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        model.backbone(input_ids=ids, past_key_values=cache, use_cache=True)
    held = sum(t.numel() * 4 for layer in cache.layers for t in (layer.keys, layer.values))
    # between two tokens a window holds one less than attention then reads
    per_token = cache_bytes(model.config, 1, 4) // len(windows(model.config))
    open_windows = sum(window is not None for window in windows(model.config))
    assert cache_bytes(model.config, [20], 4)[0] == held + open_windows * per_token
    assert cache_bytes(model.config, [20], 2)[0] * 2 == cache_bytes(model.config, [20], 4)[0]


def test_windows_are_those_of_the_config() -> None:
    assert windows(language_model("gemma3_text").config) == [8, None, 8]
    assert windows(endless("mistral").config) == [6, 6, 6]
    assert windows(language_model("qwen3").config) == [None] * 3


def test_an_architecture_without_formula_is_named() -> None:
    config = AutoConfig.for_model("gpt_neox", hidden_size=8, num_attention_heads=2)
    with pytest.raises(RecipeError, match="'gpt_neox' is not known by formula"):
        answer_flops(config, [3], [2])
    with pytest.raises(RecipeError, match="gpt_neox"):
        cache_bytes(config, [3], 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_model(language_model("llama"), folder)
    return str(folder)


def test_the_engine_gives_answers_and_counts_what_it_wrote(checkpoint: str) -> None:
    engine = load_generation(checkpoint, max_new_tokens=5)
    prompts = ["red shoes", "a"]
    answers = engine.run(prompts)
    assert answers == engine.model_only(prompts)()
    ids = [engine.dialogues.prompt_ids(prompt) for prompt in prompts]
    assert answers == generate(engine.model, ids, max_new_tokens=5)
    assert engine.tokens(answers) == sum(len(a.ids) + a.finished for a in answers)
    assert engine.tokens(engine.first_token(prompts)) == 2


def test_the_worker_times_the_first_token_and_counts_all(checkpoint: str) -> None:
    worker = Worker()
    options = {"max_new_tokens": 4}
    worker.load("paredown.eval.timing:load_generation", checkpoint, options, threads=1)
    worker.rows(["a", "red shoes"], None)
    found = worker.single([0, 1, 0], warmup=1)
    assert len(found["ttft"]) == len(found["tokens"]) == len(found["total"]) == 3
    assert all(1 <= count <= 4 for count in found["tokens"])
    assert len(worker.offline([0, 1], batch=2, warmup=0)["tokens"]) == 1


def test_two_models_are_measured_in_processes_of_their_own(checkpoint: str) -> None:
    engines = [
        generation_engine(name, checkpoint, max_new_tokens=3) for name in ("teacher", "student")
    ]
    found = measure_generation(
        engines, ["red shoes", "a"], runs=2, rounds=1, warmup=1, batch=2, offline_rows=2
    )
    assert [(m["side"], m["scenario"]) for m in found] == [
        ("teacher", "single_stream"),
        ("student", "single_stream"),
        ("teacher", "offline"),
        ("student", "offline"),
    ]
    for measured in found:
        assert measured["runtime"] == "pytorch" and measured["tokens_per_s"] > 0
        single = measured["scenario"] == "single_stream"
        assert ("ttft" in measured) == single
        if single:
            assert 0 < measured["ttft"]["p50"] <= measured["ttft"]["p90"] <= measured["ttft"]["p99"]


def test_a_model_that_cannot_be_asked_says_so(checkpoint: str) -> None:
    with pytest.raises(RecipeError, match="no chat template"):
        load_generation(checkpoint, max_new_tokens=3, form="messages")
