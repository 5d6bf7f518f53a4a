"""Turns the hidden space so that its first channels hold most of what flows through it.

An RMS norm without weights gives the same whatever orthonormal basis its input is written in. So
where every norm is one, and its weight is folded into the maps that read it, all that writes the
residual stream can write it in another basis, and all that reads it can read that (SliceGPT,
arXiv 2401.15024). In the basis of the states' principal components, cutting the last channels
loses least.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..eval.models import TextModel
from .anatomy import Anatomy, Stack
from .modules import outer

FINAL_NORM = "norm"


def can_rotate(model: TextModel, anatomy: Anatomy) -> bool:
    """Whether a model's hidden space can be turned: its architecture's can, and no head is tied."""
    heads = outer(model.backbone)
    tied = bool(getattr(model.config, "tie_word_embeddings", False)) and "lm_head" in heads
    return anatomy.rotates and not tied


@torch.no_grad()
def rotate(model: TextModel, anatomy: Anatomy, basis: Tensor) -> TextModel:
    """Writes a model's hidden space in another basis; it answers as before.

    An embedding model gets a dense map back into the old basis.

    Args:
        model: One that `can_rotate`; is changed, and given back.
        anatomy: Of its architecture.
        basis: Orthonormal, a column for each new channel, (H, H).
    """
    backbone = model.backbone
    for layer in anatomy.layers_of(backbone):
        for path, readers in anatomy.stacks[0].feeds.items():
            _fold(layer.get_submodule(path), layer, anatomy.stacks[0], readers)
    final: Any = outer(backbone)[FINAL_NORM]
    scale = final.weight.double().clone()
    final.weight.fill_(1.0)
    for name in _HEADS:
        head: Any = outer(backbone).get(name)
        if head is not None:
            head.weight.copy_(head.weight.double() * scale)
    state = backbone.state_dict()
    prefix = f"{backbone.base_model_prefix}."
    for name, value in state.items():
        inside = name.removeprefix(prefix)
        dims = anatomy.tensors.get(inside)
        for stack in anatomy.stacks:
            if inside.startswith(f"{stack.path}."):
                dims = stack.tensors.get(inside.removeprefix(f"{stack.path}.").partition(".")[2])
        if dims is None or (len(dims) == 1 and name.endswith("norm.weight")):
            continue
        turned = value.double()
        for dim, kind in enumerate(dims):
            if kind == "hidden":
                turned = torch.tensordot(turned, basis.to(turned.device), dims=([dim], [0]))
                turned = turned.movedim(-1, dim)
        value.copy_(turned)
    if model.signal == "embedding":
        size = len(basis)
        dense = nn.Linear(size, size, bias=model.dense is not None and model.dense.bias is not None)
        back = scale.cpu()[:, None] * basis.cpu()  # (H, H): new channels to old numbers
        if model.dense is not None:
            dense = nn.Linear(size, model.dense.out_features, bias=model.dense.bias is not None)
            back = model.dense.weight.double().cpu() @ back
            if model.dense.bias is not None:
                dense.bias.copy_(model.dense.bias)
        dense.weight.copy_(back)
        model.dense = dense.to(device=backbone.device, dtype=backbone.dtype)
    return model


_HEADS = ("lm_head", "score")


def _fold(norm: Any, layer: nn.Module, stack: Stack, readers: str) -> None:
    """Moves a norm's weight into what reads it."""
    scale = norm.weight.double()
    for name, parameter in layer.named_parameters():
        dims = stack.tensors.get(name, ())
        if name.startswith(readers) and len(dims) > 1 and dims[-1] == "hidden":
            parameter.copy_(parameter.double() * scale)
    norm.weight.fill_(1.0)


def principal_basis(second_moment: Tensor) -> Tensor:
    """The states' principal directions, the strongest first, a column each.

    Args:
        second_moment: E[h hᵀ] of the states, not centred: a norm does not centre either, (H, H).
    """
    _, vectors = torch.linalg.eigh(second_moment.double())
    found: Tensor = vectors.flip(1)
    return found
