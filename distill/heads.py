"""Output heads: from hidden states to logits, with the bias, scale or bound that some have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """An output head: logits = softcap · tanh(scale · (W h + b) / softcap).

    Attributes:
        weight: W, (V, H).
        bias: b, (V,).
        scale: A factor (Cohere's ``logit_scale``, 1 / Granite's ``logits_scaling``).
        softcap: The bound of Gemma's ``final_logit_softcapping``; None for none.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(
        self, hidden: Tensor, dtype: torch.dtype | None = None, into: Tensor | None = None
    ) -> Tensor:
        """The logits of some positions.

        The product is rounded to ``dtype``, as a model's own forward pass does.

        Args:
            hidden: (N, H).
            dtype: What to multiply in; that of ``hidden`` where None.
            into: Where to write them, (N, V) float32; a new tensor where None.

        Returns:
            (N, V) float32.
        """
        dtype = dtype or hidden.dtype
        rows, weight = hidden.to(dtype), self.weight.to(dtype)
        if into is None:
            out = torch.mm(rows, weight.T).float()
        elif dtype != into.dtype:
            out = into.copy_(torch.mm(rows, weight.T))
        elif into.stride(0) == 1:  # a row a token in memory
            torch.mm(weight, rows.T, out=into.T)
            out = into
        else:
            out = torch.mm(rows, weight.T, out=into)
        if self.bias is not None:
            out += self.bias.float()
        if self.scale != 1:
            out *= self.scale
        if self.softcap is not None:
            capped = (out / self.softcap).tanh() * self.softcap
            out = capped if into is None else into.copy_(capped)
        return out


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher whose logits are made chunk by chunk, beside the student's.

    Attributes:
        hidden: Its last hidden states at the student's positions, (N, H_t).
        head: Its output head.
    """

    hidden: Tensor
    head: Head
