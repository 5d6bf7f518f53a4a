"""`paredown predict` and `paredown verify`: rows in, answers out, for whatever holds a model.

Imports no torch, unless the model is a PyTorch checkpoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..eval.errors import DataError, RecipeError, RunError
from ..export.opening import open_folder
from ..export.predict import (
    FORMATS,
    Index,
    PredictError,
    Row,
    answer_rows,
    checked,
    json_line,
    read_rows,
    refuse_names,
)
from ..export.verify import MANIFEST, Verified, VerifyError
from ..export.verify import verify as verify_folder
from .row_files import opened, prompt_rows, written

BATCH = 32


def verify(
    folder: str | Path, *, flip_rate: float | None = None, threads: int | None = None
) -> Verified:
    """Runs an export's golden rows again on this machine, after checking its files.

    Args:
        folder: Of an export.
        flip_rate: Share of decisions that may differ; what the folder states if None.
        threads: Threads of its runtime; all cores if None.

    Returns:
        How many decisions differ, by how much values do, and what differs between the machines.

    Raises:
        RecipeError: If an argument is wrong, or the folder carries no golden rows.
        RunError: If a file of it is missing, damaged or was changed.
    """
    path = Path(folder)
    if (path / "report.json").is_file() and not (path / MANIFEST).exists():
        exports = sorted(str(found.parent) for found in path.glob(f"export/*/{MANIFEST}"))
        raise RecipeError(
            f"'{path}' is a run. Name one of its exports: {', '.join(exports) or 'it has none'}."
        )
    try:
        return verify_folder(path, lambda: open_folder(path, threads=threads), flip_rate)
    except VerifyError as error:
        kind = RecipeError if error.exit_code == RecipeError.exit_code else RunError
        raise kind(str(error)) from error
    except PredictError as error:
        raise RunError(str(error)) from error


def predict(
    folder: str | Path,
    rows: Iterable[str | Mapping[str, str]],
    *,
    index: str | Path | None = None,
    texts: str | Path | None = None,
    top: int | None = None,
    batch: int = BATCH,
    threads: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Answers rows, one after the other; no more than a batch is read ahead.

    Args:
        folder: Of an export, a stock checkpoint (a run's ``student/``), or a run: its student.
        rows: Texts, or mappings with ``text`` and perhaps ``text_pair``.
        index: Embeddings of the texts to be found, a ``.npy`` file of shape (N, d).
        texts: The texts of the index, a JSONL file.
        top: Classes (1 if None) or answers (10 if None) of a row.
        batch: Rows read before answering.
        threads: Threads of the runtime; all cores if None.

    Yields:
        What the folder's predict.py prints for a row: ``label`` and ``probability``, ``embedding``,
        ``answers``, or ``text``; ``row`` and ``error`` for one that cannot be answered.

    Raises:
        RecipeError: If an argument is wrong or does not fit the model.
        RunError: If the model cannot be loaded.
    """
    model = open_model(folder, threads)
    found = _index(model, index, texts, top)
    given = (_row(row) for row in rows)
    return answers(model, given, index=found, top=top, batch=batch)


def _row(row: str | Mapping[str, str]) -> Row:
    if isinstance(row, str):
        return checked(row, None)
    if not isinstance(row, Mapping) or "text" not in row:
        return Row(error="expected a text, or a mapping with 'text'")
    return checked(row["text"], row.get("text_pair"))


def predict_file(
    folder: str | Path,
    file: str | Path | None,
    out: str | Path | None = None,
    *,
    kind: str | None = None,
    column: str | None = None,
    pair_column: str | None = None,
    index: str | Path | None = None,
    texts: str | Path | None = None,
    top: int | None = None,
    batch: int = BATCH,
    threads: int | None = None,
) -> tuple[int, int]:
    """Answers the rows of a file, as the folder's own predict.py does.

    Args:
        folder: As for `predict`.
        file: ``.txt``, ``.jsonl``, ``.csv`` or ``.tsv``; stdin if None or ``-``.
        out: Gets a JSON object a row; it has its name only once it is whole. Stdout if None.
        kind: Format of the rows; by the file's ending if None.
        column: Key or column of the text.
        pair_column: Key or column of the second text.
        index: As for `predict`.
        texts: As for `predict`.
        top: As for `predict`.
        batch: Rows read before answering.
        threads: Threads of the runtime; all cores if None.

    Returns:
        Rows that were read, and how many of them could not be answered.

    Raises:
        RecipeError: If an argument is wrong, or the file cannot be read.
        RunError: If the model cannot be loaded, or a file turns out to be damaged on the way.
    """
    source = None if file in (None, "-") else Path(str(file))
    known = sorted(set(FORMATS.values()))
    if kind is not None and kind not in known:
        raise RecipeError(f"Unknown format of rows '{kind}'; choose one of {', '.join(known)}.")
    if source is not None and out is not None and source.resolve() == Path(out).resolve():
        raise RecipeError(f"--out '{out}' is the file that is read. Name another.")
    kind = kind or FORMATS.get("" if source is None else source.suffix.lower(), "txt")
    if source is not None and not source.is_file() and not source.is_fifo():
        raise RecipeError(f"There is no file '{source}'.")
    try:
        refuse_names(kind, column, pair_column)
    except PredictError as error:
        raise RecipeError(str(error)) from error
    model = open_model(folder, threads)
    found = _index(model, index, texts, top)
    total = failed = 0
    try:
        with opened(source) as rows, written(out) as sink:
            if _writes_texts(model):
                given = prompt_rows(rows, kind, column, pair_column)
            else:
                given = read_rows(rows, kind, column, pair_column)
            for answer in answers(model, given, index=found, top=top, batch=batch):
                total += 1
                failed += "error" in answer
                sink.write(json_line(answer) + "\n")
                if total % batch == 0:
                    sink.flush()
    except PredictError as error:
        raise (RunError if total else RecipeError)(str(error)) from error
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise RunError(
            f"{error.filename or source or 'stdin'}: {error.strerror or error}."
        ) from error
    return total, failed


