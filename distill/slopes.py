"""The gradients of the divergences with respect to the student's logits, in closed form.

A divergence Σ φ(p, q) of q = softmax(z) has the gradient ψ − q Σψ with ψ = q ∂φ/∂q. Adding q to ψ
changes nothing, so terms of that form are left out below. Over a top-k's bucket, an id j outside
the K has q_j / Q of the bucket's ψ. Each function here gives values and gradient together, from
what the other needs anyway, and works in the memory it is given: a chunk of logits is the largest
thing there is. It is gone through in slabs of ids that a CPU's caches hold, because the steps over
it are many and each would otherwise read and write it in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .divergences import IGNORED, draws_kl, mixture
from .outcomes import (
    ABSENT,
    FLOOR,
    bucketed_teacher,
    common_width,
    unused,
    usable_draws,
    usable_ids,
)
from .token_targets import Full, Sampled, Targets, TopK

SLAB_NUMBERS = 2**19
"""Numbers of a slab on a CPU: of the student's, the teacher's and what lies between, 2 MB each."""

Slope = Callable[..., tuple[Tensor, Tensor]]
"""(log p, log q, spare, **options) → values, (N,), and ψ, (N, C), both sums over the C ids at hand.

It may overwrite log p and ``spare``, which is as large, and return either; never log q."""


def forward_kl(log_p: Tensor, log_q: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """ψ = −p."""
    p = torch.exp(log_p, out=spare)
    return log_p.sub_(log_q).mul_(p).sum(-1), p.neg_()


def reverse_kl(log_p: Tensor, log_q: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """ψ = q (log q − log p)."""
    psi = log_p.neg_().add_(log_q).mul_(torch.exp(log_q, out=spare))
    return psi.sum(-1), psi


def jsd(log_p: Tensor, log_q: Tensor, spare: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """ψ = (1 − β) q (log q − log m); what m itself contributes cancels."""
    if beta == 0:
        return forward_kl(log_p, log_q, spare)
    if beta == 1:
        return reverse_kl(log_p, log_q, spare)
    log_m = mixture(log_p, log_q, beta)
    p = torch.exp(log_p, out=spare)
    teachers = log_p.sub_(log_m).mul_(p).sum(-1)
    torch.sub(log_q, log_m, out=log_m)
    psi = log_m.mul_(torch.exp(log_q, out=p)).mul_(1 - beta)
    return beta * teachers + psi.sum(-1), psi


def skewed_kl(log_p: Tensor, log_q: Tensor, spare: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """ψ = −(1 − α) p q / m."""
    log_m = mixture(log_p, log_q, alpha)
    p = torch.exp(log_p, out=spare)
    values = log_p.sub_(log_m).mul_(p).sum(-1)
    psi = torch.sub(log_q, log_m, out=log_m).exp_().mul_(p).mul_(alpha - 1)
    return values, psi


def skewed_reverse_kl(
    log_p: Tensor, log_q: Tensor, spare: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """ψ = q (log q − log m − α q / m)."""
    log_m = mixture(log_p, log_q, 1 - alpha)
    ratio = torch.sub(log_q, log_m, out=log_m)
    q = torch.exp(log_q, out=log_p)
    share = torch.exp(ratio, out=spare).mul_(alpha).mul_(q)
    psi = ratio.mul_(q)
    return psi.sum(-1), psi.sub_(share)


def total_variation(log_p: Tensor, log_q: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """ψ = ½ q sign(q − p)."""
    q = torch.exp(log_q, out=spare)
    gap = torch.sub(q, log_p.exp_(), out=log_p)
    return 0.5 * gap.abs().sum(-1), gap.sign_().mul_(q).mul_(0.5)


SLOPES: dict[str, Slope] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skewed_kl": skewed_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "total_variation": total_variation,
}


def slab_width(rows: int, width: int, device: torch.device) -> int:
    """How many ids of N rows are gone through at a time: all of them but on a CPU."""
    if device.type != "cpu":
        return width
    return min(width, max(1, SLAB_NUMBERS // max(rows, 1)))


def value_and_gradient(
    name: str,
    logits: Tensor,
    targets: Targets,
    shared: int | None,
    options: dict[str, float],
    spare: Tensor,
    factor: Tensor,
) -> tuple[Tensor, Tensor]:
    """A divergence from the teacher, and its gradient in the place of the logits.

    Args:
        name: From `SLOPES`.
        logits: The student's, (N, V) float32; overwritten.
        targets: The teacher's; the logits of `Full` are float32 and overwritten.
        shared: As `divergences.divergence` takes it.
        options: All options of the divergence.
        spare: Memory to work in, (N, `slab_width`) float32; overwritten.
        factor: What the gradient of each row is multiplied by, (N,).

    Returns:
        Values, (N,), and the gradient of each with respect to its logits times its factor, (N, V).
    """
    options = dict(options)
    temperature = options.pop("temperature")
    width = common_width(logits.shape[-1], targets, shared)
    part = logits[:, :width]
    factor = factor[:, None] * temperature
    if isinstance(targets, Full):
        values = _full(SLOPES[name], part, targets, temperature, options, spare, factor)
    elif isinstance(targets, TopK):
        values = _topk(SLOPES[name], part, targets, temperature, options, spare, factor)
    else:
        values = _sampled(part, targets, spare, factor)
    logits[:, width:] = 0
    return values * temperature**2, logits


def label_value_and_gradient(
    logits: Tensor, labels: Tensor, spare: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """−log q[y], and its gradient q − [y] in the place of the logits; 0 where there is no label.

    Args:
        logits: (N, V) float32; overwritten.
        labels: (N,) int64.
        spare: Memory to work in, (N, `slab_width`) float32; overwritten.
        factor: What the gradient of each row is multiplied by, (N,).

    Returns:
        Values, (N,), and the gradient times the factor, (N, V).
    """
    counts = (labels != IGNORED)[:, None]
    ids = labels.clamp(min=0)[:, None]
    partition = log_partition(logits, spare)
    values = -(partition.normalise(logits.gather(-1, ids)) * counts)[:, 0]
    factor = factor[:, None] * counts
    for slab in _slabs(logits, spare):
        partition.normalise(slab).exp_().mul_(factor)
    return values, logits.scatter_add_(-1, ids, -factor)


class Partition(NamedTuple):
    """log Σ_j exp z_j in two parts, since logits far from 0 would be rounded beside their sum.

    Attributes:
        top: max z, (N, 1).
        rest: log Σ_j exp(z_j − max z), (N, 1).
    """

    top: Tensor
    rest: Tensor

    def normalise(self, logits: Tensor) -> Tensor:
        """Makes log-probabilities of logits, in their place."""
        return logits.sub_(self.top).sub_(self.rest)


def log_partition(logits: Tensor, spare: Tensor, factor: float = 1.0) -> Partition:
    """The logarithm of Σ_j exp(factor · z_j).

    Args:
        logits: z, (N, V) float32.
        spare: Memory to work in, (N, `slab_width`) float32; overwritten.
        factor: Above 0.
    """
    tops, sums = [], []
    for slab in _slabs(logits, spare):
        top = slab.amax(-1, keepdim=True)
        room = torch.sub(slab, top, out=spare[:, : slab.shape[-1]])
        room = room if factor == 1 else room.mul_(factor)
        tops.append(top * factor)
        sums.append(room.exp_().sum(-1, keepdim=True))
    each = torch.cat(tops, -1)
    top = each.amax(-1, keepdim=True)
    return Partition(
        top, (each.sub_(top).exp_() * torch.cat(sums, -1)).sum(-1, keepdim=True).log_()
    )


def _slabs(logits: Tensor, spare: Tensor) -> Iterator[Tensor]:
    """The logits in parts of as many ids as ``spare`` holds."""
    yield from torch.split(logits, spare.shape[-1], dim=-1)


def _full(
    slope: Slope,
    part: Tensor,
    targets: Full,
    temperature: float,
    options: dict[str, float],
    spare: Tensor,
    factor: Tensor,
) -> Tensor:
    """Over all ids that are compared."""
    teacher = targets.logits[:, : part.shape[-1]]
    if temperature != 1:
        part.div_(temperature)
        teacher.div_(temperature)
    of_p, of_q = log_partition(teacher, spare), log_partition(part, spare)
    values, total = part.new_zeros(len(part)), part.new_zeros(len(part), 1)
    for known, own in zip(_slabs(teacher, spare), _slabs(part, spare), strict=True):
        room = spare[:, : own.shape[-1]]
        log_p = of_p.normalise(known).clamp_(min=FLOOR)
        found, psi = slope(log_p, of_q.normalise(own), room, **options)
        values += found
        total += psi.sum(-1, keepdim=True)
        known.copy_(psi)
    total.mul_(factor).neg_()
    for psi, own in zip(_slabs(teacher, spare), _slabs(part, spare), strict=True):
        own.exp_().mul_(total).add_(psi.mul_(factor))
    return values


def _topk(
    slope: Slope,
    part: Tensor,
    targets: TopK,
    temperature: float,
    options: dict[str, float],
    spare: Tensor,
    factor: Tensor,
) -> Tensor:
    """Over a top-k's ids and its bucket; the bucket's slope is spread as q is over its ids."""
    if temperature != 1:
        part.div_(temperature)
    ids, counts = usable_ids(targets, part.shape[-1])
    picked = part.gather(-1, ids)  # (N, K)
    any_counts = counts.any(-1, keepdim=True)
    part.scatter_(-1, ids, picked.masked_fill(any_counts, ABSENT))
    among = log_partition(part, spare)
    tail = among.top + among.rest  # (N, 1)
    plain = tail
    if temperature != 1:
        plain = torch.add(*log_partition(part, spare, temperature))
    log_p = bucketed_teacher(targets, counts, tail, plain, temperature)
    log_q = torch.cat([picked.masked_fill(~counts, ABSENT), tail], -1)
    log_q = (log_q - log_q.logsumexp(-1, keepdim=True)).masked_fill(unused(counts, tail), FLOOR)
    values, psi = slope(log_p, log_q, torch.empty_like(log_p), **options)
    gradient = (psi - log_q.exp() * psi.sum(-1, keepdim=True)) * factor  # (N, K + 1)
    bucket = gradient[:, -1:].masked_fill(tail < ABSENT / 2, 0)
    for slab in _slabs(part, spare):
        among.normalise(slab).exp_().mul_(bucket)
    # a place that does not count repeats the first that does, and must bring the same number there
    best = counts.int().argmax(-1, keepdim=True)
    own = torch.where(counts, gradient[:, :-1], gradient.gather(-1, best))
    part.scatter_(-1, ids, torch.where(any_counts, own, part.gather(-1, ids)))
    return values


def _sampled(part: Tensor, targets: Sampled, spare: Tensor, factor: Tensor) -> Tensor:
    """Forward KL to the draws: q − w; nothing where no draw fell on an id that is compared."""
    ids, weights = usable_draws(targets, part.shape[-1])
    partition = log_partition(part, spare)
    values = draws_kl(partition.normalise(part.gather(-1, ids)), weights)
    total = weights.sum(-1, keepdim=True) * factor
    for slab in _slabs(part, spare):
        partition.normalise(slab).exp_().mul_(total)
    part.scatter_add_(-1, ids, -weights * factor)
    return values
