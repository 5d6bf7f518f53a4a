"""How each criterion scores the indices of an axis; `criteria` has the table and its formulas."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..eval.models import TextModel, autocast
from .anatomy import Anatomy, Dimension
from .calibration import distance, only_layers, signals, without_cache
from .modules import Linear, readers

if TYPE_CHECKING:
    from numpy.typing import NDArray

Scores = list[Any]
"""A float64 array for each layer; a single one for ``layers`` and ``hidden_size``."""
Batches = Sequence[dict[str, Tensor]]
Loss = Callable[[TextModel, dict[str, Tensor]], Tensor]
"""The loss of a model on a batch of inputs, a scalar."""

KINDS: dict[str, tuple[Dimension, ...]] = {
    "intermediate_size": ("ffn", "gate_up"),
    "attention_heads": ("heads", "qkv", "head"),
    "kv_heads": ("kv_heads",),
    "hidden_size": ("hidden",),
    "experts": ("experts",),
}
"""The dimensions of tensors that lie on an axis."""


@dataclass(frozen=True)
class Subject:
    """What is scored, and on what.

    Attributes:
        model: Is not changed.
        anatomy: Of its architecture.
        axis: What is told apart.
        batches: Calibration rows.
        precision: Of forward passes without gradients.
        loss: For the criteria that ask one.
    """

    model: TextModel
    anatomy: Anatomy
    axis: str
    batches: Batches
    precision: str
    loss: Loss | None

    @property
    def layers(self) -> list[nn.Module]:
        """The (first stack's) layers."""
        return list(self.anatomy.layers_of(self.model.backbone))

    def count(self) -> int:
        """Indices of one score array."""
        config = self.model.config
        if self.axis == "attention_heads":
            return self.anatomy.heads(config)
        if self.axis == "kv_heads":
            return self.anatomy.kv_heads(config)
        return self.anatomy.size(config, self.axis)

    def run(self, batch: dict[str, Tensor]) -> None:
        """A forward pass without gradients."""
        device = self.model.backbone.device
        with torch.no_grad(), autocast(device, self.precision), without_cache(self.model):
            self.model(**batch)


def _units(subject: Subject, values: Callable[[str, nn.Parameter], Tensor | None]) -> Scores:
    """Sums a value of each weight over the weights that go with an index.

    Args:
        subject: Model and axis.
        values: Name and parameter → a value for each of its numbers, or None to leave it out.
    """
    model, anatomy, stack = subject.model.backbone, subject.anatomy, subject.anatomy.stacks[0]
    depth = len(subject.layers)
    whole = subject.axis == "hidden_size"
    if subject.axis == "layers":
        sums: Scores = [np.zeros(depth)]
    else:
        sums = [np.zeros(subject.count()) for _ in range(1 if whole else depth)]
    prefix = f"{model.base_model_prefix}."
    seen = [False] * len(sums)
    for name, parameter in model.named_parameters():
        inside, number = name.removeprefix(prefix), -1
        dims: tuple[Dimension, ...] | None = anatomy.tensors.get(inside)
        if inside.startswith(f"{stack.path}."):
            first, _, rest = inside.removeprefix(f"{stack.path}.").partition(".")
            number, dims = int(first), stack.tensors.get(rest)
        found = values(name, parameter)
        if found is None:
            continue
        if subject.axis == "layers":
            if number >= 0:
                sums[0][number] += float(found.double().sum())
            continue
        for dim, kind in enumerate(dims or ()):
            if kind not in KINDS[subject.axis] or (number < 0 and not whole):
                continue
            place = 0 if whole else number
            sums[place] += _folded(found.double(), dim, kind, subject)
            seen[place] = True
    if subject.axis == "experts":
        sums = [one if there else np.empty(0) for one, there in zip(sums, seen, strict=True)]
    return sums


def _folded(value: Tensor, dim: int, kind: Dimension, subject: Subject) -> NDArray[np.float64]:
    """Sums a tensor over everything but the indices of one of its dimensions."""
    others = [i for i in range(value.dim()) if i != dim]
    flat = value.sum(others) if others else value
    blocks = {"qkv": 3, "gate_up": 2}.get(kind, 1)
    found = flat.reshape(blocks, subject.count(), -1).sum((0, 2))
    return np.asarray(found.cpu().numpy(), dtype=np.float64)


def magnitude(subject: Subject) -> Scores:
    """‖w‖₂ of all weights that go with an index."""
    return [np.sqrt(one) for one in _units(subject, lambda name, p: p.detach().double() ** 2)]


def taylor(subject: Subject) -> Scores:
    """|Σ w ∂L/∂w| over the weights that go with an index, mean over batches."""
    model, loss = subject.model, subject.loss
    assert loss is not None
    flags = [p.requires_grad for p in model.parameters()]
    total: Scores | None = None
    try:
        model.requires_grad_(True)
        for batch in subject.batches:
            model.zero_grad(set_to_none=True)
            with without_cache(model):
                loss(model, batch).backward()  # type: ignore[no-untyped-call]
            found = _units(subject, lambda name, p: None if p.grad is None else p.detach() * p.grad)
            found = [np.abs(one) for one in found]
            total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    finally:
        model.zero_grad(set_to_none=True)
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    assert total is not None
    return [one / len(subject.batches) for one in total]


class _Mean:
    """A running mean over tokens."""

    def __init__(self) -> None:
        self.total: Any = 0.0
        self.tokens = 0

    def add(self, values: Tensor) -> None:
        """Adds (N, C)."""
        self.total = self.total + values.double().sum(0).cpu().numpy()
        self.tokens += len(values)

    @property
    def value(self) -> NDArray[np.float64]:
        """(C,)."""
        found: NDArray[np.float64] = np.asarray(self.total / max(1, self.tokens))
        return found


Note = Callable[[Tensor, Any, Any], Tensor]
"""Mask of tokens (B, T), a module's arguments and its output → a value for each token, (N, C)."""


def token_means(
    subject: Subject, modules: Sequence[nn.Module], note: Note
) -> list[NDArray[np.float64]]:
    """The mean over tokens of something that is seen at each module, in one pass over the rows."""
    means = [_Mean() for _ in modules]
    for batch in subject.batches:
        mask = batch["attention_mask"].bool()

        def hook(mean: _Mean, mask: Tensor = mask) -> Any:
            return lambda module, args, output: mean.add(note(mask, args, output))

        handles = [
            module.register_forward_hook(hook(mean))
            for module, mean in zip(modules, means, strict=True)
        ]
        try:
            subject.run(batch)
        finally:
            for handle in handles:
                handle.remove()
    return [mean.value for mean in means]


def _inputs(
    subject: Subject, modules: Sequence[nn.Module], of: Callable[[Tensor], Tensor]
) -> list[NDArray[np.float64]]:
    """The mean over tokens of something of what goes into modules."""

    def note(mask: Tensor, args: tuple[Tensor, ...], output: Any) -> Tensor:
        read = args[0].float()
        return of(read[mask] if read.dim() == 3 else read)

    return token_means(subject, modules, note)


def _writers(subject: Subject) -> list[nn.Module]:
    stack = subject.anatomy.stacks[0]
    path = subject.anatomy.ffn_out if subject.axis == "intermediate_size" else stack.attention_out
    return [layer.get_submodule(path) for layer in subject.layers]


def _per_unit(values: NDArray[np.float64], subject: Subject) -> NDArray[np.float64]:
    """Channels → heads, or heads → key and value heads, summed."""
    return np.asarray(values.reshape(subject.count(), -1).sum(1))


def _readers(subject: Subject) -> list[Linear]:
    """The linear maps of all layers that read the residual stream."""
    tensors = subject.anatomy.stacks[0].tensors
    return [one for layer in subject.layers for one in readers(layer, tensors).values()]


def activation(subject: Subject) -> Scores:
    """E|a| of what an index carries; of experts, the router's mean probability."""
    if subject.axis == "experts":
        return _routed(subject)
    if subject.axis == "hidden_size":
        return [sum(_inputs(subject, [one.module for one in _readers(subject)], torch.abs))]
    return [_per_unit(one, subject) for one in _inputs(subject, _writers(subject), torch.abs)]


def wanda(subject: Subject) -> Scores:
    """Σ |w| ‖x‖₂ over the weights that read an index."""
    whole = subject.axis == "hidden_size"
    maps = _readers(subject) if whole else [Linear(writer) for writer in _writers(subject)]
    powers = _inputs(subject, [one.module for one in maps], torch.square)
    found = [
        np.abs(one.as_float64()).sum(0) * np.sqrt(power)
        for one, power in zip(maps, powers, strict=True)
    ]
    return [sum(found)] if whole else [_per_unit(one, subject) for one in found]


def _routed(subject: Subject) -> Scores:
    """The router's mean probability of each expert."""
    gates = [getattr(getattr(layer, "mlp", None), "gate", None) for layer in subject.layers]

    def note(mask: Tensor, args: Any, output: tuple[Tensor, ...]) -> Tensor:
        return output[0].float().softmax(-1)[mask.reshape(-1)]

    means = iter(token_means(subject, [gate for gate in gates if gate is not None], note))
    return [np.empty(0) if gate is None else next(means) for gate in gates]


def block_influence(subject: Subject) -> Scores:
    """1 − E cos(input, output) of a layer."""

    def note(mask: Tensor, args: tuple[Tensor, ...], output: Any) -> Tensor:
        out = (output[0] if isinstance(output, tuple) else output).float()
        near = nn.functional.cosine_similarity(args[0].float(), out, dim=-1)
        return (1 - near[mask])[:, None]

    return [np.concatenate(token_means(subject, subject.layers, note))]


def ablation(subject: Subject) -> Scores:
    """The loss without an index, less the loss with it."""
    reference = signals(subject.model, subject.batches, subject.precision)

    def loss() -> float:
        if subject.loss is None:
            found = signals(subject.model, subject.batches, subject.precision)
            return distance(subject.model.signal, reference, found)
        with torch.no_grad(), without_cache(subject.model):
            each = [float(subject.loss(subject.model, batch)) for batch in subject.batches]
        return float(np.mean(each))

    whole = loss()
    if subject.axis == "layers":
        every = list(range(len(subject.layers)))
        scores = []
        for gone in every:
            with only_layers(subject.model, subject.anatomy, [i for i in every if i != gone]):
                scores.append(loss() - whole)
        return [np.asarray(scores)]
    found = []
    for writer in _writers(subject):
        scores = []
        for index in range(subject.count()):
            with _without(writer, index, subject.count()):
                scores.append(loss() - whole)
        found.append(np.asarray(scores))
    return found


@contextlib.contextmanager
def _without(writer: nn.Module, index: int, count: int) -> Iterator[None]:
    """Silences one of ``count`` equal parts of what a module reads."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        width = args[0].shape[-1] // count
        read = args[0].clone()
        read[..., index * width : (index + 1) * width] = 0
        return (read, *args[1:])

    handle = writer.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
