"""Reading tables: every format, every way a file can be wrong, and the hub out of reach."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.eval import sources, tables
from paredown.eval.errors import DataError, PareError, RecipeError, RunError
from paredown.eval.sources import open_source, source_facts
from paredown.eval.tables import Table, name_of, open_table, text_of


def rows_of(table: Table, *columns: str) -> tuple[list[Any], list[tuple[int, str]]]:
    """Returns rows, and what was reported of others."""
    reported: list[tuple[int, str]] = []
    wanted = columns or table.columns
    read = table.read(wanted, lambda place, message: reported.append((place, message)))
    return list(read), reported


def table_of(path: Path, content: str | bytes) -> Table:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return open_table(path, "data.files.train")


# What can be read


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_with_quotes_and_line_breaks_keeps_line_numbers(tmp_path: Path, end: str) -> None:
    lines = ["\ufefftext,label", '"a, ""b""', 'and more",x', "", "plain,y", "uneven"]
    table = table_of(tmp_path / "a.csv", end.join(lines))
    assert table.columns == ("text", "label")
    rows, reported = rows_of(table, "label", "text")
    assert rows == [(2, ("x", f'a, "b"{end}and more')), (5, ("y", "plain"))]
    assert reported == [(6, "expected 2 fields, as in the header; got 1")]


def test_tsv_takes_quotes_as_text_except_those_a_writer_added(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.tsv", 'text\tlabel\n"so" he said\tx\n"so ""he"" said"\t"y"\n')
    assert rows_of(table)[0] == [(2, ('"so" he said', "x")), (3, ('so "he" said', '"y"'))]


def test_jsonl_reports_lines_of_a_wrong_shape(tmp_path: Path) -> None:
    lines = ['{"text": "a"}', "[1]", "", '{"text": ', '{"label": 3}', "null", "7" * 5000]
    table = table_of(tmp_path / "a.jsonl", "\n".join([*lines, "[" * 100_000]))
    assert table.columns == ("text", "label")
    rows, reported = rows_of(table)
    assert rows == [(1, ("a", None)), (5, (None, 3))]
    assert [place for place, _ in reported] == [2, 4, 6, 7, 8]
    assert reported[0][1] == "expected a JSON object, got a list"
    assert "not JSON" in reported[1][1]


def test_parquet_is_read_with_the_names_of_its_classes(tmp_path: Path) -> None:
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"])
    )
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features).to_parquet(path)
    table = open_table(path, "data.files.train")
    assert table.label_names == {"label": ["no", "yes"]}
    assert rows_of(table, "label", "label")[0] == [(1, (1, 1)), (2, (-1, -1))]


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_every_format_gives_back_the_text_that_was_written(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("formats")
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *cells])
    with (folder / "a.jsonl").open("w", encoding="utf-8") as file:
        for text, label in cells:
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    columns = {"text": [cell[0] for cell in cells], "label": [cell[1] for cell in cells]}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        rows, reported = rows_of(open_table(folder / name, "x"))
        assert [row for _, row in rows] == cells
        assert not reported


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.csv"
        path.write_text("text,label\n" + "some words in a row,x\n" * rows)
        tracemalloc.start()
        table = open_table(path, "x")
        assert sum(1 for _ in table.read(("text",), lambda *_: None)) == rows
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(20_000) < peak(200) + 200_000


# What cannot


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"text,label\n", "no rows after the header"),
        ("a.csv", b"text,text\na,b\n", "two columns named 'text'"),
        ("a.csv", b"text,label\nok,x\n\xe9t\xe9,y\n", "not UTF-8 at line 3, byte 16 of the file"),
        ("a.csv", "text,label\na,x\n".encode("utf-16"), "not UTF-8 at line 1, byte 0"),
        ("a.csv", b"text,label\na\0b,x\n", "a NUL at line 2, byte 12 of the file"),
        ("a.csv", b'text,label\na,x\n"open,y\n', "starts at line 3 is not CSV"),
        ("a.csv", b'text,label\n"a" b,x\n', "starts at line 2 is not CSV"),
        ("a.tsv", b"text\tlabel\n\n", "no rows after the header"),
        ("a.jsonl", b"[]\n", "line 1: expected a JSON object, got a list"),
        ("a.jsonl", b"\n\n", "the file has no rows"),
        ("a.jsonl", b'{"text": "\xff"}\n', "not UTF-8 at line 1, byte 10"),
        ("a.parquet", b"PAR1 not really", "not a whole Parquet file"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        rows_of(table_of(tmp_path / name, content))
    assert "data.files.train" in str(caught.value)
    assert name in str(caught.value)


def test_a_parquet_file_without_rows_or_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match="no rows"):
        open_table(path, "x")
    pq.write_table(pa.table({"text": ["a"] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        open_table(path, "x")


def test_a_huge_field_is_read_and_an_endless_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = csv.field_size_limit()
    table = table_of(tmp_path / "a.csv", f"text,label\n{'w ' * 500_000},x\n")
    assert len(rows_of(table)[0][0][1][0]) == 1_000_000
    assert csv.field_size_limit() == limit
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 1000)
    with pytest.raises(DataError, match="line 2: longer than"):
        rows_of(table)
    with pytest.raises(DataError, match="starts at line 2 is not CSV"):
        table_of(tmp_path / "b.csv", 'text,label\n"' + "row,x\n" * 1000)


def test_files_that_are_not_there_or_not_known(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text\na\n")
    (tmp_path / "train.xlsx").write_text("text\na\n")
    with pytest.raises(RecipeError, match=r"no such file\. Did you mean 'train\.csv'"):
        open_table(tmp_path / "trains.csv", "data.files.train")
    with pytest.raises(RecipeError, match=r"\.csv, \.tsv, \.jsonl.*ending in '\.xlsx'"):
        open_table(tmp_path / "train.xlsx", "data.files.train")
    with pytest.raises(RecipeError, match="got a folder"):
        open_table(tmp_path, "data.files.train")


def test_all_files_that_are_wrong_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    files = {"train": str(tmp_path / "none.csv"), "test": str(tmp_path / "empty.csv"), "tset": "x"}
    with pytest.raises(RecipeError) as caught:
        open_source(None, files)
    message = str(caught.value)
    assert "3 problems" in message
    assert "no such file" in message
    assert "the file is empty" in message
    assert "data.files.tset: unknown file. Did you mean 'test'?" in message


def test_training_and_test_files_are_both_needed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    with pytest.raises(RecipeError, match=r"data\.files\.test: missing"):
        open_source("ignored", {"train": str(tmp_path / "a.csv"), "test": None})
    with pytest.raises(RecipeError, match=r"give `data\.source`"):
        open_source(None, {})


def test_facts_of_files_change_with_their_content(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\na\n")
    before = source_facts(None, {"train": str(path), "test": None})
    path.write_text("text\nb\n")
    assert source_facts(None, {"train": str(path)}) != before
    assert before["files"]["train"]["bytes"] == 7
    with pytest.raises(RecipeError, match=r"data\.files\.train .*cannot be read"):
        source_facts(None, {"train": str(tmp_path / "none.csv")})


# Cells


@pytest.mark.parametrize("cell", [None, "", " \t\n", float("nan"), "\u2003"])
def test_missing_text_and_labels(cell: Any) -> None:
    assert text_of(cell) is None
    assert name_of(cell) is None


@pytest.mark.parametrize(
    ("cell", "name"), [("  a b ", "a b"), (3, "3"), (3.0, "3"), (-1, "-1"), (True, "true")]
)
def test_labels_are_names(cell: Any, name: str) -> None:
    assert name_of(cell) == name


def test_integers_stand_for_the_names_a_file_gives_them() -> None:
    assert [name_of(cell, ["no", "yes"]) for cell in (0, 1, -1, None)] == ["no", "yes", None, None]
    with pytest.raises(ValueError, match="expected a class from 0 to 1, got 2"):
        name_of(2, ["no", "yes"])


@pytest.mark.parametrize("cell", [3, ["a"], {"a": 1}, b"a", "\ud800"])
def test_what_is_not_text_is_refused(cell: Any) -> None:
    with pytest.raises(ValueError, match=r"expected text, got|not text"):
        text_of(cell)


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Stands in for the hub: what it holds, or the error it gives."""
    held: dict[str, Any] = {}

    def load(name: str, config: str | None, *, revision: str | None) -> Any:
        found = held[name]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "_answers", lambda address: True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    yield held


