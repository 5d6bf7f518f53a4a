"""The cut: index lists in, a smaller stock model and a map of what was kept out."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..eval.errors import RunError
from ..eval.models import TextModel
from .anatomy import Dimension, anatomy_of
from .plan import Cut, IndexMap, Plan, renumber_specials

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from .rotation import Turn

__all__ = ["Cut", "IndexMap", "cut", "cut_backbone"]


def cut(
    model: TextModel,
    what: Cut,
    tokenizer: PreTrainedTokenizerFast | None = None,
    turn: Turn | None = None,
) -> tuple[TextModel, IndexMap]:
    """Cuts a model down.

    Args:
        model: Is not changed.
        what: Is kept.
        tokenizer: In the new numbering, where the vocabulary is cut.
        turn: Another basis of the hidden space, in which ``what.hidden`` counts.

    Returns:
        A new model, in evaluation mode, and the map of what was kept. An embedding model with a
        cut hidden size gives fewer numbers, and a dense map behind it takes the kept ones.

    Raises:
        RecipeError: If the architecture cannot be cut along an axis.
        RunError: If the index lists do not fit the model.
    """
    if (what.vocabulary is None) != (tokenizer is None):
        raise RunError("A cut vocabulary needs its tokenizer, and an uncut one keeps its own.")
    small = cut_backbone(model.backbone, what, turn)
    if turn is not None:
        dense = turn.dense(model)
    elif model.dense is not None and what.hidden is not None:
        dense = _fewer_inputs(model.dense, list(what.hidden))
    else:
        dense = copy.deepcopy(model.dense)
    result = TextModel(
        small,
        copy.deepcopy(model.tokenizer) if tokenizer is None else tokenizer,
        model.signal,
        model.encoding,
        dense,
    )
    return result.eval(), what.index_map()


@torch.no_grad()
def _fewer_inputs(dense: torch.nn.Linear, kept: list[int]) -> torch.nn.Linear:
    small = torch.nn.Linear(
        len(kept), dense.out_features, dense.bias is not None, dtype=dense.weight.dtype
    )
    small.weight.copy_(dense.weight[:, kept])
    if dense.bias is not None:
        small.bias.copy_(dense.bias)
    return small


def cut_backbone(backbone: PreTrainedModel, what: Cut, turn: Turn | None = None) -> PreTrainedModel:
    """Cuts a stock model, with any head, down to a stock model of the same class.

    Raises:
        RecipeError: If the architecture cannot be cut along an axis.
        RunError: If the index lists do not fit the model.
    """
    from transformers.initialization import no_init_weights

    plan = Plan(anatomy_of(backbone.config), backbone.config, what)
    state = _State(plan, turn).of(backbone)
    with torch.random.fork_rng(devices=[]), no_init_weights():
        make: Any = type(backbone)._from_config
        small: Any = make(plan.config(), dtype=backbone.dtype)
    small.load_state_dict(state, strict=True, assign=True)
    small.tie_weights()
    if getattr(backbone, "generation_config", None) is not None and backbone.can_generate():
        small.generation_config = copy.deepcopy(backbone.generation_config)
        if what.vocabulary is not None:
            renumber_specials(small.generation_config, what.vocabulary)
    return cast("PreTrainedModel", small.to(backbone.device).eval())


class _State:
    """The tensors of a cut model.

    Args:
        plan: Which indices stay.
        turn: Another basis of the hidden space, in which hidden channels are counted.
    """

    def __init__(self, plan: Plan, turn: Turn | None) -> None:
        self.plan, self.turn, self.anatomy = plan, turn, plan.anatomy

    def of(self, backbone: PreTrainedModel) -> dict[str, Tensor]:
        """The state dict of the cut model; it shares no numbers with the original's."""
        base = f"{backbone.base_model_prefix}."
        hidden = self.plan.what.hidden
        small: dict[str, Tensor] = {}
        for name, value in backbone.state_dict().items():
            front = base if name.startswith(base) else ""
            found = self._tensor(name.removeprefix(front), value.detach())
            if found is not None:
                small[front + found[0]] = found[1]
        if hidden is not None and self.anatomy.rescale is not None:
            share = len(hidden) / self.anatomy.size(self.plan.old, "hidden_size")
            self.anatomy.rescale(small, self.plan.old, share)
        return small

    def _tensor(self, name: str, value: Tensor) -> tuple[str, Tensor] | None:
        """A tensor's new name and value, or None where its layer goes."""
        before = 0
        for stack, kept in zip(self.anatomy.stacks, self.plan.kept, strict=True):
            if name.startswith(f"{stack.path}."):
                number, _, inside = name.removeprefix(f"{stack.path}.").partition(".")
                if int(number) not in kept:
                    return None
                new = kept.index(int(number))
                part = self._slice(name, value, stack.tensors.get(inside), before + new)
                return f"{stack.path}.{new}.{inside}", part
            before += len(kept)
        return name, self._slice(name, value, self.anatomy.tensors.get(name), 0)

    def _slice(
        self, name: str, value: Tensor, dims: tuple[Dimension, ...] | None, layer: int
    ) -> Tensor:
        what, part = self.plan.what, value
        if dims is None and not (what.hidden is None and what.vocabulary is None):
            raise RunError(
                f"The table of {self.anatomy.model_type} does not say how '{name}' "
                f"{tuple(value.shape)} is cut: the model has a part that stock ones do not have. "
                "Cut layers and FFN channels only."
            )
        for dim, kind in enumerate(dims or ()):  # unknown ones are no part of a layer's widths
            index = None
            if kind != "hidden" or self.turn is None:
                index = self.plan.index(kind, layer)
            if index is not None:
                part = part.index_select(dim, index.to(part.device))
        if dims is not None and self.turn is not None:
            part = self.turn.tensor(name, part, dims)
        return part.clone() if part is value else part
