"""Shapes of a student that meet a budget: what each would cost, and which look best."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.cost import ARCHITECTURES, flops_per_example, row_flops
from ..eval.errors import RecipeError
from ..eval.models import TextModel
from ..prune.anatomy import Anatomy, anatomy_of
from ..prune.sizes import hidden_step
from .consistency import SEARCHED

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADS = ("attention_heads", "kv_heads")
TIMED = ("latency_ms", "usd_per_million")
"""Costs that only a clock tells."""
Curve = Mapping[str, Sequence[tuple[int, float]]]
"""Axis → (size, distance to the uncut model), the size rising."""


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        flops: Mean forward FLOPs of a row.
        parameters: Numbers in its checkpoint.
        bytes: Of its weights on disk.
        latency_ms: Median milliseconds of a row, where a budget bounds them.
        usd_per_million: Price of a million rows, where a budget bounds it.
    """

    flops: float
    parameters: float
    bytes: float
    latency_ms: float | None = None
    usd_per_million: float | None = None

    def over(self, whole: Cost) -> Cost:
        """Its shares of another's; time and price are no shares, and stay as they are."""
        return replace(
            self,
            flops=self.flops / whole.flops,
            parameters=self.parameters / whole.parameters,
            bytes=self.bytes / whole.bytes,
        )

    def told(self) -> dict[str, float]:
        """What is known of it, as JSON has it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Shape:
    """One shape.

    Attributes:
        sizes: Axis → size, for the axes that are cut.
        cost: What is predicted of it.
        distance: What the importance curves predict: the sum over its axes.
    """

    sizes: dict[str, int]
    cost: Cost
    distance: float

    @property
    def name(self) -> str:
        """Its sizes in words, such as ``2 layers, FFN 320, hidden 256``."""
        layers = "{} layer" if self.sizes.get("layers") == 1 else "{} layers"
        words = {"layers": layers, "intermediate_size": "FFN {}", "hidden_size": "hidden {}"}
        return ", ".join(words[axis].format(size) for axis, size in self.sizes.items()) or "uncut"


class Costs:
    """Predicts what a model of other sizes would cost, from its config alone.

    Args:
        model: The uncut student, its vocabulary cut already.
        lengths: Tokens of some of the task's rows, (n,).
        clock: Adds what only a clock tells to the cost of a shape, where a budget bounds it.
        fixed: Axis → size, of axes that every shape has so, heads and experts among them.
    """

    def __init__(
        self,
        model: TextModel,
        lengths: NDArray[np.int64],
        clock: Callable[[Mapping[str, int], Cost], Cost] | None = None,
        fixed: Mapping[str, int] | None = None,
    ) -> None:
        self.model, self.lengths, self.clock = model, lengths, clock
        self.fixed = dict(fixed or {})
        self.anatomy: Anatomy = anatomy_of(model.config)
        self.hidden = self.anatomy.size(model.config, "hidden_size")
        self._tensors = self._dimensions()

    def of(self, sizes: Mapping[str, int]) -> Cost:
        """The cost of a shape."""
        config, width = self.config_of(sizes), self.dense_width(sizes)
        parameters = self._parameters(sizes)
        if width is not None:
            bias = self.model.dense is None or self.model.dense.bias is not None
            parameters += (sizes.get("hidden_size", self.hidden) + bias) * width
        each = self.model.backbone.dtype.itemsize
        found = Cost(
            float(self._flops(sizes, config, width).mean()),
            float(parameters),
            float(parameters * each),
        )
        return found if self.clock is None else self.clock(sizes, found)

    def random_model(self, sizes: Mapping[str, int]) -> TextModel:
        """A model of a shape with random weights: it costs what a cut one does."""
        import torch

        make: Any = type(self.model.backbone)._from_config
        config, width = self.config_of(sizes), self.dense_width(sizes)
        dense = None if width is None else torch.nn.Linear(config.hidden_size, width)
        old = self.model
        return TextModel(make(config), old.tokenizer, old.signal, old.encoding, dense).eval()

    def dense_width(self, sizes: Mapping[str, int]) -> int | None:
        """Width of the map behind the pooling of a shape; None where there is none."""
        sizes = self.fixed | dict(sizes)
        if self.model.signal == "embedding":
            if self.model.dense is not None:
                return int(self.model.dense.out_features)
            if sizes.get("hidden_size", self.hidden) < self.hidden:
                return self.hidden  # a map back into the teacher's space comes with the cut
        return None

    def _flops(self, sizes: Mapping[str, int], config: Any, width: int | None) -> NDArray[np.int64]:
        if config.model_type in ARCHITECTURES:
            return flops_per_example(config, self.lengths, self.model.signal, dense=width)
        return row_flops(self.random_model(sizes), self.lengths)

    def _dimensions(self) -> list[tuple[int | None, tuple[int, ...], tuple[str, ...]]]:
        """Of each parameter: its layer, its shape, and what its dimensions are."""
        backbone, anatomy = self.model.backbone, self.anatomy
        prefix = f"{backbone.base_model_prefix}."
        found: list[tuple[int | None, tuple[int, ...], tuple[str, ...]]] = []
        for name, parameter in backbone.named_parameters():
            inside, layer = name.removeprefix(prefix), None
            dims = anatomy.tensors.get(inside)
            stack = anatomy.stacks[0]
            if inside.startswith(f"{stack.path}."):
                number, _, rest = inside.removeprefix(f"{stack.path}.").partition(".")
                layer, dims = int(number), stack.tensors.get(rest)
            found.append((layer, tuple(parameter.shape), dims or ("fixed",) * parameter.dim()))
        return found

    def _head_shares(self, sizes: Mapping[str, int], hidden: float) -> dict[str, float]:
        """What is kept of dimensions that lie along heads."""
        if self.anatomy.attention.head_dim is None:  # heads go with the hidden size
            return dict.fromkeys(("heads", "kv_heads", "qkv", "head"), hidden)
        config = self.model.config
        every, groups = self.anatomy.heads(config), self.anatomy.kv_heads(config)
        kv = sizes.get("kv_heads", groups) / groups
        queries = sizes["attention_heads"] / every if "attention_heads" in sizes else kv
        if every == groups:
            kv = queries
        return {"heads": queries, "kv_heads": kv, "qkv": queries, "head": queries}

    def _parameters(self, sizes: Mapping[str, int]) -> int:
        sizes = self.fixed | dict(sizes)
        whole = self.anatomy.sizes(self.model.config)
        layers = sizes.get("layers", whole["layers"])
        share = {"hidden": sizes.get("hidden_size", self.hidden) / self.hidden}
        if "intermediate_size" in sizes:
            share["ffn"] = sizes["intermediate_size"] / whole["intermediate_size"]
            share["gate_up"] = share["ffn"]
        share |= self._head_shares(sizes, share["hidden"])
        if "experts" in sizes:
            share["experts"] = sizes["experts"] / whole["experts"]
        total = 0
        for layer, shape, dims in self._tensors:
            if layer is None or layer < layers:
                pairs = zip(shape, dims, strict=True)
                total += int(np.prod([round(n * share.get(kind, 1.0)) for n, kind in pairs]))
        return total

    def config_of(self, sizes: Mapping[str, int]) -> Any:
        """The config of a shape."""
        sizes = self.fixed | dict(sizes)
        config = copy.deepcopy(self.model.config)
        anatomy = self.anatomy
        if "intermediate_size" in anatomy.axes:  # may follow the hidden size if it is not said
            width = anatomy.size(config, "intermediate_size")
            setattr(config, anatomy.field("intermediate_size"), width)
        if "hidden_size" in sizes and anatomy.attention.head_dim is None:
            heads = sizes["hidden_size"] // anatomy.head_dim(self.model.config)
            setattr(config, anatomy.attention.heads, heads)
        elif anatomy.attention.head_dim and set(sizes) & {"hidden_size", *HEADS}:
            setattr(config, anatomy.attention.head_dim, anatomy.head_dim(self.model.config))
        if "kv_heads" in sizes and "attention_heads" not in sizes:
            group = anatomy.heads(config) // anatomy.kv_heads(config)
            setattr(config, anatomy.attention.heads, sizes["kv_heads"] * group)
        alone = anatomy.heads(config) == anatomy.kv_heads(config)
        if "attention_heads" in sizes and anatomy.attention.kv_heads and alone:
            setattr(config, anatomy.attention.kv_heads, sizes["attention_heads"])
        for axis, size in sizes.items():
            setattr(config, anatomy.field(axis), size)
        if "layers" in sizes and getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: sizes["layers"]]
        return config


def grid(
    anatomy: Anatomy, config: Any, fixed: Mapping[str, int], step: int
) -> dict[str, list[int]]:
    """The sizes that are tried along each axis, rising; the whole size is the last.

    Args:
        anatomy: Of the architecture.
        config: Of the uncut model.
        fixed: Axis → size, for axes that are not searched.
        step: Widths are multiples of it.
    """
    found: dict[str, list[int]] = {}
    for axis in SEARCHED:
        if axis not in anatomy.axes:
            continue
        whole = anatomy.size(config, axis)
        if axis in fixed:
            found[axis] = [fixed[axis]]
        elif axis == "layers":
            found[axis] = list(range(1, whole + 1))
        else:
            unit = hidden_step(anatomy, config, step) if axis == "hidden_size" else step
            least = -(-whole // 8 // unit) * unit or unit
            found[axis] = [*range(max(unit, least), whole, unit), whole]
    return found


def propose(
    costs: Costs,
    sizes: Mapping[str, Sequence[int]],
    curves: Curve,
    meets: Callable[[Cost], bool],
    count: int,
) -> list[Shape]:
    """The shapes within a budget that the importance curves think best of.

    For each number of layers and hidden size the widest FFN within the budget is taken, and the
    next narrower ones where there are too few shapes.

    Args:
        costs: Predicts costs.
        sizes: Of each axis, from `grid`.
        curves: Distances along each axis.
        meets: Whether a cost is within the budget.
        count: How many to propose.

    Returns:
        At most ``count``, the most promising first.

    Raises:
        RecipeError: If none is within the budget; the nearest is named.
    """
    anatomy, config = costs.anatomy, costs.model.config
    widths = list(sizes.get("intermediate_size", [0]))
    found: list[Shape] = []
    spare: list[Shape] = []

    def shape(layers: int, hidden: int, width: int) -> Shape:
        all_sizes = {"layers": layers, "intermediate_size": width, "hidden_size": hidden}
        cut = {
            axis: all_sizes[axis]
            for axis in SEARCHED
            if axis in sizes and all_sizes[axis] < anatomy.size(config, axis)
        }
        distance = sum(at(curves.get(axis, ()), size) for axis, size in cut.items())
        return Shape(cut, costs.of(cut), distance)

    for layers in sizes["layers"]:
        for hidden in sizes["hidden_size"]:
            low = shape(layers, hidden, widths[0])
            if not meets(low.cost):
                continue
            best = _widest(
                len(widths), partial(_fits, meets, partial(shape, layers, hidden), widths)
            )
            found.append(shape(layers, hidden, widths[best]))
            for narrower in (best - max(1, best // 6), best - max(2, best // 3)):
                if narrower >= 0:
                    spare.append(shape(layers, hidden, widths[narrower]))
    found = [one for one in found if one.sizes]
    if not found:
        smallest = shape(sizes["layers"][0], sizes["hidden_size"][0], widths[0])
        raise _Unmet(smallest)
    found.sort(key=lambda one: (one.distance, one.name))
    if len(found) < count:
        names = {one.name for one in found}
        spare.sort(key=lambda one: (one.distance, one.name))
        found += [one for one in spare if one.sizes and one.name not in names]
    return found[:count]


def _fits(
    meets: Callable[[Cost], bool], shape: Callable[[int], Shape], widths: Sequence[int], place: int
) -> bool:
    return meets(shape(widths[place]).cost)


def _widest(count: int, fits: Callable[[int], bool]) -> int:
    """The last of ``count`` rising sizes that fits; the first does."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


