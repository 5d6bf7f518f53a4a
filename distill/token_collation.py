"""Joining what a teacher says at the positions of several rows into one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn.functional import pad

from ..eval.errors import RunError
from .token_targets import Full, Sampled, Targets, TopK


def collate(targets: Sequence[Targets]) -> Targets:
    """Joins the positions of several rows, in their order.

    Args:
        targets: At least one, all of one kind and, for `TopK`, of one k.

    Returns:
        All positions; draws are padded to the longest with id 0 and weight 0.

    Raises:
        RunError: If they are of different kinds or widths.
    """
    first = targets[0] if targets else None
    if isinstance(first, Full) and all(isinstance(t, Full) for t in targets):
        _same(t.logits.shape[1] for t in targets if isinstance(t, Full))
        return Full(torch.cat([t.logits for t in targets if isinstance(t, Full)]))
    if isinstance(first, TopK) and all(isinstance(t, TopK) for t in targets):
        every = [t for t in targets if isinstance(t, TopK)]
        _same(t.ids.shape[1] for t in every)
        parts = zip(*((t.ids, t.log_probs, t.rest) for t in every), strict=True)
        return TopK(*(torch.cat(part) for part in parts))
    if isinstance(first, Sampled) and all(isinstance(t, Sampled) for t in targets):
        draws = [t for t in targets if isinstance(t, Sampled)]
        width = max(t.ids.shape[1] for t in draws)
        ids = [pad(t.ids, (0, width - t.ids.shape[1])) for t in draws]
        weights = [pad(t.weights, (0, width - t.ids.shape[1])) for t in draws]
        return Sampled(torch.cat(ids), torch.cat(weights))
    kinds = sorted({type(t).__name__ for t in targets})
    raise RunError(
        f"Expected recorded token distributions of one kind, found {', '.join(kinds) or 'none'}; "
        "record all rows with one encoding."
    )


def _same(widths: Iterable[int]) -> None:
    found = sorted(set(widths))
    if len(found) > 1:
        raise RunError(
            f"Recorded token distributions of different widths: {found}; record all rows with one "
            "encoding."
        )
