"""Hidden states in few bytes: principal components of each layer, in int8.

For one layer with H channels, mean μ and covariance C over a sample of tokens, C = B Λ Bᵀ with the
largest R of Λ kept, and s = √Λ the scale of each component:

    z = (x − μ) B / s          whitened components, (R,)
    f = max |z| / 127          one fp16 factor a token
    stored: f, round(z / f)    R + 2 bytes a token
    x̂ = μ + f · round(z / f) · s Bᵀ

The factor is there for the few tokens (the first of a text, say) whose components are hundreds of
times larger than others': scales alone would clip them or leave the rest no steps.

Means and covariances are sums in float64, added batch by batch: no sample is held in memory. The
figure of what is lost is the share of the variance, Σ‖x − x̂‖² / Σ‖x − μ‖².
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..eval.errors import RecipeError, RunError
from .bit_packing import Reader, damaged

LEAST_RANK, MOST_LOST = 128, 0.05
"""Where no rank is given: components kept at least, and the share of the variance lost at most."""
SMALLEST = 1e-6
"""Scales below this share of the largest are taken for rounding: components without variance."""

STEPS = 127.0
PARTS = ("mean", "basis", "scale")


class Moments:
    """Sums of the token vectors of one layer, in float64, added batch by batch.

    Attributes:
        count: Tokens added so far.
    """

    def __init__(self, width: int) -> None:
        """Starts with no token.

        Args:
            width: H.
        """
        self.count = 0
        self._shift: Tensor | None = None
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._outer = torch.zeros(width, width, dtype=torch.float64)

    def add(self, states: Tensor) -> None:
        """Adds token vectors, (T, H).

        Raises:
            RunError: If one is not a finite number, or they are of another width.
        """
        values = _vectors(states, len(self._sum))
        if not len(values):
            return
        if self._shift is None:
            # Sums of squares far from 0 would lose the variance to rounding.
            self._shift = values.mean(0)
        values = values - self._shift
        self.count += len(values)
        self._sum += values.sum(0)
        self._outer += values.T @ values

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """μ, (H,), and C, (H, H), in float64; C is 0 for a single token.

        Raises:
            RunError: If no token was added.
        """
        if self._shift is None:
            raise RunError("No hidden states to fit a compression on: the sample has no tokens.")
        mean = self._sum / self.count
        covariance = self._outer / self.count - torch.outer(mean, mean)
        return self._shift + mean, (covariance + covariance.T) / 2


def _vectors(states: Tensor, width: int) -> Tensor:
    """Token vectors in float64 on the CPU.

    Raises:
        RunError: If they cannot be used.
    """
    if states.ndim != 2 or states.shape[1] != width:
        raise RunError(
            f"Expected hidden states of shape (tokens, {width}), got {tuple(states.shape)}."
        )
    values = states.detach().cpu().double()
    if not values.isfinite().all():
        raise RunError(
            "The teacher's hidden states are not all finite numbers; set capture.precision to "
            "fp32 or bf16."
        )
    return values


@dataclass(frozen=True)
class HiddenEncoding:
    """How the token vectors of one layer are written and read.

    Attributes:
        mean: μ, (H,) float32.
        basis: B, (H, R) float32, orthonormal columns.
        scale: s, (R,) float32, above 0.
        quantized: int8 as above; False keeps (x − μ) B in float32, 4 R bytes a token.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor
    quantized: bool = True

    @property
    def width(self) -> int:
        """H."""
        return len(self.mean)

    @property
    def rank(self) -> int:
        """R."""
        return len(self.scale)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that each token takes."""
        return self.rank + 2 if self.quantized else 4 * self.rank

    def encode(self, states: Tensor) -> bytes:
        """Writes token vectors, (T, H), as one blob.

        Raises:
            RunError: If one is not a finite number, or they are of another width.
        """
        values = (_vectors(states, self.width) - self.mean.double()) @ self.basis.double()
        if not self.quantized:
            return values.float().numpy().astype("<f4").tobytes()
        whitened = values / self.scale.double()
        largest = whitened.abs().amax(-1, keepdim=True) / STEPS
        # fp16 holds factors to 65,504, which is 8 million standard deviations. Rounding down
        # must not let the largest component go beyond the last step.
        factors = largest.clamp(max=65504.0).half()
        steps = whitened / factors.double().clamp(min=2.0**-24)
        stored = steps.round().clamp(-STEPS, STEPS).to(torch.int8)
        return factors.numpy().astype("<f2").tobytes() + stored.numpy().tobytes()

    def decode(self, blob: bytes, tokens: int) -> Tensor:
        """Reads token vectors.

        Args:
            blob: What `encode` gave.
            tokens: T.

        Returns:
            (T, H) float32, on the CPU.

        Raises:
            RunError: If these are not the bytes of so many tokens.
        """
        reader = Reader(blob)
        if self.quantized:
            factors = reader.take(16 * tokens).view("<f2").astype(np.float32)
            steps = reader.take(8 * tokens * self.rank).view(np.int8).astype(np.float32)
            values = torch.from_numpy(steps).view(tokens, self.rank) * self.scale
            values = values * torch.from_numpy(factors)[:, None]
        else:
            plain = reader.take(32 * tokens * self.rank).view("<f4").astype(np.float32)
            values = torch.from_numpy(plain).view(tokens, self.rank)
        reader.end()
        if not values.isfinite().all():
            raise damaged("hidden states that are no finite numbers")
        return values @ self.basis.T + self.mean

    def error(self, samples: Iterable[Tensor]) -> float:
        """The share of the variance that is lost, Σ‖x − x̂‖² / Σ‖x − μ‖².

        Args:
            samples: Token vectors, (T, H) each.

        Returns:
            0 where nothing is lost, 1 where nothing but the mean is kept; 0 where every vector
            is the mean.
        """
        lost = there = 0.0
        for states in samples:
            values = states.detach().cpu().double()
            read = self.decode(self.encode(states), len(states)).double()
            lost += float((values - read).square().sum())
            there += float((values - self.mean.double()).square().sum())
        return lost / there if there else 0.0


def fit(moments: Moments, rank: int, *, quantized: bool = True) -> HiddenEncoding:
    """The encoding that loses the least variance of a sample, before rounding.

    Args:
        moments: Of the sample's tokens.
        rank: R, from 1 to H.
        quantized: int8, or float32.

    Raises:
        RecipeError: If the rank is none of these.
        RunError: If the sample has no tokens.
    """
    mean, covariance = moments.mean_and_covariance()
    if not 1 <= rank <= len(mean):
        raise RecipeError(
            f"capture.hidden_rank is {rank}; expected 1 to {len(mean)}, the teacher's hidden size."
        )
    variances, vectors = torch.linalg.eigh(covariance)
    kept = torch.arange(len(mean) - 1, len(mean) - 1 - rank, -1)
    basis = vectors[:, kept]
    # A vector's sign is free; the same machine or not, the largest entry is positive.
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = basis * torch.where(largest < 0, -1.0, 1.0)
    scale = variances[kept].clamp(min=0).sqrt()
    # A direction that the sample never took has no scale of its own, and must not have a tiny one:
    # another token's part in it would then be enormous, and take every step from the others.
    top = float(scale[0])
    scale = scale.clamp(min=SMALLEST * top) if top > 0 else torch.ones_like(scale)
    return HiddenEncoding(mean.float(), basis.float().contiguous(), scale.float(), quantized)


def rank_for(moments: Moments, lost: float = MOST_LOST) -> int:
    """Components to keep: min(128, H / 4), and more until they lose little enough of the variance.

    The variance alone would not do: where a few directions hold nearly all of it (the outlier
    channels that large decoders have), it keeps those and nothing of what sets tokens apart.

    Args:
        moments: Of a sample's tokens.
        lost: The share of the variance that may be lost, before rounding.
    """
    _, covariance = moments.mean_and_covariance()
    variances = torch.linalg.eigvalsh(covariance).clamp(min=0).flip(0)
    left = variances.sum() - variances.cumsum(0)
    enough = int((left > lost * variances.sum()).sum()) + 1
    width = len(covariance)
    return min(width, max(1, min(LEAST_RANK, width // 4), enough))


def save(encodings: Mapping[int, HiddenEncoding], path: Path) -> None:
    """Writes the encodings of some layers as one safetensors file.

    Args:
        encodings: By layer; 0 is the embeddings.
        path: The file.
    """
    from safetensors.torch import save_file

    tensors = {
        f"{layer}.{part}": getattr(encoding, part).contiguous()
        for layer, encoding in encodings.items()
        for part in PARTS
    }
    # One entry: several would be written in an order that differs from run to run.
    kinds = {str(layer): encoding.quantized for layer, encoding in sorted(encodings.items())}
    save_file(tensors, path, metadata={"quantized": json.dumps(kinds)})


def load(path: Path) -> dict[int, HiddenEncoding]:
    """Reads what `save` wrote.

    Raises:
        RunError: If the file is gone, damaged or of another shape.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            kinds = json.loads((file.metadata() or {})["quantized"])
            found = {
                int(layer): HiddenEncoding(
                    **{part: file.get_tensor(f"{layer}.{part}") for part in PARTS},
                    quantized=bool(quantized),
                )
                for layer, quantized in kinds.items()
            }
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RunError(
            f"The compression of hidden states in '{path}' cannot be read ({error}). Delete the "
            "folder it is in and record again."
        ) from error
    for layer, one in found.items():
        if one.basis.shape != (one.width, one.rank):
            raise RunError(
                f"The compression of layer {layer} in '{path}' does not fit together: a basis of "
                f"shape {tuple(one.basis.shape)}, a mean of {one.width}, {one.rank} scales."
            )
    return found
