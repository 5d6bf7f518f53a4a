"""A language model's signal is what the stock class says behind each row's last token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from paredown.eval.checkpoints import save_model
from paredown.eval.cost import count_flops, row_flops
from paredown.eval.errors import RunError
from paredown.eval.generating import generate
from paredown.eval.models import load_model
from paredown.eval.tasks import GENERATION
from paredown.prune import prune_model
from paredown.prune.calibration import distance

from .generation_models import CHAT, KINDS, byte_tokenizer, language_model

TEXTS = ["a", "red running shoes under 80", "größe 42, not the blue brand", "x" * 60]


@pytest.mark.parametrize("kind", [*KINDS, "cohere", "granite"])
@torch.no_grad()
def test_values_are_the_stock_logits_behind_each_rows_last_token(kind: str) -> None:
    scales = {"cohere": {"logit_scale": 0.3}, "granite": {"logits_scaling": 7.0}}
    sizes = {} if kind != "cohere" else {"head_dim": 8}
    model = language_model(kind, **scales.get(kind, {}), **sizes)
    rows = model.tokenize(TEXTS)
    batch = model.collate(rows)
    assert set(batch) == {"input_ids", "attention_mask"}
    found = model(**batch, output_hidden_states=True)
    assert found.values.shape == (len(TEXTS), model.width) == (len(TEXTS), 261)
    for i, row in enumerate(rows):
        alone = model.backbone(
            input_ids=torch.tensor([row["input_ids"]]), output_hidden_states=True
        )
        torch.testing.assert_close(found.values[i], alone.logits[0, -1], rtol=1e-4, atol=1e-5)
        length = len(row["input_ids"])
        for ours, theirs in zip(found.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(ours[i, :length], theirs[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_states_and_head_give_the_logits_of_every_token() -> None:
    model = language_model("llama")
    batch = model.collate(model.tokenize(TEXTS))
    states = model.states(**batch)
    expected = model.backbone(**batch).logits
    keep = batch["attention_mask"].bool()
    torch.testing.assert_close(model.head(states)[keep], expected[keep])


def test_the_head_is_computed_once_a_row_and_gradients_flow() -> None:
    model = language_model("gemma3_text")
    seen: list[Any] = []
    handle = model.head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    model(**model.collate(model.tokenize(TEXTS))).values.sum().backward()
    handle.remove()
    assert seen == [(4, 1, 261)]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())
    # nothing stays behind: the stock class gives all positions again
    assert model.backbone(input_ids=torch.ones(1, 7, dtype=torch.long)).logits.shape[1] == 7


def test_a_saved_language_model_comes_back_whole(tmp_path: Path) -> None:
    model = language_model("qwen3", max_length=12)
    model.tokenizer = byte_tokenizer(padding_side="left")
    model.tokenizer.chat_template = CHAT
    model.backbone.generation_config.eos_token_id = [2, 4]
    save_model(model, tmp_path)
    again = load_model(tmp_path, GENERATION)
    assert again.encoding.max_length == 128  # the context's; a shorter one is the recipe's
    assert load_model(tmp_path, GENERATION, max_length=9).encoding.max_length == 9
    assert again.backbone.generation_config.eos_token_id == [2, 4]
    assert again.tokenizer.chat_template == CHAT
    assert again.tokenizer.padding_side == "left"
    batch = again.collate(again.tokenize(["ab", "abcdef"]))
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0, 0, 0, 0]
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("abcdef", return_tensors="pt")["input_ids"]
    expected = stock(input_ids=ids).logits[0, -1]
    torch.testing.assert_close(again(**batch).values[1], expected, rtol=1e-4, atol=1e-5)


def test_predict_gives_one_distribution_a_row() -> None:
    model = language_model()
    values = model.predict(TEXTS, batch_tokens=70)
    assert values.shape == (4, 261)
    one = model.predict(TEXTS[1:2])
    assert abs(values[1] - one[0]).max() < 1e-4


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path) -> None:
    model = language_model()
    save_model(model, tmp_path / "whole")
    model.backbone.base_model.save_pretrained(tmp_path / "whole")
    with pytest.raises(RunError, match=r"lacks 1 weights of LlamaForCausalLM \(lm_head"):
        load_model(tmp_path / "whole", GENERATION)


def test_an_encoder_is_no_language_model(tmp_path: Path) -> None:
    names = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", vocab_size=261, intermediate_size=8, **names)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RunError, match="'bert' is an encoder: its tokens see what comes after"):
        load_model(tmp_path, GENERATION)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_of_a_row_are_those_of_the_layers_and_one_head(kind: str) -> None:
    model = language_model(kind)
    row = model.tokenize(["abcdefg"])[0]
    assert row_flops(model, [8]).tolist() == [count_flops(model, row)]


def test_a_model_in_pefts_wrapper_says_and_writes_what_it_does_once_merged() -> None:
    from peft import LoraConfig, get_peft_model

    model = language_model()
    plain = model.predict(TEXTS)
    lora = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model.backbone = get_peft_model(model.backbone, lora)
    adapted = model.predict(TEXTS)
    assert abs(adapted - plain).max() > 0.01
    batch = model.collate(model.tokenize(TEXTS))
    states = model.states(**batch).detach()
    prompts = [row["input_ids"] for row in model.tokenize(TEXTS)]
    answers = generate(model, prompts, max_new_tokens=5)
    assert answers == generate(model, prompts, max_new_tokens=5, settings={"num_beams": 1})
    model.backbone = model.backbone.merge_and_unload()
    assert abs(adapted - model.predict(TEXTS)).max() < 1e-4
    torch.testing.assert_close(states, model.states(**batch).detach(), rtol=1e-4, atol=1e-4)
    assert answers == generate(model, prompts, max_new_tokens=5)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_a_language_model_is_cut_along_every_axis_and_saved(kind: str, tmp_path: Path) -> None:
    model = language_model(kind)
    texts = [f"row {i} of the task, with {i * 7} words" for i in range(30)]
    pruned = prune_model(
        model, texts, layers=2, intermediate_size=24, kv_heads=1, hidden_size=24, round_to=8
    )
    assert pruned.facts["distance"]["measure"].startswith("KL divergence of the next token")
    assert pruned.facts["distance"]["fitted"] >= 0
    sizes = pruned.facts["shapes"]["after"]
    assert (sizes["layers"], sizes["intermediate_size"], sizes["hidden_size"]) == (2, 24, 24)
    save_model(pruned.model, tmp_path)
    small = load_model(tmp_path, GENERATION)
    assert small.width == model.width and small.config.num_key_value_heads == 1
    assert small.predict(texts[:2]).shape == (2, 261)


def test_the_distance_of_next_tokens_is_kl() -> None:
    p, q = torch.randn(5, 9), torch.randn(5, 9)
    expected = torch.nn.functional.kl_div(
        q.double().log_softmax(-1), p.double().softmax(-1), reduction="batchmean"
    )
    assert distance("token_distribution", p, q) == pytest.approx(float(expected))
    assert distance("token_distribution", p, p + 3) == pytest.approx(0, abs=1e-12)
