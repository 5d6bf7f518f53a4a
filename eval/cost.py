"""What a model costs: FLOPs of a row, parameters and bytes of what is saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import RecipeError, RunError
from .tasks import Signal

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .models import Row, TextModel

WEIGHTS = (
    *("*.safetensors", "*_Dense/*.safetensors", "model.onnx", "model.onnx.data"),
    *("model.xml", "model.bin", "model.pte"),
)
"""The files of a folder that hold weights."""


@dataclass(frozen=True)
class LayerShape:
    """The sizes of a transformer's layers that decide its FLOPs.

    Attributes:
        layers: Number of layers L.
        hidden: Hidden size H.
        intermediate: FFN width F.
        attention: Query heads × their width A; the hidden size in BERT-like models.
        keys: Key and value heads × their width K.
        gated: Whether the FFN has a gate beside the way up.
        beside: FLOPs of a token, over all layers, beside those: routers, layers of another width.
        pooled: Whether an H × H map stands before the classes, which one vector a row goes through;
            else every token is classified.
    """

    layers: int
    hidden: int
    intermediate: int
    attention: int
    keys: int
    gated: bool = False
    pooled: bool = True
    beside: int = 0

    def flops(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """FLOPs of all layers for rows of T tokens.

        L (T (4 H A + 4 H K + (4 or 6) H F) + 4 T² A): attention counts as the full square, causal
        or not. And T times what is beside.
        """
        projections = 4 * self.hidden * (self.attention + self.keys)
        ffn = (6 if self.gated else 4) * self.hidden * self.intermediate
        layers = self.layers * (lengths * (projections + ffn) + 4 * lengths**2 * self.attention)
        return layers + lengths * self.beside


def _bert(config: Any) -> LayerShape:
    hidden = config.hidden_size
    return LayerShape(config.num_hidden_layers, hidden, config.intermediate_size, hidden, hidden)


def _llama(config: Any) -> LayerShape:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return LayerShape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * width,
        (config.num_key_value_heads or config.num_attention_heads) * width,
        gated=True,
        pooled=False,
    )


def _mixture(config: Any) -> LayerShape:
    """A token goes through the router and the experts that are chosen for it, not through all."""
    shape, hidden = _llama(config), int(config.hidden_size)
    experts = int(getattr(config, "num_local_experts", None) or config.num_experts)
    width = int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
    active = int(config.num_experts_per_tok) * width
    step, plain = getattr(config, "decoder_sparse_step", 1), getattr(config, "mlp_only_layers", [])
    mixed = sum(
        experts > 0 and layer not in (plain or []) and (layer + 1) % step == 0
        for layer in range(shape.layers)
    )
    router = mixed * 2 * hidden * experts
    others = (shape.layers - mixed) * 6 * hidden * (shape.intermediate - active)
    return replace(shape, intermediate=active, beside=router + others)


ARCHITECTURES: dict[str, Callable[[Any], LayerShape]] = {
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "distilbert": lambda config: LayerShape(
        config.n_layers, config.dim, config.hidden_dim, config.dim, config.dim
    ),
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "gemma3_text": _llama,
    "mixtral": _mixture,
    "qwen3_moe": _mixture,
    "gpt2": lambda config: LayerShape(
        config.n_layer,
        config.n_embd,
        config.n_inner or 4 * config.n_embd,
        config.n_embd,
        config.n_embd,
        pooled=False,
    ),
}
"""Architectures whose FLOPs are known by formula; others are counted by `count_flops`."""


def flops_per_example(
    config: Any,
    lengths: ArrayLike,
    head: Signal,
    num_labels: int = 0,
    dense: int | None = None,
) -> NDArray[np.int64]:
    """Forward FLOPs of rows, each alone and unpadded.

    2 FLOPs per multiply-add; matrix products and attention only (no norms, activations, softmax,
    pooling or look-ups). A pooler that stock ``AutoModel`` computes and an embedding does not use
    is not counted.

    Args:
        config: A transformers config of one of `ARCHITECTURES`.
        lengths: Tokens of each row, specials included, (n,).
        head: ``embedding``, ``class_logits``, or ``token_distribution`` (the head over the
            vocabulary behind the last token alone).
        num_labels: Number of classes, for ``class_logits``; the config's if 0.
        dense: Width of the embedding where a ``Dense`` module follows the pooling, else None.

    Returns:
        (n,) int64.

    Raises:
        RecipeError: If the architecture has no formula.
    """
    if config.model_type not in ARCHITECTURES:
        raise RecipeError(
            f"FLOPs of architecture '{config.model_type}' are not known by formula (known: "
            f"{', '.join(sorted(ARCHITECTURES))}); count them with `row_flops`."
        )
    shape = ARCHITECTURES[config.model_type](config)
    sizes = np.asarray(lengths, dtype=np.int64)
    flops = shape.flops(sizes)
    if head == "class_logits":
        classes = 2 * shape.hidden * int(num_labels or config.num_labels)
        # BERT's pooler, RoBERTa's `dense`, DistilBERT's `pre_classifier`
        return flops + (2 * shape.hidden**2 + classes if shape.pooled else sizes * classes)
    if head == "token_distribution":
        return flops + 2 * shape.hidden * int(config.vocab_size)
    return flops + (2 * shape.hidden * dense if dense else 0)


def row_flops(model: TextModel, lengths: ArrayLike) -> NDArray[np.int64]:
    """Forward FLOPs of rows by formula where there is one, else counted once per length.

    Args:
        model: Any model of this package.
        lengths: Tokens of each row, specials included, (n,).

    Returns:
        (n,) int64.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if model.config.model_type in ARCHITECTURES:
        dense = None if model.dense is None else int(model.dense.out_features)
        return flops_per_example(model.config, sizes, model.signal, dense=dense)
    distinct, where = np.unique(sizes, return_inverse=True)
    sample = model.tokenize(["a"])[0]
    counted = [
        count_flops(model, {name: [ids[0]] * int(size) for name, ids in sample.items()})
        for size in distinct
    ]
    return np.asarray(counted, dtype=np.int64)[where]


