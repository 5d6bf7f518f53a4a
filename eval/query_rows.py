"""Queries and the texts that answer them: one collection, checked, split and written.

Rules, in this order:

- Texts of all splits and of the collection file form one collection; equal texts (NFC, white
  space collapsed) are one.
- Rows without a query are dropped (``empty``). Training rows without a text are queries that have
  no answer; others must have one.
- Queries are the same if their NFC, case-folded forms are; every text paired with a query in any
  split is relevant to it.
- A query is in one split alone. Validation and training rows whose query stands in test
  (``in_test``), and training rows whose query stands in validation (``in_validation``), are
  dropped; their texts stay in the collection and stay relevant.
- Without a validation table, queries that have an answer are set aside by a hash of query and seed.

In BEIR's layout the splits are relevance files: rows that are not relevant (score 0 or less) and
rows whose query or text does not exist are dropped, and queries that no file names are training
queries without an answer.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .arrow_files import COLLECTION, QUERIES, ArrowFiles
from .columns import Names, find_columns
from .errors import DataError, PareError, RecipeError
from .labelled_rows import Progress, Written
from .problems import Problems
from .splits import validation_size
from .staging import draw_of, insert, row_key, staging
from .tables import Table, name_of, text_of

_BITS = {"train": 1, "validation": 2, "test": 4}

_SCHEMA = """
    CREATE TABLE texts (id INTEGER PRIMARY KEY, key TEXT UNIQUE, text TEXT, name TEXT);
    CREATE TABLE text_names (name TEXT PRIMARY KEY, text INTEGER) WITHOUT ROWID;
    CREATE TABLE query_names (name TEXT PRIMARY KEY, key BLOB, text TEXT) WITHOUT ROWID;
    CREATE TABLE used_names (name TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE queries (
        seq INTEGER PRIMARY KEY, key BLOB UNIQUE, text TEXT, split INTEGER,
        train INTEGER, validation INTEGER, test INTEGER, draw INTEGER);
    CREATE TABLE pairs (
        query INTEGER, text INTEGER, grade INTEGER, PRIMARY KEY (query, text)) WITHOUT ROWID;
"""
_ADD_QUERY = """
    INSERT INTO queries (key, text, split, train, validation, test, draw)
    VALUES (:key, :text, :bit, :bit = 1, :bit = 2, :bit = 4, draw(:key))
    ON CONFLICT (key) DO UPDATE SET
        text = CASE WHEN excluded.split > split THEN excluded.text ELSE text END,
        split = max(split, excluded.split),
        train = train + excluded.train,
        validation = validation + excluded.validation,
        test = test + excluded.test
"""
_ADD_PAIR = """
    INSERT INTO pairs SELECT seq, :text, :grade FROM queries WHERE key = :key
    ON CONFLICT (query, text) DO UPDATE SET grade = max(grade, excluded.grade)
"""
_ANSWERED = "split = 1 AND EXISTS (SELECT 1 FROM pairs WHERE pairs.query = queries.seq)"


def write_query_rows(
    tables: Mapping[str, Table],
    mapping: Names,
    out: Path,
    *,
    task: str,
    seed: int,
    validation: float,
    max_validation: int,
    progress: Progress | None = None,
) -> Written:
    """Reads the tables of a retrieval task and writes its data folder's Arrow files.

    Raises:
        RecipeError: If a column is missing.
        DataError: If the content of the tables does not make a task; all of it in one message.
    """
    with staging(out, _SCHEMA) as db:
        db.create_function("draw", 1, lambda key: draw_of(key, seed), deterministic=True)
        reader = _Reader(db, tables, mapping, progress)
        reader.read()
        _check(db, tables, reader.dropped)
        dropped = reader.dropped
        if "validation" not in tables:
            _draw(db, validation, max_validation)
        else:
            dropped["validation"]["in_test"] = _sum(db, "validation", 4)
            dropped["train"]["in_validation"] = _sum(db, "train", 2)
        dropped["train"]["in_test"] = _sum(db, "train", 4)
        return _write(db, out, task, dropped)


class _Reader:
    """Reads the tables into the database."""

    def __init__(
        self,
        db: sqlite3.Connection,
        tables: Mapping[str, Table],
        mapping: Names,
        progress: Progress | None,
    ) -> None:
        self.db, self.tables, self.mapping, self.progress = db, tables, mapping, progress
        self.problems = Problems()
        self.dropped = {split: Counter[str]() for split in _BITS}
        self._texts = self._rows = 0

    def read(self) -> None:
        splits = [split for split in _BITS if split in self.tables]
        relevance = "queries" in self.tables
        read_split = self._read_relevance if relevance else self._read_pairs
        steps: list[tuple[Callable[[str], None], str]] = [(read_split, split) for split in splits]
        if "collection" in self.tables:
            steps.insert(0, (self._read_collection, "collection"))
        if relevance:
            steps.insert(0, (self._read_queries, "queries"))
        for step, name in steps:
            try:
                step(name)
            except PareError as error:  # of a whole file: go on with the next
                self.problems.add(error)
        self.problems.raise_if_any()
        if relevance:
            unused = self.db.execute(
                "SELECT key, text FROM query_names WHERE name NOT IN (SELECT name FROM used_names) "
                "ORDER BY name"
            )
            self._insert(_ADD_QUERY, ({"key": k, "text": t, "bit": 1} for k, t in unused))

    def _insert(self, statement: str, rows: Iterator[Any]) -> None:
        for _ in insert(self.db, statement, rows):
            if self.progress:
                self.progress(self._rows)

    def _cells(self, split: str, columns: Mapping[str, str | None]) -> Iterator[tuple[int, Any]]:
        """Yields a row's place and its cells by role; a role the table lacks is not there."""
        table = self.tables[split]
        roles = {role: name for role, name in columns.items() if name is not None}

        def report(place: int, message: str) -> None:
            self._report(split, place, message)

        for place, cells in table.read(list(roles.values()), report):
            self._rows += 1
            yield place, dict(zip(roles, cells, strict=True))

    def _report(self, split: str, place: int, message: str) -> None:
        table = self.tables[split]
        self.problems.add_row(table.name, f"{table.unit} {place}", message)

    def _columns(
        self, name: str, mapping: Names, required: list[str], optional: tuple[str, ...] = ()
    ) -> dict[str, str | None] | None:
        """Returns the names of columns, or None if one is missing, which is then a problem."""
        found = find_columns(
            self.tables[name],
            mapping,
            required=required,
            optional=optional,
            problems=self.problems,
            mappable=("query", "text"),
        )
        return None if any(found[role] is None for role in required) else found

    # Pairs

    def _read_pairs(self, split: str) -> None:
        # Query logs have no texts: training rows may do without the whole column.
        required = ["query"] if split == "train" else ["query", "text"]
        columns = self._columns(split, self.mapping, required, ("text",))
        if columns is None:
            return
        for place, row in self._cells(split, columns):
            try:
                query, text = text_of(row["query"]), text_of(row.get("text"))
            except ValueError as error:
                self._report(split, place, str(error))
                continue
            if query is None:
                self.dropped[split]["empty"] += 1
            elif text is None and split != "train":
                self._report(split, place, f"no text; every {split} query needs one to find")
            else:
                self._add(split, query, None if text is None else self._text(text), 1)

    def _add(self, split: str, query: str, text: int | None, grade: int) -> None:
        key = row_key(query)
        self.db.execute(_ADD_QUERY, {"key": key, "text": query, "bit": _BITS[split]})
        if text is not None:
            self.db.execute(_ADD_PAIR, {"key": key, "text": text, "grade": grade})
        if self.progress and self._rows % 1024 == 0:
            self.progress(self._rows)

    def _text(self, text: str, name: str | None = None) -> int:
        """Returns the row number of a text in the collection; one that is new is added."""
        key = " ".join(unicodedata.normalize("NFC", text).split())
        found = self.db.execute("SELECT id FROM texts WHERE key = ?", (key,)).fetchone()
        if found:
            return int(found[0])
        number = self._texts
        self.db.execute(
            "INSERT INTO texts VALUES (?, ?, ?, ?)", (number, key, text, name or str(number))
        )
        self._texts += 1
        return number

    # BEIR

    def _read_collection(self, name: str) -> None:
        beir = "queries" in self.tables
        names = {"text": self.mapping.get("text", "text"), "id": ("_id", "id")}
        columns = self._columns(name, names, ["text", "id"] if beir else ["text"])
        if columns is None:
            return
        for role, known in (("id", ("_id", "id")), ("title", ("title",))):
            there = (column for column in known if column in self.tables[name].columns)
            columns.setdefault(role, next(there, None))
        for place, row in self._cells(name, columns):
            try:
                text, title = text_of(row["text"]), text_of(row.get("title"))
                identifier = name_of(row.get("id"))
            except ValueError as error:
                self._report(name, place, str(error))
                continue
            full = " ".join(part for part in (title, text) if part)
            if beir and identifier is None:
                self._report(name, place, "no identifier (_id)")
            elif full:
                self._name_text(name, place, identifier, self._text(full, identifier))

    def _name_text(self, table: str, place: int, identifier: str | None, text: int) -> None:
        if identifier is None:
            return
        try:
            self.db.execute("INSERT INTO text_names VALUES (?, ?)", (identifier, text))
        except sqlite3.IntegrityError:
            self._report(table, place, f"the identifier '{identifier}' stands there twice")

    def _read_queries(self, name: str) -> None:
        mapping = {"query": self.mapping.get("query", ("text", "query")), "id": ("_id", "id")}
        columns = self._columns(name, mapping, ["query", "id"])
        if columns is None:
            return
        for place, row in self._cells(name, columns):
            try:
                query, identifier = text_of(row["query"]), name_of(row["id"])
            except ValueError as error:
                self._report(name, place, str(error))
                continue
            if identifier is None:
                self._report(name, place, "no identifier (_id)")
            elif query is not None:
                try:
                    values = (identifier, row_key(query), query)
                    self.db.execute("INSERT INTO query_names VALUES (?, ?, ?)", values)
                except sqlite3.IntegrityError:
                    self._report(name, place, f"the identifier '{identifier}' stands there twice")

    def _read_relevance(self, split: str) -> None:
        names = {"query-id": ("query-id", "query_id"), "corpus-id": ("corpus-id", "corpus_id")}
        columns = self._columns(split, names, ["query-id", "corpus-id", "score"])
        if columns is None:
            return
        for place, row in self._cells(split, columns):
            try:
                query, text = name_of(row["query-id"]), name_of(row["corpus-id"])
                score = name_of(row["score"])
            except ValueError as error:
                self._report(split, place, str(error))
                continue
            if score is None or not re.fullmatch(r"[+-]?[0-9]{1,9}", score):
                self._report(split, place, f"expected a whole number as score, got '{score}'")
                continue
            self._add_relevance(split, query, text, int(score))

    def _add_relevance(self, split: str, query: str | None, text: str | None, grade: int) -> None:
        find_query = "SELECT text FROM query_names WHERE name = ?"
        known = self.db.execute(find_query, (query,)).fetchone()
        if known is None:
            self.dropped[split]["unknown_query"] += 1
            return
        self.db.execute("INSERT OR IGNORE INTO used_names VALUES (?)", (query,))
        find_text = "SELECT text FROM text_names WHERE name = ?"
        number = self.db.execute(find_text, (text,)).fetchone()
        if grade <= 0:
            self.dropped[split]["not_relevant"] += 1
        elif number is None:
            self.dropped[split]["unknown_text"] += 1
        else:
            self._add(split, known[0], number[0], grade)


def _sum(db: sqlite3.Connection, column: str, split: int) -> int:
    """Counts the rows of one table whose queries went to a later split."""
    query = f"SELECT ifnull(sum({column}), 0) FROM queries WHERE split = ?"
    return int(db.execute(query, (split,)).fetchone()[0])


def _check(
    db: sqlite3.Connection, tables: Mapping[str, Table], dropped: Mapping[str, Counter[str]]
) -> None:
    problems = Problems()
    for split, bit in _BITS.items():
        if split not in tables:
            continue
        if not db.execute("SELECT 1 FROM queries WHERE split = ? LIMIT 1", (bit,)).fetchone():
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped[split].items()))
            problems.add(
                DataError(
                    f"{tables[split].name}: no row is left for {split}"
                    + (f" (dropped: {reasons})" if reasons else "")
                    + "; all others stand in a later split too."
                )
            )
    if db.execute("SELECT count(*) FROM (SELECT 1 FROM texts LIMIT 2)").fetchone()[0] < 2:
        problems.add(DataError("There are fewer than two texts to find; expected a collection."))
    problems.raise_if_any()


