"""Where a task's rows come from: local files, a hub data set, or the built-in corpus."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .errors import DataError, PareError, RecipeError, RunError, nearest
from .problems import Problems
from .tables import BATCH_ROWS, Report, Table, Values, open_table

if TYPE_CHECKING:
    import datasets

PYTHON_DOCS = "python_docs"
QUERY_FILTERS = "query_filters"
BUILDERS = {
    QUERY_FILTERS: ("query_filters", "filter_phrases", "filter_values", "typing_errors"),
}
"""Built-in data of the task generation, and the modules that they are made of. The first has
``build(seed)``, whose result gives for each split rows with a prompt, a completion and a slice."""

SPLITS = ("train", "validation", "test")
FILES = (*SPLITS, "collection", "queries")

# The names that validation splits go by on the hub.
_VALIDATION_NAMES = ("validation", "valid", "val", "dev")
_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Source:
    """Tables by what they are for, and how they came to be.

    Attributes:
        tables: Keys are of :data:`FILES`.
        facts: For ``source`` of data.json.
    """

    tables: Mapping[str, Table]
    facts: dict[str, Any]


def open_source(
    source: str | None,
    files: Mapping[str, str | None] | None = None,
    *,
    config: str | None = None,
    revision: str | None = None,
    seed: int = 0,
) -> Source:
    """Opens a task's tables; files replace the source.

    Args:
        source: ``python_docs``, one of `BUILDERS`, or the name of a hub data set.
        files: Paths by split, and of the collection and its queries.
        config: Configuration of the hub data set.
        revision: Branch, tag or commit of the hub data set.
        seed: Of built-in data that are drawn.

    Raises:
        RecipeError: If a file, split or data set that is named does not exist.
        DataError: If a file is empty or not what its suffix says.
        RunError: If a hub data set is neither cached nor within reach.
    """
    paths = {key: path for key, path in (files or {}).items() if path is not None}
    if paths:
        return _open_files(paths)
    if source is None:
        raise RecipeError("data: no rows; give `data.source` or `data.files.train` and `.test`.")
    if source in BUILDERS:
        return _open_built(source, seed)
    return _open_python_docs() if source == PYTHON_DOCS else _open_hub(source, config, revision)


def source_facts(
    source: str | None,
    files: Mapping[str, str | None] | None = None,
    *,
    config: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Returns what tells one state of a source from another, without reading its rows as rows.

    Files are told by size and sha256, the built-in corpus by the versions of the packages, other
    built-in data by the module that makes them, a hub data set by name, configuration and revision.

    Raises:
        RecipeError: If a file does not exist.
    """
    paths = {key: path for key, path in sorted((files or {}).items()) if path is not None}
    if paths:
        return {"kind": "files", "files": {key: _file_facts(key, paths[key]) for key in paths}}
    if source == PYTHON_DOCS:
        from .python_docs import installed_versions

        return {"kind": PYTHON_DOCS, "versions": installed_versions()}
    if source in BUILDERS:
        found = hashlib.sha256()
        for module in BUILDERS[source]:
            spec = importlib.util.find_spec(f".{module}", __package__)
            found.update(Path(spec.origin).read_bytes() if spec and spec.origin else b"")
        return {"kind": source, "sha256": found.hexdigest()}
    return {"kind": "hub", "name": source, "config": config, "revision": revision}


def _file_facts(key: str, path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"path": path, "bytes": file.tell(), "sha256": digest}
    except OSError as error:
        reason = error.strerror or str(error)
        raise RecipeError(f"data.files.{key} ({path}): cannot be read: {reason}.") from error


# Local files


def _open_files(paths: Mapping[str, str]) -> Source:
    problems = Problems()
    tables = {}
    for key, path in paths.items():
        if key not in FILES:
            near = nearest(key, FILES)
            known = ", ".join(FILES)
            problems.add(RecipeError(f"data.files.{key}: unknown file.{near} Known: {known}."))
            continue
        try:
            tables[key] = open_table(Path(path), f"data.files.{key}")
        except PareError as error:
            problems.add(error)
    for key in ("train", "test"):
        if key not in paths:
            problems.add(RecipeError(f"data.files.{key}: missing; training and test rows differ."))
    if "queries" in paths and "collection" not in paths:
        problems.add(RecipeError("data.files.collection: missing; data.files.queries needs it."))
    problems.raise_if_any()
    return Source(tables, source_facts(None, paths))


# The built-in corpus


