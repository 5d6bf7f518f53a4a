"""The table of architectures: where each can be cut. A new one is one entry.

docs/architectures.md shows it as a table; tests/prune/test_architectures.py compares every cut of
every entry with the masked original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .anatomy import Anatomy, Attention, Stack, Tensors, conv1d, embedding, linear, norm

if TYPE_CHECKING:
    from torch import Tensor


def _bert(model_type: str, *, positions_follow_padding: bool) -> Anatomy:
    """BERT and RoBERTa: norms after the residual sum, learned positions."""
    return Anatomy(
        model_type=model_type,
        axes={
            "layers": "num_hidden_layers",
            "intermediate_size": "intermediate_size",
            "hidden_size": "hidden_size",
            "vocabulary": "vocab_size",
        },
        stacks=(
            Stack(
                path="encoder.layer",
                tensors={
                    **linear("attention.self.query", "heads", "hidden"),
                    **linear("attention.self.key", "heads", "hidden"),
                    **linear("attention.self.value", "heads", "hidden"),
                    **linear("attention.output.dense", "hidden", "heads"),
                    **norm("attention.output.LayerNorm"),
                    **linear("intermediate.dense", "ffn", "hidden"),
                    **linear("output.dense", "hidden", "ffn"),
                    **norm("output.LayerNorm"),
                },
                ffn_out="output.dense",
                attention_out="attention.output.dense",
                ffn_norm="output.LayerNorm",
            ),
        ),
        tensors={
            **embedding("embeddings.word_embeddings"),
            **embedding("embeddings.position_embeddings", "fixed"),
            **embedding("embeddings.token_type_embeddings", "fixed"),
            **norm("embeddings.LayerNorm"),
            **linear("pooler.dense", "hidden", "hidden"),
            **linear("classifier", "fixed", "hidden"),
            **linear("qa_outputs", "fixed", "hidden"),
            # BERT over its vocabulary
            **linear("cls.predictions.transform.dense", "hidden", "hidden"),
            **norm("cls.predictions.transform.LayerNorm"),
            **linear("cls.predictions.decoder", "vocabulary", "hidden"),
            "cls.predictions.bias": ("vocabulary",),
            **linear("cls.seq_relationship", "fixed", "hidden"),
            # RoBERTa's heads
            **linear("classifier.dense", "hidden", "hidden"),
            **linear("classifier.out_proj", "fixed", "hidden"),
            **linear("lm_head.dense", "hidden", "hidden"),
            **norm("lm_head.layer_norm"),
            **linear("lm_head.decoder", "vocabulary", "hidden"),
            "lm_head.bias": ("vocabulary",),
        },
        attention=Attention(),
        embeddings="embeddings.word_embeddings",
        positions_follow_padding=positions_follow_padding,
    )


def _distilbert() -> Anatomy:
    return Anatomy(
        model_type="distilbert",
        axes={
            "layers": "n_layers",
            "intermediate_size": "hidden_dim",
            "hidden_size": "dim",
            "vocabulary": "vocab_size",
        },
        stacks=(
            Stack(
                path="transformer.layer",
                tensors={
                    **linear("attention.q_lin", "heads", "hidden"),
                    **linear("attention.k_lin", "heads", "hidden"),
                    **linear("attention.v_lin", "heads", "hidden"),
                    **linear("attention.out_lin", "hidden", "heads"),
                    **norm("sa_layer_norm"),
                    **linear("ffn.lin1", "ffn", "hidden"),
                    **linear("ffn.lin2", "hidden", "ffn"),
                    **norm("output_layer_norm"),
                },
                ffn_out="ffn.lin2",
                attention_out="attention.out_lin",
                ffn_norm="output_layer_norm",
            ),
        ),
        tensors={
            **embedding("embeddings.word_embeddings"),
            **embedding("embeddings.position_embeddings", "fixed"),
            **norm("embeddings.LayerNorm"),
            **linear("pre_classifier", "hidden", "hidden"),
            **linear("classifier", "fixed", "hidden"),
            **linear("qa_outputs", "fixed", "hidden"),
            **linear("vocab_transform", "hidden", "hidden"),
            **norm("vocab_layer_norm"),
            **linear("vocab_projector", "vocabulary", "hidden"),
        },
        attention=Attention(heads="n_heads"),
        embeddings="embeddings.word_embeddings",
    )


def _modernbert() -> Anatomy:
    return Anatomy(
        model_type="modernbert",
        axes={
            "layers": "num_hidden_layers",
            "intermediate_size": "intermediate_size",
            "hidden_size": "hidden_size",
            "vocabulary": "vocab_size",
        },
        stacks=(
            Stack(
                path="layers",
                tensors={
                    **norm("attn_norm"),
                    **linear("attn.Wqkv", "qkv", "hidden"),
                    **linear("attn.Wo", "hidden", "heads"),
                    **norm("mlp_norm"),
                    **linear("mlp.Wi", "gate_up", "hidden"),
                    **linear("mlp.Wo", "hidden", "ffn"),
                },
                ffn_out="mlp.Wo",
                attention_out="attn.Wo",
            ),
        ),
        tensors={
            **embedding("embeddings.tok_embeddings"),
            **norm("embeddings.norm"),
            **norm("final_norm"),
            **linear("head.dense", "hidden", "hidden"),
            **norm("head.norm"),
            **linear("classifier", "fixed", "hidden"),
            **linear("decoder", "vocabulary", "hidden"),
        },
        attention=Attention(),
        embeddings="embeddings.tok_embeddings",
        first_layer="it is built without the norm before attention that the others have",
    )


def _gpt2() -> Anatomy:
    return Anatomy(
        model_type="gpt2",
        axes={
            "layers": "n_layer",
            "intermediate_size": "n_inner",
            "hidden_size": "n_embd",
            "vocabulary": "vocab_size",
        },
        stacks=(
            Stack(
                path="h",
                tensors={
                    **norm("ln_1"),
                    **conv1d("attn.c_attn", "qkv", "hidden"),
                    **conv1d("attn.c_proj", "hidden", "heads"),
                    **norm("ln_2"),
                    **conv1d("mlp.c_fc", "ffn", "hidden"),
                    **conv1d("mlp.c_proj", "hidden", "ffn"),
                },
                ffn_out="mlp.c_proj",
                attention_out="attn.c_proj",
            ),
        ),
        tensors={
            **embedding("wte"),
            **embedding("wpe", "fixed"),
            **norm("ln_f"),
            **linear("lm_head", "vocabulary", "hidden"),
            **linear("score", "fixed", "hidden"),
        },
        attention=Attention(heads="n_head"),
        embeddings="wte",
    )


_DECODER_ATTENTION: Tensors = {
    **linear("self_attn.q_proj", "heads", "hidden"),
    **linear("self_attn.k_proj", "kv_heads", "hidden"),
    **linear("self_attn.v_proj", "kv_heads", "hidden"),
    **linear("self_attn.o_proj", "hidden", "heads"),
    "self_attn.q_norm.weight": ("fixed",),
    "self_attn.k_norm.weight": ("fixed",),
    **norm("input_layernorm"),
    **norm("post_attention_layernorm"),
}
_DECODER_FFN: Tensors = {
    **linear("mlp.gate_proj", "ffn", "hidden"),
    **linear("mlp.up_proj", "ffn", "hidden"),
    **linear("mlp.down_proj", "hidden", "ffn"),
}
_EXPERTS: Tensors = {
    "mlp.gate.weight": ("experts", "hidden"),
    "mlp.experts.gate_up_proj": ("experts", "fixed", "hidden"),
    "mlp.experts.down_proj": ("experts", "hidden", "fixed"),
}
_DECODER_ENDS: Tensors = {
    **embedding("embed_tokens"),
    **norm("norm"),
    **linear("lm_head", "vocabulary", "hidden"),
    **linear("score", "fixed", "hidden"),
}


def _decoder(
    model_type: str,
    *,
    divides: bool = False,
    rotates: bool = True,
    further: Tensors | None = None,
    experts: str | None = None,
    rescale: Any = None,
) -> Anatomy:
    """Llama and its kin: RMS norms before each sublayer, rotary positions, grouped heads.

    Mixtures keep the widths of their experts: which channels matter differs between experts, and
    the axis is the number of experts.
    """
    axes = {"layers": "num_hidden_layers"}
    axes |= {} if experts else {"intermediate_size": "intermediate_size"}
    axes |= {
        "attention_heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "hidden_size": "hidden_size",
    }
    axes |= {"experts": experts} if experts else {}
    axes["vocabulary"] = "vocab_size"
    # A mixture may hold dense layers too; their width stays.
    dense: Tensors = {
        name: tuple("fixed" if d == "ffn" else d for d in dims)
        for name, dims in _DECODER_FFN.items()
    }
    ffn = {**dense, **_EXPERTS} if experts else _DECODER_FFN
    return Anatomy(
        model_type=model_type,
        axes=axes,
        stacks=(
            Stack(
                path="layers",
                tensors={**_DECODER_ATTENTION, **ffn, **(further or {})},
                ffn_out=None if experts else "mlp.down_proj",
                attention_out="self_attn.o_proj",
                sandwich=further is not None,
                feeds={"input_layernorm": "self_attn.", "post_attention_layernorm": "mlp."},
            ),
        ),
        tensors=_DECODER_ENDS,
        attention=Attention(kv_heads="num_key_value_heads", head_dim="head_dim", divides=divides),
        embeddings="embed_tokens",
        rotates=rotates,
        rescale=rescale,
    )


def _gemma_scale(state: dict[str, Tensor], config: Any, share: float) -> None:
    """Gemma multiplies its embeddings by √hidden; a head that shares them is met by the last norm.

    Its norms multiply by 1 + weight.
    """
    factor = share**-0.5
    names = [name for name in state if name.endswith("embed_tokens.weight")]
    if config.tie_word_embeddings and "lm_head.weight" in state:
        names.append("lm_head.weight")
        for name in [name for name in state if name in ("norm.weight", "model.norm.weight")]:
            state[name] = (1 + state[name]) / factor - 1
    for name in names:
        state[name] = state[name] * factor


def _t5_scale(state: dict[str, Tensor], config: Any, share: float) -> None:
    """T5 with a tied head divides the decoder's output by √hidden."""
    name = "decoder.final_layer_norm.weight"
    if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings) and name in state:
        state[name] = state[name] * share**0.5


