"""Rows of predict.py are read as the training files are: the same fields, the same blank lines."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.eval.errors import DataError
from paredown.eval.tables import open_table
from paredown.export import predict
from paredown.export.predict import PredictError, Row, json_line, read_rows
from paredown.export.predict_text import read_prompts


def rows(content: bytes, kind: str = "csv", **columns: str | None) -> list[Row]:
    """The rows of a file's content."""
    given = {"column": None, "pair_column": None} | columns
    return list(read_rows(io.BytesIO(content), kind, **given))


def texts(content: bytes, kind: str = "csv") -> list[str]:
    """What they say, or what is wrong with them."""
    return [row.error or row.text for row in rows(content, kind)]


def test_a_stray_quote_swallows_no_rows() -> None:
    content = b'id,text\n1,fine\n2,"so" he said\n3,lost?\n4,"end"\n'
    found = read_rows(io.BytesIO(content), "csv", None, None)
    assert next(found).text == "fine"
    with pytest.raises(PredictError, match=r"Not CSV from line 3 on: .*quotes in it are doubled"):
        next(found)
    with pytest.raises(PredictError, match="Not CSV from line 2 on"):
        rows(b'text\n"never closed\nmore\n')


def test_quotes_of_a_tsv_file_are_text() -> None:
    content = b'id\ttext\n1\t"so" he said\n2\t"never closed\n3\t"so ""he"" said"\n'
    assert texts(content, "tsv") == ['"so" he said', '"never closed', 'so "he" said']


@pytest.mark.parametrize(("kind", "mark"), [("csv", ","), ("tsv", "\t")])
def test_a_row_with_more_or_fewer_fields_than_the_header_is_an_error(kind: str, mark: str) -> None:
    content = "id,text\n1,fine\n2,well, and more\n3\n4,last\n".replace(",", mark).encode()
    assert texts(content, kind) == [
        "fine", "3 fields, the header has 2", "1 fields, the header has 2", "last",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_blank_lines_are_no_rows(kind: str) -> None:
    assert texts(b"\r\ntext\n\nfine\n\r\n  \nlast\n\n", kind) == ["fine", "empty", "last"]


def test_a_byte_order_mark_before_a_quoted_header_is_none_of_its_name() -> None:
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "id"), ("größe", 1)])
    assert texts(file.getvalue().encode("utf-8-sig")) == ["größe"]
    assert texts("größe\n".encode("utf-8-sig"), "txt") == ["größe"]
    assert texts('"größe"\n'.encode("utf-8-sig"), "jsonl") == ["größe"]


@settings(max_examples=200, deadline=None)
@given(st.text('ab", \t\n\r', max_size=30), st.sampled_from(["csv", "tsv"]))
def test_what_training_reads_of_a_table_is_what_is_answered(
    tmp_path_factory: pytest.TempPathFactory, content: str, kind: str
) -> None:
    header = "text,label\n" if kind == "csv" else "text\tlabel\n"
    path = tmp_path_factory.mktemp("rows") / f"a.{kind}"
    path.write_bytes((header + content).encode())
    reported: list[int] = []
    try:
        table = open_table(path, "data.files.train")
        read = [cells for _, cells in table.read(("text",), lambda at, _: reported.append(at))]
    except DataError as error:
        if "no rows" in str(error):
            assert rows(path.read_bytes(), kind) == []
        else:
            with pytest.raises(PredictError, match="Not CSV from line"):
                rows(path.read_bytes(), kind)
        return
    found = rows(path.read_bytes(), kind)
    assert sum("fields, the header" in (row.error or "") for row in found) == len(reported)
    found = [row for row in found if row.error in (None, "empty")]
    assert [row.text for row in found] == [text if text.strip() else "" for (text,) in read]


class Endless(io.RawIOBase):
    """A file whose only line has no end."""

    def __init__(self) -> None:
        self.given = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        assert size is not None and 0 < size < 1 << 24, "a line is read to its end"
        self.given += size
        return (b"text\n" if self.given == size else b"x" * size)[:size]


def test_a_line_of_csv_without_an_end_does_not_fill_the_memory() -> None:
    file: Any = Endless()
    with pytest.raises(PredictError, match="Not CSV from line 2 on: more than 8,388,608 bytes"):
        list(read_rows(file, "csv", None, None))
    assert file.given < 1 << 25


def test_a_record_of_many_lines_has_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "RECORD_BYTES", 100)
    fine = b'text\n"' + b"short\n" * 10 + b'"\n'
    assert texts(fine) == ["short\n" * 10]
    assert texts(b"text\n" + b"word\n" * 100) == ["word"] * 100
    with pytest.raises(PredictError, match="Not CSV from line 2 on: more than 100 bytes"):
        rows(b'text\n"' + b"short\n" * 20 + b'"\n')
    assert texts(b"text\n" + b"x" * 101 + b"\nlast\n", "tsv") == ["longer than 100 bytes", "last"]


ANY = st.text(st.characters(codec="utf-16", exclude_categories=()), max_size=20) | st.text()


@given(st.dictionaries(ANY, ANY | st.integers() | st.lists(ANY)))
def test_an_answer_is_a_line_of_json_whatever_is_in_it(answer: dict[str, Any]) -> None:
    line = json_line(answer)
    assert json.loads(line.encode("utf-8")) == json.loads(json.dumps(answer))
    assert "\n" not in line


def test_half_a_surrogate_pair_in_a_prompt_is_its_rows_error() -> None:
    lines = ['{"prompt": "a \\ud800"}', '{"messages": [{"role": "user", "content": "\\ud800"}]}',
             '{"\\ud800": 1}', '{"prompt": " "}', '{"messages": []}', '"fine"']  # fmt: skip
    found = list(read_prompts(io.BytesIO("\n".join(lines).encode()), "jsonl", None))
    assert [error and error[:9] for _, error in found] == [
        "not UTF-8", "not UTF-8", "no key pr", "empty", None, None,
    ]  # fmt: skip
    assert found[4:] == [([], None), ("fine", None)]
