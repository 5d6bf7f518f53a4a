"""Where an architecture can be cut: for each one, its modules and its config fields.

One table, `ANATOMIES`; a new architecture is one entry. An axis stands in an entry only if stock
transformers holds the cut: a BERT-like model with fewer attention heads at the same hidden size
loads without a complaint and computes something else, so heads are no axis of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..eval.errors import RecipeError, nearest

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Anatomy:
    """Module paths and config fields of one architecture.

    Attributes:
        model_type: As in config.json.
        axes: The axes it can be cut along, each with the config fields that say its size; all of
            an axis's fields are written together, the first is read.
        layers: Path of the list of layers, from the base model.
        ffn_in: Linear modules whose outputs are the FFN's channels, from a layer.
        ffn_out: The linear module whose inputs are the FFN's channels, from a layer.
        ffn_norm: The norm whose input is FFN output + residual, from a layer; None where that sum
            is the layer's output.
        embeddings: The embedding whose rows are the vocabulary, from the base model.
        positions_follow_padding: Whether positions are counted from the padding id, which must
            then stay what it is.
    """

    model_type: str
    axes: Mapping[str, tuple[str, ...]]
    layers: str
    ffn_in: tuple[str, ...]
    ffn_out: str
    ffn_norm: str | None
    embeddings: str
    positions_follow_padding: bool = False

    def fields(self, axis: str) -> tuple[str, ...]:
        """The config fields of an axis.

        Raises:
            RecipeError: If the architecture cannot be cut along it.
        """
        if axis not in self.axes:
            raise RecipeError(
                f"{self.model_type} cannot be cut along '{axis}': no stock checkpoint holds that "
                f"(or no such axis is known). It can along: {', '.join(self.axes)}."
                f"{nearest(axis, self.axes)}"
            )
        return self.axes[axis]

    def size(self, config: Any, axis: str) -> int:
        """The size of an axis in a config."""
        return int(getattr(config, self.fields(axis)[0]))

    def layers_of(self, backbone: nn.Module) -> nn.ModuleList:
        """The list of layers of a model of this architecture, with any head."""
        base: nn.Module = backbone.base_model  # type: ignore[assignment]
        return base.get_submodule(self.layers)  # type: ignore[return-value]

    def layers_prefix(self, backbone: nn.Module) -> str:
        """What the names of the layers' weights start with in the state dict of a model."""
        layers = self.layers_of(backbone)
        return next(f"{name}." for name, module in backbone.named_modules() if module is layers)


_BERT_AXES = {
    "layers": ("num_hidden_layers",),
    "intermediate_size": ("intermediate_size",),
    "vocabulary": ("vocab_size",),
}

ANATOMIES: dict[str, Anatomy] = {
    "bert": Anatomy(
        model_type="bert",
        axes=_BERT_AXES,
        layers="encoder.layer",
        ffn_in=("intermediate.dense",),
        ffn_out="output.dense",
        ffn_norm="output.LayerNorm",
        embeddings="embeddings.word_embeddings",
    ),
    "roberta": Anatomy(
        model_type="roberta",
        axes=_BERT_AXES,
        layers="encoder.layer",
        ffn_in=("intermediate.dense",),
        ffn_out="output.dense",
        ffn_norm="output.LayerNorm",
        embeddings="embeddings.word_embeddings",
        positions_follow_padding=True,
    ),
    "distilbert": Anatomy(
        model_type="distilbert",
        axes={
            "layers": ("n_layers",),
            "intermediate_size": ("hidden_dim",),
            "vocabulary": ("vocab_size",),
        },
        layers="transformer.layer",
        ffn_in=("ffn.lin1",),
        ffn_out="ffn.lin2",
        ffn_norm="output_layer_norm",
        embeddings="embeddings.word_embeddings",
    ),
}
"""Architecture → anatomy."""


def anatomy_of(config: Any) -> Anatomy:
    """The anatomy of a model's architecture.

    Args:
        config: A transformers config.

    Raises:
        RecipeError: If the architecture is not in the table.
    """
    kind = str(getattr(config, "model_type", "") or type(config).__name__)
    if kind not in ANATOMIES:
        raise RecipeError(
            f"The architecture '{kind}' cannot be pruned yet; these can: {', '.join(ANATOMIES)}. "
            "Take one of them, or leave `prune` out of the recipe."
        )
    return ANATOMIES[kind]
