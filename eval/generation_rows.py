"""Rows of a prompt and its completion, or of messages: checked, split and written.

Rules, in this order:

- Of messages the completion is what the assistant says last, if the last turn is its; the prompt is
  canonical JSON of the turns before (``[{"role":"user","content":"…"}]``).
- Training rows without a completion are kept, with an empty one; others must have one.
- Rows whose prompt is empty are dropped (``empty``).
- Validation and training rows whose prompt stands in test (``in_test``), and training rows whose
  prompt stands in validation (``in_validation``), are dropped. Rows that are merely repeated stay,
  and so do several completions of one prompt: how often each comes is information.
- Without a validation table, training rows with a completion are set aside by a hash of prompt and
  seed. A prompt that is set aside stands there once; its other rows are ``in_validation``.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .arrow_files import PROMPTS, ArrowFiles
from .columns import Names, alternatives, find_columns, missing_column
from .errors import DataError, PareError, RecipeError, nearest
from .labelled_rows import Written
from .problems import Problems
from .splits import validation_size
from .staging import draw_of, insert, row_key, staging
from .tables import Table, name_of, text_of

Form = Literal["text", "messages"]
Progress = Callable[[int], None]
ROLES = ("system", "developer", "user", "assistant", "tool")
TRAIN, VALIDATION, TEST = 1, 2, 4
_BITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
_NAMES = {bit: name for name, bit in _BITS.items()}

_SCHEMA = """
    CREATE TABLE rows (
        seq INTEGER PRIMARY KEY, split INTEGER, key BLOB, prompt TEXT, completion TEXT, slice TEXT);
    CREATE TABLE keys (key BLOB PRIMARY KEY, splits INTEGER, answered INTEGER, draw INTEGER)
        WITHOUT ROWID;
"""
_ADD_ROW = "INSERT INTO rows (split, key, prompt, completion, slice) VALUES (?, ?, ?, ?, ?)"
_ADD_KEYS = """
    INSERT INTO keys
    SELECT key, split, split = 1 AND completion IS NOT NULL, draw(key) FROM rows WHERE true
    ON CONFLICT (key) DO UPDATE SET
        splits = splits | excluded.splits, answered = max(answered, excluded.answered)
