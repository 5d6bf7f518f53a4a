"""The linear maps and norms of a layer, whatever class they are of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..eval.models import TextModel
from .anatomy import Tensors
from .least_squares import as_float64


class Linear:
    """A linear map: ``nn.Linear``, or GPT-2's ``Conv1D``, whose weight lies the other way.

    Args:
        module: One of the two.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self._turned = not isinstance(module, nn.Linear)

    @property
    def weight(self) -> Tensor:
        """(out, in), a view of the module's own."""
        weight: Tensor = self.module.weight
        return weight.T if self._turned else weight

    @property
    def inputs(self) -> int:
        """Numbers it reads."""
        return int(self.weight.shape[1])

    @property
    def outputs(self) -> int:
        """Numbers it writes."""
        return int(self.weight.shape[0])

    def as_float64(self) -> NDArray[np.float64]:
        """The weight as a float64 array, (out, in)."""
        return as_float64(self.weight)

    @torch.no_grad()
    def set(self, weight: NDArray[np.float64], bias: NDArray[np.float64] | None = None) -> None:
        """Sets the weight (out, in), and the bias (out,) where there is one."""
        self.weight.copy_(torch.from_numpy(weight))
        if bias is not None and self.module.bias is not None:
            self.module.bias.copy_(torch.from_numpy(bias))

    @property
    def has_bias(self) -> bool:
        """Whether a constant can be fitted too."""
        return getattr(self.module, "bias", None) is not None

    @torch.no_grad()
    def silence(self, keep: list[int]) -> None:
        """Sets what it reads from other inputs than these to 0."""
        gone = torch.ones(self.inputs, dtype=torch.bool)
        gone[keep] = False
        self.weight[:, gone.to(self.weight.device)] = 0


def copy_sharing(model: TextModel, own: Collection[nn.Module]) -> TextModel:
    """A copy of a model that shares all numbers with it but those of some modules.

    Args:
        model: Is not changed when the copies of these modules are.
        own: Modules of the model whose numbers are copied.
    """
    copied = {id(tensor) for module in own for tensor in _numbers(module)}
    memo: dict[int, Any] = {id(model.tokenizer): model.tokenizer}
    memo |= {id(tensor): tensor for tensor in _numbers(model) if id(tensor) not in copied}
    return copy.deepcopy(model, memo)


def _numbers(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def readers(layer: nn.Module, tensors: Tensors) -> dict[str, Linear]:
    """The linear maps of a layer that read the residual stream, by their paths."""
    return _maps(layer, tensors, lambda out, into: into == "hidden" and out != "experts")


def _maps(
    layer: nn.Module, tensors: Tensors, wanted: Callable[[str, str], bool]
) -> dict[str, Linear]:
    found = {}
    for path, module in layer.named_modules():
        dims = tensors.get(f"{path}.weight")
        kinds = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if dims is None or len(dims) != 2 or not kinds:
            continue
        out, into = dims if isinstance(module, nn.Linear) else dims[::-1]
        if wanted(out, into):
            found[path] = Linear(module)
    return found


def norms(layer: nn.Module, tensors: Tensors) -> dict[str, nn.Module]:
    """The norms of the residual stream in a layer, by their paths."""
    return {
        path: module
        for path, module in layer.named_modules()
        if tensors.get(f"{path}.weight") == ("hidden",) and hasattr(module, "weight")
    }


def outer(backbone: nn.Module) -> dict[str, nn.Module]:
    """The modules outside the layers, by their paths without the base model's prefix."""
    from .anatomy import anatomy_of

    model: Any = backbone
    stacks = tuple(f"{stack.path}." for stack in anatomy_of(model.config).stacks)
    prefix = f"{model.base_model_prefix}."
    named = ((name.removeprefix(prefix), module) for name, module in model.named_modules())
    return {name: module for name, module in named if name and not name.startswith(stacks)}