def open_model(folder: str | Path, threads: int | None = None) -> Any:
    """Opens an export, a checkpoint, or the student of a run; see `open_folder`."""
    path = Path(folder)
    run = path.parent if path.name == "student" else path
    if (run / "report.json").is_file() and (run / "student").is_dir():
        return open_folder(run / "student", threads=threads, **_student_options(run))
    return open_folder(path, threads=threads)


def _student_options(run: Path) -> dict[str, Any]:
    """How a run's language model is asked; other models say so themselves."""
    from .finished_run import open_run
    from .generation_rules import generates

    found = open_run(run)
    if not generates(found.recipe):
        return {}
    from ..eval.data import Data

    settings = found.recipe.generation
    form = Data.open(found.stage("data").path).info["form"]
    if settings is None:
        return {"form": form}
    if settings.settings:
        raise RecipeError(
            f"'{run}' writes with generation.settings ({', '.join(settings.settings)}), and "
            "predict is greedy. Use transformers with its student/."
        )
    options = {"template": settings.template, "max_new_tokens": settings.max_new_tokens}
    return {"form": form, **options}


def _writes_texts(model: Any) -> bool:
    return bool(model.settings["signal"] == "token_distribution")


def _index(
    model: Any, index: str | Path | None, texts: str | Path | None, top: int | None
) -> Index | None:
    """Opens the index that answers are looked for in.

    Raises:
        RecipeError: If an option has no effect on this model, or a file cannot be read.
    """
    signal = model.settings["signal"]
    if texts is not None and index is None:
        raise RecipeError("--texts needs --index.")
    if index is not None and signal != "embedding":
        raise RecipeError(f"--index is for embedding models; this one gives {signal}.")
    if top is not None and top < 1:
        raise RecipeError(f"--top: expected at least 1, got {top}.")
    if top is not None and index is None and signal != "class_logits":
        raise RecipeError("--top is for classes, and for answers from an --index.")
    if index is None:
        return None
    try:
        return Index(index, texts, int(model.settings["width"]))
    except PredictError as error:
        raise RecipeError(str(error)) from error
    except OSError as error:
        raise RecipeError(f"'{error.filename}' cannot be read: {error.strerror}.") from error


def answers(
    model: Any, rows: Iterator[Row], *, index: Index | None, top: int | None, batch: int
) -> Iterator[dict[str, Any]]:
    """Yields one answer or error a row, in order, reading no more than a batch ahead."""
    if batch < 1:
        raise RecipeError(f"--batch: expected at least 1, got {batch}.")
    if not _writes_texts(model):
        yield from answer_rows(model, rows, index=index, top=top, batch=batch)
        return
    done = 0
    while waiting := list(itertools.islice(rows, batch)):
        found = iter(_texts(model, [row.text for row in waiting if row.error is None]))
        for row in waiting:
            done += 1
            answer = {"error": row.error} if row.error is not None else next(found)
            yield {"row": done, **answer} if "error" in answer else answer


def _texts(model: Any, prompts: list[str]) -> list[dict[str, Any]]:
    """What a language model writes; where it refuses a prompt, the others are answered."""
    if not prompts:
        return []
    try:
        return list(model.predict(prompts))
    except (PredictError, DataError, RunError) as error:
        if len(prompts) == 1:
            return [{"error": str(error).removesuffix(".")}]
        return [answer for prompt in prompts for answer in _texts(model, [prompt])]
