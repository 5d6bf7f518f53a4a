"""Universal logit distillation from recorded distributions of a teacher with another tokenizer.

Spans of the same bytes come from `byte_spans`; each side's distributions in a span are merged by
the chain rule, as `alignment` says, and compared as sorted lists. Of a top-k only the largest are
known in order, and the rest as one number:

    d_K = Σ_{i≤K} |q_(i) − p_(i)| + |Σ_{i>K} q_(i) − r|        r the teacher's rest

which is never more than the whole `alignment.sorted_l1` (the triangle inequality over the rest) and
equal to it where one side's sorted rest is nowhere below the other's: where r is 0, say, or K is
the teacher's vocabulary and the student's is no larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..eval.errors import RecipeError
from .alignment import ULD, sorted_l1
from .chunked import chunk_size
from .heads import Head
from .token_targets import Full, Sampled, Targets, TopK


@dataclass(frozen=True)
class UldTerm:
    """The term `uld` of a loss.

    Attributes:
        weight: Its factor, above 0.
        temperature: T > 0; other than 1 for a teacher recorded in full alone.

    Raises:
        RecipeError: For a value out of range.
    """

    weight: float = 1.0
    temperature: float = 1.0
    name: ClassVar[str] = ULD
    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for key in ("weight", "temperature"):
            value = getattr(self, key)
            if not 0 < value < math.inf:
                raise RecipeError(f"distill.losses.{ULD}.{key} must be above 0, not {value}.")


@dataclass(frozen=True)
class TokenSpans:
    """The span that each token of a batch is in.

    Attributes:
        student: (N,) int64, ascending but for −1, which is none.
        teacher: (M,), as ``student``, with the same spans.
        taken: The teacher's tokens, (M,).
    """

    student: Tensor
    teacher: Tensor
    taken: Tensor


def check_recorded(targets: Targets, temperature: float) -> None:
    """Refuses recorded distributions that cannot be compared as sorted lists.

    Raises:
        RecipeError: Saying why, and what to do.
    """
    if isinstance(targets, Sampled):
        raise RecipeError(
            f"The loss '{ULD}' compares probabilities in order of size, and draws have no such "
            "order; set capture.encoding to topk or full."
        )
    if isinstance(targets, TopK) and temperature != 1:
        raise RecipeError(
            f"distill.losses.{ULD}.temperature: what a temperature makes of the rest of a top-k "
            "is not known; leave it at 1, or set capture.encoding to full."
        )


def sorted_topk_l1(student: Tensor, teacher: Tensor, rest: Tensor) -> Tensor:
    """Σ_{i≤K} |q_(i) − p_(i)| + |Σ_{i>K} q_(i) − r|, at most `alignment.sorted_l1`.

    Args:
        student: q, (S, V).
        teacher: The K largest of p, in any order, (S, K).
        rest: r, the sum of p's others, (S,).

    Returns:
        (S,), ≥ 0.
    """
    width = teacher.shape[-1]
    top = student.topk(min(width, student.shape[-1])).values
    tail = student.sum(-1) - top.sum(-1)
    top = functional.pad(top, (0, width - top.shape[-1]))
    largest = teacher.sort(-1, descending=True).values
    return (top - largest).abs().sum(-1) + (tail - rest).abs()


def recorded_uld(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    targets: Targets,
    spans: TokenSpans,
    *,
    temperature: float = 1.0,
    divisor: Tensor | float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The mean over spans of the distance of the merged distributions, some at a time.

    A span in which the teacher's top-k lacks one of its tokens before the last is left out: what
    it gave to them is not known. Logits are made anew in the backward pass.

    Args:
        hidden: The student's last hidden states, (N, H); row i predicts labels[i].
        head: Its output head.
        labels: Its tokens, (N,).
        targets: What the teacher said at its own M tokens.
        spans: Of N and M tokens.
        temperature: T > 0; see `alignment.uld`.
        divisor: What the sum is divided by instead of the number of spans, such as the learned
            tokens of all parts of a batch.
        chunk: Tokens of either side at a time, about.

    Returns:
        A float32 scalar; 0 without spans.

    Raises:
        RecipeError: For targets that have no order, or whose temperature is fixed.
    """
    check_recorded(targets, temperature)
    taken = _taken(targets, spans.taken, temperature)
    total, counted = hidden.float().sum() * 0.0, 0

    def part(rows: Tensor, ids: Tensor, of_s: Tensor, prefix: Tensor, known: Targets) -> Tensor:
        log_q = (head.logits(rows) / temperature).log_softmax(-1)
        last, before = _merged(log_q.gather(-1, ids[:, None])[:, 0], of_s)
        merged = (log_q[last] + before[:, None]).exp()
        if isinstance(known, TopK):
            scaled = (known.log_probs.float() + prefix[:, None]).exp()
            return sorted_topk_l1(merged, scaled, known.rest.float() * prefix.exp()).sum()
        assert isinstance(known, Full)
        log_p = (known.logits.float() / temperature).log_softmax(-1)
        return sorted_l1(merged, (log_p + prefix[:, None]).exp()).sum()

    for at_s, of_s, at_t, of_t in _groups(spans, chunk or chunk_size(len(head.weight))):
        last, prefix = _merged(taken[at_t], of_t)
        sure = prefix.isfinite()
        counted += int(sure.sum())
        if not sure.all():
            # Numbered anew without the spans that are not known.
            number = sure.cumsum(0) - 1
            at_s, of_s = at_s[sure[of_s]], number[of_s[sure[of_s]]]
            last, prefix = last[sure], prefix[sure]
        if len(last):
            known = _at(targets, at_t[last])
            total = total + checkpoint(
                part, hidden[at_s], labels[at_s], of_s, prefix, known, use_reentrant=False
            )
    if not counted:
        # Processes that share a step wait for the head's gradient, here as elsewhere.
        total = total + head.weight.float().sum() * 0.0
    whole = max(counted, 1) if divisor is None else divisor
    return total / whole


