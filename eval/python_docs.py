"""The built-in corpus: questions and answers made from the documentation of installed packages.

Every Python environment that can run paredown holds thousands of documented functions and classes.
A *query* is a docstring's summary sentence, the *text* to find is the qualified name with the rest
of the docstring. Sources are parsed with ``ast`` and never imported. The packages are a fixed list,
so that rows are identical for identical versions whatever else is installed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.metadata
import os
import platform
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .docstrings import sentences
from .errors import DataError
from .module_docs import ModuleDocs, docs_of_module
from .splits import stable_hash, text_key

STDLIB = "python"
"""The name the standard library goes by among the packages."""

PACKAGES: tuple[str, ...] = (
    STDLIB, "accelerate", "aiohttp", "anyio", "attrs", "charset-normalizer", "click", "datasets",
    "dill", "evaluate", "filelock", "fsspec", "h11", "httpcore2", "httpx2", "huggingface-hub",
    "idna", "jinja2", "markdown-it-py", "mpmath", "multidict", "multiprocess", "networkx", "numpy",
    "optimum", "packaging", "pandas", "peft", "psutil", "pyarrow", "pydantic", "pydantic-core",
    "pygments", "python-dateutil", "pyyaml", "regex", "requests", "rich", "safetensors", "scipy",
    "setuptools", "sympy", "tokenizers", "torch", "tqdm", "transformers", "typer",
    "typing-extensions", "typing-inspection", "urllib3", "yarl",
)  # fmt: skip
"""Distributions that paredown always needs, directly or not; an absent one is skipped and noted."""

MAX_ROWS = 11_500
MAX_UNLABELLED = 30_000
MAX_SHARE = 0.15
MAX_CHARACTERS = 240
VALIDATION_SHARE = 0.08
TEST_SHARE = 0.19
MAX_ANSWERS = 3
"""A summary with more answers than this is boilerplate, not a question."""

_SKIPPED_FOLDERS = frozenset([
    "test", "tests", "testing", "_testing", "testdata", "testutils", "test_utils", "conftest",
    "benchmark", "benchmarks", "examples", "vendor", "vendored", "_vendor", "_vendored",
    "third_party", "extern", "externals", "_external", "site-packages",
    "dist-packages", "__pycache__", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data",
    "msilib", "torchgen", "functorch",
])  # fmt: skip
# transformers writes a hundred near copies of the same docstrings, one for each architecture.
_SKIPPED_PREFIXES = ("transformers/models/",)


class Row(NamedTuple):
    """One question, one answer ("" where it has none), and the split of all its rows."""

    query: str
    text: str
    split: str
    package: str


@dataclass(frozen=True)
class Corpus:
    """The rows of the corpus and how they were made.

    Attributes:
        rows: In an order given by a stable hash: packages are mixed.
        info: ``versions`` of the packages read, ``absent`` ones, ``packages`` with their rows,
            ``rows`` by split, and the settings.
        unlabelled: Further training queries, without a text.
    """

    rows: list[Row]
    info: dict[str, Any] = field(default_factory=dict)
    unlabelled: list[Row] = field(default_factory=list)

    def split(self, name: str) -> list[Row]:
        """Returns the rows of ``train``, ``validation`` or ``test``."""
        return [row for row in self.rows if row.split == name]


def build(
    *,
    max_rows: int = MAX_ROWS,
    max_unlabelled: int = MAX_UNLABELLED,
    max_share: float = MAX_SHARE,
    max_characters: int = MAX_CHARACTERS,
    packages: Sequence[str] = PACKAGES,
) -> Corpus:
    """Reads the documentation of the installed packages and makes the corpus from it.

    Args:
        max_rows: At most this many pairs in all; the rest is left out by stable hash.
        max_unlabelled: At most this many training queries without a text.
        max_share: No package gives more than this share of the rows.
        max_characters: Answers are cut at the last word that ends within so many characters.
        packages: Distribution names; ``python`` is the standard library.

    Raises:
        DataError: If too few of the packages are there to keep to ``max_share``.
    """
    versions, absent, skipped = {}, [], 0
    found: dict[str, list[tuple[str, str]]] = {}
    further: dict[str, list[str]] = {}
    with _collector_paused():
        for package in sorted(packages):
            version, files = _files_of(package)
            if version is None:
                absent.append(package)
                continue
            versions[package] = version
            docs, unreadable = _docs_of_files(files, max_characters)
            found[package], further[package] = docs
            skipped += unreadable
    kept = _without_boilerplate(found)
    rows = _choose(kept, max_rows, max_share)
    more = _unlabelled(kept, further, rows, max_unlabelled, max_share) if max_unlabelled else []
    info = {
        "versions": versions,
        "absent": absent,
        "unreadable_files": skipped,
        "packages": _count(row.package for row in rows),
        "rows": _count(row.split for row in rows),
        "unlabelled": len(more),
        "max_rows": max_rows,
        "max_unlabelled": max_unlabelled,
        "max_share": max_share,
        "max_characters": max_characters,
    }
    return Corpus(rows, info, more)


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Returns the version of each package, None where it is absent; the rows follow from these."""
    versions: dict[str, str | None] = {}
    for package in sorted(packages):
        try:
            versions[package] = (
                platform.python_version()
                if package == STDLIB
                else importlib.metadata.version(package)
            )
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Stops cyclic garbage collection: syntax trees make millions of objects and no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _docs_of_files(
    files: Iterable[tuple[str, Path]], max_characters: int
) -> tuple[ModuleDocs, int]:
    """Returns what a package's files document, and how many of them could not be read."""
    docs = ModuleDocs([], [])
    unreadable = 0
    for name, path in files:
        try:
            pairs, summaries = docs_of_module(path.read_bytes(), name, max_characters)
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            unreadable += 1
        else:
            docs.pairs.extend(pairs)
            docs.summaries.extend(summaries)
    return docs, unreadable


