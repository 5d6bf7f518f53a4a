"""Rows to train a language model on, joined batch by batch with what the teacher said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..eval.errors import RunError
from .divergences import IGNORED
from .examples import Examples
from .token_targets import Full, Sampled, Targets, TopK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .token_outputs import TokenOutputs

BLANK = -1
"""A row of nothing to learn, where processes share a batch that has too few."""
_FIELDS = {
    "full": (Full, ("logits",)),
    "topk": (TopK, ("ids", "log_probs", "rest")),
    "sampled": (Sampled, ("ids", "weights")),
}


def padded(rows: Sequence[NDArray[np.int64]], value: int) -> Tensor:
    """Pads rows of ids on the right, (B, T) int64."""
    out = np.full((len(rows), max(map(len, rows), default=0)), value, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def batch_of(
    ids: Sequence[NDArray[np.int64]], learned: Sequence[NDArray[np.bool_]], pad: int
) -> dict[str, Tensor]:
    """Padded ids, mask and labels, each (B, T); a label is the token itself, or −100."""
    ones = [np.ones(len(row), dtype=np.int64) for row in ids]
    labels = [np.where(marks, row, IGNORED) for row, marks in zip(ids, learned, strict=True)]
    return {
        "input_ids": padded(ids, pad),
        "attention_mask": padded(ones, 0),
        "labels": padded(labels, IGNORED),
    }


def split_targets(targets: Targets) -> dict[str, Tensor]:
    """Targets as entries of a batch, so that a trainer can move them to its device."""
    for kind, (made, fields) in _FIELDS.items():
        if isinstance(targets, made):
            return {f"teacher_{kind}_{name}": getattr(targets, name) for name in fields}
    raise TypeError(f"Expected targets, got {type(targets).__name__}.")


def join_targets(batch: dict[str, Any]) -> Targets | None:
    """What `split_targets` made, taken out of a batch; None where there is none."""
    for kind, (made, fields) in _FIELDS.items():
        names = [f"teacher_{kind}_{name}" for name in fields]
        if names[0] in batch:
            found: Targets = made(*(batch.pop(name) for name in names))
            return found
    return None


@dataclass
class LanguageRows(Dataset[int]):
    """Rows to train a language model on; a row is its number.

    Attributes:
        examples: The student's tokens of each row.
        pad: The id that rows are padded with.
        items: The recorded item of each row, (n,), where recorded outputs are used.
        outputs: The recorded token distributions.
        renumbered: Where the student's vocabulary is cut: the student's id of each of the
            teacher's, −1 where it is gone, (V,).
    """

    examples: Examples
    pad: int
    items: NDArray[np.int64] | None = None
    outputs: TokenOutputs | None = None
    renumbered: NDArray[np.int64] | None = None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return self.examples.lengths

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> int:
        return row

    def collate(self, rows: Sequence[int]) -> dict[str, Any]:
        """A batch: padded tokens, labels, and the teacher's targets of the labels, in their order.

        `BLANK` among the rows is one token that is not learned.

        Raises:
            RunError: If the recorded outputs are of other tokens than the student's.
        """
        found = [self.examples[row] if row != BLANK else self._blank for row in rows]
        ids, learned = [f[0] for f in found], [f[1] for f in found]
        batch: dict[str, Any] = batch_of(ids, learned, self.pad)
        batch["rows"] = torch.as_tensor(list(rows))
        if self.outputs is None or self.items is None:
            return batch
        real = [row for row in rows if row != BLANK]
        records = self.outputs.get(self.items[np.asarray(real, dtype=int)].tolist())
        for row, record in zip(real, records, strict=True):
            tokens, marks = self.examples[row]
            self._check(row, np.asarray(record.ids)[record.positions], tokens[marks])
        # Of no row at all there are no targets, but of the kind that the others have.
        targets = self.outputs.targets(records or self.outputs.get([0]))
        targets = targets if records else targets[:0]
        batch |= split_targets(targets if self.renumbered is None else self._renumber(targets))
        return batch

    @property
    def _blank(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        return np.array([self.pad]), np.array([False])

    def _check(self, row: int, recorded: NDArray[np.int64], own: NDArray[np.int64]) -> None:
        if self.renumbered is not None:
            recorded = self.renumbered[recorded]
        if not np.array_equal(recorded, own):
            raise RunError(
                f"Training row {row}: the recorded outputs are of other tokens than the student's "
                "(another tokenizer, template or maximum length). Record them again, or compare "
                "across tokenizers with the loss uld."
            )

    def _renumber(self, targets: Targets) -> Targets:
        """Targets in the student's numbering; what it has no token for joins the rest."""
        assert self.renumbered is not None
        table = torch.from_numpy(self.renumbered)
        if isinstance(targets, Full):
            kept = (table >= 0).nonzero()[:, 0]
            return Full(targets.logits[:, kept[table[kept].argsort()]])
        ids = table[targets.ids]
        gone = ids < 0
        if isinstance(targets, Sampled):
            return Sampled(ids.clamp(min=0), targets.weights.masked_fill(gone, 0.0))
        lost = targets.log_probs.exp().masked_fill(~gone, 0.0).sum(-1)
        log_probs = targets.log_probs.masked_fill(gone, -torch.inf)
        return TopK(ids.clamp(min=0), log_probs, targets.rest + lost)
