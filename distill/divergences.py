"""Divergences of a student's next-token distribution from a teacher's, a value for each position.

Each is a formula over two lists of log-probabilities, log p (the teacher's) and log q (the
student's), and is 0 where they are equal. What the lists are depends on the targets:

- `Full`: all ids that both have, renormalised there.
- `TopK`: the K ids, and one bucket for all others together. A tail with the student's shape and the
  recorded mass r, p_j = r · q_j / Q for j outside the K (Q is the student's mass there), has the
  same ratio p_j / q_j = r / Q everywhere. A divergence of the form Σ q f(p / q), and all of these
  are, therefore takes the value Q f(r / Q) over that tail: that of the bucket. Its gradient is the
  bucket's too, whether or not it flows through the tail's shape. So what is computed is exactly the
  divergence from that teacher, and never more than the divergence from the true one.
- `Sampled`: the ids drawn. Only forward KL is linear in p but for a constant, so only there the
  draws' mean gradient is the full one; the others are refused.

With a temperature T both are softmax(·/T) and the value is multiplied by T², as in `losses.kl`. A
top-k's tail is then sharpened like the student's; draws were made at T = 1 and cannot be changed.
Values are computed in float32. `slopes` has the gradients of the same formulas in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ..eval.errors import RecipeError, nearest
from .outcomes import FLOOR, bucketed, common_width, usable_draws
from .token_targets import Full, Sampled, Targets, TopK

IGNORED = -100
"""A label that is none."""


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p − log q), Hinton et al. (arXiv 1503.02531).

    Args:
        log_p: The teacher's log-probabilities, (N, C).
        log_q: The student's, (N, C).

    Returns:
        (N,), ≥ 0, in nats.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ q (log q − log p), as in MiniLLM (Gu et al., arXiv 2306.08543).

    Args:
        log_p: The teacher's log-probabilities, (N, C).
        log_q: The student's, (N, C).

    Returns:
        (N,), ≥ 0, in nats.
    """
    return forward_kl(log_q, log_p)


