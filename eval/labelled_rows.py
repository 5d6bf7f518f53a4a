"""Rows of one text, or a pair, and a class: checked, split and written.

Rules, in this order:

- Training rows without a label are kept, with label -1; others must have one.
- Rows whose text (or either text of a pair) is empty are dropped (``empty``).
- Validation and training rows whose text stands in test (``in_test``), and training rows whose
  text stands in validation (``in_validation``), are dropped.
- Training rows of one text with different labels are dropped (``contradictory``). Rows that are
  merely repeated stay: how often a text comes is information.
- Without a validation table, training rows are set aside by a hash of text and seed, each label's
  share of them. A text that is set aside stands there once; its other rows are ``in_validation``.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .arrow_files import LABELLED, LABELLED_PAIRS, ArrowFiles
from .columns import Names, alternatives, find_columns, missing_column
from .errors import DataError, PareError, RecipeError
from .problems import Problems
from .splits import sorted_labels, stratified_sizes, validation_size
from .staging import draw_of, insert, row_key, staging
from .tables import Table, name_of, text_of

MAX_LABELS = 10_000
TRAIN, VALIDATION, TEST = 1, 2, 4
_BITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
_NAMES = {bit: name for name, bit in _BITS.items()}

_SCHEMA = """
    CREATE TABLE rows (
        seq INTEGER PRIMARY KEY, split INTEGER, key BLOB, label TEXT, text TEXT, pair TEXT);
    CREATE TABLE keys (
        key BLOB PRIMARY KEY, splits INTEGER, label TEXT, contradictory INTEGER, draw INTEGER)
        WITHOUT ROWID;
"""
_ADD_ROW = "INSERT INTO rows (split, key, label, text, pair) VALUES (?, ?, ?, ?, ?)"
_ADD_KEYS = """
    INSERT INTO keys
    SELECT key, split, CASE split WHEN 1 THEN label END, 0, draw(key) FROM rows WHERE true
    ON CONFLICT (key) DO UPDATE SET
        splits = splits | excluded.splits,
        contradictory = max(contradictory, ifnull(label <> excluded.label, 0)),
        label = ifnull(label, excluded.label)
"""
_TRAINED = "splits = 1 AND label IS NOT NULL AND NOT contradictory"

Progress = Callable[[int], None]


@dataclass
class Written:
    """What was written to a data folder; its fields are keys of data.json."""

    columns: list[str]
    rows: dict[str, int]
    fingerprint: str
    labels: list[str] | None = None
    unlabelled: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)


def write_labelled_rows(
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
    """Reads the tables of a classification task and writes its data folder's Arrow files.

    Raises:
        RecipeError: If a column is missing.
        DataError: If the content of the tables does not make a task; all of it in one message.
    """
    problems = Problems()
    columns = _find_columns(tables, mapping, problems)
    problems.raise_if_any()
    dropped = {split: Counter[str]() for split in tables}
    with staging(out, _SCHEMA) as db:
        db.create_function("draw", 1, lambda key: draw_of(key, seed), deterministic=True)
        seen = _Labels()
        for split, table in tables.items():
            rows = _rows(split, table, columns[split], problems, dropped[split], seen)
            try:
                for _ in insert(db, _ADD_ROW, rows):
                    if progress:
                        progress(seen.rows.total())
            except PareError as error:  # of a whole file: go on with the next
                problems.add(error)
        problems.raise_if_any()
        db.execute(_ADD_KEYS)
        labels = _labels(db, tables, seen, problems)
        _check_left(db, tables, dropped, problems)
        problems.raise_if_any()
        drawn: set[bytes] = set()
        if "validation" not in tables:
            drawn = _draw(db, validation, max_validation)
            dropped["validation"] = Counter()
        pair = columns["train"]["text_pair"] is not None
        return _write(db, out, task, labels, drawn, dropped, pair)


def _find_columns(
    tables: Mapping[str, Table], mapping: Names, problems: Problems
) -> dict[str, dict[str, str | None]]:
    train = tables["train"]
    paired = "text_pair" in mapping or "text_pair" in train.columns
    columns = {}
    for split, table in tables.items():
        required = ["text", "text_pair"] if paired else ["text"]
        if split != "train":
            required.append("label")
        columns[split] = find_columns(table, mapping, required=required, problems=problems)
        columns[split].setdefault("text_pair", None)
    # Training rows may all be without a label, if there are others to choose a checkpoint by.
    names = alternatives(mapping, "label")
    label = next((name for name in names if name in train.columns), None)
    if label is None and "validation" not in tables:
        problems.add(missing_column(train, "label", names))
    columns["train"]["label"] = label
    return columns


class _Labels:
    """Labels as they come, by split: how many rows, and where the first is."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.first: dict[str, dict[str, int]] = {}

    def add(self, split: str, label: str | None, table: Table, place: int) -> None:
        self.rows[split] += 1
        if label is None:
            return
        first = self.first.setdefault(split, {})
        if label not in first:
            if len(first) == MAX_LABELS:
                raise DataError(
                    f"{table.name}, {table.unit} {place}: over {MAX_LABELS:,} different labels; "
                    "is data.columns.label the column of a class?"
                )
            first[label] = place


