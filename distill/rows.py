"""Training rows as tokens on disk, joined batch by batch with what the teacher said of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..eval.models import Row, TextModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .capture import Stream
    from .outputs import TeacherOutputs

BLOCK = 2048
ANCHORS = 4096  # texts of the collection that a batch is compared with,
POOL = 16_384  # drawn from so many, which are held in memory: read anew they cost a fifth of a step
MEGABATCH = 50  # batches sorted by length together, as transformers' LengthGroupedSampler does


class TokenRows:
    """The tokens of many texts in one flat file each, mapped into memory."""

    def __init__(self, model: TextModel, streams: Sequence[Stream], folder: Path) -> None:
        """Tokenises all rows of the streams, one after the other, into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.inputs = model.inputs
        lengths: list[int] = []
        files = {name: (folder / f"{name}.bin").open("wb") for name in self.inputs}
        for stream in streams:
            for start in range(0, len(stream.texts), BLOCK):
                rows = range(start, min(start + BLOCK, len(stream.texts)))
                texts, pairs = stream.read(rows)
                encoded = model.tokenize(texts, pairs, stream.role)
                lengths += [len(row["input_ids"]) for row in encoded]
                for name, file in files.items():
                    flat = [i for row in encoded for i in row[name]]
                    file.write(np.asarray(flat, dtype=np.int32).tobytes())
        for file in files.values():
            file.close()
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._flat = {
            name: np.memmap(folder / f"{name}.bin", dtype=np.int32, mode="r")
            for name in self.inputs
            if len(lengths)
        }

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Row:
        part = slice(int(self._starts[row]), int(self._starts[row + 1]))
        return {name: flat[part].tolist() for name, flat in self._flat.items()}


class LengthSampler(Sampler[int]):
    """Row numbers such that each run of ``batch_size`` has rows of like length.

    The order depends on the seed and the epoch alone, so training that is resumed in the middle
    of an epoch sees the rows it would have seen.
    """

    def __init__(
        self, lengths: NDArray[np.int64], batch_size: int, seed: int, blank: int | None = None
    ) -> None:
        """Takes what the order depends on.

        Args:
            lengths: Tokens of each row, (n,).
            batch_size: Rows of a step, over all processes.
            seed: Of the order.
            blank: Fills the last batch of an epoch, so that processes which share it all have
                rows of it; None leaves it short.
        """
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.blank = blank
        self.epoch = 0

    @property
    def missing(self) -> int:
        """How many rows fill the last batch of an epoch."""
        return 0 if self.blank is None else -len(self.lengths) % self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order is given next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.missing

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng([self.seed, self.epoch])
        order = draw.permutation(len(self.lengths))
        size = self.batch_size * MEGABATCH
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), size):
            part = order[start : start + size]
            part = part[np.argsort(-self.lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        # Only the very last batch may be short, or the runs after it would mix lengths.
        short = [b for b in batches if len(b) < self.batch_size]
        full = [b for b in batches if len(b) == self.batch_size]
        for number in draw.permutation(len(full)):
            yield from full[number].tolist()
        for batch in short:
            yield from batch.tolist()
        for _ in range(self.missing):
            assert self.blank is not None
            yield self.blank


class Rows(Protocol):
    """Rows that a trainer reads: a row is its number, and `collate` fetches all of a batch."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> int: ...

    def collate(self, rows: Sequence[int]) -> dict[str, Any]:
        """Makes a batch."""


@dataclass
class DistillRows(Dataset[int]):
    """Rows to train on; a row is its number, and `collate` fetches all of a batch at once.

    Attributes:
        tokens: The student's tokens of each row.
        model: Pads them.
        items: The recorded item of each row, (n,), where teacher outputs are used.
        outputs: The recorded teacher outputs.
        labels: The class of each row, (n,), −1 where there is none.
        documents: The tokens of the text that answers each row, for losses on pairs.
        hidden_layers: Teacher layers whose token vectors are fetched.
        collection: The recorded items of the texts to be found, of which a batch gets some to
            compare similarities with.
    """

    tokens: TokenRows
    model: TextModel
    items: NDArray[np.int64] | None = None
    outputs: TeacherOutputs | None = None
    labels: NDArray[np.int64] | None = None
    documents: TokenRows | None = None
    hidden_layers: Sequence[int] = ()
    collection: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        self._pool: Tensor | None = None
        if self.collection is not None and self.outputs is not None:
            drawn = self.collection
            if len(drawn) > POOL:
                draw = np.random.default_rng(len(drawn))
                drawn = drawn[np.sort(draw.choice(len(drawn), POOL, replace=False))]
            self._pool = torch.from_numpy(self.outputs.values(drawn))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return self.tokens.lengths

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> int:
        return row

    def collate(self, rows: Sequence[int]) -> dict[str, Any]:
        """Makes a batch: padded tokens, and what the teacher said of the same rows."""
        batch: dict[str, Any] = dict(self.model.collate([self.tokens[i] for i in rows]))
        if self.outputs is not None and self.items is not None:
            items = self.items[np.asarray(rows)]
            batch["teacher_values"] = torch.from_numpy(self.outputs.values(items))
            if self._pool is not None:
                batch["teacher_collection"] = self._anchors(self._pool, rows)
            for layer in self.hidden_layers:
                batch[f"teacher_hidden_{layer}"] = self._hidden(layer, items, batch)
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[np.asarray(rows)])
        if self.documents is not None:
            documents: Mapping[str, Tensor] = self.model.collate([self.documents[i] for i in rows])
            batch.update({f"document_{name}": value for name, value in documents.items()})
        return batch

    def _anchors(self, pool: Tensor, rows: Sequence[int]) -> Tensor:
        """Some texts of the collection, (A, W), drawn by the rows so that a resume draws them."""
        if len(pool) <= ANCHORS:
            return pool
        draw = np.random.default_rng(list(rows))
        return pool[np.sort(draw.choice(len(pool), ANCHORS, replace=False))]

    def _hidden(self, layer: int, items: NDArray[np.int64], batch: dict[str, Any]) -> Tensor:
        """The teacher's token vectors, padded like the batch, (B, T, H)."""
        from ..eval.errors import RecipeError

        assert self.outputs is not None
        vectors = self.outputs.hidden(layer, items.tolist())
        lengths = batch["attention_mask"].sum(1).tolist()
        if [len(v) for v in vectors] != lengths:
            raise RecipeError(
                "distill.losses.hidden_mse compares token by token, but student and teacher cut "
                "the texts into different tokens (another tokenizer, or another maximum length). "
                "Leave hidden_mse out, or give both the same tokenizer and max_length."
            )
        out = np.zeros((len(vectors), max(lengths), vectors[0].shape[1]), dtype=np.float32)
        for i, vector in enumerate(vectors):
            out[i, : len(vector)] = vector
        return torch.from_numpy(out)
