"""Tiny random models of every architecture in the table, and what masks parts of them.

The masks act on what flows between modules, so they share nothing with the surgery but the paths
of the output projections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from paredown.prune.anatomy import Anatomy, anatomy_of

HIDDEN, HEADS, WIDTH, LAYERS, VOCABULARY, EXPERTS = 32, 4, 40, 3, 60, 6
_BERT = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 40,
}
_LLAMA = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QWEN2 = {name: value for name, value in _LLAMA.items() if name != "head_dim"}
_TYPES = ["full_attention", "sliding_attention", "full_attention"]
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _BERT | {"pad_token_id": 1},
    "xlm-roberta": _BERT | {"pad_token_id": 1},
    "distilbert": {
        "dim": HIDDEN,
        "n_heads": HEADS,
        "hidden_dim": WIDTH,
        "n_layers": LAYERS,
        "max_position_embeddings": 40,
    },
    "modernbert": _BERT
    | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1}
    | {"sep_token_id": 2, "layer_types": _TYPES, "local_attention": 4},
    "gpt2": {
        "n_embd": HIDDEN,
        "n_head": HEADS,
        "n_layer": LAYERS,
        "n_positions": 40,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 4},
    "qwen2": _QWEN2 | {"layer_types": _TYPES, "sliding_window": 4, "use_sliding_window": True},
    "qwen3": _LLAMA,
    "gemma3_text": _LLAMA | {"layer_types": _TYPES, "sliding_window": 4},
    "qwen3_moe": _LLAMA
    | {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
    | {"mlp_only_layers": [1], "norm_topk_prob": True},
    "mixtral": _LLAMA | {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "t5": {
        "d_model": HIDDEN,
        "num_heads": HEADS,
        "d_kv": 12,
        "d_ff": WIDTH,
        "num_layers": LAYERS,
        "num_decoder_layers": 2,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    },
}
ENCODERS = ("bert", "roberta", "xlm-roberta", "distilbert", "modernbert")


def heads_of(kind: str) -> list[str]:
    """The Auto classes that a checkpoint of this architecture is used with."""
    if kind in ENCODERS:
        return ["AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"]
    if kind == "t5":
        return ["AutoModelForSeq2SeqLM"]
    return ["AutoModelForCausalLM", "AutoModelForSequenceClassification"]


def make(kind: str, head: str | None = None, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model with weights of std 0.25, biases and norms included."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **({"vocab_size": VOCABULARY} | CONFIGS[kind] | changes))
    model: Any = getattr(transformers, head or heads_of(kind)[-1]).from_config(
        config, attn_implementation="eager"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            ones = "norm" in name.lower() and name.endswith("weight") and kind != "gemma3_text"
            parameter.normal_(1.0 if ones else 0.0, 0.25)
    model.tie_weights()
    return model.eval()


def ids(kept: Sequence[int] | None = None) -> Tensor:
    """Token ids, (3, 9), without padding; of some tokens only."""
    draw = torch.Generator().manual_seed(5)
    some = torch.tensor(list(kept) if kept is not None else list(range(3, VOCABULARY)))
    some = some[some >= 3]
    return some[torch.randint(len(some), (3, 9), generator=draw)]


@torch.no_grad()
def answer(model: Any, tokens: Tensor | None = None) -> Tensor:
    """Logits, or token vectors of a model without a head."""
    tokens = ids() if tokens is None else tokens
    kind = model.config.model_type
    more: dict[str, Any] = {"decoder_input_ids": tokens[:, :5]} if kind == "t5" else {}
    if kind not in ENCODERS:
        more["use_cache"] = False
    out = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **more)
    found: Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return found


class Masks:
    """Hooks on a model that take parts out of it; `undo` gives it back."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.anatomy: Anatomy = anatomy_of(model.config)
        self.handles: list[Any] = []
        self.forwards: list[tuple[nn.Module, Any]] = []

    def undo(self) -> None:
        """Takes all masks off."""
        for handle in self.handles:
            handle.remove()
        for module, forward in self.forwards:
            module.forward = forward

    def stacks(self) -> list[tuple[Any, list[nn.Module]]]:
        """Each stack with its layers."""
        return [
            (stack, list(self.anatomy.layers_of(self.model, i)))
            for i, stack in enumerate(self.anatomy.stacks)
        ]

    def layers(self) -> list[tuple[Any, nn.Module]]:
        """Every layer with its stack."""
        return [(stack, layer) for stack, layers in self.stacks() for layer in layers]

    def inputs(self, module: nn.Module, keep: Sequence[int]) -> None:
        """Sets the inputs of a module to 0 but for some."""

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            mask = torch.zeros(args[0].shape[-1])
            mask[list(keep)] = 1
            return (args[0] * mask, *args[1:])

        self.handles.append(module.register_forward_pre_hook(hook))

    def outputs(self, module: nn.Module, keep: Sequence[int]) -> None:
        """Sets the outputs of a module to 0 but for some."""

        def hook(module: nn.Module, args: Any, out: Any) -> Any:
            whole = out[0] if isinstance(out, tuple) else out
            mask = torch.zeros(whole.shape[-1])
            mask[list(keep)] = 1
            return (whole * mask, *out[1:]) if isinstance(out, tuple) else whole * mask

        self.handles.append(module.register_forward_hook(hook))

    def replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Gives a module another forward."""
        self.forwards.append((module, module.forward))
        module.forward = forward  # type: ignore[method-assign]

    def skip(self, stack: int, keep: Sequence[int]) -> None:
        """Skips layers: before norms inside, by silencing both outputs; after them, altogether."""
        entry = self.anatomy.stacks[stack]
        for number, layer in enumerate(self.anatomy.layers_of(self.model, stack)):
            if number in keep:
                continue
            if entry.ffn_norm is not None:
                self.replace(layer, lambda states, *args, **kwargs: states)
                continue
            paths = [entry.attention_out, entry.ffn_out or "mlp"]
            paths += ["layer.1.EncDecAttention.o"] if stack else []
            for path in paths:
                self.outputs(layer.get_submodule(path), [])

    def channels(self, keep: Sequence[Sequence[int]]) -> None:
        """Silences FFN channels of each layer."""
        for (stack, layer), indices in zip(self.layers(), keep, strict=True):
            self.inputs(layer.get_submodule(stack.ffn_out), indices)

    def heads(self, keep: Sequence[Sequence[int]]) -> None:
        """Silences query heads of each layer."""
        width = self.anatomy.head_dim(self.model.config)
        for (stack, layer), heads in zip(self.layers(), keep, strict=True):
            inside = [h * width + i for h in heads for i in range(width)]
            self.inputs(layer.get_submodule(stack.attention_out), inside)
            if stack.axis == "decoder_layers":
                self.inputs(layer.get_submodule("layer.1.EncDecAttention.o"), inside)

    def hidden(self, keep: Sequence[int]) -> None:
        """Silences channels of the residual stream; norms are taken over the others."""
        size = self.anatomy.size(self.model.config, "hidden_size")
        kept = torch.zeros(size)
        kept[list(keep)] = 1
        gemma = self.model.config.model_type == "gemma3_text"
        for module in self.model.modules():
            if isinstance(module, nn.Embedding) and module.embedding_dim == size:
                self.outputs(module, keep)
            elif isinstance(module, nn.LayerNorm) and module.weight.shape == (size,):
                self.replace(module, _layer_norm(module, kept))
            elif _is_rms(module) and module.weight.shape == (size,):
                self.replace(module, _rms_norm(module, kept, 1.0 if gemma else 0.0))
        for stack, layer in self.layers():
            self.outputs(layer.get_submodule(stack.attention_out), keep)
            self.outputs(layer.get_submodule(stack.ffn_out or "mlp"), keep)
            if stack.axis == "decoder_layers":
                self.outputs(layer.get_submodule("layer.1.EncDecAttention.o"), keep)
        inside = {id(module) for _, layer in self.layers() for module in layer.modules()}
        for module in self.model.modules():
            top = isinstance(module, nn.Linear) and id(module) not in inside
            if top and module.out_features == size:
                self.outputs(module, keep)

    def experts(self, keep: Sequence[Sequence[int]]) -> None:
        """Puts the router's logits of experts at −∞."""
        for (_, layer), indices in zip(self.layers(), keep, strict=True):
            gate: Any = getattr(layer.mlp, "gate", None)
            if gate is not None:
                self.replace(gate, _router(gate, indices))


