"""What a language model says of the token after each row's last, and the head it says it with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .errors import RunError


def stock_model(backbone: Any) -> Any:
    """The transformers model itself; peft's wrapper around it runs the same modules."""
    inner = getattr(backbone, "get_base_model", None)
    return backbone if inner is None else inner()


def output_head(backbone: Any) -> nn.Linear:
    """The map from a token's state to the logits of the next token, (V, H) in ``weight``.

    Raises:
        RunError: If the model has none.
    """
    found = stock_model(backbone).get_output_embeddings()
    if not isinstance(found, nn.Linear):
        raise RunError(
            f"{type(backbone).__name__} has no linear head over a vocabulary; `task: generation` "
            "needs a checkpoint that AutoModelForCausalLM loads with one."
        )
    return found


def check_causal(backbone: Any) -> None:
    """Refuses what AutoModelForCausalLM loads and yet is no causal language model with a head.

    Raises:
        RunError: If it has no head, or its tokens see those behind them (BERT as it comes).
    """
    output_head(backbone)
    if getattr(backbone.config, "is_decoder", None) is False:
        raise RunError(
            f"A checkpoint of '{backbone.config.model_type}' is an encoder: its tokens see what "
            "comes after them, so it cannot write a text. `task: generation` needs a decoder, such "
            "as llama, qwen3 or gemma3."
        )


def layer_states(
    backbone: Any, input_ids: Tensor, attention_mask: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The token vectors that the head reads, and those of every layer.

    Args:
        backbone: A causal language model.
        input_ids: Token ids, padded on the right, (B, T).
        attention_mask: 1 at tokens, 0 at padding, (B, T).

    Returns:
        (B, T, H), and L + 1 tensors of it: after the embeddings and after each layer. What
        transformers counts as the last layer's is behind the last norm.
    """
    out = stock_model(backbone).base_model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        use_cache=False,
        output_hidden_states=True,
    )
    return out.last_hidden_state, tuple(out.hidden_states)


def next_token(
    backbone: Any, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """The logits behind each row's last token, as the stock class has them there.

    The class gets that one state of each row from its base model, so that the head is computed once
    a row, and whatever the class does behind the head (a soft cap, a scale) is done.

    Args:
        backbone: A causal language model.
        input_ids: Token ids, padded on the right, (B, T).
        attention_mask: 1 at tokens, 0 at padding, (B, T).
        output_hidden_states: Whether to give the token vectors of every layer as well.

    Returns:
        (B, V), and where asked for L + 1 tensors of (B, T, H).
    """
    rows = torch.arange(len(input_ids), device=input_ids.device)
    last = attention_mask.sum(1) - 1  # (B,)

    def keep_last(module: nn.Module, args: Any, out: Any) -> Any:
        out.last_hidden_state = out.last_hidden_state[rows, last].unsqueeze(1)  # (B, 1, H)
        return out

    backbone = stock_model(backbone)
    handle = backbone.base_model.register_forward_hook(keep_last)
    try:
        out = backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            use_cache=False,
        )
    finally:
        handle.remove()
    return out.logits[:, 0], out.hidden_states if output_hidden_states else None
