"""Tables in local files (CSV, TSV, JSONL, Parquet), read row by row in bounded memory.

Only the standard library and pyarrow are used, so nothing is cached outside of the run. Every
error names the file and the line, or the row.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import DataError, RecipeError, nearest

MAX_LINE_BYTES = 16 * 2**20
"""A line, or a quoted field, of more than this is taken for a damaged file."""

MAX_COLUMNS = 1000
BATCH_ROWS = 1024

Report = Callable[[int, str], None]
"""Called with a row's place and what is wrong with it; the row is then left out."""

Values = tuple[int, tuple[Any, ...]]
"""A row's place (line of a text file, else row number, both from 1) and its cells."""

Records = Generator[tuple[int, list[str]], None, None]


@dataclass(frozen=True)
class Table:
    """Rows that can be read more than once, without being held in memory.

    Attributes:
        name: What messages call it: the recipe key and the path.
        columns: The columns that are there.
        read: Called with column names and a :data:`Report`; yields each row's :data:`Values`.
        unit: What a place counts: ``line`` or ``row``.
        label_names: For integer columns that stand for names: the names, in order.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str], Report], Iterator[Values]]
    unit: str = "row"
    label_names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def open_table(path: Path, key: str) -> Table:
    """Opens a file by its suffix and reads the names of its columns.

    Args:
        path: The file.
        key: The recipe key that named it, for messages.

    Raises:
        RecipeError: If there is no such file, or its suffix is not one of :data:`READERS`.
        DataError: If it is empty, not UTF-8, or not what the suffix says.
    """
    name = f"{key} ({path})"
    opener = READERS.get(path.suffix.lower())
    if not path.exists():
        near = nearest(path.name, _names_beside(path))
        raise RecipeError(f"{name}: there is no such file.{near} The path starts at {Path.cwd()}.")
    if opener is None or not path.is_file():
        what = "a folder" if path.is_dir() else f"a file ending in '{path.suffix}'"
        raise RecipeError(f"{name}: expected a file ending in {', '.join(READERS)}; got {what}.")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{name}: the file is empty; expected a header or rows.")
        return opener(path, name)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error}.") from error


def _names_beside(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []


# Lines of text


def _lines(path: Path, name: str) -> Iterator[str]:
    """Yields decoded lines; raises DataError with line and byte where a file is not text."""
    offset = 0
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES):
            number += 1
            if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                raise DataError(
                    f"{name}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; expected "
                    "rows on lines of their own."
                )
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{name}: not UTF-8 at line {number}, byte {offset + error.start} of the file. "
                    f"Convert it first, for example: iconv -f LATIN1 -t UTF-8 {path.name}"
                ) from None
            if "\0" in text:
                raise DataError(
                    f"{name}: a NUL at line {number}, byte {offset + raw.index(0)} of the file; "
                    "expected UTF-8 text (UTF-16 must be converted first)."
                )
            offset += len(raw)
            yield text.removeprefix(codecs.BOM_UTF8.decode()) if number == 1 else text


# CSV


def _csv_records(path: Path, name: str) -> Records:
    """Yields the line each record starts at, and its fields; blank lines are not records."""
    reader = csv.reader(_lines(path, name), strict=True)
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    start = 1
    try:
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}: the record that starts at line {start} is not CSV ({error}). A field with "
            'a quote, comma or line break stands in quotes, and quotes in it are doubled ("").'
        ) from error
    finally:
        csv.field_size_limit(limit)


# TSV


def _tsv_records(path: Path, name: str) -> Records:
    """Yields lines split at tabs. Quotes are text, except around a field that needed them."""
    for number, line in enumerate(_lines(path, name), 1):
        line = line.rstrip("\r\n")
        if line:
            yield number, [_unquoted(cell) for cell in line.split("\t")]


def _unquoted(cell: str) -> str:
    # Writers such as pandas quote a cell that has a quote in it, and double the quotes inside.
    if len(cell) >= 2 and cell[0] == cell[-1] == '"':
        inner = cell[1:-1]
        if '""' in inner and '"' not in inner.replace('""', ""):
            return inner.replace('""', '"')
    return cell


def _open_records(path: Path, name: str, records: Callable[[Path, str], Records]) -> Table:
    with contextlib.closing(records(path, name)) as rows:
        header = next(rows, (0, []))[1]
        if next(rows, None) is None:
            raise DataError(f"{name}: there are no rows after the header.")
    header = [column.strip() for column in header]
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise DataError(f"{name}: the header has two columns named '{repeated[0]}'.")

    def read(columns: Sequence[str], report: Report) -> Iterator[Values]:
        picked = [header.index(column) for column in columns]
        rows = records(path, name)
        next(rows)
        for place, fields in rows:
            if len(fields) == len(header):
                yield place, tuple(fields[i] for i in picked)
            else:
                report(place, f"expected {len(header)} fields, as in the header; got {len(fields)}")

    return Table(name, tuple(header), read, unit="line")


# JSONL


def _json_object(line: str) -> dict[str, Any]:
    """Parses one line; raises ValueError that says what is wrong with it."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {_kind(value)}")
    return value


