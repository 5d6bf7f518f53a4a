"""What matters least, one interface: an axis and a criterion in, a score for each index out.

====================  ============================================  ========================
criterion             score of an index                             source
====================  ============================================  ========================
``magnitude``         ‖w‖₂ of all weights that go with it           Han et al., 1506.02626
``activation``        E|a|, the mean of what it carries             Minitron, 2407.14679
``wanda``             Σ |w| ‖x‖₂ over the weights that read it      Sun et al., 2306.11695
``taylor``            |Σ w ∂L/∂w|, a first-order guess of the loss  Molchanov et al., 1906.10771
``block_influence``   1 − E cos(input, output) of a layer           ShortGPT, 2403.03853
``ablation``          the loss without it, less the loss with it    –
====================  ============================================  ========================

All stream over calibration batches: memory is that of one batch and of the scores. ``taylor`` and
``ablation`` ask a loss that is handed in. Without a criterion, `prune_model` chooses by how well
least squares can make up for what goes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..eval.errors import RecipeError, nearest
from ..eval.models import TextModel, autocast
from .anatomy import Anatomy, Dimension, anatomy_of
from .calibration import distance, only_layers, signals, without_cache
from .modules import readers

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


@dataclass(frozen=True)
class Criterion:
    """An entry of the table.

    Attributes:
        name: As `prune.importance` in a recipe names it.
        score: Computes the scores.
        axes: What it can score.
        needs_loss: Whether a loss must be handed in.
    """

    name: str
    score: Callable[[Subject], Scores]
    axes: tuple[str, ...]
    needs_loss: bool = False


CRITERIA: dict[str, Criterion] = {}
"""Name → criterion."""


def register_criterion(entry: Criterion) -> Criterion:
    """Adds a criterion to the table; a name that is taken is refused.

    Raises:
        RecipeError: If another criterion has the name.
    """
    if CRITERIA.get(entry.name, entry) != entry:
        raise RecipeError(f"A criterion named '{entry.name}' exists already; choose another name.")
    CRITERIA[entry.name] = entry
    return entry


def axis_importance(
    model: TextModel,
    axis: str,
    batches: Batches,
    criterion: str,
    *,
    loss: Loss | None = None,
    precision: str = "fp32",
) -> Scores:
    """Scores every index of an axis; the least important has the lowest.

    Args:
        model: Is not changed.
        axis: ``layers``, ``intermediate_size``, ``attention_heads``, ``kv_heads``,
            ``hidden_size`` or ``experts``.
        batches: Calibration rows as `calibration.batches_of` gives them.
        criterion: A name in `CRITERIA`.
        loss: Of a model on a batch, a scalar; for ``taylor`` it must have a gradient. For
            ``ablation`` the distance to the whole model's answers if None.
        precision: Of forward passes without gradients.

    Returns:
        For ``layers`` [(L,)], for ``hidden_size`` [(H,)], else an array for each layer; layers
        without experts have an empty one.

    Raises:
        RecipeError: If the criterion is unknown, cannot score the axis or lacks a loss.
    """
    if criterion not in CRITERIA:
        raise RecipeError(
            f"Unknown criterion '{criterion}'.{nearest(criterion, CRITERIA)} Known criteria: "
            f"{', '.join(CRITERIA)}."
        )
    entry, anatomy = CRITERIA[criterion], anatomy_of(model.config)
    if not (axis == "attention_heads" and anatomy.attention.head_dim is None):
        anatomy.field(axis)
    if axis not in entry.axes:
        fitting = [name for name, other in CRITERIA.items() if axis in other.axes]
        raise RecipeError(f"'{criterion}' does not score {axis}; {', '.join(fitting)} can.")
    if entry.needs_loss and loss is None:
        raise RecipeError(f"'{criterion}' asks a loss: hand one in.")
    return entry.score(Subject(model, anatomy, axis, batches, precision, loss))


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


def _magnitude(subject: Subject) -> Scores:
    return [np.sqrt(one) for one in _units(subject, lambda name, p: p.detach().double() ** 2)]


def _taylor(subject: Subject) -> Scores:
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


def _inputs(
    subject: Subject, modules: Sequence[nn.Module], of: Callable[[Tensor], Tensor]
) -> list[NDArray[np.float64]]:
    """The mean over tokens of something of what goes into modules."""
    means = [_Mean() for _ in modules]
    for batch in subject.batches:
        mask = batch["attention_mask"].bool()

        def hook(mean: _Mean, mask: Tensor = mask) -> Any:
            def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                read = args[0].float()
                mean.add(of(read[mask] if read.dim() == 3 else read))

            return note

        handles = [
            module.register_forward_pre_hook(hook(mean))
            for module, mean in zip(modules, means, strict=True)
        ]
        try:
            subject.run(batch)
        finally:
            for handle in handles:
                handle.remove()
    return [mean.value for mean in means]


def _writers(subject: Subject) -> list[nn.Module]:
    stack = subject.anatomy.stacks[0]
    path = subject.anatomy.ffn_out if subject.axis == "intermediate_size" else stack.attention_out
    return [layer.get_submodule(path) for layer in subject.layers]


def _per_unit(values: NDArray[np.float64], subject: Subject) -> NDArray[np.float64]:
    """Channels → heads, or heads → key and value heads, summed."""
    return np.asarray(values.reshape(subject.count(), -1).sum(1))


def _activation(subject: Subject) -> Scores:
    if subject.axis == "experts":
        return _routed(subject)
    if subject.axis == "hidden_size":
        total = np.zeros(subject.count())
        for layer in subject.layers:
            found = list(readers(layer, subject.anatomy.stacks[0].tensors).values())
            total += sum(_inputs(subject, [one.module for one in found], torch.abs))
        return [total]
    return [_per_unit(one, subject) for one in _inputs(subject, _writers(subject), torch.abs)]


def _wanda(subject: Subject) -> Scores:
    from .modules import Linear

    if subject.axis == "hidden_size":
        total = np.zeros(subject.count())
        for layer in subject.layers:
            found = list(readers(layer, subject.anatomy.stacks[0].tensors).values())
            powers = _inputs(subject, [one.module for one in found], torch.square)
            for one, power in zip(found, powers, strict=True):
                total += np.abs(one.as_float64()).sum(0) * np.sqrt(power)
        return [total]
    writers = _writers(subject)
    powers = _inputs(subject, writers, torch.square)
    return [
        _per_unit(np.abs(Linear(writer).as_float64()).sum(0) * np.sqrt(power), subject)
        for writer, power in zip(writers, powers, strict=True)
    ]


def _routed(subject: Subject) -> Scores:
    """The router's mean probability of each expert."""
    gates = [getattr(getattr(layer, "mlp", None), "gate", None) for layer in subject.layers]
    means = [_Mean() for _ in gates]
    for batch in subject.batches:
        mask = batch["attention_mask"].bool().reshape(-1)

        def hook(mean: _Mean, mask: Tensor = mask) -> Any:
            def note(module: nn.Module, args: Any, output: Any) -> None:
                mean.add(output[0].float().softmax(-1)[mask])

            return note

        handles = [
            gate.register_forward_hook(hook(mean))
            for gate, mean in zip(gates, means, strict=True)
            if gate is not None
        ]
        try:
            subject.run(batch)
        finally:
            for handle in handles:
                handle.remove()
    return [
        np.empty(0) if gate is None else mean.value for gate, mean in zip(gates, means, strict=True)
    ]


