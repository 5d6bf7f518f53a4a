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
from .anatomy import Anatomy, Dimension
from .modules import outer

FINAL_NORM = "norm"
_HEADS = ("lm_head.", "score.")


def can_rotate(model: TextModel, anatomy: Anatomy) -> bool:
    """Whether a model's hidden space can be turned: its architecture's can, and no head is tied."""
    heads = outer(model.backbone)
    tied = bool(getattr(model.config, "tie_word_embeddings", False)) and "lm_head" in heads
    return anatomy.rotates and not tied


class Turn:
    """A model's hidden space in another basis; with all of its directions nothing is lost.

    Tensors are turned one by one, so that no second whole model need be made.

    Args:
        model: One that `can_rotate`; is not changed.
        anatomy: Of its architecture.
        basis: Orthonormal, a column for each direction that stays, (H, K).
    """

    def __init__(self, model: TextModel, anatomy: Anatomy, basis: Tensor) -> None:
        self.basis = basis.to(model.backbone.device).float()
        final: Any = outer(model.backbone)[FINAL_NORM]
        self._final = final.weight.detach().float()
        self._norms = {f"{FINAL_NORM}.weight"}
        self._scales = {path: self._final for path in _HEADS}
        stack = anatomy.stacks[0]
        for number, layer in enumerate(anatomy.layers_of(model.backbone)):
            for path, readers in stack.feeds.items():
                norm: Any = layer.get_submodule(path)
                front = f"{stack.path}.{number}."
                self._norms.add(f"{front}{path}.weight")
                self._scales[front + readers] = norm.weight.detach().float()

    def states(self, states: Tensor) -> Tensor:
        """States of the residual stream, (…, H), in the new basis, (…, K) float32."""
        return states.float() @ self.basis

    @torch.no_grad()
    def tensor(self, name: str, value: Tensor, dims: tuple[Dimension, ...]) -> Tensor:
        """A tensor of the turned model.

        Args:
            name: Without the base model's prefix.
            value: The original's; of a norm that is folded away, only the type is taken.
            dims: What its dimensions are; those of the hidden space become K long.
        """
        if name in self._norms:
            return value.new_ones(self.basis.shape[1])
        if "hidden" not in dims:
            return value
        turned = value.float()
        if len(dims) > 1 and dims[-1] == "hidden":
            scales = (scale for path, scale in self._scales.items() if name.startswith(path))
            if (scale := next(scales, None)) is not None:
                turned = turned * scale
        for dim, kind in enumerate(dims):
            if kind == "hidden":
                turned = torch.tensordot(turned, self.basis, dims=([dim], [0])).movedim(-1, dim)
        return turned.to(value.dtype).contiguous()

    @torch.no_grad()
    def dense(self, model: TextModel) -> nn.Linear | None:
        """The map behind an embedding: back into the old basis, and through the old map."""
        if model.signal != "embedding":
            return None
        old = model.dense
        back = self._final[:, None] * self.basis  # (H, K): new channels to old numbers
        if old is not None:
            back = old.weight.float() @ back
        bias = old is not None and old.bias is not None
        dense = nn.Linear(back.shape[1], back.shape[0], bias=bias, dtype=model.backbone.dtype)
        dense.weight.copy_(back)
        if old is not None and bias:
            dense.bias.copy_(old.bias)
        return dense.to(model.backbone.device)


def principal_basis(second_moment: Tensor) -> Tensor:
    """The states' principal directions, the strongest first, a column each.

    Args:
        second_moment: E[h hᵀ] of the states, not centred: a norm does not centre either, (H, H).
    """
    _, vectors = torch.linalg.eigh(second_moment.double())
    found: Tensor = vectors.flip(1)
    return found
