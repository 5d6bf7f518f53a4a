"""Weights set to zero, for research: the checkpoint stays dense, no smaller and no faster.

Masks answer how much of a model a task needs. A dense runtime multiplies by zeros as by any number,
so nothing is saved until sparse kernels run it; the report says so, with what was measured.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..eval.errors import RecipeError, RunError
from ..eval.models import TextModel
from .anatomy import anatomy_of
from .calibration import LayerRunner, batches_of
from .least_squares import full_precision
from .modules import Linear

if TYPE_CHECKING:
    from ..eval.models import Row

Method = Literal["magnitude", "wanda", "sparsegpt"]
BLOCK = 128
"""Columns between two updates of SparseGPT, as in its paper; fewer where groups are to be whole."""
DAMPING = 0.01
"""SparseGPT's: added to the diagonal of X Xᵀ, relative to its mean."""


@dataclass(frozen=True)
class Pattern:
    """Which weights of a row may be zero.

    Attributes:
        share: Of weights that are zero.
        group: Of so many neighbours along the input, `share` are zero; 0 for no such groups.
    """

    share: float
    group: int = 0


def pattern_of(text: str | float) -> Pattern:
    """Reads ``0.5`` (half of the weights), or ``2:4`` (two of each four neighbours stay).

    Raises:
        RecipeError: If it is neither.
    """
    match = re.fullmatch(r"(\d+):(\d+)", str(text)) if isinstance(text, str) else None
    if match:
        kept, group = int(match[1]), int(match[2])
        if 0 < kept < group:
            return Pattern(1 - kept / group, group)
    elif isinstance(text, int | float) and 0 < text < 1:
        return Pattern(float(text))
    raise RecipeError(
        f"A mask is a share of zeros between 0 and 1, such as 0.5, or N:M with N of each M "
        f"neighbours kept, such as 2:4; got {text!r}."
    )


def mask_model(
    model: TextModel, rows: Sequence[Row], method: Method, pattern: Pattern, precision: str = "fp32"
) -> tuple[TextModel, dict[str, Any]]:
    """Sets weights of all linear maps in the layers to zero.

    The layers are walked in order: what calibrates a layer has gone through the masked ones before.

    Args:
        model: Is not changed.
        rows: Calibration rows; ``magnitude`` reads none.
        method: ``magnitude`` |w|; ``wanda`` |w| ‖x‖₂ (Sun et al., 2306.11695), both compared within
            a row of the output; ``sparsegpt`` w² / (H⁻¹)ⱼⱼ, the others updated (Frantar and
            Alistarh, 2301.00774).
        pattern: How many weights go, and from where.
        precision: Of forward passes.

    Returns:
        A model of the same shapes, and facts: ``zeros`` (the share of all masked maps' weights),
        ``maps``, ``method``.

    Raises:
        RecipeError: If a map's inputs are no multiple of the pattern's group, or nothing goes.
    """
    if method not in ("magnitude", "wanda", "sparsegpt"):
        raise RecipeError(f"Unknown mask '{method}'; magnitude, wanda and sparsegpt are known.")
    work = copy.deepcopy(model)
    anatomy = anatomy_of(model.config)
    runner = None
    if method != "magnitude":
        runner = LayerRunner(work, anatomy, batches_of(work, rows), precision)
    zeros = total = maps = 0
    for number, layer in enumerate(anatomy.layers_of(work.backbone)):
        linears = _linears(layer)
        grams = _grams(layer, linears, runner, number) if runner else {}
        for path, linear in linears.items():
            if pattern.group and linear.inputs % pattern.group:
                raise RecipeError(
                    f"`prune.mask.pattern`: '{path}' reads {linear.inputs} numbers, no multiple of "
                    f"{pattern.group}: choose another pattern."
                )
            new = _masked(linear.weight.detach().double().cpu(), method, grams.get(path), pattern)
            with torch.no_grad():
                linear.weight.copy_(new)
            zeros += int((new == 0).sum())
            total, maps = total + new.numel(), maps + 1
        for batch, states in enumerate(runner.inputs if runner else ()):
            assert runner is not None
            runner.inputs[batch] = runner.run(layer, number, batch, states)
    if not zeros:
        raise RecipeError(
            f"`prune.mask.pattern`: a share of {pattern.share} takes no weight of these maps; ask "
            "for more."
        )
    return work.eval(), {"zeros": zeros / total, "maps": maps, "method": method}


def _linears(layer: nn.Module) -> dict[str, Linear]:
    """The linear maps of a layer by their paths in it."""
    return {
        path: Linear(module)
        for path, module in layer.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }


def _masked(weight: Tensor, method: Method, gram: Tensor | None, pattern: Pattern) -> Tensor:
    """A weight with its zeros, (out, in) float64; ``gram`` is None for magnitude."""
    if gram is None:
        return weight * _kept(weight.abs(), pattern)
    if method == "wanda":
        read = gram.diagonal().clamp(min=0).sqrt()
        return weight * _kept(weight.abs() * read, pattern)
    return _sparsegpt(weight, gram, pattern)