def _draw(db: sqlite3.Connection, share: float, most: int) -> None:
    """Moves queries from training to validation, those with the lowest draws."""
    count = db.execute(f"SELECT count(*) FROM queries WHERE {_ANSWERED}").fetchone()[0]
    size = validation_size(count, share, most)
    if size == 0:
        raise RecipeError(
            f"data.validation: {count} training queries have a text, too few to set one aside; "
            "name data.files.validation."
        )
    db.execute(
        f"UPDATE queries SET split = 2 WHERE seq IN "
        f"(SELECT seq FROM queries WHERE {_ANSWERED} ORDER BY draw, key LIMIT ?)",
        (size,),
    )


def _write(
    db: sqlite3.Connection, out: Path, task: str, dropped: dict[str, Counter[str]]
) -> Written:
    names = {bit: split for split, bit in _BITS.items()}
    unlabelled = 0
    schemas = {**dict.fromkeys(_BITS, QUERIES), "collection": COLLECTION}
    with ArrowFiles(out, schemas) as files:
        for text, name in db.execute("SELECT text, name FROM texts ORDER BY id"):
            files.add("collection", text, name)
        rows = db.execute(
            "SELECT q.seq, q.text, q.split, p.text, p.grade FROM queries q "
            "LEFT JOIN pairs p ON p.query = q.seq ORDER BY q.seq, p.text"
        )
        for _, group in itertools.groupby(rows, key=lambda row: row[0]):
            answers = list(group)
            _, query, bit, first, _ = answers[0]
            found = [] if first is None else answers
            unlabelled += first is None
            files.add(names[bit], query, [row[3] for row in found], [row[4] for row in found])
    return Written(
        columns=list(QUERIES.names),
        rows={name: files.rows[name] for name in schemas},
        fingerprint=files.fingerprint(task, None),
        unlabelled={"train": unlabelled},
        dropped={
            split: {reason: n for reason, n in sorted(dropped[split].items()) if n}
            for split in _BITS
        },
    )
