"""A student whose weights are sharded over processes (FSDP2): whole again, to write or be saved."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..eval.models import TextModel


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only its part of some weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextlib.contextmanager
def unsharded(root: nn.Module) -> Iterator[None]:
    """Lets what lies inside a sharded module be called without it, by all processes together.

    Layers gather their weights when they are called; those that belong to the outermost module
    (embeddings, last norm, head) are gathered in its forward pass alone, and a student that
    answers is called inside of it.
    """
    if not isinstance(root, FSDPModule):
        yield
        return
    root.unshard()
    try:
        yield
    finally:
        root.reshard()


def whole_model(model: TextModel, keep: bool) -> TextModel:
    """A model with whole weights, on the CPU where it was sharded; for all processes together.

    Args:
        model: Of signal ``token_distribution`` where it is sharded.
        keep: Whether this process wants it; the others only give their parts.

    Returns:
        The model itself where it is not sharded or not kept, else a new one of the stock class.
    """
    if not is_sharded(model):
        return model
    state: dict[str, Tensor] = {}
    for name, value in model.backbone.state_dict().items():
        # One at a time: the whole model may be more than a device holds.
        gathered = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            state[name] = gathered.detach().cpu()
    if not keep:
        return model
    from transformers import AutoModelForCausalLM

    dtype = next(iter(state.values())).dtype
    make: Any = AutoModelForCausalLM.from_config
    backbone = make(copy.deepcopy(model.config), dtype=dtype)
    backbone.load_state_dict(state)
    backbone.generation_config = model.backbone.generation_config
    made = TextModel(backbone, model.tokenizer, model.signal, model.encoding)
    return made.train(model.training)
