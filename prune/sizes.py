"""The sizes asked for, checked against a model and rounded to what its checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..eval.errors import RecipeError
from .anatomy import Anatomy
from .plan import EXPERT_STEP

LARGE = 100_000_000
"""Parameters from which on widths are multiples of 64 and not of 8."""


@dataclass(frozen=True)
class Sizes:
    """What is kept along each axis; None where it is not cut.

    Attributes:
        layers: How many, or which.
        intermediate_size: FFN channels of a layer.
        attention_heads: Query heads of a layer.
        kv_heads: Key and value heads of a layer.
        hidden_size: Channels of the residual stream.
        experts: Of a layer.
        rounded: What was asked for and what is used, for each axis where they differ.
    """

    layers: int | list[int] | None = None
    intermediate_size: int | None = None
    attention_heads: int | None = None
    kv_heads: int | None = None
    hidden_size: int | None = None
    experts: int | None = None
    rounded: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def narrows(self) -> bool:
        """Whether heads, hidden channels or experts are cut."""
        axes = (self.attention_heads, self.kv_heads, self.hidden_size, self.experts)
        return any(size is not None for size in axes)

    @property
    def any(self) -> bool:
        """Whether anything is cut."""
        return self.narrows or self.layers is not None or self.intermediate_size is not None


def checked_sizes(
    anatomy: Anatomy,
    config: Any,
    parameters: int,
    asked: Mapping[str, int | Sequence[int] | None],
    round_to: int | None,
) -> Sizes:
    """Checks sizes against a model, and rounds widths.

    Args:
        anatomy: Of the architecture.
        config: The model's.
        parameters: Of the model: above `LARGE`, widths are multiples of 64.
        asked: Axis → size, or None where it is not cut.
        round_to: Widths become multiples of this; None for 8 or 64.

    Raises:
        RecipeError: If the architecture cannot be cut so, or a cut would have no effect.
    """
    if round_to is not None and round_to < 1:
        raise RecipeError(f"`prune.round_to` is {round_to}; it must be 1 or more.")
    found: dict[str, Any] = {}
    rounded: dict[str, dict[str, int]] = {}
    multiple = round_to or (64 if parameters > LARGE else 8)
    for axis, size in asked.items():
        if size is None:
            continue
        whole = anatomy.size(config, axis)
        if axis == "layers":
            found[axis] = _layers(whole, size)
            continue
        assert isinstance(size, int)
        if not 0 < size < whole:
            raise RecipeError(
                f"`prune.{axis}` asks for {size} {_UNITS[axis]} and the model has {whole}: it can "
                f"keep 1 or more, and fewer than {whole}."
            )
        step = multiple if axis == "intermediate_size" else 1
        if axis == "hidden_size":
            step = hidden_step(anatomy, config, multiple, asked.get("attention_heads"))
        found[axis] = _multiple(axis, size, whole, step)
        if found[axis] != size:
            rounded[axis] = {"asked": size, "used": found[axis], "multiple_of": step}
    sizes = Sizes(**found, rounded=rounded)
    _check_heads(anatomy, config, sizes)
    return sizes


_UNITS = {
    "intermediate_size": "channels",
    "attention_heads": "heads",
    "kv_heads": "key and value heads",
    "hidden_size": "hidden channels",
    "experts": "experts",
}


def _layers(whole: int, layers: int | Sequence[int]) -> int | list[int]:
    if isinstance(layers, int):
        if not 0 < layers < whole:
            raise RecipeError(
                f"`prune.layers` asks for {layers} layers and the model has {whole}: it can keep 1 "
                f"or more, and fewer than {whole}."
            )
        return layers
    kept = sorted(layers)
    if not kept or len(set(kept)) < len(kept) or kept[0] < 0 or kept[-1] >= whole:
        raise RecipeError(
            f"`prune.layers` is {list(layers)}; the model has the layers 0 to {whole - 1}: name "
            "those to keep, each once."
        )
    if len(kept) == whole:
        raise RecipeError(f"`prune.layers` names all {whole} layers of the model: that is no cut.")
    return kept


def _multiple(axis: str, size: int, whole: int, step: int) -> int:
    used = max(step, (size + step // 2) // step * step)
    if used >= whole:
        raise RecipeError(
            f"`prune.{axis}` {size}, as a multiple of {step}, is {used}, and the model has "
            f"{whole}: that is no cut. Ask for less, or set `prune.round_to` to 1."
        )
    return used


def hidden_step(anatomy: Anatomy, config: Any, multiple: int, heads: Any = None) -> int:
    """What a hidden size must be a multiple of.

    Args:
        anatomy: Of the architecture.
        config: The uncut model's.
        multiple: Of widths, otherwise.
        heads: Query heads that are kept; None for all.
    """
    if anatomy.attention.head_dim is None:  # whole heads go with the hidden size
        return anatomy.head_dim(config)
    if anatomy.attention.divides:
        return math.lcm(multiple, int(heads or anatomy.heads(config)))
    return math.lcm(multiple, EXPERT_STEP) if "experts" in anatomy.axes else multiple


def _check_heads(anatomy: Anatomy, config: Any, sizes: Sizes) -> None:
    heads = sizes.attention_heads
    every, groups = anatomy.heads(config), anatomy.kv_heads(config)
    kept_groups = sizes.kv_heads or (groups if groups < every else heads or groups)
    if heads is not None and heads % kept_groups:
        raise RecipeError(
            f"`prune.attention_heads` is {heads}, and {kept_groups} key and value heads serve "
            f"equally many of them: ask for a multiple of {kept_groups}."
        )
    if sizes.kv_heads is not None and heads is None and every == groups:
        raise RecipeError(
            "`prune.kv_heads` is for grouped heads; here each head has its own keys and values: "
            "cut `prune.attention_heads`."
        )
    if heads is not None and heads // kept_groups > every // groups:
        raise RecipeError(
            f"`prune.attention_heads` is {heads} with {kept_groups} key and value heads; of each, "
            f"there are {every // groups}."
        )
    hidden = sizes.hidden_size or anatomy.size(config, "hidden_size")
    after = heads or (kept_groups * (every // groups) if sizes.kv_heads else every)
    if anatomy.attention.divides and hidden % after:
        raise RecipeError(
            f"A {anatomy.model_type}'s hidden size must be a multiple of its heads; {hidden} is "
            f"none of {after}. Choose another `prune.attention_heads` or `prune.hidden_size`."
        )
    least = int(getattr(config, "num_experts_per_tok", 0) or 0)
    if sizes.experts is not None and sizes.experts < least:
        raise RecipeError(
            f"`prune.experts` is {sizes.experts}, and {least} answer each token: keep at least "
            f"{least}."
        )