def _block_influence(subject: Subject) -> Scores:
    means = [_Mean() for _ in subject.layers]
    for batch in subject.batches:
        mask = batch["attention_mask"].bool()

        def hook(mean: _Mean, mask: Tensor = mask) -> Any:
            def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                out = (output[0] if isinstance(output, tuple) else output).float()
                near = nn.functional.cosine_similarity(args[0].float(), out, dim=-1)
                mean.add(1 - near[mask][:, None])

            return note

        handles = [
            layer.register_forward_hook(hook(mean))
            for layer, mean in zip(subject.layers, means, strict=True)
        ]
        try:
            subject.run(batch)
        finally:
            for handle in handles:
                handle.remove()
    return [np.concatenate([mean.value for mean in means])]


def _ablation(subject: Subject) -> Scores:
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


_HEADS = ("attention_heads", "kv_heads")
_WIDTHS = ("intermediate_size", *_HEADS, "hidden_size")
register_criterion(Criterion("magnitude", _magnitude, ("layers", *_WIDTHS, "experts")))
register_criterion(Criterion("activation", _activation, (*_WIDTHS, "experts")))
register_criterion(Criterion("wanda", _wanda, _WIDTHS))
register_criterion(Criterion("taylor", _taylor, ("layers", *_WIDTHS, "experts"), needs_loss=True))
register_criterion(Criterion("block_influence", _block_influence, ("layers",)))
register_criterion(Criterion("ablation", _ablation, ("layers", "intermediate_size", *_HEADS)))
