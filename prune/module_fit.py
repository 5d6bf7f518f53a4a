"""The fit of a module: linear maps by least squares, or a norm channel by channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .least_squares import Moments, as_float64, solve
from .modules import Linear

RIDGE = 1e-3
"""Of a norm's scale, relative to the variance of what is scaled."""


class LinearFit:
    """The fit of linear maps that read the same, to which tokens are added batch by batch.

    Args:
        modules: Linear maps, all with a bias or all without.
    """

    def __init__(self, modules: Sequence[Any]) -> None:
        self.maps = [Linear(module) for module in modules]
        self.moments = Moments(self.maps[0].inputs, sum(one.outputs for one in self.maps))

    def add(self, read: Tensor, targets: Sequence[Tensor]) -> None:
        """Adds tokens.

        Args:
            read: What the maps read, (N, in).
            targets: What each should give, (N, out).
        """
        target = torch.cat([one.float() for one in targets], -1)
        self.moments.add(read, target, torch.ones(len(read), device=read.device))

    @torch.no_grad()
    def solve(self) -> None:
        """Sets the maps' numbers."""
        start = np.concatenate([one.as_float64() for one in self.maps])
        weight, bias = solve(
            self.moments, range(start.shape[1]), start, intercept=self.maps[0].has_bias
        )
        place = 0
        for one in self.maps:
            part = slice(place, place + one.outputs)
            one.set(weight[part], bias[part])
            place = part.stop


class NormFit:
    """The fit of a norm's scale and shift, to which tokens are added batch by batch.

    Args:
        module: A norm of the residual stream.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        size = int(module.weight.shape[0])
        self.sums: Tensor = torch.zeros(4, size, dtype=torch.float64)  # z, t, z², z t
        self.tokens = 0

    def add(self, read: Tensor, targets: Sequence[Tensor]) -> None:
        """Adds tokens.

        Args:
            read: What the norm reads, (N, H).
            targets: What it should give, one (N, H).
        """
        (target,) = targets
        z, t = normed(self.module, read), target.float()
        parts = [part.sum(0, dtype=torch.float64) for part in (z, t, z * z, z * t)]
        self.sums += torch.stack(parts).cpu()
        self.tokens += len(z)

    @torch.no_grad()
    def solve(self) -> None:
        """Sets the norm's numbers."""
        shift = 1.0 if _adds_one(self.module) else 0.0
        old = torch.from_numpy(as_float64(self.module.weight)) + shift
        z, t, zz, zt = self.sums / self.tokens
        bias: Tensor | None = getattr(self.module, "bias", None)
        if bias is not None:
            variance = zz - z * z
            ridge = RIDGE * variance.mean() + 1e-12
            scale = (zt - z * t + ridge * old) / (variance + ridge)
            bias.copy_(t - scale * z)
        else:
            ridge = RIDGE * zz.mean() + 1e-12
            scale = (zt + ridge * old) / (zz + ridge)
        self.module.weight.copy_(scale - shift)


def normed(norm: Any, states: Tensor) -> Tensor:
    """What a norm makes of states before it scales and shifts them, float32."""
    states = states.float()
    if isinstance(norm, nn.LayerNorm):
        return nn.functional.layer_norm(states, states.shape[-1:], eps=norm.eps)
    return states * inverse_rms(norm, states)


def inverse_rms(norm: Any, states: Tensor) -> Tensor:
    """What an RMS norm multiplies states (…, H) with before it scales them, (…, 1) float32."""
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    found: Tensor = (states.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    return found


def _adds_one(norm: nn.Module) -> bool:
    """Whether a norm multiplies by 1 + weight, as Gemma's do."""
    return type(norm).__name__.startswith("Gemma")