class _Unmet(Exception):
    """No shape meets the budget; carries the smallest."""

    def __init__(self, smallest: Shape) -> None:
        super().__init__(smallest.name)
        self.smallest = smallest


def proposals(
    costs: Costs,
    sizes: Mapping[str, Sequence[int]],
    curves: Curve,
    budget: tuple[str, float],
    whole: Cost,
    count: int,
) -> list[Shape]:
    """`propose` for a budget in shares of the teacher.

    Args:
        costs: Predicts costs.
        sizes: Of each axis.
        curves: Distances along each axis.
        budget: The field of `Cost` that is bounded, and its share of the teacher's; its value
            where it is a time or a price.
        whole: What the teacher costs.
        count: How many to propose.

    Raises:
        RecipeError: If no shape is within the budget; the nearest is named.
    """
    kind, share = budget
    try:
        return propose(
            costs, sizes, curves, lambda cost: getattr(cost.over(whole), kind) <= share, count
        )
    except _Unmet as unmet:
        nearest = unmet.smallest
        ratio = getattr(nearest.cost.over(whole), kind)
        of = "" if kind in TIMED else f" of the teacher's {kind}"
        raise RecipeError(
            f"budget.{kind} {share:g}: no shape is that small. The nearest is {nearest.name}, at "
            f"{ratio:.3g}{of}. Ask for that or more, or free the sizes that `prune` fixes."
        ) from None


def at(curve: Sequence[tuple[int, float]], size: int) -> float:
    """A curve's distance at a size, between its points by straight lines."""
    if not curve:
        return 0.0
    return float(np.interp(size, [s for s, _ in curve], [d for _, d in curve]))
