"""Recording a language model: what it says of each token of each row, shard by shard.

The completions are those of the rows, or what the teacher writes itself. Rows of the same prompt
and completion are one item. Shards are dealt out over the processes of a launch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
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
from ..eval.next_token import layer_states
from .divergences import IGNORED
from .hidden_encoding import HiddenEncoding, Moments, fit, load, rank_for, save
from .language import head_of
from .language_rows import batch_of
from .token_divergence import Divergence
from .token_encoding import Encoding, FullEncoding, get_encoding
from .token_outputs import Record, TokenOutputs
from .token_recording import TokenOutputsWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .examples import Examples

MEASURED_TOKENS = 2048
"""Tokens, from rows spread over all, on which the encoding's divergence is measured."""
FITTED_TOKENS = 1 << 16
"""Tokens, from other rows, on which the compression of hidden states is fitted."""
COMPRESSION = "compression.safetensors"
"""How hidden states are compressed, while shards are being written."""
LOGITS = 1 << 25
"""Logits of one row that exist at a time."""
SHARD_BYTES = 1 << 28
"""Full distributions of one shard, at most: a shard is in memory until it is written."""


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


def shard_items(encoding: Encoding | None, longest: int, most: int) -> int:
    """Items in a shard, the same for all, so that each process knows whose they are.

    Args:
        encoding: Of the distributions; those that are not full take little.
        longest: Tokens of an item's completion, at most.
        most: Items, at most.

    Examples:
        >>> from paredown.distill.token_encoding import get_encoding
        >>> shard_items(get_encoding({"encoding": "full"}, 151_936), 100, 4096)
        8
    """
    if not isinstance(encoding, FullEncoding):
        return most
    return min(most, max(1, SHARD_BYTES // (2 * encoding.vocabulary * max(longest, 1))))


def capture_tokens(
    model: TextModel,
    examples: Examples,
    streams: Mapping[str, range],
    out: Path,
    *,
    identity: Mapping[str, Any],
    encoding: Mapping[str, Any] | None,
    writing: Writing | None = None,
    hidden_layers: Sequence[int] = (),
    hidden_rank: int | None = None,
    precision: str = "fp32",
    batch_tokens: int = 8192,
    shard_rows: int = 4096,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenOutputs | None:
    """Records a teacher's token distributions, texts or both.

    Hidden states are compressed as `hidden_encoding` says: fitted by the first process on rows
    spread over all before anything is recorded, and kept in a file, so that a capture that goes on
    and the other processes use the same. What they lose is measured on other rows.

    Args:
        model: The teacher.
        examples: The rows of all streams; of prompts alone where the teacher writes.
        streams: Which rows are whose.
        out: The folder; shards that are whole in it are kept.
        identity: What the outputs belong to (teacher, tokenizer, data …).
        encoding: Of the distributions, for `get_encoding`; None for texts alone.
        writing: How the teacher completes the prompts; None for the rows' own completions.
        hidden_layers: Layers whose token vectors are recorded; 0 is the embeddings.
        hidden_rank: Components kept of them; chosen by `hidden_encoding.rank_for` where None.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_tokens: Rows × longest row of a batch, at most.
        shard_rows: Items in a shard, at most: of full distributions, fewer (`SHARD_BYTES`).
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
    recorder = _Recorder(model.eval(), made is not None, precision, batch_tokens, hidden_layers)

    def spread(tokens: int, start: int) -> list[_Row]:
        """Rows of so many tokens; they are sorted by length, and equal steps take all kinds."""
        average = max(1, int(examples.learned[chosen].mean())) if writing is None else 64
        step = max(1, len(chosen) * average // tokens)
        if hidden_layers:
            step += step % 2  # what is measured on is not what was fitted on
            start = min(start, len(chosen) - 1)
        else:
            start = 0
        rows = [_Row.of(examples, int(chosen[i]), i) for i in range(start, len(chosen), step)]
        return rows if writing is None else recorder.write(rows, writing)

    hidden: dict[int, HiddenEncoding] = {}
    if hidden_layers:
        if rank == 0 and not (out / COMPRESSION).exists():
            recorder.fit(spread(FITTED_TOKENS, 0), out / COMPRESSION, hidden_rank)
        barrier()
        hidden = load(out / COMPRESSION)
    writer = TokenOutputsWriter(
        out,
        identity={**identity, "precision": precision, "world_size": world_size},
        encoding=made,
        hidden=hidden,
        shard_items=shard_items(
            made,
            int(examples.learned[chosen].max(initial=1))
            if writing is None
            # and the token that ends it
            else writing.max_new_tokens + 1,
            shard_rows,
        ),
        rank=rank,
        world_size=world_size,
    )
    pending, done = list(writer.pending(len(chosen))), 0
    total = sum(len(part) for _, part in pending)
    for number, part in pending:
        rows = [_Row.of(examples, int(chosen[item]), int(item)) for item in part]
        if writing is not None:
            rows = recorder.write(rows, writing)
        records: dict[int, Record] = {}
        for row, record in recorder.records(rows, writer):
            records[row.item] = record
            done += 1
            if progress is not None:
                progress(done, total)
        writer.write(number, [records[item] for item in part])
    barrier()
    if rank != 0:
        return None
    facts: dict[str, Any] = {"items": len(chosen), "truncated": examples.truncated}
    if made is not None or hidden:
        measured = None if made is None else Divergence(made)
        seen: dict[int, list[torch.Tensor]] = {n: [] for n in hidden}
        for row, logits, states in recorder.asked(spread(MEASURED_TOKENS, 1)):
            if measured is not None and logits is not None:
                measured.add(logits, str(row.item))
            for n, values in states.items():
                seen[n].append(values)
        if measured is not None:
            facts["divergence"] = measured.summary()
        if hidden:
            facts["hidden"] = {
                str(n): {
                    "rank": one.rank,
                    "bytes_per_token": one.bytes_per_token,
                    "error": one.error(seen[n]),
                }
                for n, one in sorted(hidden.items())
            }
            facts["hidden_size"] = next(iter(hidden.values())).width
    of = {name: items[rows.start : rows.stop] for name, rows in streams.items()}
    outputs = writer.finish(of, **facts)
    (out / COMPRESSION).unlink(missing_ok=True)
    return outputs


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


_Said = tuple[_Row, torch.Tensor | None, Mapping[int, torch.Tensor]]


class _Recorder:
    """A teacher that is asked about rows batch by batch."""

    def __init__(
        self,
        model: TextModel,
        distributions: bool,
        precision: str,
        batch_tokens: int,
        layers: Sequence[int],
    ) -> None:
        self.model, self.distributions, self.layers = model, distributions, list(layers)
        self.precision, self.batch_tokens = precision, batch_tokens

    def fit(self, rows: list[_Row], path: Path, rank: int | None) -> None:
        """Fits the compression of each layer's states on some rows, and writes it whole."""
        width = int(self.model.config.hidden_size)
        moments = {n: Moments(width) for n in self.layers}
        for _, _, states in self.asked(rows, distributions=False):
            for n, values in states.items():
                moments[n].add(values)
        found = {n: fit(of, rank or rank_for(of)) for n, of in moments.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save(found, part)
        os.replace(part, path)

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

    def records(
        self, rows: list[_Row], writer: TokenOutputsWriter
    ) -> Iterator[tuple[_Row, Record]]:
        """Each row with its record, in any order."""
        every: Iterator[_Said] = ((row, None, {}) for row in rows)
        if self.distributions or self.layers:
            every = self.asked(rows)
        for row, logits, states in every:
            yield (
                row,
                writer.record(
                    row.ids.tolist(),
                    spans_of(row.learned),
                    key=str(row.item),
                    logits=logits,
                    states=states,
                    text=row.text,
                ),
            )

    @torch.inference_mode()
    def asked(self, rows: list[_Row], distributions: bool = True) -> Iterator[_Said]:
        """What the teacher says of the T learned tokens of each row, in any order.

        Yields the row, its logits, (T, V) float32, and by layer its token vectors, (T, H).
        """
        device, pad = self.model.backbone.device, int(self.model.tokenizer.pad_token_id or 0)
        head = head_of(self.model)
        for index in token_batches([len(row.ids) for row in rows], self.batch_tokens):
            some = [rows[i] for i in index]
            batch = batch_of([r.ids for r in some], [r.learned for r in some], pad)
            counts = (batch["labels"][:, 1:] != IGNORED).to(device)
            with autocast(device, self.precision):
                given = batch["input_ids"].to(device), batch["attention_mask"].to(device)
                every: tuple[torch.Tensor, ...] = ()
                if self.layers:
                    states, every = layer_states(self.model.backbone, *given)
                else:
                    states = self.model.states(*given)
                for i, row in enumerate(some):
                    apart = {n: every[n][i, :-1][counts[i]].float() for n in self.layers}
                    if not (self.distributions and distributions):
                        yield row, None, apart
                        continue
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
                    yield row, logits, apart
