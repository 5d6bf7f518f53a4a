"""Token distributions on disk: what a teacher said of each row, recorded once, read by many.

A folder of Arrow shards with a manifest, as in `outputs`:

    manifest.json            identity, encoding, bytes per token, divergence, shards
    rows-<stream>.npy        for each row of a stream (``train``, …) its item, int64; −1 if left out
    hidden.safetensors       how hidden states are read, where they were recorded
    shard-00000.arrow …      items in a row: ``ids``, ``spans``, ``text``, ``blob``, ``hidden_<n>``

An item is a prompt with its completion as token ids. Its spans say which of the tokens the teacher
was asked about: from the start of the completion to its end, or one span for each turn of the
assistant's. ``blob`` holds a distribution for each of those tokens, given all tokens before it;
``text`` what the teacher wrote, where it did. Either may be absent: a teacher behind an endpoint
may give texts alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.checkpoints import sha256
from ..eval.errors import RunError
from .hidden_encoding import HiddenEncoding, load
from .shards import damaged, open_shards, read_manifest, stream_items
from .token_collation import collate
from .token_encoding import get_encoding

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from .token_targets import Targets

FORMAT = "tokens-1"
HIDDEN = "hidden.safetensors"


@dataclass(frozen=True)
class Record:
    """A prompt with its completion, and what the teacher said of it.

    Attributes:
        ids: Token ids of all of it, (L,).
        spans: The tokens that the teacher was asked about, as (start, end) in `ids`, ascending;
            none starts at 0, since nothing comes before the first token.
        text: What the teacher wrote, or None.
        blob: The distributions of those T tokens, encoded, or None.
        hidden: By layer, the T token vectors that those tokens were predicted from, encoded.
    """

    ids: Sequence[int] | NDArray[np.int32]
    spans: Sequence[tuple[int, int]]
    text: str | None = None
    blob: bytes | None = None
    hidden: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def start(self) -> int:
        """Where the completion starts: the tokens before it are the prompt."""
        return self.spans[0][0] if self.spans else len(self.ids)

    @property
    def tokens(self) -> int:
        """T, the tokens that the teacher was asked about."""
        return sum(end - start for start, end in self.spans)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Where in `ids` those tokens are, (T,); each is predicted at the position before."""
        return np.concatenate([np.arange(0), *(np.arange(a, b) for a, b in self.spans)])


class TokenOutputs:
    """Reads recorded token distributions by item, without loading them whole.

    Attributes:
        folder: Where they are.
        manifest: The manifest's content.
        encoding: How the distributions were written; None where only texts were recorded.
        hidden: How the hidden states of each recorded layer were written.
    """

    def __init__(self, folder: Path, expect: Mapping[str, Any] | None = None) -> None:
        """Opens a finished folder and checks every shard against its checksum.

        Args:
            folder: As a writer's `finish` left it (`token_recording`).
            expect: Manifest entries that must be equal (teacher, tokenizer, encoding, …).

        Raises:
            RunError: If the folder is unfinished, a shard is damaged, or an entry differs.
        """
        self.folder = folder
        self.manifest = read_manifest(folder, FORMAT, expect)
        self._shards = open_shards(folder, self.manifest)
        self._starts = [0, *accumulate(int(s["items"]) for s in self.manifest["shards"])]
        spec, vocabulary = self.manifest["encoding"], self.manifest["vocabulary"]
        self.encoding = None if spec is None else get_encoding(spec, int(vocabulary))
        self.hidden: dict[int, HiddenEncoding] = {}
        if self.manifest["hidden_layers"]:
            file = folder / HIDDEN
            if not file.exists() or sha256(file) != self.manifest["hidden_sha256"]:
                raise damaged(file, "it is gone, or its checksum differs from the manifest")
            self.hidden = load(file)

    def __len__(self) -> int:
        """Items recorded."""
        return self._starts[-1]

    @property
    def streams(self) -> list[str]:
        """The streams of rows that were recorded."""
        return list(self.manifest["streams"])

    def rows(self, stream: str) -> NDArray[np.int64]:
        """The item of each row of a stream, (rows,), mapped from disk; −1 for a row left out.

        Raises:
            RunError: If the stream was not recorded.
        """
        return stream_items(self.folder, self.manifest, stream)

    def lengths(self) -> NDArray[np.int64]:
        """The tokens of each item, prompt and completion, (items,); no item is read for it."""
        parts = [np.asarray(s.column("ids").value_lengths(), dtype=np.int64) for s in self._shards]
        return np.concatenate(parts)

    def last_ids(self) -> NDArray[np.int64]:
        """The last token of each item, (items,); −1 where there are texts alone."""
        found = []
        for shard in self._shards:
            ids = shard.column("ids")
            starts, values = ids.offsets.to_numpy(), ids.values.to_numpy()
            last = np.full(len(ids), -1, dtype=np.int64)
            some = starts[1:] > starts[:-1]
            last[some] = values[starts[1:][some] - 1]
            found.append(last)
        return np.concatenate(found)

    def get(self, items: Sequence[int] | NDArray[np.int64]) -> list[Record]:
        """The records of some items, in the order asked for.

        Raises:
            RunError: If there is no such item.
        """
        layers = self.manifest["hidden_layers"]
        found = []
        for item in items:
            if not 0 <= item < len(self):
                raise RunError(f"Item {item} was not recorded; there are {len(self)}.")
            number = int(np.searchsorted(self._starts, item, side="right")) - 1
            shard, at = self._shards[number], int(item) - self._starts[number]
            flat = shard.column("spans")[at].values.to_numpy().tolist()
            found.append(
                Record(
                    ids=shard.column("ids")[at].values.to_numpy(),
                    spans=list(zip(flat[::2], flat[1::2], strict=True)),
                    text=shard.column("text")[at].as_py(),
                    blob=shard.column("blob")[at].as_py(),
                    hidden={n: shard.column(f"hidden_{n}")[at].as_py() for n in layers},
                )
            )
        return found

    def targets(self, records: Sequence[Record]) -> Targets:
        """What the teacher said of the tokens of some records, after each other.

        Raises:
            RunError: If a record has no distributions, or they are damaged.
        """
        if self.encoding is None or any(record.blob is None for record in records):
            raise RunError(
                f"The teacher outputs in '{self.folder}' have texts without distributions; use a "
                "loss on the texts (cross_entropy), or record a teacher that gives distributions."
            )
        return collate([self.encoding.decode(r.blob or b"", r.tokens) for r in records])

    def states(self, layer: int, records: Sequence[Record]) -> list[Tensor]:
        """The hidden states of a layer that the tokens of each record were predicted from, (T, H).

        Raises:
            RunError: If that layer was not recorded, or they are damaged.
        """
        if layer not in self.hidden:
            raise RunError(
                f"The teacher's hidden states were not recorded for layer {layer}, "
                f"only for {sorted(self.hidden)}."
            )
        return [self.hidden[layer].decode(r.hidden[layer], r.tokens) for r in records]