"""


@dataclass
class WrittenPrompts(Written):
    """What was written to a data folder; its fields are keys of data.json."""

    form: Form = "text"


def write_generation_rows(
    tables: Mapping[str, Table],
    mapping: Names,
    out: Path,
    *,
    task: str,
    seed: int,
    validation: float,
    max_validation: int,
    progress: Progress | None = None,
) -> WrittenPrompts:
    """Reads the tables of a generation task and writes its data folder's Arrow files.

    Raises:
        RecipeError: If a column is missing, or it is not clear which to take.
        DataError: If the content of the tables does not make a task; all of it in one message.
    """
    problems = Problems()
    form = _form(tables["train"], mapping)
    columns = _find_columns(tables, mapping, form, problems)
    problems.raise_if_any()
    dropped = {split: Counter[str]() for split in tables}
    done = 0
    with staging(out, _SCHEMA) as db:
        db.create_function("draw", 1, lambda key: draw_of(key, seed), deterministic=True)
        for split, table in tables.items():
            rows = _rows(split, table, columns[split], problems, dropped[split])
            before = done
            try:
                for count in insert(db, _ADD_ROW, rows):
                    done = before + count
                    if progress:
                        progress(done)
            except PareError as error:  # of a whole file: go on with the next
                problems.add(error)
        problems.raise_if_any()
        db.execute(_ADD_KEYS)
        _check_left(db, tables, dropped, problems)
        problems.raise_if_any()
        drawn: set[bytes] = set()
        if "validation" not in tables:
            drawn = _draw(db, validation, max_validation)
            dropped["validation"] = Counter()
        return _write(db, out, task, form, drawn, dropped)


def _form(train: Table, mapping: Names) -> Form:
    """Whether the rows are prompts with completions or messages, by what is mapped or there."""
    asked = [name for name in ("prompt", "messages") if name in mapping]
    if not asked:
        names = ("prompt", "messages")
        asked = [n for n in names if set(alternatives(mapping, n)) & set(train.columns)]
    if len(asked) == 2:
        raise RecipeError(
            f"{train.name}: there is a column for the prompt and one for messages, which hold the "
            "prompt too; name the one to take: data.columns.prompt=… or data.columns.messages=…"
        )
    if asked == ["messages"] and "completion" in mapping:
        raise RecipeError(
            "data.columns.completion: messages hold the completion, their last assistant turn; "
            "leave it out, or name data.columns.prompt instead of messages."
        )
    return "messages" if asked == ["messages"] else "text"


def _find_columns(
    tables: Mapping[str, Table], mapping: Names, form: Form, problems: Problems
) -> dict[str, dict[str, str | None]]:
    columns = {}
    for split, table in tables.items():
        required = ["messages"] if form == "messages" else ["prompt"]
        if form == "text" and split != "train":
            required.append("completion")
        columns[split] = find_columns(
            table, mapping, required=required, optional=["slice"], problems=problems
        )
    if form == "messages":
        return columns
    # Training rows may all be without an answer, if there are others to choose a checkpoint by.
    names = alternatives(mapping, "completion")
    train = tables["train"]
    found = next((name for name in names if name in train.columns), None)
    if found is None and "validation" not in tables:
        problems.add(missing_column(train, "completion", names))
    columns["train"]["completion"] = found
    return columns


def _rows(
    split: str,
    table: Table,
    columns: Mapping[str, str | None],
    problems: Problems,
    dropped: Counter[str],
) -> Iterator[tuple[int, bytes, str, str | None, str]]:
    """Yields rows for the database; those that are wrong are added to the problems."""
    roles = [role for role, name in columns.items() if name is not None]
    names = table.label_names.get(columns["slice"] or "")

    def report(place: int, message: str) -> None:
        problems.add_row(table.name, f"{table.unit} {place}", message)

    for place, cells in table.read([str(columns[role]) for role in roles], report):
        row = dict(zip(roles, cells, strict=True))
        try:
            if "messages" in row:
                prompt, completion = split_messages(row["messages"])
            else:
                prompt = text_of(row["prompt"])
                completion = _completion(row.get("completion"))
            kind = name_of(row.get("slice"), names) or ""
        except ValueError as error:
            report(place, str(error))
            continue
        if prompt is None:
            dropped["empty"] += 1
            continue
        if split != "train" and not (completion and completion.strip()):
            report(place, _unanswered(split, completion, "messages" in row))
            continue
        if completion is not None and not completion.strip():
            completion = None
        yield _BITS[split], row_key(prompt), prompt, completion, kind


def _completion(cell: Any) -> str | None:
    """A cell's text, as it is; None if there is none."""
    text = text_of(cell)
    return cell if text is None and isinstance(cell, str) else text


def _unanswered(split: str, completion: str | None, messages: bool) -> str:
    if messages:
        what = "no answer: the last turn is not the assistant's"
        what = what if completion is None else "the last assistant turn is empty"
        return f"{what}; every {split} row needs one (data.columns.messages)"
    what = "no completion" if completion is None else "the completion is empty"
    return f"{what}; every {split} row needs one (data.columns.completion)"


def split_messages(cell: Any) -> tuple[str | None, str | None]:
    """Splits a conversation into its prompt and the assistant's last turn.

    Args:
        cell: A list of ``{"role": …, "content": …}``, or JSON of one; keys that are null are as if
            they were not there.

    Returns:
        Canonical JSON of the turns before (None if there is no message), and the last turn's
        content, None where it is not the assistant's.

    Raises:
        ValueError: If it is something else, saying which turn.
    """
    turns = _checked_turns(cell)
    if not turns:
        return None, None
    completion = None
    if turns[-1]["role"] == "assistant":
        completion = turns.pop()["content"]
        if not turns:
            raise ValueError("the conversation starts with its answer; expected a turn before it")
    return canonical_prompt(turns), completion