def _is_rms(module: nn.Module) -> bool:
    name = type(module).__name__
    return "RMSNorm" in name or name == "T5LayerNorm"


def _layer_norm(module: Any, kept: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(states: Tensor) -> Tensor:
        count = kept.sum()
        mean = (states * kept).sum(-1, keepdim=True) / count
        variance = (((states - mean) * kept) ** 2).sum(-1, keepdim=True) / count
        found = (states - mean) / (variance + module.eps).sqrt() * module.weight
        return (found if module.bias is None else found + module.bias) * kept

    return forward


def _rms_norm(module: Any, kept: Tensor, add: float) -> Callable[[Tensor], Tensor]:
    eps = getattr(module, "variance_epsilon", None) or module.eps

    def forward(states: Tensor) -> Tensor:
        power = (states**2 * kept).sum(-1, keepdim=True) / kept.sum()
        found: Tensor = states * (power + eps).rsqrt() * (module.weight + add) * kept
        return found

    return forward


def _router(gate: Any, keep: Sequence[int]) -> Callable[[Tensor], Any]:
    def forward(states: Tensor) -> Any:
        logits = states.reshape(-1, states.shape[-1]) @ gate.weight.T
        out = [i for i in range(gate.num_experts) if i not in keep]
        logits[:, out] = -torch.inf
        values, indices = logits.float().softmax(-1).topk(gate.top_k, -1)
        if getattr(gate, "norm_topk_prob", True):
            values = values / values.sum(-1, keepdim=True)
        return logits, values.to(logits.dtype), indices

    return forward
