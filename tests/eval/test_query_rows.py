"""Queries and texts: one collection, one split for each query, and BEIR's layout."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.eval.data import Data
from paredown.eval.errors import DataError, PareError, RecipeError
from paredown.eval.splits import (
    text_key,
)

Row = dict[str, Any]
Write = Callable[..., dict[str, str]]
Prepare = Callable[..., Data]


def pairs(*found: tuple[str | None, str | None]) -> list[Row]:
    return [{"query": query, "text": text} for query, text in found]


def questions(count: int, start: int = 0) -> list[Row]:
    return pairs(*((f"question {i}", f"answer {i}") for i in range(start, start + count)))


def answers(data: Data, split: str) -> dict[str, set[str]]:
    texts = data.collection()["text"]
    return {
        row["query"]: {texts[number] for number in row["relevant"]} for row in data.split(split)
    }


def test_all_texts_form_one_collection_and_equal_texts_are_one(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    train = [
        *questions(20),
        *pairs(("other", "answer 3"), ("more", " answer  3 "), ("x", "Answer 3")),
    ]
    test = pairs(("t one", "answer 3"), ("t two", "new"), ("T ONE", "second"))
    data = prepare(tmp_path, write(tmp_path, train=train, test=test), "retrieval")
    assert data.labels is None
    assert data.info["rows"] == {"train": 21, "validation": 2, "test": 2, "collection": 23}
    assert answers(data, "test") == {"t one": {"answer 3", "second"}, "t two": {"new"}}
    assert data.split("test")[0]["grades"] == [1, 1]
    texts = data.collection()["text"]
    assert len(set(texts)) == len(texts) == 23
    assert "Answer 3" in texts


def test_a_query_of_two_splits_stays_in_the_last_with_all_its_texts(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    train = [*questions(10), *pairs(("Same", "from train"), ("Held", "kept"), ("Same", "again"))]
    validation = [*questions(2, 50), *pairs(("held", "own"), ("SAME", "from validation"))]
    test = [*questions(2, 70), *pairs(("same", "from test"))]
    files = write(tmp_path, train=train, validation=validation, test=test)
    data = prepare(tmp_path, files, "retrieval")
    assert data.info["dropped"] == {
        "train": {"in_test": 2, "in_validation": 1},
        "validation": {"in_test": 1},
        "test": {},
    }
    assert answers(data, "test")["same"] == {"from train", "from validation", "from test", "again"}
    assert answers(data, "validation")["held"] == {"own", "kept"}
    assert set(answers(data, "train")) == {f"question {i}" for i in range(10)}


def test_training_queries_need_no_text(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    train = [*questions(10), *pairs(("only asked", None), ("too", ""), (None, "lost"), ("", ""))]
    data = prepare(tmp_path, write(tmp_path, train=train, test=questions(2, 50)), "retrieval")
    assert data.info["unlabelled"] == {"train": 2}
    assert data.info["dropped"]["train"] == {"empty": 2}
    assert answers(data, "train")["only asked"] == set()
    assert all(row["relevant"] for row in data.split("validation"))
    log = [{"query": f"log {i}"} for i in range(5)]
    files = write(tmp_path, train=log, validation=questions(3), test=questions(3, 50))
    assert prepare(tmp_path, files, "retrieval").info["unlabelled"] == {"train": 5}
    with pytest.raises(RecipeError, match="0 training queries have a text"):
        prepare(tmp_path, {**files, "validation": None}, "retrieval")


def test_test_queries_need_a_text(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    files = write(tmp_path, train=questions(9), test=[*questions(2, 50), *pairs(("none", None))])
    with pytest.raises(DataError, match="line 3: no text; every test query needs one"):
        prepare(tmp_path, files, "retrieval")
    files = write(tmp_path, train=questions(9), test=[{"query": "a", "txt": "b"}])
    with pytest.raises(RecipeError, match=r"no column 'text'; it has: query, txt\. Did you mean"):
        prepare(tmp_path, files, "retrieval")


def test_texts_of_a_collection_file_join_the_index(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    collection = [{"id": 7, "text": "answer 1"}, {"id": "d", "title": "T", "text": "never asked"}]
    files = write(tmp_path, train=questions(9), test=questions(2, 50), collection=collection)
    data = prepare(tmp_path, files, "retrieval")
    assert data.info["rows"]["collection"] == 12
    assert data.collection()[0] == {"text": "answer 1", "id": "7"}
    assert data.collection()[1] == {"text": "T never asked", "id": "d"}


def beir(write: Write, folder: Path, train: str = "", test: str = "") -> dict[str, str]:
    corpus = [{"_id": f"d{i}", "title": f"T{i}", "text": f"text {i}"} for i in range(20)]
    corpus.append({"_id": "same", "title": "T0", "text": "text 0"})
    queries = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(16)]
    paths = write(folder, collection=corpus, queries=queries)
    header = "query-id\tcorpus-id\tscore\n"
    rows = "".join(f"q{i}\td{i}\t1\n" for i in range(10))
    (folder / "train.tsv").write_text(header + rows + train)
    (folder / "test.tsv").write_text(header + "q10\td10\t2\nq10\td11\t1\nq11\tsame\t1\n" + test)
    return {**paths, "train": str(folder / "train.tsv"), "test": str(folder / "test.tsv")}


def test_beirs_layout_is_read_with_grades(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    train = "q0\td5\t0\nq10\td12\t1\nnobody\td1\t1\nq1\tnothing\t1\n"
    data = prepare(tmp_path, beir(write, tmp_path, train), "retrieval")
    assert data.info["rows"]["collection"] == 20
    assert data.collection()[0] == {"text": "T0 text 0", "id": "d0"}
    assert data.split("test").to_list() == [
        {"query": "query 10", "relevant": [10, 11, 12], "grades": [2, 1, 1]},
        {"query": "query 11", "relevant": [0], "grades": [1]},
    ]
    assert data.info["dropped"]["train"] == {
        "in_test": 1,
        "not_relevant": 1,
        "unknown_query": 1,
        "unknown_text": 1,
    }
    # q12 to q15 are asked and never answered: training queries
    assert data.info["unlabelled"] == {"train": 4}


def test_beirs_layout_is_checked(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    files = beir(write, tmp_path, test="q3\td3\tmuch\n")
    with pytest.raises(DataError, match="line 5: expected a whole number as score, got 'much'"):
        prepare(tmp_path, files, "retrieval")
    (tmp_path / "test.tsv").write_text("q1\t0\td1\t1\nq2\t0\td2\t1\n")
    with pytest.raises(RecipeError, match=r"no column 'query-id'.*BEIR's layout has it"):
        prepare(tmp_path, files, "retrieval")
    with pytest.raises(RecipeError, match=r"data\.files\.collection: missing"):
        prepare(tmp_path, {**files, "collection": None}, "retrieval")
    with pytest.raises(RecipeError, match="'classification' has no collection"):
        prepare(tmp_path, files)
    files = beir(write, tmp_path)
    write(tmp_path, collection=[{"_id": 1, "text": "a"}, {"_id": "1", "text": "b"}])
    with pytest.raises(DataError, match="line 2: the identifier '1' stands there twice"):
        prepare(tmp_path, files, "retrieval")


QUERY = st.sampled_from(["a", "A", "b", " b", "c", "d", "e", "f", "g", ""])
ANSWER = st.sampled_from(["1", "2", "3", "4", None])
FOUND = st.lists(st.tuples(QUERY, ANSWER), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(FOUND, st.none() | FOUND, FOUND, st.randoms(use_true_random=False))
def test_a_query_is_in_one_split_with_every_text_it_was_ever_paired_with(
    write: Write,
    prepare: Prepare,
    tmp_path_factory: pytest.TempPathFactory,
    train: list[tuple[str, str | None]],
    validation: list[tuple[str, str | None]] | None,
    test: list[tuple[str, str | None]],
    shuffled: random.Random,
) -> None:
    folder = tmp_path_factory.mktemp("data")
    tables: dict[str, list[tuple[str, str | None]]] = {
        "train": train,
        "test": [(q, t or "1") for q, t in test],
    }
    if validation:
        tables["validation"] = [(q, t or "2") for q, t in validation]
    try:
        data = prepare(
            folder, write(folder, **{n: pairs(*t) for n, t in tables.items()}), "retrieval"
        )
    except PareError:
        return
    found = {name: answers(data, name) for name in ("train", "validation", "test")}
    by_key: dict[str, set[str]] = {}
    for split in found.values():
        for query, texts in split.items():
            assert text_key(query) not in by_key
            by_key[text_key(query)] = texts
    expected: dict[str, set[str]] = {}
    for rows in tables.values():
        for query, text in rows:
            if query.strip():
                expected.setdefault(text_key(query), set()).update([text] if text else [])
    assert by_key == expected
    for table in tables.values():
        shuffled.shuffle(table)
    again = prepare(folder, write(folder, **{n: pairs(*t) for n, t in tables.items()}), "retrieval")
    for name, split in found.items():
        assert {text_key(q) for q in answers(again, name)} == {text_key(q) for q in split}