def canonical_prompt(turns: Sequence[Mapping[str, str]]) -> str:
    """A conversation's turns as the ``prompt`` column has them.

    Examples:
        >>> canonical_prompt([{"role": "user", "content": "hi"}])
        '[{"role":"user","content":"hi"}]'
    """
    plain = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def _checked_turns(cell: Any) -> list[dict[str, str]]:
    expected = 'expected a list of {"role": …, "content": …}'
    if isinstance(cell, str):
        try:
            cell = json.loads(cell) if cell.strip() else None
        except ValueError:
            raise ValueError(f"{expected}, got a text that is not JSON") from None
    if cell is None:
        return []
    if not isinstance(cell, list):
        raise ValueError(f"{expected}, got {type(cell).__name__}")
    turns = []
    for number, turn in enumerate(cell, 1):
        if not isinstance(turn, dict):
            raise ValueError(f"message {number}: {expected}, got {type(turn).__name__}")
        given = {key: value for key, value in turn.items() if value is not None}
        more = [str(key) for key in given if key not in ("role", "content")]
        if more:
            raise ValueError(
                f"message {number} has '{more[0][:40]}'; only role and content can be learned"
            )
        role, content = given.get("role"), given.get("content")
        if role not in ROLES:
            near = nearest(role, ROLES) if isinstance(role, str) else ""
            shown = f"'{str(role)[:40]}'" if role is not None else "none"
            raise ValueError(f"message {number}: role {shown};{near} known: {', '.join(ROLES)}")
        if not isinstance(content, str):
            kind = "none" if content is None else type(content).__name__
            raise ValueError(f"message {number}: expected a text as content, got {kind}")
        text_of(content)  # refuses half a surrogate pair
        turns.append({"role": role, "content": content})
    return turns


def _check_left(
    db: sqlite3.Connection,
    tables: Mapping[str, Table],
    dropped: Mapping[str, Counter[str]],
    problems: Problems,
) -> None:
    """Checks that every split has a row whose prompt is in no split after it."""
    for split, table in tables.items():
        last = f"splits >= {_BITS[split]} AND splits < {2 * _BITS[split]}"
        if db.execute(f"SELECT 1 FROM keys WHERE {last} LIMIT 1").fetchone():
            continue
        problems.add(
            DataError(
                f"{table.name}: no row is left for {split}; {dropped[split]['empty']} were empty, "
                "the prompts of the others stand in a later split too."
            )
        )


def _draw(db: sqlite3.Connection, share: float, most: int) -> set[bytes]:
    """Returns the keys of the training rows that are set aside for validation."""
    where = "FROM keys WHERE splits = 1 AND answered"
    (count,) = db.execute(f"SELECT count(*) {where}").fetchone()
    size = validation_size(count, share, most)
    if not size:
        raise RecipeError(
            f"data.validation: {share:g} of {count} training prompts with a completion leaves no "
            "row to set aside beside one to learn; name data.files.validation."
        )
    chosen = db.execute(f"SELECT key {where} ORDER BY draw, key LIMIT ?", (size,))
    return {row[0] for row in chosen}


def _write(
    db: sqlite3.Connection,
    out: Path,
    task: str,
    form: Form,
    drawn: set[bytes],
    dropped: dict[str, Counter[str]],
) -> WrittenPrompts:
    waiting = set(drawn)
    unlabelled = 0
    with ArrowFiles(out, dict.fromkeys(_BITS, PROMPTS)) as files:
        for bit, key, prompt, completion, kind, splits in db.execute(
            "SELECT r.split, r.key, r.prompt, r.completion, r.slice, k.splits "
            "FROM rows r CROSS JOIN keys k ON k.key = r.key ORDER BY r.seq"
        ):
            split = _NAMES[bit]
            if key in waiting and completion is not None:
                waiting.remove(key)
                split = "validation"
            elif reason := _reason(bit, splits, key in drawn):
                dropped[split][reason] += 1
                continue
            unlabelled += completion is None
            files.add(split, prompt, completion or "", kind)
    return WrittenPrompts(
        columns=list(PROMPTS.names),
        rows={split: files.rows[split] for split in _BITS},
        fingerprint=files.fingerprint(task, form),
        unlabelled={"train": unlabelled},
        dropped={split: dict(sorted(dropped[split].items())) for split in _BITS},
        form=form,
    )


def _reason(bit: int, splits: int, drawn: bool) -> str | None:
    """Returns why a row is dropped, or None for one that stays."""
    if bit < TEST <= splits:
        return "in_test"
    return "in_validation" if bit == TRAIN and (splits & VALIDATION or drawn) else None
