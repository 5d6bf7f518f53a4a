"""Token losses from hidden states, in chunks: logits of all positions and tokens never exist.

The output head is applied to some positions at a time, and their gradients are made at once, while
their logits are there: four vocabulary products with a live teacher (both heads, and the gradients
to hidden states and head), three with recorded targets; recomputing the logits in the backward
pass would take two more. What is kept is the gradients alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..eval.errors import RecipeError
from .divergences import (
    IGNORED,
    check_labels,
    check_targets,
    divergence,
    get_divergence,
    missing,
    resolve_options,
)
from .heads import Head, LiveTeacher
from .slopes import label_value_and_gradient, slab_width, value_and_gradient
from .token_targets import Full, Sampled, Targets, TopK

CHUNK_NUMBERS = 44_000_000
"""Logits in a chunk, about: 176 MB in float32, and as much of a live teacher's beside them."""
SLAB_NUMBERS = 16_000_000
"""Numbers of the head's gradient made at a time where it is not summed in place."""


@dataclass(frozen=True)
class TokenTerm:
    """A term of the loss.

    Attributes:
        name: A divergence of `divergences.DIVERGENCES`.
        weight: Its factor, above 0.
        options: Its options; defaults are filled in.

    Raises:
        RecipeError: For an unknown name or option, or a value out of range.
    """

    name: str
    weight: float = 1.0
    options: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", resolve_options(self.name, self.options))
        if not 0 < self.weight < math.inf:
            raise RecipeError(
                f"The loss '{self.name}' has weight {self.weight}; it must be above 0. "
                f"Leave the loss out instead."
            )

    @property
    def needs_labels(self) -> bool:
        """Whether it reads labels instead of a teacher."""
        return get_divergence(self.name).needs_labels


def chunked_loss(
    hidden: Tensor,
    head: Head,
    terms: Sequence[TokenTerm],
    teacher: Targets | LiveTeacher | None = None,
    **rest: Any,
) -> Tensor:
    """Σ over terms of weight · Σ w d / Σ w; `chunked_terms` without the parts. See there."""
    return chunked_terms(hidden, head, terms, teacher, **rest)[0]


