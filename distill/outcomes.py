"""Student and teacher over the same outcomes: ids both have, a top-k and its rest, or draws."""

from __future__ import annotations

import torch
from torch import Tensor

from .token_targets import Full, Sampled, Targets, TopK

FLOOR = -100.0
"""The least log-probability a teacher is taken to give; exp of it is 0 beside any float32 sum."""
LEAST_REST = 1e-7
"""The least mass of a top-k's rest: a recorded 0 is a rounded one, and a KL would be infinite."""
ABSENT = -1e9
"""A logit that stands for an id that is not there; finite, so that no gradient is NaN."""


def common_width(student: int, targets: Targets, shared: int | None = None) -> int:
    """How many ids, from 0, are compared."""
    widths = [student] if shared is None else [student, shared]
    return min([*widths, targets.logits.shape[-1]] if isinstance(targets, Full) else widths)


def usable_ids(targets: TopK, width: int) -> tuple[Tensor, Tensor]:
    """The ids of a top-k, and which of its places count: not padding, and an id that is compared.

    A place that does not count repeats an id that does, so that the ids can be scattered to.

    Returns:
        Ids, (N, K), and a mask, (N, K).
    """
    counts = torch.isfinite(targets.log_probs) & (targets.ids >= 0) & (targets.ids < width)
    best = counts.int().argmax(-1, keepdim=True)
    ids = torch.where(counts, targets.ids, targets.ids.gather(-1, best))
    return ids.clamp(0, width - 1), counts


def usable_draws(targets: Sampled, width: int) -> tuple[Tensor, Tensor]:
    """Ids and shares of the draws that fell on ids that are compared; all 0 where none did.

    Returns:
        Ids, (N, K), and shares that sum to 1 or 0, (N, K) float32.
    """
    counts = (targets.ids >= 0) & (targets.ids < width)
    weights = targets.weights.float() * counts
    return targets.ids.clamp(0, width - 1), weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)


def bucketed(logits: Tensor, targets: TopK, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Teacher and student over the ids of a top-k and one bucket for all others.

    Args:
        logits: The student's over the ids that are compared, divided by T, (N, V) float32.
        targets: The teacher's.
        temperature: T.

    Returns:
        log p and log q, each (N, K + 1), the bucket last; `FLOOR` in both where a place is unused.
    """
    ids, counts = usable_ids(targets, logits.shape[-1])
    picked = logits.gather(-1, ids)  # (N, K)
    hidden = picked.masked_fill(counts.any(-1, keepdim=True), ABSENT)
    others = logits.scatter(-1, ids, hidden)  # (N, V)
    tail = others.logsumexp(-1, keepdim=True)  # (N, 1)
    plain_tail = tail if temperature == 1 else (others * temperature).logsumexp(-1, keepdim=True)
    log_p = bucketed_teacher(targets, counts, tail, plain_tail, temperature)
    log_q = torch.cat([picked, tail], -1) - logits.logsumexp(-1, keepdim=True)
    return log_p, log_q.masked_fill(unused(counts, tail), FLOOR)


def unused(counts: Tensor, tail: Tensor) -> Tensor:
    """Which places of the K + 1 stand for nothing: padding, or a bucket without ids, (N, K + 1)."""
    return torch.cat([~counts, tail < ABSENT / 2], -1)


def bucketed_teacher(
    targets: TopK, counts: Tensor, tail: Tensor, plain_tail: Tensor, temperature: float
) -> Tensor:
    """The teacher's log-probabilities over the ids of a top-k and the bucket, at a temperature.

    The bucket's weight at T is Σ_j p_j^(1/T) over the tail p_j = r q_j / Q, which is
    (r / Q)^(1/T) Σ_j q_j^(1/T): it depends on the student, and no gradient flows through it. The
    K + 1 are normalised, since they were recorded with rounding.

    Args:
        targets: The teacher's.
        counts: Which places count, (N, K).
        tail: log Σ_j exp(z_j / T) over the student's logits z outside the K, (N, 1).
        plain_tail: log Σ_j exp(z_j), (N, 1).
        temperature: T.

    Returns:
        (N, K + 1).
    """
    rest = targets.rest.float().clamp(min=LEAST_REST).log()[:, None]
    bucket = (rest - plain_tail.detach()) / temperature + tail.detach()
    if temperature == 1:
        bucket = rest
    known = targets.log_probs.float() / temperature
    log_p = torch.cat([known, bucket], -1).masked_fill(unused(counts, tail), FLOOR)
    return log_p.log_softmax(-1)
