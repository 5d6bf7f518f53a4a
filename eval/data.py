"""A task's rows: read once, checked, split, and written to a folder of Arrow files.

The folder holds ``data.json``, ``train.arrow``, ``validation.arrow``, ``test.arrow`` and, for
retrieval, ``collection.arrow``. Test rows stand in ``test.arrow`` alone, which nothing but the
evaluation opens.
"""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .columns import check_mapping
from .errors import DataError, RecipeError, RunError
from .sources import BUILDERS, PYTHON_DOCS, open_source
from .tasks import Task

if TYPE_CHECKING:
    import datasets

_EMPTY: Mapping[str, Any] = {}


@dataclass(frozen=True)
class DataSettings:
    """What a recipe's ``data`` says.

    Attributes:
        source: ``python_docs``, ``query_filters`` or the name of a hub data set; files replace it.
        config: Configuration of the hub data set.
        revision: Its branch, tag or commit.
        files: Paths by ``train``, ``validation``, ``test``, ``collection`` and ``queries``.
        columns: The task's column: the file's, or several that are looked for in turn.
        validation: Share of training rows set aside where there is no validation split.
        max_validation: At most so many rows are set aside.
    """

    source: str | None = None
    config: str | None = None
    revision: str | None = None
    files: Mapping[str, str | None] | None = None
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=lambda: _EMPTY)
    validation: float = 0.1
    max_validation: int = 2000

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise RecipeError(
                f"data.validation: expected a share between 0 and 1, got {self.validation:g}."
            )
        if self.max_validation < 1:
            raise RecipeError(
                f"data.max_validation: expected at least 1 row, got {self.max_validation}."
            )


def prepare_data(
    settings: DataSettings,
    task: Task,
    out: Path,
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Writes a task's data folder.

    Args:
        settings: Where rows come from and what their columns are called.
        task: Classification, or another task with a label, document or prompt column.
        out: The folder to write, made if it is not there. Nothing is written outside of it,
            except what the hub's clients keep in their cache.
        seed: Decides which rows are set aside for validation, if any must be, and which rows a
            built-in source draws.
        progress: Called now and then with the number of rows read.

    Returns:
        The content of ``data.json``.

    Raises:
        RecipeError: If a file, data set, split or column that is named does not exist.
        DataError: If the rows do not make a task.
        RunError: If the hub is out of reach, or the disk is full.
    """
    from .generation_rows import write_generation_rows
    from .labelled_rows import write_labelled_rows
    from .query_rows import write_query_rows

    kinds = {column.kind for column in task.columns}
    check_mapping(settings.columns, [column.name for column in task.columns])
    if settings.source == PYTHON_DOCS and not settings.files and "document" not in kinds:
        raise RecipeError(
            f"data.source: {PYTHON_DOCS} has queries and texts, not classes or prompts."
        )
    if settings.source in BUILDERS and not settings.files and "prompt" not in kinds:
        raise RecipeError(
            f"data.source: {settings.source} has prompts and completions for generation, not for "
            f"{task.name}."
        )
    source = open_source(
        settings.source,
        settings.files,
        config=settings.config,
        revision=settings.revision,
        seed=seed,
    )
    extra = [name for name in ("collection", "queries") if name in source.tables]
    if extra and "document" not in kinds:
        raise RecipeError(f"data.files.{extra[0]}: the task '{task.name}' has no collection.")
    write: Callable[..., Any] = write_labelled_rows
    if "document" in kinds:
        write = write_query_rows
    elif "prompt" in kinds:
        write = write_generation_rows
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = write(
            source.tables,
            settings.columns,
            out,
            task=task.name,
            seed=seed,
            validation=settings.validation,
            max_validation=settings.max_validation,
            progress=progress,
        )
        info = {"task": task.name, **vars(written), "source": source.facts}
        text = json.dumps(info, indent=2, ensure_ascii=False)
        (out / "data.json").write_text(text + "\n", encoding="utf-8")
    except (OSError, sqlite3.OperationalError) as error:
        if not _is_full(error):
            raise
        raise RunError(
            f"No space left where the data is written ({out}); free some, or name another "
            "place with --out."
        ) from error
    return info


def _is_full(error: OSError | sqlite3.OperationalError) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


class Data:
    """A finished data folder. Each file is opened when it is asked for, and mapped into memory.

    Attributes:
        folder: Where it lies.
        info: The content of ``data.json``.
    """

    def __init__(self, folder: Path, info: dict[str, Any]) -> None:
        self.folder = folder
        self.info = info

    @classmethod
    def open(cls, folder: Path) -> Data:
        """Reads ``data.json``.

        Raises:
            DataError: If there is none, or it is not one.
        """
        path = Path(folder) / "data.json"
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(info, dict) or "fingerprint" not in info or "rows" not in info:
                raise ValueError("it lacks rows or a fingerprint")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: expected the description of a data folder; {error}. Prepare it again."
            ) from error
        return cls(Path(folder), info)

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes in the order of their ids; None for a task without."""
        return self.info["labels"]  # type: ignore[no-any-return]

    def split(self, name: str) -> datasets.Dataset:
        """Opens the rows of ``train``, ``validation`` or ``test``.

        Raises:
            DataError: If the file is gone, damaged or empty.
        """
        import datasets
        import pyarrow as pa

        path = self.folder / f"{name}.arrow"
        expected = self.info["rows"].get(name)
        if expected is None:
            known = ", ".join(self.info["rows"])
            raise DataError(f"{self.folder}: there are no '{name}' rows; there are: {known}.")
        if expected == 0:
            raise DataError(f"{path}: the data has no {name} rows.")
        try:
            rows = datasets.Dataset.from_file(str(path))
        except (OSError, pa.ArrowException, IndexError, StopIteration) as error:
            raise DataError(f"{path}: cannot be opened ({error}). Prepare it again.") from error
        if len(rows) != expected:
            raise DataError(
                f"{path}: expected {expected} rows, found {len(rows)}; the file is damaged. "
                "Prepare it again."
            )
        return rows

    def collection(self) -> datasets.Dataset:
        """Opens the texts to be found; a row's number is what ``relevant`` names.

        Raises:
            DataError: If the task has none, or the file is gone or damaged.
        """
        return self.split("collection")
