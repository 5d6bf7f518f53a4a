"""Where an architecture can be cut: which axis each dimension of each of its tensors lies on.

`architectures` holds the table; a new architecture is one entry there. An axis stands in an entry
only if stock transformers holds the cut: a BERT-like model with fewer attention heads at the same
hidden size loads without a complaint and computes something else, so heads are no axis of it by
themselves; they go with the hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from ..eval.errors import RecipeError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

Dimension = Literal[
    "hidden",  # the residual stream
    "ffn",  # channels of a feed-forward layer
    "gate_up",  # the same, twice: gate, then up
    "heads",  # query heads × their width
    "kv_heads",  # key or value heads × their width
    "qkv",  # queries, keys and values of all heads, one after another
    "head",  # one number a query head
    "experts",
    "vocabulary",
    "fixed",  # not cut
]
Tensors = Mapping[str, tuple[Dimension, ...]]
"""Name of a tensor → what each of its dimensions is."""


def linear(path: str, out: Dimension, into: Dimension) -> dict[str, tuple[Dimension, ...]]:
    """``nn.Linear``: weight (out, in), bias (out)."""
    return {f"{path}.weight": (out, into), f"{path}.bias": (out,)}


def conv1d(path: str, out: Dimension, into: Dimension) -> dict[str, tuple[Dimension, ...]]:
    """GPT-2's ``Conv1D``: weight (in, out), bias (out)."""
    return {f"{path}.weight": (into, out), f"{path}.bias": (out,)}


def norm(path: str) -> dict[str, tuple[Dimension, ...]]:
    """A norm of the residual stream, with or without a bias."""
    return {f"{path}.weight": ("hidden",), f"{path}.bias": ("hidden",)}


def embedding(path: str, rows: Dimension = "vocabulary") -> dict[str, tuple[Dimension, ...]]:
    """A table of vectors: (rows, hidden)."""
    return {f"{path}.weight": (rows, "hidden")}


@dataclass(frozen=True)
class Attention:
    """How the config says what the attention looks like.

    Attributes:
        heads: Field of the number of query heads.
        kv_heads: Field of the number of key and value heads; None where there are as many.
        head_dim: Field of a head's width; None where it is always hidden size ÷ heads, so that
            heads and hidden size can only shrink together.
        divides: Whether the config refuses a hidden size that the heads do not divide.
        alike: Whether all layers must keep the same heads (they share position biases).
    """

    heads: str = "num_attention_heads"
    kv_heads: str | None = None
    head_dim: str | None = None
    divides: bool = False
    alike: bool = False


@dataclass(frozen=True)
class Stack:
    """A list of layers of one kind.

    Attributes:
        path: From the base model.
        tensors: Of one layer.
        ffn_out: Path of the linear map from the FFN's channels, from a layer; None for experts.
        attention_out: Path of the linear map from the heads, from a layer.
        ffn_norm: Path of the norm whose input is FFN output + residual, from a layer; None where
            that sum is the layer's output.
        sandwich: Whether what a sublayer writes is normed before it is added.
        feeds: Norms whose weights can be folded into what reads them: path → how the paths of
            their readers begin.
        axis: The axis its length lies on.
    """

    path: str
    tensors: Tensors
    ffn_out: str | None
    attention_out: str
    ffn_norm: str | None = None
    sandwich: bool = False
    feeds: Mapping[str, str] = field(default_factory=dict)
    axis: str = "layers"


Rescale = Callable[["dict[str, Tensor]", Any, float], None]


