"""What a teacher said, on disk: recorded once, read by many students.

A folder of Arrow shards with a manifest:

    manifest.json            signal, width, teacher, tokenizer and data it belongs to, shards
    rows-<stream>.npy        for each row of a stream (``train.text``, …) the item it is, int64
    shard-00000.arrow …      items in a row: ``values`` and, where asked for, ``hidden_<layer>``

Equal texts are one item. Items are sorted by their length in tokens, longest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.errors import RunError
from .shards import open_shards, read_manifest, stream_items

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1


class TeacherOutputs:
    """Reads recorded teacher outputs by row, without loading them whole.

    Attributes:
        folder: Where they are.
        manifest: The manifest's content.
    """

    def __init__(self, folder: Path, expect: Mapping[str, Any] | None = None) -> None:
        """Opens a finished folder and checks every shard against its checksum.

        Args:
            folder: As `capture` left it.
            expect: Manifest entries that must be equal (teacher, tokenizer, data, …).

        Raises:
            RunError: If the folder is unfinished, a shard is damaged, or an entry differs.
        """
        self.folder = folder
        self.manifest = read_manifest(folder, FORMAT, expect)
        self._shards = open_shards(folder, self.manifest)
        counts = [int(shard["items"]) for shard in self.manifest["shards"]]
        self._starts = [0, *accumulate(counts)]

    def __len__(self) -> int:
        """Distinct texts recorded."""
        return self._starts[-1]

    @property
    def signal(self) -> str:
        """What was recorded: ``class_logits`` or ``embedding``."""
        return str(self.manifest["signal"])

    @property
    def width(self) -> int:
        """Numbers per row of the signal."""
        return int(self.manifest["width"])

    @property
    def streams(self) -> list[str]:
        """The streams of rows that were recorded."""
        return list(self.manifest["streams"])

    def items(self, stream: str) -> NDArray[np.int64]:
        """The item of each row of a stream, (rows,), mapped from disk.

        Raises:
            RunError: If the stream was not recorded.
        """
        return stream_items(self.folder, self.manifest, stream)

    def values(self, items: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The signal of some items.

        Args:
            items: Item numbers, (n,), in any order.

        Returns:
            (n, W) float32.
        """
        wanted = np.asarray(items, dtype=np.int64)
        out = np.empty((len(wanted), self.width), dtype=np.float32)
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(shards):
            mine = np.flatnonzero(shards == number)
            flat = self._shards[number].column("values").flatten().to_numpy(zero_copy_only=True)
            block = flat.reshape(-1, self.width)
            out[mine] = block[wanted[mine] - self._starts[number]]
        return out

    def hidden(self, layer: int, items: Sequence[int]) -> list[NDArray[np.float16]]:
        """The token vectors of some items after one layer (0 is the embeddings).

        Returns:
            One (tokens, H) float16 array an item.

        Raises:
            RunError: If that layer was not recorded.
        """
        if layer not in self.manifest["hidden_layers"]:
            raise RunError(
                f"The teacher's hidden states were not recorded for layer {layer}, "
                f"only for {self.manifest['hidden_layers']}."
            )
        hidden = int(self.manifest["hidden_size"])
        out = []
        for item in items:
            number = int(np.searchsorted(self._starts, item, side="right")) - 1
            row = self._shards[number].column(f"hidden_{layer}")[item - self._starts[number]]
            out.append(row.values.to_numpy(zero_copy_only=True).reshape(-1, hidden))
        return out