def _rows(
    split: str,
    table: Table,
    columns: Mapping[str, str | None],
    problems: Problems,
    dropped: Counter[str],
    seen: _Labels,
) -> Iterator[tuple[int, bytes, str | None, str, str | None]]:
    """Yields rows for the database; those that are wrong are added to the problems."""
    roles = [role for role in ("text", "text_pair", "label") if columns[role] is not None]
    names = table.label_names.get(columns["label"] or "")

    def report(place: int, message: str) -> None:
        problems.add_row(table.name, f"{table.unit} {place}", message)

    for place, cells in table.read([str(columns[role]) for role in roles], report):
        row = dict(zip(roles, cells, strict=True))
        try:
            text = text_of(row["text"])
            pair = text_of(row["text_pair"]) if "text_pair" in row else None
            label = name_of(row.get("label"), names)
        except ValueError as error:
            report(place, str(error))
            continue
        if text is None or ("text_pair" in row and pair is None):
            dropped["empty"] += 1
            continue
        if label is None and split != "train":
            report(place, f"no label; every {split} row needs one (data.columns.label)")
            continue
        seen.add(split, label, table, place)
        yield _BITS[split], row_key(text, pair), label, text, pair


def _labels(
    db: sqlite3.Connection, tables: Mapping[str, Table], seen: _Labels, problems: Problems
) -> list[str]:
    """Returns the names of the classes in the order of their ids."""
    trained = {row[0] for row in db.execute(f"SELECT DISTINCT label FROM keys WHERE {_TRAINED}")}
    known, where = trained, "training rows"
    if not seen.first.get("train"):
        known = set(seen.first.get("validation", ()))
        where = "training or validation rows" if "validation" in tables else where
    if not known:
        problems.add(
            DataError(
                f"No labelled {where} are left; expected at least two classes. "
                "Is data.columns.label right?"
            )
        )
        return []
    for split in ("validation", "test"):
        for label, place in seen.first.get(split, {}).items():
            if label not in known:
                table = tables[split]
                problems.add_row(table.name, f"{table.unit} {place}", _new(label))
    if len(known) == 1:
        problems.add(
            DataError(
                f"There is one class only, '{next(iter(known))}', in the {where}; "
                "expected at least two."
            )
        )
    return sorted_labels(known)


def _new(label: str) -> str:
    return f"label '{label[:60]}' is in no training row that is left; a student cannot learn it"


def _check_left(
    db: sqlite3.Connection,
    tables: Mapping[str, Table],
    dropped: Mapping[str, Counter[str]],
    problems: Problems,
) -> None:
    """Checks that every split has a row whose text is in no split after it."""
    for split, table in tables.items():
        bit = _BITS[split]
        condition = "NOT contradictory" if split == "train" else "true"
        last = f"splits >= {bit} AND splits < {2 * bit}"
        if db.execute(f"SELECT 1 FROM keys WHERE {last} AND {condition} LIMIT 1").fetchone():
            continue
        problems.add(
            DataError(
                f"{table.name}: no row is left for {split}; {dropped[split]['empty']} were empty, "
                "the others stand in a later split too, or contradict each other."
            )
        )


def _draw(db: sqlite3.Connection, share: float, most: int) -> set[bytes]:
    """Returns the keys of the training rows that are set aside for validation."""
    db.execute(f"CREATE INDEX places ON keys (label, draw, key) WHERE {_TRAINED}")
    counts = dict(db.execute(f"SELECT label, count(*) FROM keys WHERE {_TRAINED} GROUP BY label"))
    sizes = stratified_sizes(counts, validation_size(sum(counts.values()), share, most))
    chosen = f"SELECT key FROM keys WHERE {_TRAINED} AND label = ? ORDER BY draw, key LIMIT ?"
    drawn = {row[0] for label in sizes for row in db.execute(chosen, (label, sizes[label]))}
    if not drawn:
        raise RecipeError(
            f"data.validation: {share:g} of {sum(counts.values())} labelled training texts leaves "
            "no row to set aside beside one of each class; name data.files.validation."
        )
    return drawn


def _write(
    db: sqlite3.Connection,
    out: Path,
    task: str,
    labels: list[str],
    drawn: set[bytes],
    dropped: dict[str, Counter[str]],
    pair: bool,
) -> Written:
    ids = {label: number for number, label in enumerate(labels)}
    schema = LABELLED_PAIRS if pair else LABELLED
    waiting = set(drawn)
    unlabelled = 0
    with ArrowFiles(out, dict.fromkeys(_BITS, schema)) as files:
        for bit, key, label, text, other, splits, contradictory in db.execute(
            "SELECT r.split, r.key, r.label, r.text, r.pair, k.splits, k.contradictory "
            "FROM rows r CROSS JOIN keys k ON k.key = r.key ORDER BY r.seq"
        ):
            split = _NAMES[bit]
            if key in waiting and label is not None:
                waiting.remove(key)
                split = "validation"
            elif reason := _reason(bit, splits, key in drawn, contradictory, label):
                dropped[split][reason] += 1
                continue
            unlabelled += label is None
            texts = (text, other) if pair else (text,)
            files.add(split, *texts, -1 if label is None else ids[label])
    return Written(
        columns=list(schema.names),
        rows={split: files.rows[split] for split in _BITS},
        fingerprint=files.fingerprint(task, labels),
        labels=labels,
        unlabelled={"train": unlabelled},
        dropped={split: dict(sorted(dropped[split].items())) for split in _BITS},
    )


def _reason(
    bit: int, splits: int, drawn: bool, contradictory: int, label: str | None
) -> str | None:
    """Returns why a row is dropped, or None for one that stays."""
    if bit < TEST <= splits:
        return "in_test"
    if bit == TRAIN and (splits & VALIDATION or drawn):
        return "in_validation"
    return "contradictory" if bit == TRAIN and contradictory and label is not None else None