def _count(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return dict(sorted(counts.items()))


# Which files


def _files_of(package: str) -> tuple[str | None, list[tuple[str, Path]]]:
    """Returns a package's version (None if absent) and its (relative name, path) in fixed order."""
    if package == STDLIB:
        listed = _stdlib_files()
        version: str | None = platform.python_version()
    else:
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            return None, []
        version = distribution.version
        # The installer's own list: other packages may share the folder (namespaces, plug-ins).
        listed = [
            (file.as_posix(), Path(str(file.locate())))
            for file in distribution.files or ()
            if file.suffix == ".py"
        ]
    return version, sorted((name, path) for name, path in listed if _is_wanted(name))


def _stdlib_files() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in _SKIPPED_FOLDERS]
        for name in names:
            if name.endswith(".py"):
                path = Path(folder, name)
                files.append((path.relative_to(root).as_posix(), path))
    # Platform data (_sysconfigdata…) and files an installation adds are not documentation.
    return [
        (name, path)
        for name, path in files
        if PurePosixPath(name).parts[0].removesuffix(".py") in sys.stdlib_module_names
    ]


def _is_wanted(name: str) -> bool:
    parts = PurePosixPath(name).parts
    stem = parts[-1].removesuffix(".py")
    return not (
        parts[0].startswith(("..", "_"))
        or not _SKIPPED_FOLDERS.isdisjoint((*parts[:-1], stem))
        or stem.startswith("test_")
        or stem.endswith("_test")
        or (stem.startswith("__") and stem != "__init__")
        or name.startswith(_SKIPPED_PREFIXES)
        or not all(part.isidentifier() for part in (*parts[:-1], stem))
    )


# Which rows


def _without_boilerplate(found: dict[str, list[tuple[str, str]]]) -> dict[str, list[Row]]:
    """Drops repeated pairs, and summaries that too many different texts share."""
    answers: dict[str, set[str]] = defaultdict(set)
    for pairs in found.values():
        for query, text in pairs:
            answers[text_key(query)].add(text_key(text))
    kept: dict[str, list[Row]] = {}
    seen: set[tuple[str, str]] = set()
    for package, pairs in found.items():
        kept[package] = []
        for query, text in pairs:
            key = text_key(query)
            pair = key, text_key(text)
            if pair in seen or len(answers[key]) > MAX_ANSWERS:
                continue
            seen.add(pair)
            kept[package].append(Row(query, text, split_of(query), package))
    return kept


def _unlabelled(
    kept: dict[str, list[Row]],
    further: dict[str, list[str]],
    chosen: Sequence[Row],
    max_rows: int,
    max_share: float,
) -> list[Row]:
    """Training queries without a text: summaries, and where they are too few, answers' sentences.

    None of them is a query of another split, and each stands once.
    """
    every = [row for rows in kept.values() for row in rows]
    taken = {text_key(row.query) for row in every if row.split != "train"}
    taken |= {text_key(row.query) for row in chosen}

    def untaken(queries: Iterable[str], package: str) -> list[Row]:
        rows = []
        for query in queries:
            key = text_key(query)
            if key not in taken:
                taken.add(key)
                rows.append(Row(query, "", "train", package))
        return rows

    train = {name: [row for row in rows if row.split == "train"] for name, rows in kept.items()}
    summaries = {
        name: untaken([*(row.query for row in rows), *further[name]], name)
        for name, rows in train.items()
    }
    answers = {
        name: untaken((q for row in rows for q in sentences(row.text.partition(": ")[2])), name)
        for name, rows in train.items()
    }
    found: list[Row] = []
    for offered in (summaries, answers):
        room = max_rows - len(found)
        if _allowance(offered, room, max_share):
            found += _choose(offered, room, max_share)
    return found


def split_of(query: str) -> str:
    """Returns the split of a query: all rows whose queries have one key are in one split."""
    place = stable_hash("python_docs 2", text_key(query)) / 2**64
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def _allowance(kept: dict[str, list[Row]], max_rows: int, max_share: float) -> int:
    """The most rows that each package may give; 0 where the limits leave none."""
    sizes = [len(rows) for rows in kept.values()]

    def fits(allowance: int) -> bool:
        total = sum(min(size, allowance) for size in sizes)
        return total <= max_rows and min(allowance, max(sizes)) <= max_share * total

    low, high = 0, max(sizes, default=0)
    while low < high:  # `fits` holds up to some allowance and never after it
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _choose(kept: dict[str, list[Row]], max_rows: int, max_share: float) -> list[Row]:
    """Gives every package the same allowance, the largest that keeps to both limits."""
    low = _allowance(kept, max_rows, max_share)
    if low == 0:
        raise DataError(
            f"python_docs: only {sum(1 for rows in kept.values() if rows)} documented packages are "
            f"installed, too few for no one to give over {max_share:.0%} of the rows. Expected "
            "the packages paredown depends on; reinstall it, or use `data.files`."
        )
    place = functools.cache(lambda row: stable_hash(row.package, row.query, row.text))
    chosen = (row for rows in kept.values() for row in sorted(rows, key=place)[:low])
    return sorted(chosen, key=lambda row: (place(row), row))
