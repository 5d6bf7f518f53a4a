"""What is traced of a model: everything behind the tokenizer, or one step of writing an answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..eval.errors import RunError
from ..eval.models import TextModel
from ..eval.next_token import stock_model

STEP_INPUTS = ("input_ids", "attention_mask", "position_ids")
NEXT = "logits"
TRACED_PAST = 4
"""Tokens of the cache in the sample that is traced; another number than that of its new ones."""


@contextlib.contextmanager
def plain_attention(model: TextModel) -> Iterator[None]:
    """Attention as the products it is made of, while a block traces it operator by operator.

    Torch's fused one would be taken apart into more: a guard for rows without any token, and keys
    that are turned by way of their shapes.
    """
    ours = model.config._attn_implementation
    model.backbone.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.backbone.set_attn_implementation(ours)


class SignalGraph(nn.Module):
    """A model with one named output; ``signal`` is no name that an operator would get."""

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Padded inputs (B, T) to the signal, (B, W)."""
        return {"signal": self.model(**inputs).values}


def signal_sample(model: TextModel, rows: int = 2) -> dict[str, Tensor]:
    """Inputs to trace `SignalGraph` with; of two rows the second is padded, so the mask matters."""
    length = min(8, model.encoding.max_length)
    some = model.tokenize(["a"])[0]
    sizes = [length, length - 1][:rows]
    return model.collate([{n: (ids * length)[:size] for n, ids in some.items()} for size in sizes])


class StepGraph(nn.Module):
    """New tokens behind a cache of keys and values: the next token's logits, and the grown cache.

    The same graph reads a prompt (its cache is empty) and each token that follows.
    """

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        self.backbone = stock_model(model.backbone)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> dict[str, Any]:
        """One step.

        Args:
            input_ids: New tokens, padded on the left, (B, T).
            attention_mask: 1 at tokens, 0 at padding, of the cache and the new ones, (B, P + T).
            position_ids: Each new token's place in its row, (B, T).
            past: Keys and values of each layer in turn, 2 L of (B, K, P, D).

        Returns:
            ``next``, the logits behind the last token, (B, V), and ``present``, 2 L of
            (B, K, P + T, D).
        """
        seen = past[0].shape[2] + input_ids.shape[1]
        check: Any = torch._check
        check(attention_mask.shape[1] == seen)
        cache = _filled(past)
        out = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        present = [part for layer in cache.layers for part in (layer.keys, layer.values)]
        return {"next": out.logits[:, -1], "present": present}


def _filled(past: list[Tensor]) -> Any:
    """A cache that holds all tokens in every layer: sliding windows are left to the mask."""
    from transformers import DynamicCache, cache_utils

    make: Any = cache_utils.DynamicLayer
    cache = DynamicCache()
    for keys, values in zip(past[::2], past[1::2], strict=True):
        layer = make()
        layer.dtype, layer.device = keys.dtype, keys.device
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        cache.layers.append(layer)
    return cache


def cache_shape(model: TextModel) -> dict[str, int]:
    """Layers, key-value heads and their width, read from the cache that one token leaves.

    Raises:
        RunError: If the model keeps something else than keys and values of one shape in each layer.
    """
    from transformers import DynamicCache

    backbone = stock_model(model.backbone)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        backbone(
            input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True
        )
    shapes = {
        tuple(part.shape) if part is not None else None
        for layer in cache.layers
        for part in (getattr(layer, "keys", None), getattr(layer, "values", None))
    }
    shape = next(iter(shapes)) if len(shapes) == 1 else None
    if shape is None or len(shape) != 4:
        raise RunError(
            f"A {model.config.model_type} keeps {sorted(map(str, shapes))} of a token, and the "
            "exports know keys and values of one shape in all layers. Export it as safetensors."
        )
    return {"layers": len(cache.layers), "kv_heads": shape[1], "head_dim": shape[3]}


def step_sample(model: TextModel) -> dict[str, Any]:
    """Inputs to trace `StepGraph` with: two rows, of which the second is padded."""
    shape = cache_shape(model)
    new, past = 3, TRACED_PAST
    mask = torch.ones(2, past + new, dtype=torch.long)
    mask[1, :2] = 0
    size = (2, shape["kv_heads"], past, shape["head_dim"])
    return {
        "input_ids": torch.ones(2, new, dtype=torch.long),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -new:].contiguous(),
        "past": [torch.randn(size) for _ in range(2 * shape["layers"])],
    }


def step_axes(sample: dict[str, Any]) -> dict[str, Any]:
    """Which axes of `step_sample` vary: rows, new tokens, and tokens in the cache."""
    from torch.export import Dim

    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    past = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC} for _ in sample["past"]]
    return {name: free for name in STEP_INPUTS} | {"past": past}


def step_names(layers: int) -> tuple[list[str], list[str]]:
    """Names of `StepGraph`'s inputs and outputs, in order, as transformers' exports have them."""
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    inputs = [*STEP_INPUTS, *(f"past_key_values.{part}" for part in parts)]
    return inputs, [NEXT, *(f"present.{part}" for part in parts)]
