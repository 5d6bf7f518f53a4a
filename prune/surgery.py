"""The cut: index lists in, a smaller stock model and a map of what was kept out."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..eval.errors import RunError
from ..eval.models import TextModel
from .anatomy import Anatomy, anatomy_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

IndexMap = dict[str, Any]
"""``layers``: kept layers; ``channels``: kept FFN channels of each kept layer; ``vocabulary``: kept
token ids. All in the numbering of the original; an axis that was not cut is absent."""


@dataclass(frozen=True)
class Cut:
    """What is kept, in the original's numbering; None where an axis is not cut.

    Attributes:
        layers: Ascending.
        channels: FFN channels of each kept layer, ascending, equally many in each.
        vocabulary: Token ids, ascending.
    """

    layers: Sequence[int] | None = None
    channels: Sequence[Sequence[int]] | None = None
    vocabulary: Sequence[int] | None = None


def cut(
    model: TextModel, what: Cut, tokenizer: PreTrainedTokenizerFast | None = None
) -> tuple[TextModel, IndexMap]:
    """Cuts a model down.

    Args:
        model: Is not changed.
        what: Is kept.
        tokenizer: In the new numbering, where the vocabulary is cut.

    Returns:
        A new model, in evaluation mode, and the map of what was kept.

    Raises:
        RecipeError: If the architecture cannot be cut along an axis.
        RunError: If the index lists do not fit the model.
    """
    if (what.vocabulary is None) != (tokenizer is None):
        raise RunError("A cut vocabulary needs its tokenizer, and an uncut one keeps its own.")
    small = cut_backbone(model.backbone, what)
    result = TextModel(
        small,
        copy.deepcopy(model.tokenizer) if tokenizer is None else tokenizer,
        model.signal,
        model.encoding,
        copy.deepcopy(model.dense),
    )
    kept: IndexMap = {}
    if what.layers is not None:
        kept["layers"] = list(what.layers)
    if what.channels is not None:
        kept["channels"] = [list(indices) for indices in what.channels]
    if what.vocabulary is not None:
        kept["vocabulary"] = list(what.vocabulary)
    return result.eval(), kept


def cut_backbone(backbone: PreTrainedModel, what: Cut) -> PreTrainedModel:
    """Cuts a stock model, with any head, down to a stock model of the same class.

    Raises:
        RecipeError: If the architecture cannot be cut along an axis.
        RunError: If the index lists do not fit the model.
    """
    anatomy = anatomy_of(backbone.config)
    _check(anatomy, backbone.config, what)
    config = _smaller_config(anatomy, backbone.config, what)
    with torch.random.fork_rng(devices=[]):  # weights are drawn, and overwritten below
        make: Any = type(backbone)._from_config
        small: Any = make(config, dtype=backbone.dtype)
    state = _smaller_state(anatomy, backbone, what)
    small.load_state_dict(state, strict=True)
    if getattr(backbone, "generation_config", None) is not None and backbone.can_generate():
        small.generation_config = copy.deepcopy(backbone.generation_config)
        if what.vocabulary is not None:
            _renumber_specials(small.generation_config, what.vocabulary)
    return cast("PreTrainedModel", small.to(backbone.device).eval())


def _check(anatomy: Anatomy, config: Any, what: Cut) -> None:
    def fits(indices: Sequence[int], size: int) -> bool:
        rising = all(a < b for a, b in itertools.pairwise(indices))
        return bool(len(indices)) and rising and indices[0] >= 0 and indices[-1] < size

    layers = anatomy.size(config, "layers")
    if what.layers is not None and not fits(what.layers, layers):
        raise RunError(f"Layers to keep must rise, below {layers}; got {list(what.layers)}.")
    if what.channels is not None:
        width = anatomy.size(config, "intermediate_size")
        count = layers if what.layers is None else len(what.layers)
        if len(what.channels) != count or len({len(c) for c in what.channels}) != 1:
            raise RunError(f"Channels must be {count} lists of one length, one per kept layer.")
        if not all(fits(indices, width) for indices in what.channels):
            raise RunError(f"Channels to keep must rise, below {width}.")
    if what.vocabulary is not None:
        size = anatomy.size(config, "vocabulary")
        if not fits(what.vocabulary, size):
            raise RunError(f"Token ids to keep must rise, below {size}.")


def _smaller_config(anatomy: Anatomy, original: Any, what: Cut) -> Any:
    config = copy.deepcopy(original)
    sizes: dict[str, int] = {}
    if what.layers is not None:
        sizes["layers"] = len(what.layers)
    if what.channels is not None:
        sizes["intermediate_size"] = len(what.channels[0])
    if what.vocabulary is not None:
        sizes["vocabulary"] = len(what.vocabulary)
        _renumber_specials(config, what.vocabulary)
        if anatomy.positions_follow_padding and config.pad_token_id != original.pad_token_id:
            raise RunError(
                f"{anatomy.model_type} counts positions from its padding id, so the ids up to "
                f"{original.pad_token_id} must all be kept."
            )
    for axis, size in sizes.items():
        for field in anatomy.fields(axis):
            setattr(config, field, size)
    return config


def _renumber_specials(config: Any, vocabulary: Sequence[int]) -> None:
    """Renumbers ``pad_token_id`` and all other fields of this kind."""
    place = {old: new for new, old in enumerate(vocabulary)}
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


def _smaller_state(anatomy: Anatomy, backbone: PreTrainedModel, what: Cut) -> dict[str, Tensor]:
    """The state dict of the cut model; tensors are copies."""
    state = backbone.state_dict()
    prefix = anatomy.layers_prefix(backbone)
    layers = range(anatomy.size(backbone.config, "layers")) if what.layers is None else what.layers
    place = {old: new for new, old in enumerate(layers)}
    rows = _vocabulary_tensors(anatomy, backbone) if what.vocabulary is not None else set()
    small: dict[str, Tensor] = {}
    for name, value in state.items():
        value = value.detach()
        if name.startswith(prefix):
            number, _, inside = name.removeprefix(prefix).partition(".")
            if int(number) not in place:
                continue
            new = place[int(number)]
            if what.channels is not None:
                value = _cut_channels(anatomy, inside, what.channels[new])(value)
            name = f"{prefix}{new}.{inside}"
        elif what.vocabulary is not None and value.data_ptr() in rows:
            value = value[torch.tensor(list(what.vocabulary), device=value.device)]
        small[name] = value.clone()
    return small


def _cut_channels(
    anatomy: Anatomy, name: str, channels: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    module, _, kind = name.rpartition(".")
    dim = {(path, part): 0 for path in anatomy.ffn_in for part in ("weight", "bias")}
    dim[anatomy.ffn_out, "weight"] = 1
    if (module, kind) not in dim:
        return lambda value: value
    axis = dim[module, kind]
    return lambda value: value.index_select(axis, torch.tensor(channels, device=value.device))


def _vocabulary_tensors(anatomy: Anatomy, backbone: PreTrainedModel) -> set[int]:
    """Addresses of the tensors whose rows are the vocabulary: embedding, and a head over it."""
    base: Any = backbone.base_model
    found = {base.get_submodule(anatomy.embeddings).weight.data_ptr()}
    head: Any = cast(Any, backbone).get_output_embeddings()
    if head is not None:
        # BERT-like heads have a bias of the vocabulary beside the module it is added in.
        around = [m for m in backbone.modules() if any(child is head for child in m.children())]
        biases = [getattr(module, "bias", None) for module in (head, *around)]
        found |= {p.data_ptr() for p in (head.weight, *biases) if isinstance(p, Tensor)}
    return found