def jsd(log_p: Tensor, log_q: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q, of GKD (arXiv 2306.13649).

    β is the teacher's share of the mixture. The formula is 0 at both ends, but JSD(β) / β tends to
    KL(p ‖ q) for β → 0 and JSD(β) / (1 − β) to KL(q ‖ p) for β → 1. These limits are what β = 0
    (forward KL) and β = 1 (reverse KL) mean here, as they do in GKD's trainers: the direction of
    the gradient is continuous at the ends, its size is not.

    Args:
        log_p: The teacher's log-probabilities, (N, C).
        log_q: The student's, (N, C).
        beta: From 0 to 1.

    Returns:
        (N,), ≥ 0, in nats.
    """
    if beta == 0:
        return forward_kl(log_p, log_q)
    if beta == 1:
        return reverse_kl(log_p, log_q)
    log_m = mixture(log_p, log_q, beta)
    return beta * forward_kl(log_p, log_m) + (1 - beta) * forward_kl(log_q, log_m)


def skewed_kl(log_p: Tensor, log_q: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(p ‖ α p + (1 − α) q), DistiLLM (Ko et al., arXiv 2402.03898).

    Args:
        log_p: The teacher's log-probabilities, (N, C).
        log_q: The student's, (N, C).
        alpha: From 0 (forward KL) to below 1.

    Returns:
        (N,), ≥ 0, in nats.
    """
    return forward_kl(log_p, mixture(log_p, log_q, alpha))


def skewed_reverse_kl(log_p: Tensor, log_q: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(q ‖ (1 − α) p + α q), DistiLLM (Ko et al., arXiv 2402.03898).

    Args:
        log_p: The teacher's log-probabilities, (N, C).
        log_q: The student's, (N, C).
        alpha: From 0 (reverse KL) to below 1.

    Returns:
        (N,), ≥ 0, in nats.
    """
    return forward_kl(log_q, mixture(log_p, log_q, 1 - alpha))


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """½ Σ |p − q|, as in Wen et al. (arXiv 2307.15190).

    Args:
        log_p: The teacher's log-probabilities, (N, C).
        log_q: The student's, (N, C).

    Returns:
        (N,), in [0, 1].
    """
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(s)[y].

    Args:
        student: Logits, (N, V).
        labels: Token ids, (N,) int64; −100 where there is none.

    Returns:
        (N,), in nats; 0 where there is no label.

    Raises:
        RecipeError: For a label that the student has no logit for.
    """
    check_labels(labels, student.shape[-1])
    return functional.cross_entropy(student.float(), labels, ignore_index=IGNORED, reduction="none")


def draws_kl(log_q: Tensor, weights: Tensor) -> Tensor:
    """KL(w ‖ q) = Σ w (log w − log q), w the shares of the draws (arXiv 2503.16870).

    Its gradient's mean over draws is that of KL(p ‖ q). Its value is 0 where q equals the draws'
    shares, and above KL(p ‖ q) by KL(w ‖ p) in the mean, which the student cannot change.

    Args:
        log_q: The student's log-probabilities of the ids drawn, (N, K).
        weights: The shares, (N, K); 0 is padding.

    Returns:
        (N,), ≥ 0, in nats.
    """
    return (torch.xlogy(weights, weights) - weights * log_q).sum(-1)


def mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share · p + (1 − share) · q), (N, C)."""
    return torch.logaddexp(log_p + log(share), log_q + log(1 - share))


def log(share: float) -> float:
    """The logarithm of a share; −∞ of 0."""
    return math.log(share) if share > 0 else -math.inf


@dataclass(frozen=True)
class Divergence:
    """A divergence in the table.

    Attributes:
        name: The word used in ``distill.losses``.
        function: Its formula over (log p, log q); over (logits, labels) where ``reads`` is labels.
        reads: What it compares the student with: the kinds of targets, or ``labels``.
        options: Its options and their defaults.
    """

    name: str
    function: Callable[..., Tensor]
    reads: tuple[str, ...] = ("full", "topk")
    options: dict[str, float] = field(default_factory=dict)

    @property
    def needs_labels(self) -> bool:
        """Whether it reads labels instead of a teacher."""
        return self.reads == ("labels",)


_ENTRIES = (
    Divergence("forward_kl", forward_kl, ("full", "topk", "sampled"), {"temperature": 1.0}),
    Divergence("reverse_kl", reverse_kl, options={"temperature": 1.0}),
    Divergence("jsd", jsd, options={"beta": 0.5, "temperature": 1.0}),
    Divergence("skewed_kl", skewed_kl, options={"alpha": 0.1, "temperature": 1.0}),
    Divergence("skewed_reverse_kl", skewed_reverse_kl, options={"alpha": 0.1, "temperature": 1.0}),
    Divergence("total_variation", total_variation, options={"temperature": 1.0}),
    Divergence("cross_entropy", cross_entropy, ("labels",)),
)
DIVERGENCES: dict[str, Divergence] = {entry.name: entry for entry in _ENTRIES}
_KINDS = {Full: "full", TopK: "topk", Sampled: "sampled"}


def get_divergence(name: str) -> Divergence:
    """Looks a divergence up by name.

    Raises:
        RecipeError: If there is none of that name.
    """
    if name not in DIVERGENCES:
        raise RecipeError(
            f"Unknown loss '{name}'.{nearest(name, DIVERGENCES)} "
            f"For token distributions: {', '.join(DIVERGENCES)}."
        )
    return DIVERGENCES[name]


def resolve_options(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """A divergence's options with the defaults filled in.

    Raises:
        RecipeError: For an unknown name or option, or a value out of range.
    """
    entry = get_divergence(name)
    for option in given:
        if option not in entry.options:
            raise RecipeError(
                f"The loss '{name}' has no option '{option}'.{nearest(option, entry.options)} "
                f"It has: {', '.join(entry.options) or 'none'}."
            )
    options = {**entry.options, **given}
    key = f"distill.losses.{name}"
    if not 0 < options.get("temperature", 1.0) < math.inf:
        raise RecipeError(f"{key}.temperature must be above 0, not {options['temperature']}.")
    if not 0 <= options.get("beta", 0.5) <= 1:
        raise RecipeError(f"{key}.beta is the teacher's share, 0 to 1, not {options['beta']}.")
    if not 0 <= options.get("alpha", 0.1) < 1:
        raise RecipeError(
            f"{key}.alpha must be from 0 to below 1, not {options['alpha']}: at 1 the student is "
            f"compared with itself."
        )
    return options


def check_targets(name: str, kind: str, temperature: float = 1.0) -> None:
    """Refuses a divergence that is not defined on a kind of targets.

    Args:
        name: The divergence.
        kind: ``full``, ``topk`` or ``sampled``.
        temperature: T.

    Raises:
        RecipeError: Saying why, and what to take instead.
    """
    entry = get_divergence(name)
    if not entry.needs_labels and kind not in entry.reads:
        raise RecipeError(
            f"The loss '{name}' is not defined on {kind} targets: it is not linear in the "
            f"teacher's probabilities, so the mean over draws is not its value and ids that were "
            f"not drawn would count as impossible. Use forward_kl, or record the encoding full "
            f"or topk."
        )
    if kind == "sampled" and temperature != 1:
        raise RecipeError(
            f"distill.losses.{name}.temperature is {temperature}, but sampled targets are draws at "
            f"temperature 1. Leave it at 1, or record the encoding full or topk."
        )


def check_labels(labels: Tensor, width: int) -> None:
    """Refuses labels that the student has no logit for.

    Raises:
        RecipeError: If there are any.
    """
    wrong = labels[((labels < 0) & (labels != IGNORED)) | (labels >= width)]
    if len(wrong):
        raise RecipeError(
            f"The label {int(wrong[0])} is no token of the student: it has {width} logits "
            f"(and −100 is no label). Tokenize the rows with the student's tokenizer."
        )


def divergence(
    name: str,
    student: Tensor,
    targets: Targets | None = None,
    labels: Tensor | None = None,
    shared: int | None = None,
    **options: float,
) -> Tensor:
    """A divergence by name, plainly, from whole logits.

    Args:
        name: From `DIVERGENCES`.
        student: The student's logits, (N, V).
        targets: What the teacher says, of N positions.
        labels: Token ids for `cross_entropy`, (N,); −100 where there is none.
        shared: How many ids, counted from 0, student and teacher share (see `alignment`);
            all that both have a logit for where None. What either says of other ids
            is left out and the rest renormalised.
        **options: ``temperature``, ``beta``, ``alpha``.

    Returns:
        (N,), times T² where there is a temperature.

    Raises:
        RecipeError: For an unknown name or option, or targets on which it is not defined.
    """
    entry, options = get_divergence(name), resolve_options(name, options)
    if entry.needs_labels:
        if labels is None:
            raise missing(name, "labels")
        return cross_entropy(student, labels)
    if targets is None:
        raise missing(name, "a teacher's targets")
    temperature = options.pop("temperature")
    check_targets(name, _KINDS[type(targets)], temperature)
    width = common_width(student.shape[-1], targets, shared)
    logits = student[:, :width].float() / temperature
    if isinstance(targets, Sampled):
        ids, weights = usable_draws(targets, width)
        return draws_kl(logits.log_softmax(-1).gather(-1, ids), weights)
    if isinstance(targets, TopK):
        log_p, log_q = bucketed(logits, targets, temperature)
    else:
        teacher = targets.logits[:, :width].float() / temperature
        log_p, log_q = teacher.log_softmax(-1).clamp(min=FLOOR), logits.log_softmax(-1)
    return entry.function(log_p, log_q, **options) * temperature**2


def missing(name: str, what: str) -> RecipeError:
    """The error for something that a loss cannot do without."""
    return RecipeError(f"The loss '{name}' needs {what}, and none were given.")
