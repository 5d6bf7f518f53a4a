"""A text as the mean of its tokens' own embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paredown.eval.errors import RunError
from paredown.eval.models import TextModel
from paredown.eval.static_embeddings import StaticEmbeddings
from paredown.eval.tasks import get_task

TEXTS = ["how do I open a file?", "Größe des Kontos", "", "the bank " * 200]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_text_is_the_mean_of_its_tokens(kind: str, tiny_model: Callable[..., TextModel]) -> None:
    model = tiny_model(kind, get_task("retrieval"))
    table = model.backbone.get_input_embeddings().weight.detach().numpy()
    done: list[int] = []
    found = StaticEmbeddings.of(model).embed(TEXTS, done.append)
    assert found.shape == (4, 32) and found.dtype == np.float32 and sum(done) == 4
    for text, vector in zip(TEXTS, found, strict=True):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        mean = table[ids].mean(0) if ids else np.zeros(32)
        norm = np.linalg.norm(mean)
        assert vector == pytest.approx(mean / norm if norm else mean, abs=1e-5)


def test_the_models_own_tokenizer_is_left_as_it_is(tiny_model: Callable[..., TextModel]) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    before = model.tokenize(TEXTS)
    StaticEmbeddings.of(model).embed(TEXTS)
    assert model.tokenize(TEXTS) == before


def test_it_is_kept_and_read_again(tmp_path: Path, tiny_model: Callable[..., TextModel]) -> None:
    made = StaticEmbeddings.of(tiny_model("bert", get_task("retrieval")))
    made.save(tmp_path)
    loaded = StaticEmbeddings.load(tmp_path)
    assert np.array_equal(loaded.embed(TEXTS), made.embed(TEXTS))
    assert loaded.embed([]).shape == (0, 32)
    assert loaded.flops(["", "the"]).tolist() == [
        32 * 3,
        32 * (3 + len(loaded.tokenizer.encode("the", add_special_tokens=False).ids)),
    ]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(RunError, match=r"no tokenizer\.json"):
        StaticEmbeddings.load(tmp_path)


def test_a_folder_without_a_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no table of token embeddings"):
        StaticEmbeddings.load(tmp_path)
