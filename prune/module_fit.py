"""The fit of one module: a linear map by least squares, or a norm channel by channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .least_squares import Moments, as_float64, solve
from .modules import Linear

RIDGE = 1e-3
"""Of a norm's scale, relative to the variance of what is scaled."""


class ModuleFit:
    """The fit of one module, to which tokens are added batch by batch.

    Args:
        module: A linear map or a norm.
        dims: What the dimensions of its weight are, (out, in) or (channels).
        index: What of the original's outputs is kept, or None for all.
    """

    def __init__(self, module: Any, dims: tuple[str, ...], index: Tensor | None) -> None:
        self.module, self.index = module, index
        self.linear = Linear(module) if len(dims) == 2 else None
        self.moments: Moments | None = None
        if self.linear is not None:
            self.moments = Moments(self.linear.inputs, self.linear.outputs)
        size = int(module.weight.shape[0])
        self.sums: Tensor = torch.zeros(5, size, dtype=torch.float64)  # 1, z, t, z², z t

    def sliced(self, target: Tensor) -> Tensor:
        """What is kept of an output of the original, (..., out)."""
        if self.index is None:
            return target
        return target.index_select(-1, self.index.to(target.device))

    def add(self, read: Tensor, target: Tensor, mask: Tensor | None) -> None:
        """Adds tokens.

        Args:
            read: What the module reads, (B, T, in) or (n, in).
            target: What it should give, (B, T, out) or (n, out).
            mask: Which positions are tokens, (B, T), or None for all.
        """
        if mask is not None:
            read, target = read[mask], target[mask]
        read, target = read.float(), target.float()
        if self.moments is not None:
            self.moments.add(read, target, torch.ones(len(read), device=read.device))
            return
        z, t = self._normed(read).double().cpu(), target.double().cpu()
        self.sums += torch.stack([torch.ones_like(z), z, t, z * z, z * t]).sum(1)

    def _normed(self, states: Tensor) -> Tensor:
        if isinstance(self.module, nn.LayerNorm):
            return nn.functional.layer_norm(states, states.shape[-1:], eps=self.module.eps)
        eps = getattr(self.module, "variance_epsilon", None) or self.module.eps
        found: Tensor = states * (states.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
        return found

    @torch.no_grad()
    def solve(self) -> None:
        """Sets the module's numbers."""
        if self.linear is not None and self.moments is not None:
            every = list(range(self.linear.inputs))
            weight, bias = solve(
                self.moments,
                every,
                self.linear.as_float64(),
                intercept=self.linear.has_bias,
            )
            self.linear.set(weight, bias)
            return
        shift = 1.0 if _adds_one(self.module) else 0.0
        old = torch.from_numpy(as_float64(self.module.weight)) + shift
        z, t, zz, zt = self.sums[1:] / self.sums[0]
        if self.bias is not None:
            variance = zz - z * z
            ridge = RIDGE * variance.mean() + 1e-12
            scale = (zt - z * t + ridge * old) / (variance + ridge)
            self.bias.copy_(t - scale * z)
        else:
            ridge = RIDGE * zz.mean() + 1e-12
            scale = (zt + ridge * old) / (zz + ridge)
        self.module.weight.copy_(scale - shift)

    @property
    def bias(self) -> Tensor | None:
        """The bias, where there is one."""
        return getattr(self.module, "bias", None)


def _adds_one(norm: nn.Module) -> bool:
    """Whether a norm multiplies by 1 + weight, as Gemma's do."""
    return type(norm).__name__.startswith("Gemma")
