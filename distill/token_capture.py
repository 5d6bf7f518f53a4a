"""Recording a language model: what it says of each token of each row, shard by shard.

The completions are those of the rows, or what the teacher writes itself. Rows of the same prompt
and completion are one item. Shards are dealt out over the processes of a launch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..eval.batching import length_order, token_batches
from ..eval.errors import RunError
from ..eval.generating import generate
from ..eval.models import TextModel, autocast
from .divergences import IGNORED
from .language import head_of
from .language_rows import batch_of
from .token_divergence import Divergence
from .token_encoding import get_encoding
from .token_outputs import Record, TokenOutputs
from .token_recording import TokenOutputsWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .examples import Examples

MEASURED_TOKENS = 2048
"""Tokens, from rows spread over all, on which the encoding's divergence is measured."""
LOGITS = 1 << 25
"""Logits of one row that exist at a time."""


@dataclass(frozen=True)
class Writing:
    """How a teacher completes prompts itself.

    Attributes:
        max_new_tokens: Longest completion.
        settings: Fields of transformers' GenerationConfig; greedy if empty.
        seed: Of its draws.
    """

    max_new_tokens: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


def spans_of(learned: Sequence[bool] | NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The runs of learned tokens as (start, end).

    Examples:
        >>> spans_of([False, True, True, False, True])
        [(1, 3), (4, 5)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(learned, np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def distinct(examples: Examples) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A row for each distinct example, longest first, and the item of each row."""
    keys = bytearray()
    for row in range(len(examples)):
        ids, marks = examples[row]
        keys += hashlib.blake2b(ids.tobytes() + marks.tobytes(), digest_size=16).digest()
    found = np.unique(
        np.frombuffer(bytes(keys), dtype="V16"), return_index=True, return_inverse=True
    )
    first: NDArray[np.int64] = found[1]
    order = length_order(examples.lengths[first])
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[found[2]]


def capture_tokens(
    model: TextModel,
    examples: Examples,
    streams: Mapping[str, range],
    out: Path,
    *,
    identity: Mapping[str, Any],
    encoding: Mapping[str, Any] | None,
    writing: Writing | None = None,
    precision: str = "fp32",
    batch_tokens: int = 8192,
    shard_rows: int = 4096,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenOutputs | None:
    """Records a teacher's token distributions, texts or both.

    Args:
        model: The teacher.
        examples: The rows of all streams; of prompts alone where the teacher writes.
        streams: Which rows are whose.
        out: The folder; shards that are whole in it are kept.
        identity: What the outputs belong to (teacher, tokenizer, data …).
        encoding: Of the distributions, for `get_encoding`; None for texts alone.
        writing: How the teacher completes the prompts; None for the rows' own completions.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_tokens: Rows × longest row of a batch, at most.
        shard_rows: Items in a shard.
        rank: This process.
        world_size: Processes that share the work.
        barrier: Waits for all of them.
        progress: Called with items done and items in all, of this process.

    Returns:
        The outputs, on rank 0; None on the others.

    Raises:
        RunError: If a distribution is not of finite numbers, or a shard cannot be written.
    """
    chosen, items = distinct(examples)
    made = None if encoding is None else get_encoding(encoding, model.width)
    writer = TokenOutputsWriter(
        out,
        identity={**identity, "precision": precision, "world_size": world_size},
        encoding=made,
        shard_items=shard_rows,
        rank=rank,
        world_size=world_size,
    )
    recorder = _Recorder(model.eval(), writer, made is not None, precision, batch_tokens)
    pending, done = list(writer.pending(len(chosen))), 0
    total = sum(len(part) for _, part in pending)
    for number, part in pending:
        rows = [_Row.of(examples, int(chosen[item]), int(item)) for item in part]
        if writing is not None:
            rows = recorder.write(rows, writing)
        records: dict[int, Record] = {}
        for row, record in recorder.records(rows):
            records[row.item] = record
            done += 1
            if progress is not None:
                progress(done, total)
        writer.write(number, [records[item] for item in part])
    barrier()
    if rank != 0:
        return None
    facts: dict[str, Any] = {"items": len(chosen), "truncated": examples.truncated}
    if made is not None:
        # The rows are sorted by length: equal steps take short and long ones.
        measured = Divergence(made)
        average = max(1, int(examples.learned[chosen].mean())) if writing is None else 64
        step = max(1, len(chosen) * average // MEASURED_TOKENS)
        rows = [_Row.of(examples, int(chosen[i]), i) for i in range(0, len(chosen), step)]
        if writing is not None:
            rows = recorder.write(rows, writing)
        for row, logits in recorder.logits(rows):
            measured.add(logits, str(row.item))
        facts["divergence"] = measured.summary()
    of = {name: items[rows.start : rows.stop] for name, rows in streams.items()}
    return writer.finish(of, **facts)


@dataclass(frozen=True)
class _Row:
    """A row to record: its tokens, which are learned, and what the teacher wrote."""

    item: int
    ids: NDArray[np.int64]
    learned: NDArray[np.bool_]
    text: str | None = None

    @classmethod
    def of(cls, examples: Examples, row: int, item: int) -> _Row:
        ids, learned = examples[row]
        return cls(item, ids, learned)


class _Recorder:
    """A teacher that is asked about rows batch by batch."""

    def __init__(
        self,
        model: TextModel,
        writer: TokenOutputsWriter,
        distributions: bool,
        precision: str,
        batch_tokens: int,
    ) -> None:
        self.model, self.writer, self.distributions = model, writer, distributions
        self.precision, self.batch_tokens = precision, batch_tokens

    def write(self, rows: list[_Row], writing: Writing) -> list[_Row]:
        """The rows with what the teacher writes behind their prompts."""
        end = self.model.tokenizer.eos_token_id
        answers = generate(
            self.model,
            [row.ids.tolist() for row in rows],
            max_new_tokens=writing.max_new_tokens,
            precision=self.precision,
            batch_tokens=self.batch_tokens,
            settings=writing.settings,
            # Of the shard, so that one that is made again is the same.
            seed=writing.seed + (rows[0].item if rows else 0),
        )
        found = []
        for row, answer in zip(rows, answers, strict=True):
            new = [*answer.ids, end] if answer.finished else list(answer.ids)
            ids = np.concatenate([row.ids, np.asarray(new, dtype=np.int64)])
            learned = np.arange(len(ids)) >= len(row.ids)
            found.append(dataclasses.replace(row, ids=ids, learned=learned, text=answer.text))
        return found

    def records(self, rows: list[_Row]) -> Iterator[tuple[_Row, Record]]:
        """Each row with its record, in any order."""
        if not self.distributions:
            for row in rows:
                yield row, self._record(row, None)
            return
        for row, logits in self.logits(rows):
            yield row, self._record(row, logits)

    def _record(self, row: _Row, logits: torch.Tensor | None) -> Record:
        return self.writer.record(
            row.ids.tolist(), spans_of(row.learned), key=str(row.item), logits=logits, text=row.text
        )

    @torch.inference_mode()
    def logits(self, rows: list[_Row]) -> Iterator[tuple[_Row, torch.Tensor]]:
        """Each row with the logits of its learned tokens, (T, V) float32, in any order."""
        device, pad = self.model.backbone.device, int(self.model.tokenizer.pad_token_id or 0)
        head = head_of(self.model)
        for index in token_batches([len(row.ids) for row in rows], self.batch_tokens):
            some = [rows[i] for i in index]
            batch = batch_of([r.ids for r in some], [r.learned for r in some], pad)
            counts = (batch["labels"][:, 1:] != IGNORED).to(device)
            with autocast(device, self.precision):
                states = self.model.states(
                    batch["input_ids"].to(device), batch["attention_mask"].to(device)
                )
                for i, row in enumerate(some):
                    hidden = states[i, :-1][counts[i]]  # (T, H)
                    step = max(1, LOGITS // self.model.width)
                    parts = [
                        head.logits(hidden[at : at + step]) for at in range(0, len(hidden), step)
                    ]
                    logits = torch.cat(parts) if parts else hidden.new_zeros(0, self.model.width)
                    if not torch.isfinite(logits).all():
                        raise RunError(
                            f"The teacher gave outputs that are not finite numbers in "
                            f"{self.precision}; set capture.precision to fp32 or bf16."
                        )
                    yield row, logits