def _t5() -> Anatomy:
    def attention(path: str) -> Tensors:
        return {
            **linear(f"{path}.q", "heads", "hidden"),
            **linear(f"{path}.k", "heads", "hidden"),
            **linear(f"{path}.v", "heads", "hidden"),
            **linear(f"{path}.o", "hidden", "heads"),
            f"{path}.relative_attention_bias.weight": ("fixed", "head"),
        }

    def ffn(path: str) -> Tensors:
        return {
            **linear(f"{path}.wi", "ffn", "hidden"),
            **linear(f"{path}.wi_0", "ffn", "hidden"),
            **linear(f"{path}.wi_1", "ffn", "hidden"),
            **linear(f"{path}.wo", "hidden", "ffn"),
        }

    encoder = Stack(
        path="encoder.block",
        tensors={
            **attention("layer.0.SelfAttention"),
            **norm("layer.0.layer_norm"),
            **ffn("layer.1.DenseReluDense"),
            **norm("layer.1.layer_norm"),
        },
        ffn_out="layer.1.DenseReluDense.wo",
        attention_out="layer.0.SelfAttention.o",
    )
    decoder = Stack(
        path="decoder.block",
        tensors={
            **attention("layer.0.SelfAttention"),
            **norm("layer.0.layer_norm"),
            **attention("layer.1.EncDecAttention"),
            **norm("layer.1.layer_norm"),
            **ffn("layer.2.DenseReluDense"),
            **norm("layer.2.layer_norm"),
        },
        ffn_out="layer.2.DenseReluDense.wo",
        attention_out="layer.0.SelfAttention.o",
        axis="decoder_layers",
    )
    return Anatomy(
        model_type="t5",
        axes={
            "layers": "num_layers",
            "decoder_layers": "num_decoder_layers",
            "intermediate_size": "d_ff",
            "attention_heads": "num_heads",
            "hidden_size": "d_model",
            "vocabulary": "vocab_size",
        },
        stacks=(encoder, decoder),
        tensors={
            **embedding("shared"),
            **embedding("encoder.embed_tokens"),
            **embedding("decoder.embed_tokens"),
            **norm("encoder.final_layer_norm"),
            **norm("decoder.final_layer_norm"),
            **linear("lm_head", "vocabulary", "hidden"),
            **linear("classification_head.dense", "hidden", "hidden"),
            **linear("classification_head.out_proj", "fixed", "hidden"),
        },
        attention=Attention(heads="num_heads", head_dim="d_kv", alike=True),
        embeddings="shared",
        first_layer="it holds the position biases of all layers",
        rescale=_t5_scale,
    )


_GEMMA_NORMS: Tensors = {
    **norm("pre_feedforward_layernorm"),
    **norm("post_feedforward_layernorm"),
}

ANATOMIES: dict[str, Anatomy] = {
    entry.model_type: entry
    for entry in (
        _bert("bert", positions_follow_padding=False),
        _bert("roberta", positions_follow_padding=True),
        _bert("xlm-roberta", positions_follow_padding=True),
        _distilbert(),
        _modernbert(),
        _gpt2(),
        _decoder("llama", divides=True),
        _decoder("mistral"),
        _decoder("qwen2"),
        _decoder("qwen3"),
        _decoder(
            "gemma3_text", divides=True, rotates=False, further=_GEMMA_NORMS, rescale=_gemma_scale
        ),
        _decoder("qwen3_moe", experts="num_experts"),
        _decoder("mixtral", experts="num_local_experts"),
        _t5(),
    )
}
"""Architecture → anatomy."""
