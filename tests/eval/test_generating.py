"""Batched answers are those of stock generate, and of each row alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from paredown.eval.errors import DataError, RecipeError
from paredown.eval.generating import Generated, generate, stop_tokens
from paredown.eval.models import TextModel

from .generation_models import KINDS, byte_tokenizer, language_model

ENDS = [2, 40, 41, 42, 43, 44, 45]


def model_that_ends(kind: str) -> TextModel:
    """A random model with several tokens that end an answer, so that answers differ in length."""
    model = language_model(kind)
    model.backbone.generation_config.eos_token_id = ENDS
    return model


def prompts(count: int = 14) -> list[list[int]]:
    draw = random.Random(3)
    return [[1, *draw.choices(range(5, 261), k=draw.randint(1, 30))] for _ in range(count)]


def stock(model: TextModel, ids: list[int], new: int, **settings: Any) -> list[int]:
    config = GenerationConfig(
        do_sample=False, max_new_tokens=new, eos_token_id=ENDS, pad_token_id=0, **settings
    )
    model.backbone.generation_config = GenerationConfig(eos_token_id=ENDS)
    given = torch.tensor([ids])
    out = model.backbone.generate(
        input_ids=given, attention_mask=torch.ones_like(given), generation_config=config
    )
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_stock_generate_row_by_row(kind: str) -> None:
    model, rows = model_that_ends(kind), prompts(9)
    found = generate(model, rows, max_new_tokens=24, batch_tokens=5 * 55)
    for row, answer in zip(rows, found, strict=True):
        expected = stock(model, row, 24)
        ended = expected[-1] in ENDS
        assert answer.ids == (expected[:-1] if ended else expected)
        assert answer.finished == ended
        text = model.tokenizer.decode(answer.ids, skip_special_tokens=True)
        assert answer.text == text
    if kind != "gemma3_text":  # the random one goes on for ever
        assert len({len(answer.ids) for answer in found}) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_its_batch_mates(kind: str) -> None:
    model, rows = model_that_ends(kind), prompts()
    together = generate(model, rows, max_new_tokens=20)
    assert together == generate(model, rows, max_new_tokens=20, batch_tokens=1)
    assert together[::-1] == generate(model, rows[::-1], max_new_tokens=20, batch_tokens=200)


def test_generation_stops_when_all_are_done_and_finished_rows_leave_the_batch() -> None:
    model, rows = model_that_ends("llama"), prompts(30)
    sizes: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        sizes.append(len(kwargs["input_ids"]))

    handle = model.backbone.register_forward_pre_hook(note, with_kwargs=True)
    found = generate(model, rows, max_new_tokens=100_000, batch_tokens=10**9)
    handle.remove()
    longest = max(len(answer.ids) + answer.finished for answer in found)
    assert len(sizes) == longest
    assert sizes[0] == 30 and sizes[-1] < 15


def test_greedy_is_greedy_whatever_the_checkpoint_asks_for() -> None:
    model, rows = model_that_ends("llama"), prompts()
    expected = generate(model, rows, max_new_tokens=12)
    asked = model.backbone.generation_config
    asked.do_sample, asked.temperature, asked.repetition_penalty = True, 5.0, 3.0
    assert generate(model, rows, max_new_tokens=12) == expected
    # and so does what goes through stock generate: one beam is greedy
    assert generate(model, rows, max_new_tokens=12, settings={"num_beams": 1}) == expected
    assert model.backbone.generation_config is asked


def test_sampling_follows_its_seed_and_leaves_the_global_one_alone() -> None:
    model, rows = model_that_ends("llama"), prompts()
    state = torch.get_rng_state()
    options: dict[str, Any] = {"max_new_tokens": 12, "settings": {"temperature": 1.5}}
    first = generate(model, rows, seed=1, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == generate(model, rows, seed=1, **options)
    assert first != generate(model, rows, seed=2, **options)
    assert first != generate(model, rows, max_new_tokens=12)
    # hardly any temperature is greedy
    cold = generate(model, rows, max_new_tokens=12, settings={"temperature": 1e-6})
    assert cold == generate(model, rows, max_new_tokens=12)


def test_models_that_cannot_be_stepped_through_go_by_stock_generate() -> None:
    model, rows = model_that_ends("llama"), prompts()
    expected = generate(model, rows, max_new_tokens=12)
    model.backbone._is_stateful = True
    calls: list[int] = []
    original = model.backbone.generate
    model.backbone.generate = lambda **kwargs: calls.append(1) or original(**kwargs)
    assert generate(model, rows, max_new_tokens=12) == expected
    assert calls


def test_an_answer_ends_where_the_context_does() -> None:
    for kind in ("llama", "gpt2"):
        model = language_model(kind, max_position_embeddings=40) if kind == "llama" else None
        model = model or language_model(kind, n_positions=40)
        rows = [[1, *range(10, 10 + n)] for n in (36, 38, 5)]
        found = generate(model, rows, max_new_tokens=50)
        for row, answer in zip(rows, found, strict=True):
            assert len(row) + len(answer.ids) + answer.finished <= 40
            assert answer.finished or len(row) + len(answer.ids) == 40
            assert answer == generate(model, [row], max_new_tokens=50)[0]
        with pytest.raises(DataError, match=r"Row 1: the prompt has 40 tokens .*context 40"):
            generate(model, [[1], [1] * 40], max_new_tokens=2)


def test_the_tokenizers_side_and_the_models_mode_are_left_alone() -> None:
    model = model_that_ends("llama").train()
    side = model.tokenizer.padding_side
    progress: list[int] = []
    generate(model, prompts(5), max_new_tokens=3, progress=progress.append)
    assert model.training and model.tokenizer.padding_side == side
    assert sum(progress) == 5
    assert generate(model, [], max_new_tokens=3) == []


def test_bf16_runs_under_autocast() -> None:
    found = generate(language_model(), prompts(4), max_new_tokens=4, precision="bf16")
    assert all(isinstance(answer, Generated) for answer in found)


def test_what_ends_an_answer_is_the_tokenizers_and_the_configs() -> None:
    model = language_model()
    assert stop_tokens(model) == [2]
    model.backbone.generation_config.eos_token_id = [4]
    assert stop_tokens(model) == [2, 4]
    model.backbone.generation_config.eos_token_id = None
    model.tokenizer = byte_tokenizer(eos_token=None)
    with pytest.raises(RecipeError, match="Nothing ends an answer"):
        generate(model, [[1]], max_new_tokens=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"temprature": 1.0},
            "Unknown generation setting 'temprature'. Did you mean 'temperature'",
        ),
        ({"max_new_tokens": 3}, "'max_new_tokens' is set by paredown"),
        ({"top_p": 0.9, "do_sample": False}, "'top_p' has no effect with do_sample: false"),
        ({"temperature": -1.0}, "are refused"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        generate(language_model(), [[1]], max_new_tokens=2, settings=settings)


def test_what_cannot_be_answered_is_refused() -> None:
    with pytest.raises(DataError, match="Row 1: the prompt has 0 tokens"):
        generate(language_model(), [[1], []], max_new_tokens=2)
    with pytest.raises(RecipeError, match="max_new_tokens: expected at least 1, got 0"):
        generate(language_model(), [[1]], max_new_tokens=0)