@dataclass(frozen=True)
class Anatomy:
    """Tensors and config fields of one architecture.

    Attributes:
        model_type: As in config.json.
        axes: The axes it can be cut along, each with the config field that says its size.
        stacks: Its layers; two lists for an encoder with a decoder.
        tensors: All others, heads on top included, without the base model's prefix.
        attention: Of its attention.
        embeddings: Path of the embedding whose rows are the vocabulary, from the base model.
        first_layer: Why the first layer of a stack must stay; None where it need not.
        positions_follow_padding: Whether positions are counted from the padding id, which must
            then stay what it is.
        rotates: Whether the hidden space can be rotated without a change of the output: all norms
            are RMS norms before a sublayer, whose weights can be folded into it.
        rescale: Called with the cut tensors by name, the old config and kept ÷ all hidden channels
            where a factor of the architecture depends on the hidden size.
    """

    model_type: str
    axes: Mapping[str, str]
    stacks: tuple[Stack, ...]
    tensors: Tensors
    attention: Attention
    embeddings: str
    first_layer: str | None = None
    positions_follow_padding: bool = False
    rotates: bool = False
    rescale: Rescale | None = field(default=None, repr=False)

    def field(self, axis: str) -> str:
        """The config field of an axis.

        Raises:
            RecipeError: If the architecture cannot be cut along it.
        """
        if axis not in self.axes:
            why = "no stock checkpoint holds that"
            if axis == "attention_heads" and self.attention.head_dim is None:
                why = "its heads shrink with `hidden_size` only"
            elif axis not in AXES:
                why = "no such axis is known"
            raise RecipeError(
                f"{self.model_type} cannot be cut along '{axis}': {why}. It can along: "
                f"{', '.join(self.axes)}.{nearest(axis, self.axes)}"
            )
        return self.axes[axis]

    def size(self, config: Any, axis: str) -> int:
        """The size of an axis in a config."""
        value = getattr(config, self.field(axis))
        if value is None:  # GPT-2's width, by default
            value = 4 * self.size(config, "hidden_size")
        return int(value)

    def sizes(self, config: Any) -> dict[str, int]:
        """The sizes of all axes in a config."""
        return {axis: self.size(config, axis) for axis in self.axes}

    def heads(self, config: Any) -> int:
        """Query heads of a layer."""
        return int(getattr(config, self.attention.heads))

    def kv_heads(self, config: Any) -> int:
        """Key and value heads of a layer."""
        name = self.attention.kv_heads
        return int(getattr(config, name) or self.heads(config)) if name else self.heads(config)

    def head_dim(self, config: Any) -> int:
        """Width of a head."""
        name = self.attention.head_dim
        explicit = getattr(config, name, None) if name else None
        return int(explicit or self.size(config, "hidden_size") // self.heads(config))

    def depth(self, config: Any) -> int:
        """Layers of all stacks."""
        return sum(self.size(config, stack.axis) for stack in self.stacks)

    def layers_of(self, backbone: nn.Module, stack: int = 0) -> nn.ModuleList:
        """The list of layers of a model of this architecture, with any head."""
        base: nn.Module = cast(Any, backbone).base_model
        return cast("nn.ModuleList", base.get_submodule(self.stacks[stack].path))

    @property
    def layers(self) -> str:
        """Path of the (first) list of layers, from the base model."""
        return self.stacks[0].path

    @property
    def ffn_norm(self) -> str | None:
        """As `Stack.ffn_norm`, of the first stack."""
        return self.stacks[0].ffn_norm

    @property
    def ffn_out(self) -> str:
        """As `Stack.ffn_out`, of the first stack.

        Raises:
            RecipeError: If its feed-forward layers are experts.
        """
        found = self.stacks[0].ffn_out
        if found is None:
            self.field("intermediate_size")
        return cast(str, found)


AXES = (
    "layers",
    "decoder_layers",
    "intermediate_size",
    "attention_heads",
    "kv_heads",
    "hidden_size",
    "experts",
    "vocabulary",
)
"""All axes, as `prune` in a recipe names them."""


def anatomy_of(config: Any) -> Anatomy:
    """The anatomy of a model's architecture.

    Args:
        config: A transformers config.

    Raises:
        RecipeError: If the architecture is not in the table.
    """
    from .architectures import ANATOMIES

    kind = str(getattr(config, "model_type", "") or type(config).__name__)
    if kind not in ANATOMIES:
        raise RecipeError(
            f"The architecture '{kind}' cannot be pruned yet; these can: {', '.join(ANATOMIES)}. "
            "Take one of them, or leave `prune` out of the recipe."
        )
    return ANATOMIES[kind]
