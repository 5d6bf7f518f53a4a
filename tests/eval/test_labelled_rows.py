"""Rows with a class: what is kept, dropped, set aside and refused."""

from __future__ import annotations

import random
from collections import Counter
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


def labelled(*pairs: tuple[str, str | None]) -> list[Row]:
    return [{"text": text, "label": label} for text, label in pairs]


def many(count: int, start: int = 0) -> list[Row]:
    return labelled(*((f"row number {i}", "xyz"[i % 3]) for i in range(start, start + count)))


TEST_ROWS = labelled(("test a", "x"), ("test b", "y"), ("test c", "z"))


def test_rows_are_read_split_and_described(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    data = prepare(tmp_path, write(tmp_path, train=many(100), test=TEST_ROWS))
    assert data.labels == ["x", "y", "z"]
    assert data.info["rows"] == {"train": 90, "validation": 10, "test": 3}
    assert data.info["columns"] == ["text", "label"]
    assert data.info["dropped"] == {"train": {}, "validation": {}, "test": {}}
    assert data.info["source"]["kind"] == "files"
    assert data.split("test").to_list() == [
        {"text": "test a", "label": 0},
        {"text": "test b", "label": 1},
        {"text": "test c", "label": 2},
    ]
    assert sorted(path.name for path in data.folder.iterdir()) == [
        "data.json",
        "test.arrow",
        "train.arrow",
        "validation.arrow",
    ]


def test_the_validation_rows_have_each_label_in_proportion(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    data = prepare(tmp_path, write(tmp_path, train=many(300), test=TEST_ROWS))
    assert Counter(data.split("validation")["label"]) == {0: 10, 1: 10, 2: 10}


def test_the_seed_decides_which_rows_are_set_aside_and_nothing_else_does(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    rows = many(200)
    first = prepare(tmp_path, write(tmp_path, train=rows, test=TEST_ROWS))
    chosen = set(first.split("validation")["text"])
    random.Random(0).shuffle(rows)
    again = prepare(tmp_path, write(tmp_path, train=rows, test=TEST_ROWS))
    assert set(again.split("validation")["text"]) == chosen
    assert again.info["fingerprint"] != first.info["fingerprint"]
    other = prepare(tmp_path, write(tmp_path, train=rows, test=TEST_ROWS), seed=1)
    assert set(other.split("validation")["text"]) != chosen


def test_training_rows_without_a_label_stay_and_others_may_not(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    unlabelled = labelled(("log one", None), ("log two", ""), ("log three", "  "))
    data = prepare(tmp_path, write(tmp_path, train=many(30) + unlabelled, test=TEST_ROWS))
    assert data.info["unlabelled"] == {"train": 3}
    train = data.split("train")
    assert [row["text"] for row in train if row["label"] == -1] == [
        "log one",
        "log two",
        "log three",
    ]
    assert -1 not in data.split("validation")["label"]
    files = write(tmp_path, train=many(30), test=[*TEST_ROWS, *unlabelled], validation=unlabelled)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, files)
    assert str(caught.value).count("no label") == 6
    assert "line 4: no label; every test row needs one (data.columns.label)" in str(caught.value)


def test_a_query_log_needs_no_label_column_if_validation_rows_have_one(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    train = [{"text": f"log {i}"} for i in range(5)]
    files = write(tmp_path, train=train, validation=many(6), test=TEST_ROWS)
    data = prepare(tmp_path, files)
    assert data.labels == ["x", "y", "z"]
    assert data.info["unlabelled"] == {"train": 5}
    with pytest.raises(RecipeError, match=r"no column 'label'; it has: text\."):
        prepare(tmp_path, {**files, "validation": None})


def test_leaked_rows_are_dropped_and_counted_by_reason(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    train = [
        *many(30),
        *labelled(
            ("  TEST   a ", "x"),
            ("Cafe\u0301 \u00a0Stra\u00dfe", "y"),
            ("", "x"),
            (" \n", "x"),
            ("held", "z"),
            ("test a", "x"),
        ),
    ]
    validation = labelled(("HELD", "x"), ("Test B", "y"), ("own", "z"))
    test = [*TEST_ROWS, *labelled(("café STRASSE", "x"), ("", "x"), ("test a", "x"))]
    data = prepare(tmp_path, write(tmp_path, train=train, validation=validation, test=test))
    assert data.info["dropped"] == {
        "train": {"empty": 2, "in_test": 3, "in_validation": 1},
        "validation": {"in_test": 1},
        "test": {"empty": 1},
    }
    assert data.info["rows"] == {"train": 30, "validation": 2, "test": 5}


def test_repeated_training_rows_stay_and_contradictory_ones_go(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    rows = labelled(("same", "x"), ("same", "x"), ("torn", "x"), ("Torn", "y"), ("torn", None))
    files = write(tmp_path, train=many(30) + rows, validation=many(6, 90), test=TEST_ROWS)
    data = prepare(tmp_path, files)
    assert data.info["dropped"]["train"] == {"contradictory": 2}
    texts = Counter(data.split("train")["text"])
    assert (texts["same"], texts["torn"], texts["Torn"]) == (2, 1, 0)


def test_a_text_that_is_set_aside_is_in_no_training_row(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    rows = many(20) * 3 + [{"text": row["text"].upper(), "label": None} for row in many(20)]
    data = prepare(tmp_path, write(tmp_path, train=rows, test=TEST_ROWS), validation=0.3)
    held = [text_key(text) for text in data.split("validation")["text"]]
    assert len(held) == len(set(held)) == 6
    assert not set(held) & {text_key(text) for text in data.split("train")["text"]}
    assert data.info["dropped"]["train"] == {"in_validation": 18}


def test_pairs_are_told_apart_by_both_texts(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    def pair(a: str, b: str | None, label: str) -> Row:
        return {"text": a, "text_pair": b, "label": label}

    train = [pair(f"a {i}", "b", "xy"[i % 2]) for i in range(20)]
    train += [pair("one", "two", "x"), pair("onetwo", " ", "x"), pair("one", "three", "y")]
    test = [pair("One", "TWO", "x"), pair("o", "ne two", "y")]
    data = prepare(tmp_path, write(tmp_path, train=train, test=test))
    assert data.info["columns"] == ["text", "text_pair", "label"]
    assert data.info["dropped"]["train"] == {"empty": 1, "in_test": 1}
    assert data.split("test")[0] == {"text": "One", "text_pair": "TWO", "label": 0}


def test_columns_are_mapped_and_may_have_alternatives(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    header = "sentence,category\n"
    train = header + "".join(f"row {i},{'ab'[i % 2]}\n" for i in range(20))
    files = write(tmp_path, train=train, test=header + "t one,a\nt two,b\n")
    columns = {"text": "sentence", "label": ["label", "category"]}
    assert prepare(tmp_path, files, columns=columns).labels == ["a", "b"]
    with pytest.raises(RecipeError) as caught:
        prepare(tmp_path, files, columns={"text": "sentences", "label": "categories"})
    message = str(caught.value)
    assert message.count("there is no column") == 4
    assert "no column 'sentences'; it has: sentence, category. Did you mean 'sentence'?" in message
    assert "data.columns.label=…" in message
    with pytest.raises(RecipeError, match=r"data\.columns\.labels: .*Did you mean 'label'\?"):
        prepare(tmp_path, files, columns={"labels": "category"})
    with pytest.raises(RecipeError, match="'sentence' stands for both 'text' and 'label'"):
        prepare(tmp_path, files, columns={"text": "sentence", "label": "sentence"})


@pytest.mark.parametrize(
    ("tables", "kind", "message"),
    [
        ({"train": many(9)[::3], "test": TEST_ROWS[:1]}, DataError, "one class only, 'x'"),
        (
            {"train": many(9)[::3], "test": TEST_ROWS},
            DataError,
            r"(?s)2 problems.*one class only, 'x'.*line 2: label 'y'.*line 3: label 'z'",
        ),
        (
            {"train": many(9), "test": labelled(("a", "x"), ("b", "new"))},
            DataError,
            r"test\.jsonl\): line 2: label 'new' is in no training row",
        ),
        ({"train": many(9), "test": many(9)}, DataError, "no row is left for train"),
        (
            {"train": many(9), "test": labelled(("", "x"))},
            DataError,
            "no row is left for test; 1 were empty",
        ),
        (
            {"train": labelled(("a", None)), "test": TEST_ROWS},
            DataError,
            "No labelled training rows are left",
        ),
        ({"train": many(3), "test": TEST_ROWS}, RecipeError, "leaves no row to set aside"),
        (
            {"train": [*many(9), {"text": 5, "label": "x"}], "test": TEST_ROWS},
            DataError,
            "line 10: expected text, got int 5",
        ),
        (
            {"train": [*many(9), {"text": "\ud800", "label": "x"}], "test": TEST_ROWS},
            DataError,
            "line 10: has half a surrogate pair",
        ),
        (
            {"train": [*many(9), {"text": "a", "label": ["x"]}], "test": TEST_ROWS},
            DataError,
            "line 10: expected text, got a list",
        ),
        ({"train": "text,label\n", "test": TEST_ROWS}, DataError, "no rows after the header"),
    ],
)
def test_rows_that_make_no_task(
    write: Write,
    prepare: Prepare,
    tmp_path: Path,
    tables: dict[str, Any],
    kind: type[PareError],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        prepare(tmp_path, write(tmp_path, **tables))
    assert not (tmp_path / "out" / "data.json").exists()
    assert not list((tmp_path / "out").glob(".staging*"))


def test_errors_of_all_files_come_at_once_and_stay_short(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    train = "text,label\n" + "a,b,c\n" * 1000
    files = write(tmp_path, train=train, test=[{"text": 1, "label": "x"}])
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, files)
    message = str(caught.value)
    assert "and 995 more rows" in message
    assert "test.jsonl): line 1: expected text" in message
    assert len(message) < 1500


def test_too_many_labels_are_taken_for_the_wrong_column(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    rows = labelled(*((f"text {i}", f"label {i}") for i in range(10_001)))
    with pytest.raises(DataError, match="over 10,000 different labels"):
        prepare(tmp_path, write(tmp_path, train=rows, test=TEST_ROWS))


TEXTS = st.sampled_from(["a", "A", " a ", "b", "B b", "c", "café", "Cafe\u0301", "d", "e", ""])
LABELS = st.sampled_from(["x", "y", None])
ROWS = st.lists(st.tuples(TEXTS, LABELS), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.none() | ROWS, ROWS, st.floats(0.05, 0.6))
def test_no_text_is_in_two_splits_and_every_row_is_accounted_for(
    write: Write,
    prepare: Prepare,
    tmp_path_factory: pytest.TempPathFactory,
    train: list[tuple[str, str | None]],
    validation: list[tuple[str, str | None]] | None,
    test: list[tuple[str, str | None]],
    share: float,
) -> None:
    folder = tmp_path_factory.mktemp("data")
    tables = {"train": labelled(*train), "test": labelled(*((t, n or "x") for t, n in test))}
    if validation:
        tables["validation"] = labelled(*((t, n or "y") for t, n in validation))
    try:
        data = prepare(folder, write(folder, **tables), validation=share)
    except PareError:
        return
    splits = {name: data.split(name).to_list() for name in ("train", "validation", "test")}
    keys = {name: {text_key(row["text"]) for row in rows} for name, rows in splits.items()}
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]
    dropped = sum(sum(reasons.values()) for reasons in data.info["dropped"].values())
    assert sum(map(len, splits.values())) + dropped == sum(map(len, tables.values()))
    assert len(splits["test"]) == sum(1 for text, _ in test if text.strip())
    assert data.info["unlabelled"]["train"] == sum(row["label"] == -1 for row in splits["train"])
