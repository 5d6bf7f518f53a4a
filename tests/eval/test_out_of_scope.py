"""Rows out of scope: read from any table, and none of them a row of the task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from paredown.eval.data import Data
from paredown.eval.errors import DataError, RecipeError
from paredown.eval.out_of_scope import read_out_of_scope

Write = Callable[..., dict[str, str]]
Prepare = Callable[..., Data]
ROWS = [{"text": f"row {i}", "label": "xy"[i % 2]} for i in range(20)]


@pytest.fixture
def data(write: Write, prepare: Prepare, tmp_path: Path) -> Data:
    test = [{"text": "a test row", "label": "x"}]
    return prepare(tmp_path, write(tmp_path, train=ROWS, test=test))


def test_texts_are_read_once_each_and_empty_ones_left_out(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "strangers.csv"
    path.write_text("text,label\nwhat is love,none\n  ,none\nWhat  is LOVE,x\nsing,\n")
    assert read_out_of_scope(path, {}, data) == [("what is love",), ("sing",)]
    path.write_text("utterance\nhello\n")
    assert read_out_of_scope(path, {"text": ["text", "utterance"]}, data) == [("hello",)]


def test_pairs_need_both_texts(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    rows = [{**row, "text_pair": "p"} for row in ROWS]
    data = prepare(tmp_path, write(tmp_path, train=rows, test=[{**rows[0], "text": "t"}]))
    path = tmp_path / "strangers.csv"
    path.write_text("text,text_pair\na,b\nc,\n")
    assert read_out_of_scope(path, {}, data) == [("a", "b")]


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("text\na TEST row\n", DataError, "'a TEST row' is a test row of the task"),
        ("text\nrow 3\n", DataError, "'row 3' is a (train|validation) row"),
        ("words\nhello\n", RecipeError, r"no column 'text'.*data\.columns\.text"),
        ("text,b\n ,x\n", DataError, "no row has a text"),
    ],
)
def test_what_says_nothing_about_strangers_is_refused(
    content: str, kind: type[Exception], message: str, data: Data, tmp_path: Path
) -> None:
    path = tmp_path / "strangers.csv"
    path.write_text(content)
    with pytest.raises(kind, match=message):
        read_out_of_scope(path, {}, data)


def test_a_file_that_is_not_there_is_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.out_of_scope.*no such file"):
        read_out_of_scope(tmp_path / "gone.csv", {}, data)
    with pytest.raises(RecipeError, match="expected a file ending in"):
        read_out_of_scope(tmp_path, {}, data)