def count_flops(model: TextModel, row: Mapping[str, Sequence[int]] | Row) -> int:
    """Forward FLOPs of one row as torch's ``FlopCounterMode`` counts them, attention included.

    It slows the forward pass down: never count while timing. BERT's pooler is left out for
    embeddings, as in `flops_per_example`.

    Args:
        model: Any model of this package.
        row: One of `TextModel.tokenize`'s rows.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]

    # torch counts its GPU kernels of scaled-dot-product attention, not the CPU's.
    cpu_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    device = model.backbone.device
    batch = {k: v.to(device) for k, v in model.collate([dict(row)]).items()}  # type: ignore[arg-type]
    counter = FlopCounterMode(display=False, custom_mapping={cpu_kernel: attention})
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _without_unused_pooler(model), counter:
            model(**batch)
    finally:
        model.train(was_training)
    return int(counter.get_total_flops())


@contextlib.contextmanager
def _without_unused_pooler(model: TextModel) -> Iterator[None]:
    """Takes out the pooler that stock BERT computes although an embedding does not use it."""
    backbone: Any = model.backbone
    pooler = getattr(backbone, "pooler", None) if model.signal == "embedding" else None
    if pooler is None:
        yield
        return
    backbone.pooler = None
    try:
        yield
    finally:
        backbone.pooler = pooler


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's or export's folder that hold weights.

    Raises:
        RunError: If there are none.
    """
    found = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)})
    if not found:
        raise RunError(
            f"'{folder}' holds no weights (expected model.safetensors, model.onnx, model.bin or "
            "model.pte); give the folder of a checkpoint or of an export."
        )
    return found


def artefact_bytes(folder: Path) -> int:
    """Bytes of the weight files of a checkpoint's or export's folder."""
    return sum(path.stat().st_size for path in weight_files(folder))


def artefact_parameters(folder: Path) -> int:
    """Numbers in the safetensors files of a checkpoint's folder, read from their headers.

    Raises:
        RunError: If the folder holds no safetensors.
    """
    from safetensors import safe_open

    files = [path for path in weight_files(folder) if path.suffix == ".safetensors"]
    if not files:
        raise RunError(f"'{folder}' holds no safetensors to count the parameters of.")
    total = 0
    for path in files:
        with safe_open(str(path), framework="np") as file:
            for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                total += int(np.prod(file.get_slice(name).get_shape(), dtype=np.int64))
    return total


def usd_per_million(rows_per_second: float, usd_per_hour: float) -> float:
    """Price of a million rows, given the price of an hour of what runs them.

    Examples:
        >>> usd_per_million(100.0, 0.36)
        1.0
    """
    return usd_per_hour / 3600 / rows_per_second * 1e6
