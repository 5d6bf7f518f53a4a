"""Tiny random language models with a tokenizer of bytes, for the tests of generation."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from paredown.eval.encoding import Encoding
from paredown.eval.models import TextModel

KINDS = ("llama", "qwen3", "gemma3_text", "gpt2")
SPECIALS = ["<pad>", "<s>", "</s>", "<|turn|>", "<|end|>"]
CHAT = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% if brief %}briefly: {% endif %}{% endif %}"
)


def byte_tokenizer(*, bos: bool = True, eos: bool = False, **names: Any) -> PreTrainedTokenizerFast:
    """One token a byte; ``<s>`` in front, and ``</s>`` behind where asked for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> " * bos + "$A" + " </s>" * eos, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    known = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | names
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, **{k: v for k, v in known.items() if v is not None}
    )
    made.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    return made


def language_model(
    kind: str = "llama", *, seed: int = 0, max_length: int = 128, **changes: Any
) -> TextModel:
    """A random model whose outputs react: weights of std 0.25."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
    sizes |= {"max_position_embeddings": 128, "initializer_range": 0.25}
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 128}
        sizes |= {"initializer_range": 0.25}
    if kind == "gemma3_text":
        types = ["sliding_attention", "full_attention", "sliding_attention"]
        sizes |= {"layer_types": types, "sliding_window": 8, "final_logit_softcapping": 5.0}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **(sizes | changes))
    backbone = AutoModelForCausalLM.from_config(config)
    return TextModel(backbone, tokenizer, "token_distribution", Encoding(max_length)).eval()
