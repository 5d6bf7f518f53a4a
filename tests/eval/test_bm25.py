"""BM25 against its formula, against bm25s, and its edge cases; words and their counts."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.eval.bag_of_words import BagOfWords, terms
from paredown.eval.bm25 import BM25, K1, B
from paredown.eval.errors import DataError, RunError
from paredown.eval.ranking import best_rows, top_rows

TEXTS = [
    "open a file for reading and writing",
    "sort a list of dictionaries, a list of lists",
    "Größe des Kontos, café",
    "open open open the file",
    "x",
    "",
]
words = st.lists(st.sampled_from(["ab", "cd", "ef", "gh", "ij"]), max_size=6).map(" ".join)


def plain(query: str, texts: list[str], k1: float, b: float) -> list[float]:
    """The formula, one text after the other in float64."""
    bags = [Counter(terms(text)) for text in texts]
    lengths = [sum(bag.values()) for bag in bags]
    average = sum(lengths) / len(lengths)
    found = []
    for bag, length in zip(bags, lengths, strict=True):
        score = 0.0
        for term in terms(query):
            n = sum(term in other for other in bags)
            if not bag[term]:
                continue
            rarity = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            score += rarity * bag[term] / (bag[term] + k1 * (1 - b + b * length / average))
        found.append(score)
    return found


@settings(max_examples=50)
@given(
    texts=st.lists(words, min_size=1, max_size=8).filter(any),
    queries=st.lists(words, min_size=1, max_size=3),
    k1=st.floats(0.1, 3),
    b=st.floats(0, 1),
)
def test_scores_are_those_of_the_formula(
    texts: list[str], queries: list[str], k1: float, b: float
) -> None:
    found = BM25.index(texts, k1, b).scores(queries)
    expected = [plain(query, texts, k1, b) for query in queries]
    assert found == pytest.approx(np.asarray(expected), rel=1e-4, abs=1e-6)


def test_scores_are_those_of_bm25s() -> None:
    bm25s = pytest.importorskip("bm25s", reason="the `dev` extra is not installed")
    texts = [text for text in TEXTS if list(terms(text))]
    peer = bm25s.BM25(k1=K1, b=B, method="lucene")
    peer.index([list(terms(text)) for text in texts], show_progress=False)
    queries = ["open a file", "list of größe", "file file"]
    found = BM25.index(texts).scores(queries)
    for row, query in zip(found, queries, strict=True):
        assert row == pytest.approx(peer.get_scores(list(terms(query))), rel=1e-5, abs=1e-6)


def test_the_best_come_first_and_equal_ones_in_order() -> None:
    index = BM25.index(TEXTS)
    done: list[int] = []
    top = index.top(["open the file", "lists of a list", "nothing known"], 3, done.append)
    assert top.shape == (3, 3) and sum(done) == 3
    assert top[0, 0] == 3 and top[1, 0] == 1
    assert top[2].tolist() == [0, 1, 2]  # all score 0
    assert index.top([], 3).shape == (0, 3)
    assert BM25.index(["one text"]).top(["text"]).tolist() == [[0]]


def test_an_index_is_kept_and_read_again(tmp_path: Path) -> None:
    index = BM25.index(TEXTS)
    index.save(tmp_path / "one")
    BM25.index(TEXTS).save(tmp_path / "two")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["bm25.json", "bm25.safetensors"]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    queries = ["open the file", "café"]
    assert np.array_equal(BM25.load(tmp_path / "one").scores(queries), index.scores(queries))


def test_a_damaged_index_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no whole BM25 index"):
        BM25.load(tmp_path)
    BM25.index(TEXTS).save(tmp_path)
    path = tmp_path / "bm25.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunError, match="no whole BM25 index"):
        BM25.load(tmp_path)


@pytest.mark.parametrize("texts", [[], ["", "x"]])
def test_a_collection_without_words_is_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match="texts with words"):
        BM25.index(texts)


def test_counts_leave_out_what_is_not_known() -> None:
    bag = BagOfWords.of(["open file", "file open file"], 2)
    assert list(bag.places) == ["file", "file open", "open", "open file"]
    found = bag.counts(["open file", "", "file file shut"]).toarray()
    assert found.tolist() == [[1, 0, 1, 1], [0, 0, 0, 0], [2, 0, 0, 0]]
    assert bag.counts([]).shape == (0, 4)


@given(
    scores=st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=5, max_size=5)),
    k=st.integers(1, 7),
)
def test_the_best_rows_are_those_of_a_stable_sort(scores: list[list[float]], k: int) -> None:
    array = np.asarray(scores, dtype=np.float32).reshape(-1, 5)
    expected = np.argsort(-array, axis=1, kind="stable")[:, :k]
    assert best_rows(array, k).tolist() == expected.tolist()
    if len(array):
        unit = np.eye(5, dtype=np.float32)
        assert top_rows(array, unit, k).tolist() == expected.tolist()


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(RunError, match="NaN"):
        best_rows(np.asarray([[np.nan, 1.0]]))
    with pytest.raises(RunError, match="Expected scores"):
        best_rows(np.empty((2, 0)))