def _open_python_docs() -> Source:
    from .python_docs import Corpus, build

    @functools.cache
    def corpus() -> Corpus:
        return build()

    def table(split: str) -> Table:
        def read(columns: Sequence[str], report: Report) -> Iterator[Values]:
            more = corpus().unlabelled if split == "train" else []
            for place, row in enumerate([*corpus().split(split), *more], 1):
                yield place, tuple(getattr(row, column) for column in columns)

        return Table(f"python_docs, {split}", ("query", "text"), read)

    facts = {"kind": PYTHON_DOCS, **corpus().info}
    return Source({split: table(split) for split in SPLITS}, facts)


# Built-in data of prompts and completions


def _open_built(name: str, seed: int) -> Source:
    @functools.cache
    def built() -> Any:
        return importlib.import_module(f".{BUILDERS[name][0]}", __package__).build(seed)

    def table(split: str) -> Table:
        def read(wanted: Sequence[str], report: Report) -> Iterator[Values]:
            for place, row in enumerate(built().split(split), 1):
                yield place, tuple(getattr(row, column) for column in wanted)

        return Table(f"{name}, {split}", ("prompt", "completion", "slice"), read)

    facts = source_facts(name) | {"seed": seed}
    return Source({split: table(split) for split in SPLITS}, facts)


# Hub data sets


def _open_hub(name: str, config: str | None, revision: str | None) -> Source:
    found = _load_hub(name, config, revision)
    validation = next((split for split in _VALIDATION_NAMES if split in found), None)
    names = {"train": "train", "validation": validation, "test": "test"}
    missing = [split for split in ("train", "test") if split not in found]
    if missing:
        raise RecipeError(
            f"data.source: '{name}' has no split '{missing[0]}'; it has: {', '.join(found)}. "
            "Save rows for training and for test to files and name them in `data.files`."
        )
    tables = {
        split: _hub_table(f"data.source ({name}, {there})", found[there])
        for split, there in names.items()
        if there is not None
    }
    return Source(tables, source_facts(name, config=config, revision=revision))


def _load_hub(
    name: str, config: str | None, revision: str | None
) -> Mapping[str, datasets.Dataset]:
    import datasets

    instead = "Or use local files: data.files.train=… data.files.test=…"
    with _offline_if_unreachable() as offline:
        try:
            found = datasets.load_dataset(name, config, revision=revision)
        except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
            if offline:
                raise RunError(
                    f"data.source: the data set '{name}' is not on this machine, and the hub "
                    f"{offline}. Connect once to have it kept in the cache. {instead}"
                ) from error
            if isinstance(error, ConnectionError):
                raise RunError(f"data.source: '{name}': {_first_line(error)}. {instead}") from error
            raise RecipeError(
                f"data.source: the hub has no data set '{name}' that is open to you "
                f"({_first_line(error)}). {instead}"
            ) from error
        except (ValueError, FileNotFoundError) as error:  # configuration or revision
            raise RecipeError(f"data.source: '{name}': {_first_line(error)}. {instead}") from error
        except RuntimeError as error:
            if "script" not in str(error):
                raise RunError(f"data.source: '{name}': {_first_line(error)}. {instead}") from error
            raise RecipeError(
                f"data.source: '{name}' is made by a script, which is never run. Its converted "
                f"files may be there: data.revision=refs/convert/parquet. {instead}"
            ) from error
        except datasets.exceptions.DatasetGenerationError as error:
            reason = _first_line(error.__cause__ or error)
            raise DataError(f"data.source: '{name}' cannot be read: {reason}. {instead}") from error
    return cast("Mapping[str, datasets.Dataset]", found)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextlib.contextmanager
def _offline_if_unreachable() -> Iterator[str]:
    """Makes the hub's clients use their cache alone if the hub does not answer at once.

    They would otherwise try again for half a minute before they look there. Yields why the hub is
    not asked, or an empty string.
    """
    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        yield "is not asked (HF_HUB_OFFLINE is set)"
        return
    if _answers(constants.ENDPOINT):
        yield ""
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield f"({constants.ENDPOINT}) cannot be reached"
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # it refuses, so it is there
    except (OSError, ValueError):
        return False


def _hub_table(name: str, rows: datasets.Dataset) -> Table:
    import datasets

    def read(columns: Sequence[str], report: Report) -> Iterator[Values]:
        place = 0
        batches = rows.with_format(None).select_columns(list(dict.fromkeys(columns)))
        for batch in batches.iter(BATCH_ROWS):
            for row in zip(*(batch[column] for column in columns), strict=True):
                place += 1
                yield place, row

    labels = {
        column: list(feature.names)
        for column, feature in rows.features.items()
        if isinstance(feature, datasets.ClassLabel) and feature.names
    }
    if len(rows) == 0:
        raise DataError(f"{name}: there are no rows.")
    return Table(name, tuple(rows.column_names), read, label_names=labels)
