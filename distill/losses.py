"""Losses: pure functions of tensors, one name, one formula.

Each compares a student with a teacher over a batch and is the mean over its rows. Each divergence
is 0 where student and teacher are equal. Logits and embeddings are taken to float32 first, so the
value does not depend on the precision of the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..eval.errors import RecipeError, nearest
from .alignment import ULD, sorted_l1
from .divergences import DIVERGENCES


def cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(s)[y], the mean over rows that have a label.

    Args:
        student: Logits, (B, C).
        labels: Class numbers, (B,); −1 where there is none.

    Returns:
        A scalar; 0 where no row has a label.
    """
    kept = labels >= 0
    total = functional.cross_entropy(student.float(), labels, ignore_index=-1, reduction="sum")
    return total / kept.sum().clamp(min=1)


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(softmax(t/T) ‖ softmax(s/T)), Hinton et al. (arXiv 1503.02531).

    Args:
        student: Logits, (B, C).
        teacher: Logits, (B, C).
        temperature: T > 0; T² keeps the size of the gradient.

    Returns:
        A scalar ≥ 0, in nats times T².
    """
    log_student = functional.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher.float() / temperature, dim=-1)
    each = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)  # (B,)
    return each.mean() * temperature**2


def embedding_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cos(s, t).

    Args:
        student: Embeddings, (B, D).
        teacher: Embeddings, (B, D).

    Returns:
        A scalar in [0, 2].
    """
    return (1 - functional.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


def embedding_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """‖s − t‖² summed over the width (sentence-transformers averages it: D times less).

    Args:
        student: Embeddings, (B, D).
        teacher: Embeddings, (B, D).

    Returns:
        A scalar ≥ 0.
    """
    return (student.float() - teacher.float()).square().sum(-1).mean()


def similarity_kl(
    student: Tensor, teacher: Tensor, anchors: Tensor | None = None, temperature: float = 0.05
) -> Tensor:
    """KL between the teacher's and the student's distribution over the texts of the batch.

    Each row is compared with the anchors (the batch itself, or texts to be found), and the
    similarities become a distribution: KL(softmax(t·a/T) ‖ softmax(s·a/T)). This is the ranking
    the index gives, learned in batch; after Fang et al. (SEED, arXiv 2101.04731).

    Args:
        student: Embeddings, (B, D).
        teacher: Embeddings, (B, D).
        anchors: The teacher's embeddings of the texts compared with, (A, D); None for the
            teacher's own embeddings of the batch, each row left out of its own distribution.
        temperature: T > 0.

    Returns:
        A scalar ≥ 0, in nats; 0 for a batch with nothing to compare with.
    """
    s = functional.normalize(student.float(), dim=-1)
    t = functional.normalize(teacher.float(), dim=-1)
    others = t if anchors is None else functional.normalize(anchors.float(), dim=-1)
    if anchors is None and len(t) < 3:
        return s.sum() * 0.0
    logits_s, logits_t = s @ others.T / temperature, t @ others.T / temperature  # (B, A)
    if anchors is None:
        own = torch.eye(len(t), dtype=torch.bool, device=t.device)
        logits_s = logits_s[~own].view(len(t), -1)
        logits_t = logits_t[~own].view(len(t), -1)
    log_s, log_t = logits_s.log_softmax(-1), logits_t.log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1).mean()


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The mean of (s − t)² over the tokens and the width, TinyBERT (arXiv 1909.10351).

    Args:
        student: Token vectors after one layer, projected to the teacher's width, (B, T, H).
        teacher: Token vectors of the layer it is mapped to, (B, T, H).
        mask: 1 at tokens, 0 at padding, (B, T).

    Returns:
        A scalar ≥ 0; 0 where every token is masked.
    """
    each = (student.float() - teacher.float()).square().mean(-1)  # (B, T)
    return (each * mask).sum() / mask.sum().clamp(min=1)


def contrastive(queries: Tensor, documents: Tensor, temperature: float = 0.05) -> Tensor:
    """−log of the softmax share of each query's own text among the batch's texts (InfoNCE).

    van den Oord et al. (arXiv 1807.03748); as a loss on pairs it needs no teacher.

    Args:
        queries: Embeddings, (B, D).
        documents: Embeddings of the text that answers each query, (B, D).
        temperature: T > 0.

    Returns:
        A scalar ≥ 0, in nats.
    """
    q = functional.normalize(queries.float(), dim=-1)
    d = functional.normalize(documents.float(), dim=-1)
    return functional.cross_entropy(q @ d.T / temperature, torch.arange(len(q), device=q.device))


@dataclass(frozen=True)
class Loss:
    """A loss in the table.

    Attributes:
        name: The word used in ``distill.losses``.
        function: The formula.
        signals: The signals it is defined for.
        uses: What it compares the student's values with: ``values`` (the teacher's), ``labels``,
            ``hidden`` (the teacher's token vectors), ``documents`` (the text of each pair) or
            ``tokens`` (what the teacher says of each token: see `divergences`).
        options: Its options and their defaults.
        choices: What an option that is a word may say.
    """

    name: str
    function: Callable[..., Tensor]
    signals: tuple[str, ...]
    uses: str
    options: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def needs_labels(self) -> bool:
        """Whether rows without a label, or a query without its text, are of no use to it."""
        return self.uses in ("labels", "documents")


LOSSES: dict[str, Loss] = {}


def register_loss(loss: Loss) -> Loss:
    """Adds a loss to the table; a name that is taken is refused.

    Raises:
        RecipeError: If another loss has the name.
    """
    if LOSSES.get(loss.name, loss) != loss:
        raise RecipeError(f"A loss named '{loss.name}' exists already; choose another name.")
    LOSSES[loss.name] = loss
    return loss


def get_loss(name: str, signal: str) -> Loss:
    """Looks a loss up by name for a signal.

    Raises:
        RecipeError: If there is none, or it is not defined for the signal.
    """
    fitting = sorted(n for n, loss in LOSSES.items() if signal in loss.signals)
    if name not in LOSSES:
        raise RecipeError(
            f"Unknown loss '{name}'.{nearest(name, LOSSES)} For {signal}: {', '.join(fitting)}."
        )
    if signal not in LOSSES[name].signals:
        raise RecipeError(
            f"The loss '{name}' is not defined for {signal}; choose from {', '.join(fitting)}."
        )
    return LOSSES[name]


_BOTH = ("class_logits", "embedding")
_LAYERS = {"layers": "uniform"}
for _loss in (
    # Of tokens it is `divergences.cross_entropy`, which is computed in chunks.
    Loss("cross_entropy", cross_entropy, ("class_logits", "token_distribution"), "labels"),
    Loss("kl", kl, ("class_logits",), "values", {"temperature": 1.0}),
    Loss("embedding_cosine", embedding_cosine, ("embedding",), "values"),
    Loss("embedding_mse", embedding_mse, ("embedding",), "values"),
    Loss(
        "similarity_kl",
        similarity_kl,
        ("embedding",),
        "values",
        {"temperature": 0.05, "anchors": "batch"},
        {"anchors": ("batch", "collection")},
    ),
    Loss("hidden_mse", hidden_mse, (*_BOTH, "token_distribution"), "hidden", _LAYERS),
    Loss(ULD, sorted_l1, ("token_distribution",), "tokens", {"temperature": 1.0}),
    Loss("contrastive", contrastive, ("embedding",), "documents", {"temperature": 0.05}),
    *(
        Loss(name, entry.function, ("token_distribution",), "tokens", dict(entry.options))
        for name, entry in DIVERGENCES.items()
        if not entry.needs_labels
    ),
):
    register_loss(_loss)