def _grams(
    layer: nn.Module, linears: dict[str, Linear], runner: LayerRunner, number: int
) -> dict[str, Tensor]:
    """X Xᵀ of what each map reads, (in, in) float64, summed over tokens."""
    found = {
        path: torch.zeros(linear.inputs, linear.inputs, dtype=torch.float64)
        for path, linear in linears.items()
    }
    for batch, mask in enumerate(runner.masks):

        def hook(path: str, mask: Tensor = mask) -> Any:
            def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                read = args[0][mask].float()
                with full_precision(read.device):
                    found[path] += (read.T @ read).double().cpu()

            return note

        handles = [
            linear.module.register_forward_pre_hook(hook(path)) for path, linear in linears.items()
        ]
        try:
            runner.run(layer, number, batch, runner.inputs[batch])
        finally:
            for handle in handles:
                handle.remove()
    return found


def _kept(score: Tensor, pattern: Pattern) -> Tensor:
    """1 where a weight stays: the best of each group, or of each row, (out, in)."""
    out, width = score.shape
    group = pattern.group or width
    parts = score.reshape(out, width // group, group)
    gone = round(pattern.share * group)
    order = parts.argsort(-1)  # rising
    mask = torch.ones_like(parts)
    mask.scatter_(-1, order[..., :gone], 0.0)
    return mask.reshape(out, width)


def _sparsegpt(weight: Tensor, gram: Tensor, pattern: Pattern) -> Tensor:
    """Removes weights column by column and lets the columns behind make up for them.

    Args:
        weight: (out, in) float64.
        gram: X Xᵀ of what it reads, (in, in).
        pattern: How many go.
    """
    weight = weight.clone()
    dead = gram.diagonal() == 0
    gram = gram + torch.diag(dead.double())
    weight[:, dead] = 0
    gram = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    inverse = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    width, group = weight.shape[1], pattern.group or 1
    block = max(1, BLOCK // group) * group  # a group is chosen at once, so it lies in one block
    for start in range(0, width, block):
        end = min(start + block, width)
        errors = torch.zeros(len(weight), end - start, dtype=weight.dtype)
        keep = torch.ones(len(weight), end - start, dtype=torch.bool)
        if not pattern.group:
            score = (weight[:, start:end] / inverse.diagonal()[start:end]) ** 2
            gone = round(pattern.share * score.numel())
            flat = torch.ones(score.numel(), dtype=torch.bool)
            flat[score.flatten().argsort()[:gone]] = False
            keep = flat.reshape(score.shape)
        for column in range(start, end):
            place = column - start
            if pattern.group and column % pattern.group == 0:
                after = slice(column, column + pattern.group)
                score = (weight[:, after] / inverse.diagonal()[after]) ** 2
                keep[:, place : place + pattern.group] = _kept(
                    score, Pattern(pattern.share, pattern.group)
                ).bool()
            old = weight[:, column]
            new = old * keep[:, place]
            error = (old - new) / inverse[column, column]
            weight[:, column] = new
            rest = slice(column + 1, end)
            weight[:, rest] -= error[:, None] * inverse[column, rest][None]
            errors[:, place] = error
        weight[:, end:] -= errors @ inverse[start:end, end:]
    return weight


def zeros_of(model: nn.Module) -> float:
    """Share of a model's numbers that are exactly zero."""
    counts = [(int((p == 0).sum()), p.numel()) for p in model.parameters()]
    return float(np.sum([zero for zero, _ in counts]) / np.sum([count for _, count in counts]))


@dataclass(frozen=True)
class Zeros:
    """Where the linear maps of a masked model are zero, for a training that leaves them so.

    Attributes:
        places: Name of a parameter → where it is zero, bool, of its shape.
    """

    places: dict[str, Tensor]

    @classmethod
    def of(cls, model: TextModel) -> Zeros:
        """Finds the zeros of a model that `mask_model` made, or of its checkpoint."""
        layers = anatomy_of(model.config).layers_of(model.backbone)
        maps = {id(m.module.weight) for layer in layers for m in _linears(layer).values()}
        found = {name: p == 0 for name, p in model.named_parameters() if id(p) in maps}
        return cls(found)

    @torch.no_grad()
    def keep(self, model: TextModel) -> None:
        """Sets the weights at these places to zero again, in the model itself.

        Raises:
            RunError: If the model's weights are split over processes.
        """
        parameters = dict(model.named_parameters())
        for name, place in self.places.items():
            weight = parameters.get(name)
            if weight is None or weight.shape != place.shape or hasattr(weight, "device_mesh"):
                raise RunError(
                    f"`prune.mask`: its zeros cannot be kept in '{name}', which this launch splits "
                    "over processes; train with plain data parallelism, or leave the mask out."
                )
            if place.device != weight.device:  # once, after the Trainer moved the model
                place = self.places[name] = place.to(weight.device)
            weight.masked_fill_(place, 0.0)

    def lost(self, model: TextModel) -> int:
        """Weights at these places that are not zero in a model."""
        parameters = dict(model.named_parameters())
        return sum(
            int((parameters[name].detach().cpu()[place.cpu()] != 0).sum())
            for name, place in self.places.items()
        )