def chunked_terms(
    hidden: Tensor,
    head: Head,
    terms: Sequence[TokenTerm],
    teacher: Targets | LiveTeacher | None = None,
    *,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    divisor: Tensor | float | None = None,
    shared: int | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ over terms of weight · Σ w d / Σ w, and each Σ w d / Σ w apart.

    d is the term's divergence at a position and w the position's weight. A term that reads labels
    counts positions that have one; the others count all. Gradients go to ``hidden`` and to the
    head's weight and bias where these want them; to the teacher never. They are exact but for
    rounding: chunks are summed in float32, and in bf16 the products of a chunk are rounded to bf16
    (relative error 2⁻⁹ of each) before that; in fp16 small ones become 0. The backward pass can
    run once. Under autocast the
    products are made in its dtype. Nothing is computed for positions of weight 0.

    Args:
        hidden: The student's last hidden states, (N, H); position i predicts label i.
        head: Its output head, (V, H).
        terms: The terms.
        teacher: Targets of N positions, or a live teacher; needed by all but `cross_entropy`.
        labels: Token ids, (N,) int64; −100 where there is none.
        weights: w, (N,), ≥ 0; 1 where None.
        divisor: What the sums are divided by instead of Σ w: for a batch that is one part of a
            larger one, the Σ w of the whole.
        shared: How many ids, from 0, student and teacher share; see `divergences.divergence`.
        chunk: Positions at a time; chosen by the vocabulary where None.

    Returns:
        The loss, a float32 scalar, and (terms,) float32 without gradients; 0 where nothing counts.

    Raises:
        RecipeError: For targets or labels that a term needs and that are not there, on which it is
            not defined, or of another number of positions.
    """
    _check(hidden, terms, teacher, labels, weights, chunk)
    if labels is not None:
        check_labels(labels, len(head.weight))
    w = hidden.new_ones(len(hidden), dtype=torch.float32) if weights is None else weights.float()
    device = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    work = _Pass(
        head, tuple(terms), teacher, labels, w.detach(), divisor, shared,
        chunk or chunk_size(len(head.weight)), dtype, torch.is_grad_enabled(),
    )  # fmt: skip
    total, each = _Chunked.apply(hidden, head.weight, head.bias, work)  # type: ignore[no-untyped-call]
    return total, each


def chunk_size(vocabulary: int) -> int:
    """Positions at a time: few enough that a chunk's logits are small beside the head's gradient.

    Products of fewer than some 64 positions read the head more than they compute.
    """
    return max(64, min(4096, CHUNK_NUMBERS // max(vocabulary, 1) // 32 * 32))


def _check(
    hidden: Tensor,
    terms: Sequence[TokenTerm],
    teacher: Targets | LiveTeacher | None,
    labels: Tensor | None,
    weights: Tensor | None,
    chunk: int | None,
) -> None:
    """Refuses what the terms cannot be computed from."""
    if not terms:
        raise RecipeError("distill.losses is empty: name at least one loss.")
    if chunk is not None and chunk < 1:
        raise RecipeError(f"A chunk has at least 1 position, not {chunk}.")
    kind = "full"
    if isinstance(teacher, TopK | Sampled):
        kind = "topk" if isinstance(teacher, TopK) else "sampled"
    for term in terms:
        if term.needs_labels:
            if labels is None:
                raise missing(term.name, "labels")
        else:
            if teacher is None:
                raise missing(term.name, "a teacher's targets")
            check_targets(term.name, kind, term.options["temperature"])
    positions = teacher.hidden if isinstance(teacher, LiveTeacher) else teacher
    for what, value in (("teacher", positions), ("labels", labels), ("weights", weights)):
        if value is not None and len(value) != len(hidden):
            raise RecipeError(
                f"The student has {len(hidden)} positions and the {what} {len(value)}: "
                f"give both for the same positions."
            )


@dataclass
class _Pass:
    """All that the forward pass reads but does not differentiate."""

    head: Head
    terms: tuple[TokenTerm, ...]
    teacher: Targets | LiveTeacher | None
    labels: Tensor | None
    weights: Tensor
    divisor: Tensor | float | None
    shared: int | None
    chunk: int
    dtype: torch.dtype
    gradients: bool
    scales: Tensor = field(init=False)
    rooms: dict[str, Tensor] = field(default_factory=dict)

    def room(self, name: str, rows: int, width: int) -> Tensor:
        """Memory for a chunk, the same each time: fresh pages cost as much as an exp over them.

        On a CPU a token's logits lie beside each other, not a position's: W hᵀ takes two thirds of
        the time of h Wᵀ where positions are few (192: 345 ms against 401; 128: 250 against 365).
        """
        held = self.rooms.get(name)
        if held is None or held.numel() < rows * width:
            held = torch.empty(rows * width, dtype=torch.float32, device=self.weights.device)
            self.rooms[name] = held
        flat = held[: rows * width]
        return flat.view(width, rows).T if flat.device.type == "cpu" else flat.view(rows, width)

    def factors(self) -> Tensor:
        """1 / Σ w of each term, (terms,); 0 where nothing counts."""
        sums = []
        for term in self.terms:
            if self.divisor is not None:
                total = torch.as_tensor(self.divisor).to(self.weights)
            elif term.needs_labels and self.labels is not None:
                total = (self.weights * (self.labels != IGNORED)).sum()
            else:
                total = self.weights.sum()
            sums.append(total)
        stacked = torch.stack(sums)
        return torch.where(stacked > 0, 1 / stacked, 0.0)

    def parts(self) -> list[Tensor | slice]:
        """The positions of each chunk; those of weight 0 are in none."""
        kept = self.weights.nonzero()[:, 0]
        # As many chunks as it takes, all as long: a short last one costs almost as much as a whole.
        chunks = max(1, math.ceil(len(kept) / self.chunk))
        size = max(1, math.ceil(len(kept) / chunks))
        starts = range(0, len(kept), size)
        if len(kept) < len(self.weights):
            return [kept[i : i + size] for i in starts]
        return [slice(i, i + size) for i in starts]

    def targets(self, part: Tensor | slice, made: Tensor | None, last: bool) -> Targets | None:
        """The teacher's targets of a chunk; logits are a copy, to be overwritten."""
        teacher = self.teacher
        if made is not None:
            return Full(made if last else made.clone())
        if isinstance(teacher, Full):
            given = teacher.logits[part]
            return Full(self.room("teacher", *given.shape).copy_(given))
        if isinstance(teacher, TopK):
            return TopK(teacher.ids[part], teacher.log_probs[part], teacher.rest[part])
        if isinstance(teacher, Sampled):
            return Sampled(teacher.ids[part], teacher.weights[part])
        return None

    def term(
        self,
        term: TokenTerm,
        logits: Tensor,
        targets: Targets | None,
        labels: Tensor | None,
        factor: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """A term's values at the positions of a chunk, and its gradient, in the logits' place."""
        if not self.gradients:
            return divergence(term.name, logits, targets, labels, self.shared, **term.options), None
        spare = self.room(
            "spare", len(logits), slab_width(len(logits), logits.shape[-1], logits.device)
        )
        if targets is not None:
            return value_and_gradient(
                term.name, logits, targets, self.shared, dict(term.options), spare, factor
            )
        if labels is None:
            raise missing(term.name, "labels")
        return label_value_and_gradient(logits, labels, spare, factor)

    def run(self, hidden: Tensor, part: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        """A chunk's Σ w d of each term, and the gradient of the loss to W h + b."""
        head, softcap, made = self.head, self.head.softcap, None
        into = self.room("student", len(hidden), len(head.weight))
        logits = head.logits(hidden, self.dtype, into)
        if isinstance(self.teacher, LiveTeacher):
            known = self.teacher.head
            into = self.room("teacher", len(hidden), len(known.weight))
            made = known.logits(self.teacher.hidden[part], into=into)
        capped = logits.clone() if self.gradients and softcap is not None else None
        labels = None if self.labels is None else self.labels[part]
        asked = [i for i, term in enumerate(self.terms) if not term.needs_labels]
        w, sums, total = self.weights[part], [], None
        for i, term in enumerate(self.terms):
            targets = self.targets(part, made, i == asked[-1]) if i in asked else None
            own = logits if i == len(self.terms) - 1 else logits.clone()
            values, slope = self.term(term, own, targets, labels, w * self.scales[i])
            sums.append((values * w).sum())
            if slope is not None:
                total = slope if total is None else total.add_(slope)
        if total is not None:
            if capped is not None and softcap is not None:
                total.mul_(capped.div_(softcap).square_().neg_().add_(1))
            if head.scale != 1:
                total.mul_(head.scale)
        return torch.stack(sums), total


class _Chunked(torch.autograd.Function):
    """The loss, with its gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Pass
    ) -> tuple[Tensor, Tensor]:
        """Goes through the chunks."""
        wanted = [work.gradients and need for need in ctx.needs_input_grad[:3]]
        work.gradients = any(wanted)
        factors = work.factors()
        work.scales = factors * factors.new_tensor([term.weight for term in work.terms])
        sums = torch.zeros_like(factors)
        to_hidden = torch.zeros_like(hidden) if wanted[0] else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        to_bias = None
        if wanted[2] and bias is not None:
            to_bias = torch.zeros_like(bias, dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            cast = weight.to(work.dtype)
            work.head = replace(work.head, weight=cast, bias=bias)
            if isinstance(work.teacher, LiveTeacher):
                known = work.teacher
                there = known.head.weight.to(known.hidden.dtype)
                work.teacher = replace(known, head=replace(known.head, weight=there))
            for part in work.parts():
                rows = hidden[part].to(work.dtype)
                found, slope = work.run(rows, part)
                sums += found
                if slope is None:
                    continue
                if to_bias is not None:
                    to_bias += slope.sum(0)
                slope = slope.to(work.dtype)
                if to_hidden is not None:
                    to_hidden[part] = torch.mm(slope, cast).to(hidden.dtype)
                if to_weight is not None:
                    _add_product(to_weight, slope, rows)
        if to_weight is not None:
            to_weight = to_weight.to(weight.dtype)
        if to_bias is not None and bias is not None:
            to_bias = to_bias.to(bias.dtype)
        ctx.gradients = [to_hidden, to_weight, to_bias]
        ctx.set_materialize_grads(False)
        each = sums * factors
        ctx.mark_non_differentiable(each)
        return (sums * work.scales).sum(), each

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        """Hands out the gradients, and keeps none: they may be larger than all else there is."""
        made, ctx.gradients = ctx.gradients, None
        if made is None:
            raise RuntimeError("chunked_loss can be differentiated once; call it again.")
        if scale is None:
            return None, None, None, None
        known_to_be_1 = scale.device.type == "cpu" and scale.item() == 1
        for gradient in made:
            if gradient is not None and not known_to_be_1:
                gradient.mul_(scale.to(gradient.dtype))
        return *made, None


def _add_product(total: Tensor, slope: Tensor, rows: Tensor) -> None:
    """Adds slopeᵀ rows to the head's gradient, (V, H) float32."""
    if rows.dtype == total.dtype:
        total.addmm_(slope.T, rows)
        return
    step = max(1, SLAB_NUMBERS // rows.shape[-1])
    for start in range(0, len(total), step):
        total[start : start + step] += torch.mm(slope[:, start : start + step].T, rows)