def _taken(targets: Targets, ids: Tensor, temperature: float) -> Tensor:
    """The log-probability of each token that the teacher took, (M,); −inf where not recorded."""
    if isinstance(targets, TopK):
        there = targets.ids == ids[:, None]
        found = targets.log_probs.float().masked_fill(~there, 0.0).sum(-1)
        return found.masked_fill(~there.any(-1), -math.inf)
    assert isinstance(targets, Full)
    logits = targets.logits.float() / temperature
    return logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)


def _merged(taken: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """The last token of each span, and the log-probability of those before it, (S,) both.

    Args:
        taken: The log-probability of each token, (N,).
        of: Its span, (N,), ascending from 0.
    """
    counts = torch.bincount(of)
    last = counts.cumsum(0) - 1
    earlier = torch.ones_like(of, dtype=torch.bool)
    earlier[last] = False
    before = taken.new_zeros(len(counts)).index_add(0, of[earlier], taken[earlier])
    return last, before


def _groups(spans: TokenSpans, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Spans in groups: both sides' tokens, each with its span, counted from 0 in the group."""
    sides = []
    for of in (spans.student, spans.teacher):
        at = (of >= 0).nonzero()[:, 0]
        sides.append((at, of[at], torch.bincount(of[at])))
    (at_s, of_s, count_s), (at_t, of_t, count_t) = sides
    if not len(count_s):
        return
    reached = torch.maximum(count_s, count_t).cumsum(0)
    group = (reached - 1) // size  # (S,), ascending
    stops = [*((group.diff() > 0).nonzero()[:, 0] + 1).tolist(), len(group)]
    behind_s, behind_t = count_s.cumsum(0), count_t.cumsum(0)
    first = from_s = from_t = 0
    for stop in stops:
        to_s, to_t = int(behind_s[stop - 1]), int(behind_t[stop - 1])
        yield (
            at_s[from_s:to_s],
            of_s[from_s:to_s] - first,
            at_t[from_t:to_t],
            of_t[from_t:to_t] - first,
        )
        first, from_s, from_t = stop, to_s, to_t


def _at(targets: Targets, positions: Tensor) -> Targets:
    """The targets of some positions."""
    if isinstance(targets, TopK):
        ids, log_probs = targets.ids[positions], targets.log_probs[positions]
        return TopK(ids, log_probs, targets.rest[positions])
    assert isinstance(targets, Full)
    return Full(targets.logits[positions])
