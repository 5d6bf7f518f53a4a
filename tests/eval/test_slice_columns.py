"""Columns that test rows are judged apart by: matched with the rows, whatever was dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.data import Data
from paredown.eval.errors import DataError, RecipeError
from paredown.eval.slice_columns import read_slice_columns
from paredown.eval.sources import open_source
from paredown.eval.tasks import get_task

Write = Callable[..., dict[str, str]]
Prepare = Callable[..., Data]

TRAIN = [{"text": f"row {i}", "label": "xy"[i % 2]} for i in range(20)]
TEST = [
    {"text": "a", "label": "x", "country": "de", "age": 30},
    {"text": " ", "label": "x", "country": "fr", "age": 1},
    {"text": "b", "label": "y", "country": None, "age": 41},
    {"text": "a", "label": "x", "country": "fr", "age": 30.0},
    {"text": "c", "label": "y", "country": " de ", "age": True},
]


def read(
    files: dict[str, str], data: Data, names: list[str], task: str = "classification",
    mapping: dict[str, str] | None = None,
) -> dict[str, list[str]]:  # fmt: skip
    tables = open_source(None, files).tables
    return read_slice_columns(tables, mapping or {}, get_task(task), data, names)


def test_each_test_row_has_its_values_and_dropped_rows_have_none(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    files = write(tmp_path, train=TRAIN, test=TEST)
    data = prepare(tmp_path, files)
    assert data.split("test")["text"][:] == ["a", "b", "a", "c"]
    found = read(files, data, ["country", "age"])
    assert found == {"country": ["de", "", "fr", "de"], "age": ["30", "41", "30", "true"]}


def test_pairs_are_matched_by_both_texts(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    train = [{**row, "text_pair": "p"} for row in TRAIN]
    test = [{"text": "a", "text_pair": pair, "label": "x", "kind": kind}
            for pair, kind in (("1", "one"), ("2", "two"))]  # fmt: skip
    files = write(tmp_path, train=train, test=test)
    assert read(files, prepare(tmp_path, files), ["kind"]) == {"kind": ["one", "two"]}


def test_queries_take_the_kind_of_their_first_row(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    train = [{"q": f"query {i}", "text": f"text {i}"} for i in range(10)]
    test = [
        {"q": "query 3", "text": "t", "kind": "old"},
        {"q": "new one", "text": "t", "kind": "new"},
        {"q": "New One", "text": "u", "kind": "other"},
    ]
    files = write(tmp_path, train=train, test=test)
    mapping = {"query": "q"}
    data = prepare(tmp_path, files, "retrieval", columns=mapping)
    queries = data.split("test")["query"][:]
    found = read(files, data, ["kind"], "retrieval", mapping)
    assert dict(zip(queries, found["kind"], strict=True)) == {"query 3": "old", "new one": "new"}


def test_beirs_queries_hold_the_columns(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    def judged(number: int) -> dict[str, Any]:
        return {"query-id": f"q{number}", "corpus-id": f"d{number}", "score": 1}

    files = write(
        tmp_path,
        collection=[{"_id": f"d{i}", "text": f"document {i}"} for i in range(6)],
        queries=[{"_id": f"q{i}", "text": f"query {i}", "kind": ["even", "odd"][i % 2]}
                 for i in range(6)],
        train=[judged(i) for i in range(4)],
        test=[judged(5), judged(4)],
    )  # fmt: skip
    data = prepare(tmp_path, files, "retrieval")
    found = read(files, data, ["kind"], "retrieval")
    wanted = ["even" if query == "query 4" else "odd" for query in data.split("test")["query"]]
    assert found == {"kind": wanted} and set(wanted) == {"even", "odd"}


@pytest.mark.parametrize("form", ["text", "messages"])
def test_prompts_of_both_forms(form: str, write: Write, prepare: Prepare, tmp_path: Path) -> None:
    def row(i: int, **more: str) -> dict[str, Any]:
        if form == "text":
            return {"prompt": f"p {i}", "completion": "c", **more}
        turns = [{"role": "user", "content": f"p {i}"}, {"role": "assistant", "content": "c"}]
        return {"messages": turns, **more}

    files = write(
        tmp_path,
        train=[row(i) for i in range(10)],
        test=[row(20, length="short"), row(21, length="long")],
    )
    data = prepare(tmp_path, files, "generation")
    assert read(files, data, ["length"], "generation") == {"length": ["short", "long"]}


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (["county"], RecipeError, "no column 'county'.*Did you mean 'country'"),
        (["label"], RecipeError, "the task's own label.*told apart by themselves"),
        (["text"], RecipeError, "the task's own text"),
        (["extra"], DataError, "line 1: evaluate.slices: expected text, got an object"),
        (["score"], DataError, "line 3: evaluate.slices: expected text, got float 0.5"),
    ],
)
def test_a_column_that_names_no_kinds_of_rows_is_refused(
    names: list[str], kind: type[Exception], message: str,
    write: Write, prepare: Prepare, tmp_path: Path,
) -> None:  # fmt: skip
    test = [dict(row) for row in TEST]
    test[0]["extra"], test[2]["score"] = {"a": 1}, 0.5
    files = write(tmp_path, train=TRAIN, test=test)
    with pytest.raises(kind, match=message):
        read(files, prepare(tmp_path, files), names)


def test_a_class_of_another_name_is_a_class_all_the_same(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    rows = [{"text": row["text"], "category": row["label"]} for row in TRAIN]
    files = write(tmp_path, train=rows, test=[{**rows[0], "text": "z"}])
    data = prepare(tmp_path, files, columns={"label": "category"})
    with pytest.raises(RecipeError, match="'category' is the task's own label"):
        read(files, data, ["category"], mapping={"label": "category"})


def test_names_of_rows_are_too_many_and_changed_rows_are_told(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    test = [{"text": f"t {i}", "label": "x", "id": f"id-{i}"} for i in range(201)]
    files = write(tmp_path, train=TRAIN, test=test)
    data = prepare(tmp_path, files)
    with pytest.raises(DataError, match=r"'id' has 201 different values.*at most 200"):
        read(files, data, ["id"])
    Path(files["test"]).write_text(json.dumps(test[0]) + "\n")
    with pytest.raises(DataError, match="has changed"):
        read(files, data, ["id"])
