"""A model's own token embeddings, averaged: what a text is to it before any layer is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from .models import TextModel

WEIGHTS, TOKENIZER = "embeddings.safetensors", "tokenizer.json"
BLOCK = 1024


class StaticEmbeddings:
    """A table of token vectors; a text is the mean of its tokens', scaled to length 1.

    Special tokens and prompts are left out, and no text is cut: there is no context to be full.

    Attributes:
        tokenizer: Cuts texts into the table's rows.
        table: A vector of each token, (V, d) float32.
    """

    def __init__(self, tokenizer: Tokenizer, table: NDArray[np.float32]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.table = table

    @classmethod
    def of(cls, model: TextModel) -> StaticEmbeddings:
        """The input embeddings of a model."""
        from tokenizers import Tokenizer

        layer: Any = model.backbone.get_input_embeddings()
        own = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())  # a copy to change
        return cls(own, layer.weight.detach().float().cpu().numpy())

    def embed(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Embeds texts, (n, d) float32; a text without tokens is 0.

        Args:
            texts: One text a row.
            progress: Called with the number of rows done, every thousand or so.
        """
        found = [np.empty((0, self.table.shape[1]), dtype=np.float32)]
        for start in range(0, len(texts), BLOCK):
            ids = self._ids(texts[start : start + BLOCK])
            found.append(self._means(ids))
            if progress is not None:
                progress(len(ids))
        return np.concatenate(found)

    def flops(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """FLOPs of each row's mean and its scaling: d (T + 3) for T tokens, (n,)."""
        tokens = np.asarray([len(ids) for ids in self._ids(texts)], dtype=np.int64)
        return np.asarray(self.table.shape[1] * (tokens + 3), dtype=np.int64)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [row.ids for row in encoded]

    def _means(self, ids: list[list[int]]) -> NDArray[np.float32]:
        sums = np.zeros((len(ids), self.table.shape[1]), dtype=np.float32)
        for row, tokens in enumerate(ids):
            if tokens:
                sums[row] = self.table[tokens].mean(axis=0)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        return np.asarray(sums / np.maximum(norms, 1e-12), dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Writes the table as safetensors, and the tokenizer."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({"table": np.ascontiguousarray(self.table)}, folder / WEIGHTS)
        self.tokenizer.save(str(folder / TOKENIZER))

    @classmethod
    def load(cls, folder: Path) -> StaticEmbeddings:
        """Reads what `save` wrote.

        Raises:
            RunError: If it is not there.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        try:
            table = load_file(folder / WEIGHTS)["table"]
        except (OSError, KeyError, SafetensorError) as error:
            raise RunError(f"'{folder}' holds no table of token embeddings ({error}).") from error
        if not (folder / TOKENIZER).exists():
            raise RunError(f"'{folder}' holds no {TOKENIZER}.")
        return cls(Tokenizer.from_file(str(folder / TOKENIZER)), table)
