"""The gradients of the divergences with respect to the student's logits, in closed form.

A divergence Σ φ(p, q) of q = softmax(z) has the gradient ψ − q Σψ with ψ = q ∂φ/∂q. Adding q to ψ
changes nothing, so terms of that form are left out below. Over a top-k's bucket, an id j outside
the K has q_j / Q of the bucket's ψ. Each function here gives values and gradient together, from
what the other needs anyway, and works in the memory it is given: a chunk of logits is the largest
thing there is.
"""

from __future__ import annotations

from collections.abc import Callable

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

Slope = Callable[..., tuple[Tensor, Tensor]]
"""(log p, log q, spare, **options) → values, (N,), and ψ, (N, C).

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


def value_and_gradient(
    name: str,
    logits: Tensor,
    targets: Targets,
    shared: int | None,
    options: dict[str, float],
    spare: Tensor,
) -> tuple[Tensor, Tensor]:
    """A divergence from the teacher and its gradient, in the place of the logits.

    Args:
        name: From `SLOPES`.
        logits: The student's, (N, V) float32; overwritten.
        targets: The teacher's; the logits of `Full` are float32 and overwritten.
        shared: As `divergences.divergence` takes it.
        options: All options of the divergence.
        spare: Memory to work in, (N, V) float32; overwritten.

    Returns:
        Values, (N,), and the gradient of each with respect to its logits, (N, V).
    """
    options = dict(options)
    temperature = options.pop("temperature")
    width = common_width(logits.shape[-1], targets, shared)
    part, spare = logits[:, :width], spare[:, :width]
    if temperature != 1:
        part.div_(temperature)
    if isinstance(targets, Full):
        values, slope = _full(SLOPES[name], part, targets, temperature, options, spare)
    elif isinstance(targets, TopK):
        values, slope = _topk(SLOPES[name], part, targets, temperature, options)
    else:
        values, slope = _sampled(part, targets, spare)
    if temperature != 1:
        values, slope = values * temperature**2, slope.mul_(temperature)
    if width < logits.shape[-1]:
        logits[:, width:] = 0
        if slope is not part:
            part.copy_(slope)
        slope = logits
    return values, slope


def label_value_and_gradient(
    logits: Tensor, labels: Tensor, spare: Tensor
) -> tuple[Tensor, Tensor]:
    """−log q[y] and its gradient q − [y], in the place of the logits; 0 where there is no label.

    Args:
        logits: (N, V) float32; overwritten.
        labels: (N,) int64.
        spare: Memory to work in, (N, V) float32; overwritten.

    Returns:
        Values, (N,), and the gradient, (N, V).
    """
    counts = (labels != IGNORED)[:, None]
    ids = labels.clamp(min=0)[:, None]
    log_q = log_softmax_(logits, spare)
    values = -(log_q.gather(-1, ids) * counts)[:, 0]
    slope = log_q.exp_().mul_(counts)
    return values, slope.scatter_add_(-1, ids, -counts.float())


def log_softmax_(logits: Tensor, spare: Tensor) -> Tensor:
    """Log softmax in the place of its argument; ``spare`` is overwritten."""
    logits.sub_(logits.amax(-1, keepdim=True))
    return logits.sub_(torch.exp(logits, out=spare).sum(-1, keepdim=True).log_())


def _full(
    slope: Slope,
    part: Tensor,
    targets: Full,
    temperature: float,
    options: dict[str, float],
    spare: Tensor,
) -> tuple[Tensor, Tensor]:
    """Over all ids that are compared."""
    teacher = targets.logits[:, : part.shape[-1]]
    if temperature != 1:
        teacher.div_(temperature)
    log_q = log_softmax_(part, spare)
    log_p = log_softmax_(teacher, spare).clamp_(min=FLOOR)
    values, psi = slope(log_p, log_q, spare, **options)
    total = psi.sum(-1, keepdim=True)
    return values, log_q.exp_().mul_(total).neg_().add_(psi)


def _topk(
    slope: Slope, part: Tensor, targets: TopK, temperature: float, options: dict[str, float]
) -> tuple[Tensor, Tensor]:
    """Over a top-k's ids and its bucket; the bucket's slope is spread as q is over its ids."""
    ids, counts = usable_ids(targets, part.shape[-1])
    picked = part.gather(-1, ids)  # (N, K)
    any_counts = counts.any(-1, keepdim=True)
    part.scatter_(-1, ids, picked.masked_fill(any_counts, ABSENT))
    tail = part.logsumexp(-1, keepdim=True)  # (N, 1)
    plain = tail if temperature == 1 else (part * temperature).logsumexp(-1, keepdim=True)
    log_p = bucketed_teacher(targets, counts, tail, plain, temperature)
    log_q = torch.cat([picked.masked_fill(~counts, ABSENT), tail], -1)
    log_q = (log_q - log_q.logsumexp(-1, keepdim=True)).masked_fill(unused(counts, tail), FLOOR)
    values, psi = slope(log_p, log_q, torch.empty_like(log_p), **options)
    gradient = psi - log_q.exp() * psi.sum(-1, keepdim=True)  # (N, K + 1)
    spread = part.sub_(tail).exp_().mul_(gradient[:, -1:].masked_fill(tail < ABSENT / 2, 0))
    # a place that does not count repeats the first that does, and must bring the same number there
    best = counts.int().argmax(-1, keepdim=True)
    own = torch.where(counts, gradient[:, :-1], gradient.gather(-1, best))
    return values, spread.scatter_(-1, ids, torch.where(any_counts, own, spread.gather(-1, ids)))


def _sampled(part: Tensor, targets: Sampled, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Forward KL to the draws: q − w; nothing where no draw fell on an id that is compared."""
    ids, weights = usable_draws(targets, part.shape[-1])
    log_q = log_softmax_(part, spare)
    values = draws_kl(log_q.gather(-1, ids), weights)
    slope = log_q.exp_().mul_(weights.sum(-1, keepdim=True))
    return values, slope.scatter_add_(-1, ids, -weights)
