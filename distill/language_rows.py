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
from .cross_tokenizer import TokenSpans
from .divergences import IGNORED
from .examples import Examples
from .token_targets import Full, Sampled, Targets, TopK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .byte_spans import ByteSpans
    from .token_outputs import Record, TokenOutputs

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


def join_spans(batch: dict[str, Any]) -> TokenSpans | None:
    """The spans of student and teacher, taken out of a batch; None where there are none."""
    if "teacher_spans" not in batch:
        return None
    of_student, taken = batch.pop("student_spans"), batch.pop("teacher_ids")
    return TokenSpans(of_student, batch.pop("teacher_spans"), taken)


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
        spans: Where the teacher has another tokenizer: what aligns its tokens with the student's.
        distributions: Whether the recorded distributions are read.
        hidden_layers: The teacher's layers whose recorded states are read.
    """

    examples: Examples
    pad: int
    items: NDArray[np.int64] | None = None
    outputs: TokenOutputs | None = None
    renumbered: NDArray[np.int64] | None = None
    spans: ByteSpans | None = None
    distributions: bool = True
    hidden_layers: Sequence[int] = ()

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
        said = [np.asarray(record.ids, dtype=np.int64)[record.positions] for record in records]
        own = [ids[marks] for ids, marks in (self.examples[row] for row in real)]
        if self.spans is not None:
            batch |= self._align(own, said)
        else:
            for row, theirs, ours in zip(real, said, own, strict=True):
                self._check(row, theirs, ours)
        # Of no row at all there is nothing, but of the kind that the others have.
        some = records or self.outputs.get([0])
        count = sum(map(len, said))
        if self.distributions:
            targets = self.outputs.targets(some)[:count]
            batch |= split_targets(targets if self.renumbered is None else self._renumber(targets))
        for layer in self.hidden_layers:
            states = self.outputs.states(layer, some)
            batch[f"teacher_hidden_{layer}"] = torch.cat(states)[:count]
        return batch

    @property
    def _blank(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        return np.array([self.pad]), np.array([False])

    def aligned(self, rows: Sequence[int]) -> float:
        """The share of the student's learned tokens of some rows that are in a span.

        Raises:
            RunError: If none is: the texts are not the same.
        """
        assert self.outputs is not None and self.items is not None and self.spans is not None
        records = self.outputs.get(self.items[np.asarray(rows)].tolist())
        found = np.concatenate(
            [self._spans_of(row, record)[0] for row, record in zip(rows, records, strict=True)]
        )
        if not (found >= 0).any():
            raise RunError(
                f"The first {len(rows)} training rows have no span of the same bytes in the "
                "student's and the teacher's tokens: their texts differ (templates, or tokenizers "
                "that rewrite the text). Use cross_entropy instead of uld."
            )
        return float((found >= 0).mean())

    def _spans_of(self, row: int, record: Record) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self.spans is not None
        ids, marks = self.examples[row]
        return self.spans.of(ids[marks], np.asarray(record.ids, dtype=np.int64)[record.positions])

    def _align(
        self, own: Sequence[NDArray[np.int64]], said: Sequence[NDArray[np.int64]]
    ) -> dict[str, Tensor]:
        """The spans of a batch, counted through its rows."""
        assert self.spans is not None
        none = np.empty(0, dtype=np.int64)  # of a batch without rows
        sides = ([none], [none])
        count = 0
        for ours, theirs in zip(own, said, strict=True):
            found = self.spans.of(ours, theirs)
            for side, of in zip(sides, found, strict=True):
                side.append(np.where(of < 0, of, of + count))
            count += int(found[0].max(initial=-1)) + 1
        return {
            "student_spans": torch.from_numpy(np.concatenate(sides[0])),
            "teacher_spans": torch.from_numpy(np.concatenate(sides[1])),
            "teacher_ids": torch.from_numpy(np.concatenate([none, *said])),
        }

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