def _open_jsonl(path: Path, name: str) -> Table:
    columns: dict[str, None] = {}
    problem = None
    for number, line in enumerate(_lines(path, name), 1):
        if not line.strip():
            continue
        try:
            found = _json_object(line)
        except ValueError as error:
            problem = problem or f"line {number}: {error}"
            continue
        if len(columns) < MAX_COLUMNS:
            columns.update(dict.fromkeys(found))
    if not columns:
        raise DataError(f"{name}: {problem or 'the file has no rows'}; expected one object a line.")

    def read(wanted: Sequence[str], report: Report) -> Iterator[Values]:
        for number, line in enumerate(_lines(path, name), 1):
            if line.strip():
                try:
                    row = _json_object(line)
                except ValueError as error:
                    report(number, str(error))
                else:
                    yield number, tuple(row.get(column) for column in wanted)

    return Table(name, tuple(columns), read, unit="line")


# Parquet


def _open_parquet(path: Path, name: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            rows = file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a whole Parquet file ({error}).") from error
    if rows == 0:
        raise DataError(f"{name}: the file has columns and no rows.")

    def read(columns: Sequence[str], report: Report) -> Iterator[Values]:
        place = 0
        try:
            with pq.ParquetFile(path) as file:
                # Columns are read by name once each; two roles may share one.
                batches = file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(columns)))
                for batch in batches:
                    cells = [batch.column(column).to_pylist() for column in columns]
                    for row in zip(*cells, strict=True):
                        place += 1
                        yield place, row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{name}: cannot be read after row {place} ({error}).") from error

    return Table(name, tuple(schema.names), read, label_names=_label_names(schema.metadata))


def _label_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, Sequence[str]]:
    """Finds the names of class labels that `datasets` writes into a Parquet file's metadata."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


READERS: dict[str, Callable[[Path, str], Table]] = {
    ".csv": lambda path, name: _open_records(path, name, _csv_records),
    ".tsv": lambda path, name: _open_records(path, name, _tsv_records),
    ".jsonl": _open_jsonl,
    ".ndjson": _open_jsonl,
    ".parquet": _open_parquet,
}
"""A file's suffix and what opens it."""


# Cells


def text_of(cell: Any) -> str | None:
    """Returns a cell's text, None if it is missing or only white space.

    Raises:
        ValueError: If it is not text.
    """
    if cell is None or (isinstance(cell, float) and cell != cell):
        return None
    if not isinstance(cell, str):
        raise ValueError(f"expected text, got {_kind(cell)}")
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("has half a surrogate pair, which is not text") from None
    return cell if cell.strip() else None


def name_of(cell: Any, names: Sequence[str] | None = None) -> str | None:
    """Returns the name of a label or the identifier in a cell, None if it is missing.

    Args:
        cell: A string or an integer; an integral float is what integers beside gaps become.
        names: The names that integers stand for; -1 then means none.

    Raises:
        ValueError: If it is neither, or stands for no name.
    """
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if not isinstance(cell, int):
        text = text_of(cell)
        return text.strip() if text else None
    if names is None:
        return str(cell)
    if cell == -1:
        return None
    if not 0 <= cell < len(names):
        raise ValueError(f"expected a class from 0 to {len(names) - 1}, got {cell}")
    return names[cell]


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    if value is None:
        return "null"
    return kinds.get(type(value), f"{type(value).__name__} {str(value)[:40]}")
