"""What is kept, checked against a model: the indices of every tensor, and the config after it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..eval.errors import RecipeError, RunError
from .anatomy import Anatomy, Dimension

IndexMap = dict[str, Any]
"""What was kept: a `Cut` as a dict, lists in it; an axis that was not cut is absent."""

Indices = Sequence[int]
EXPERT_STEP = 8
"""Rows of 16 bytes, in 16-bit numbers too."""


@dataclass(frozen=True)
class Cut:
    """What is kept, in the original's numbering; None where an axis is not cut.

    Lists of lists have one list for each layer that is kept, those of an encoder before those of
    its decoder. All index lists rise.

    Attributes:
        layers: Of the only stack of layers, or of the encoder's.
        decoder_layers: Of a decoder behind an encoder.
        channels: FFN channels, equally many in each layer.
        heads: Query heads, equally many in each layer, and of each key and value head that stays
            equally many. Where heads shrink with the hidden size only, they say which go with it.
        kv_heads: Key and value heads; their query heads go with them unless ``heads`` says which.
        hidden: Channels of the residual stream.
        experts: Of each layer that has some; the others' lists are empty.
        vocabulary: Token ids.
    """

    layers: Indices | None = None
    decoder_layers: Indices | None = None
    channels: Sequence[Indices] | None = None
    heads: Sequence[Indices] | None = None
    kv_heads: Sequence[Indices] | None = None
    hidden: Indices | None = None
    experts: Sequence[Indices] | None = None
    vocabulary: Indices | None = None

    def index_map(self) -> IndexMap:
        """Itself as a dict of lists, without what is not cut."""
        found = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {
            name: [list(part) if isinstance(part, Sequence) else part for part in value]
            for name, value in found.items()
            if value is not None
        }


class Plan:
    """A checked cut of one model: the indices to keep of every tensor, and the config after it."""

    def __init__(self, anatomy: Anatomy, config: Any, what: Cut) -> None:
        self.anatomy, self.old, self.what = anatomy, config, what
        self.heads, self.kv_heads = anatomy.heads(config), anatomy.kv_heads(config)
        self.head_dim = anatomy.head_dim(config)
        self.kept = self._layers()
        """Layers kept of each stack."""
        self.count = sum(map(len, self.kept))
        self._check_widths()
        self.kept_heads, self.kept_kv = self._grouped_heads()
        self._check_hidden()
        self._cache: dict[tuple[Dimension, int], Tensor | None] = {}

    def _layers(self) -> list[list[int]]:
        found = []
        for stack in self.anatomy.stacks:
            size = self.anatomy.size(self.old, stack.axis)
            given = getattr(self.what, stack.axis)
            if given is not None:
                _check_rising(f"Layers to keep ({stack.axis})", given, size)
                if given[0] != 0 and self.anatomy.first_layer:
                    raise RecipeError(
                        f"The first layer of a {self.anatomy.model_type} must stay: "
                        f"{self.anatomy.first_layer}. Keep layer 0."
                    )
                if getattr(self.old, "scale_attn_by_inverse_layer_idx", False):
                    raise RecipeError(
                        "This checkpoint scales attention by a layer's number "
                        "(scale_attn_by_inverse_layer_idx), so its layers cannot be renumbered."
                    )
            found.append(list(range(size)) if given is None else list(given))
        if len(found) > 1 and len(found[1]) > len(found[0]):
            raise RecipeError(
                f"A {self.anatomy.model_type} cannot have more decoder layers ({len(found[1])}) "
                f"than encoder layers ({len(found[0])}): transformers sizes the decoder's cache by "
                "the encoder. Cut `decoder_layers` too."
            )
        if len(self.anatomy.stacks) == 1 and self.what.decoder_layers is not None:
            self.anatomy.field("decoder_layers")
        return found

    def _check_widths(self) -> None:
        what, anatomy = self.what, self.anatomy
        if what.channels is not None:
            size = anatomy.size(self.old, "intermediate_size")
            self._check_lists("FFN channels", what.channels, size)
        if what.hidden is not None:
            _check_rising(
                "Hidden channels to keep", what.hidden, anatomy.size(self.old, "hidden_size")
            )
        if what.vocabulary is not None:
            size = anatomy.size(self.old, "vocabulary")
            _check_rising("Token ids to keep", what.vocabulary, size)
        if what.experts is not None:
            size = anatomy.size(self.old, "experts")
            some = [indices for indices in what.experts if len(indices)]
            self._check_lists("Experts", some, size, count=len(some))
            least = int(self.old.num_experts_per_tok)
            if len(what.experts) != self.count or not some or len(some[0]) < least:
                raise RunError(
                    f"Experts to keep must be {self.count} lists, one per kept layer, of at least "
                    f"{least}: so many answer each token."
                )

    def _check_lists(
        self, what: str, lists: Sequence[Indices], size: int, count: int | None = None
    ) -> None:
        count = self.count if count is None else count
        if len(lists) != count or len({len(indices) for indices in lists}) != 1:
            raise RunError(f"{what} must be {count} lists of one length, one per kept layer.")
        for indices in lists:
            _check_rising(f"{what} to keep", indices, size)

    def _grouped_heads(self) -> tuple[list[list[int]], list[list[int]]]:
        """Query heads, and key and value heads, of each kept layer."""
        what, anatomy = self.what, self.anatomy
        group = self.heads // self.kv_heads
        every_kv = [list(range(self.kv_heads))] * self.count
        if what.heads is None and what.kv_heads is None:
            return [list(range(self.heads))] * self.count, every_kv
        if what.hidden is None or what.kv_heads is not None:
            anatomy.field("kv_heads" if what.kv_heads is not None else "attention_heads")
        kv = every_kv
        if what.kv_heads is not None:
            self._check_lists("Key and value heads", what.kv_heads, self.kv_heads)
            kv = [list(one) for one in what.kv_heads]
        if what.heads is None:
            heads = [[h for h in range(self.heads) if h // group in set(one)] for one in kv]
        else:
            self._check_lists("Heads", what.heads, self.heads)
            heads = [list(one) for one in what.heads]
            if group == 1 and what.kv_heads is None:
                kv = heads
        if anatomy.attention.alike and any(one != heads[0] for one in heads):
            raise RunError(
                f"All layers of a {anatomy.model_type} must keep the same heads: they share "
                "position biases."
            )
        for some, theirs in zip(heads, kv, strict=True):
            each = len(some) // len(theirs)
            place = {old: new for new, old in enumerate(theirs)}
            if [place.get(h // group, -1) for h in some] != [
                i // each if each else -1 for i in range(len(some))
            ]:
                raise RunError(
                    f"Of each key and value head that stays, equally many query heads must stay "
                    f"(there are {group} of each); got heads {some} with key and value heads "
                    f"{theirs}."
                )
        return heads, kv

    def _check_hidden(self) -> None:
        anatomy = self.anatomy
        tied = anatomy.attention.head_dim is None
        size = (
            anatomy.size(self.old, "hidden_size")
            if self.what.hidden is None
            else len(self.what.hidden)
        )
        heads = len(self.kept_heads[0])
        if tied and size != heads * self.head_dim:
            raise RunError(
                f"A {anatomy.model_type}'s heads are as wide as hidden size ÷ heads: with heads of "
                f"{self.head_dim}, {size} hidden channels go with {size / self.head_dim:g} heads, "
                f"and {heads} are kept."
            )
        if self.what.hidden is not None and "experts" in anatomy.axes and size % EXPERT_STEP:
            raise RunError(
                f"The hidden size of a {anatomy.model_type} must be a multiple of {EXPERT_STEP}: "
                f"torch multiplies the experts' matrices together and asks for that; got {size}."
            )
        if anatomy.attention.divides and size % heads:
            raise RunError(
                f"A {anatomy.model_type}'s hidden size must be a multiple of its heads; {size} "
                f"and {heads} are kept."
            )

    def config(self) -> Any:
        """The config after the cut."""
        what, anatomy = self.what, self.anatomy
        config = copy.deepcopy(self.old)
        for stack, kept in zip(anatomy.stacks, self.kept, strict=True):
            if getattr(what, stack.axis) is not None:
                setattr(config, anatomy.field(stack.axis), len(kept))
        if what.layers is not None:
            _slice_per_layer(config, self.kept[0])
        widths: dict[str, Sequence[Any] | None] = {
            "hidden_size": what.hidden,
            "vocabulary": what.vocabulary,
            "experts": max(what.experts, key=len) if what.experts is not None else None,
            "intermediate_size": what.channels[0] if what.channels is not None else None,
        }
        if what.hidden is not None and "intermediate_size" in anatomy.axes:  # may follow hidden
            size = anatomy.size(self.old, "intermediate_size")
            setattr(config, anatomy.field("intermediate_size"), size)
        for axis, indices in widths.items():
            if indices is not None:
                setattr(config, anatomy.field(axis), len(indices))
        if what.hidden is not None or what.heads is not None or what.kv_heads is not None:
            attention = anatomy.attention
            setattr(config, attention.heads, len(self.kept_heads[0]))
            if attention.kv_heads:
                setattr(config, attention.kv_heads, len(self.kept_kv[0]))
            if attention.head_dim:
                setattr(config, attention.head_dim, self.head_dim)
        if what.vocabulary is not None:
            renumber_specials(config, what.vocabulary)
            if anatomy.positions_follow_padding and config.pad_token_id != self.old.pad_token_id:
                raise RunError(
                    f"{anatomy.model_type} counts positions from its padding id, so the ids up to "
                    f"{self.old.pad_token_id} must all be kept."
                )
        return config

    def index(self, kind: Dimension, layer: int = 0) -> Tensor | None:
        """What is kept of a dimension, in one of the kept layers; None for all of it."""
        if (kind, layer) not in self._cache:
            indices = self._indices(kind, layer)
            self._cache[kind, layer] = None if indices is None else torch.tensor(indices)
        return self._cache[kind, layer]

    def _indices(self, kind: Dimension, layer: int) -> list[int] | None:
        what = self.what
        if kind in ("heads", "kv_heads", "qkv", "head"):
            if what.heads is None and what.kv_heads is None:
                return None
            heads = (self.kept_kv if kind == "kv_heads" else self.kept_heads)[layer]
            if kind == "head":
                return heads
            rows = [h * self.head_dim + i for h in heads for i in range(self.head_dim)]
            block = self.heads * self.head_dim
            return rows if kind != "qkv" else [b * block + i for b in range(3) for i in rows]
        if kind in ("ffn", "gate_up"):
            if what.channels is None:
                return None
            channels = list(what.channels[layer])
            if kind == "ffn":
                return channels
            size = self.anatomy.size(self.old, "intermediate_size")
            return [*channels, *(size + i for i in channels)]
        if kind == "experts":
            return None if what.experts is None else list(what.experts[layer])
        whole = {"hidden": what.hidden, "vocabulary": what.vocabulary}.get(kind)
        return None if whole is None else list(whole)


def _check_rising(what: str, indices: Indices, size: int) -> None:
    rising = all(a < b for a, b in itertools.pairwise(indices))
    if not (len(indices) and rising and indices[0] >= 0 and indices[-1] < size):
        raise RunError(f"{what} must rise, below {size}; got {list(indices)[:20]}.")


def _slice_per_layer(config: Any, kept: Indices) -> None:
    """Carries what a config says layer by layer over to the layers that are kept."""
    types = getattr(config, "layer_types", None)
    if types:
        config.layer_types = [types[i] for i in kept]
    if hasattr(config, "decoder_sparse_step"):  # Qwen's mixtures: which layers are dense
        step, dense = int(config.decoder_sparse_step), set(config.mlp_only_layers or ())
        config.mlp_only_layers = [
            new for new, old in enumerate(kept) if old in dense or (old + 1) % step
        ]
        config.decoder_sparse_step = 1


def renumber_specials(config: Any, vocabulary: Indices) -> None:
    """Renumbers ``pad_token_id`` and all other fields of this kind."""
    place: Mapping[int, int] = {old: new for new, old in enumerate(vocabulary)}
    for name in [name for name in vars(config) if name.endswith(("_token_id", "_token_ids"))]:
        value = getattr(config, name)
        several = isinstance(value, list)
        ids = value if several else [] if value is None else [value]
        gone = [i for i in ids if i not in place and i >= 0]
        if gone:
            raise RunError(f"The config's {name} is {value}, which the cut vocabulary lacks.")
        if ids:
            found = [place.get(i, i) for i in ids]
            setattr(config, name, found if several else found[0])