def hub_rows(*names: str) -> datasets.DatasetDict:
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"])
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features)
    return datasets.DatasetDict(dict.fromkeys(names, rows))


def test_a_hub_data_set_gives_its_splits_and_class_names(hub: dict[str, Any]) -> None:
    hub["some/set"] = hub_rows("train", "dev", "test", "extra")
    source = open_source("some/set", None, revision="main")
    assert list(source.tables) == ["train", "validation", "test"]
    table = source.tables["validation"]
    assert table.label_names == {"label": ["no", "yes"]}
    assert rows_of(table, "label", "text")[0] == [(1, (0, "a")), (2, (1, "b"))]
    assert source.facts["revision"] == "main"


@pytest.mark.parametrize(
    ("found", "kind", "message"),
    [
        (hub_rows("train", "dev"), RecipeError, "has no split 'test'; it has: train, dev"),
        (ValueError("Config name is missing.\nPick one"), RecipeError, "Config name is missing"),
        (RuntimeError("Dataset scripts are no longer supported"), RecipeError, "convert/parquet"),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 's' doesn't exist"),
            RecipeError,
            "no data set 's'",
        ),
        (ConnectionError("reset"), RunError, r"reset\. Or use local files: data\.files\.train="),
    ],
)
def test_what_the_hub_refuses(
    hub: dict[str, Any], found: Any, kind: type[PareError], message: str
) -> None:
    hub["s"] = found
    with pytest.raises(kind, match=message):
        open_source("s")


def test_the_hub_out_of_reach_says_so_at_once(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub["s"] = ConnectionError("Couldn't reach 's' on the Hub (OfflineModeIsEnabled)")
    monkeypatch.setattr(sources, "_answers", lambda address: False)
    with pytest.raises(RunError, match=r"cannot be reached.*data\.files\.train="):
        open_source("s")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        open_source("s")


def test_a_name_that_is_not_cached_fails_offline_with_the_real_client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(RunError, match="'nobody/nothing' is not on this machine"):
        open_source("nobody/nothing")
