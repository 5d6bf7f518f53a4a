"""The built-in corpus: its size, its shares, and that nothing but versions decides its rows."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.eval import python_docs
from paredown.eval.docstrings import split_docstring
from paredown.eval.errors import DataError
from paredown.eval.module_docs import docs_of_module
from paredown.eval.python_docs import MAX_CHARACTERS, Corpus, build
from paredown.eval.splits import text_key

SMALL = ("click", "packaging", "filelock", "fsspec", "jinja2", "rich", "urllib3", "absent-package")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build()


def digest(corpus: Corpus) -> str:
    return hashlib.sha256(json.dumps([corpus.rows, corpus.unlabelled]).encode()).hexdigest()


def test_there_are_enough_pairs_and_no_package_gives_too_many(corpus: Corpus) -> None:
    train, test = corpus.split("train"), corpus.split("test")
    assert len(train) >= 8000
    assert len({text_key(row.query) for row in test}) >= 2000
    assert len(corpus.rows) <= python_docs.MAX_ROWS
    shares = Counter(row.package for row in corpus.rows)
    assert max(shares.values()) <= 0.15 * len(corpus.rows)
    assert corpus.info["packages"] == dict(shares)


def test_all_rows_of_a_query_are_in_one_split(corpus: Corpus) -> None:
    splits: dict[str, set[str]] = {}
    for row in corpus.rows:
        splits.setdefault(text_key(row.query), set()).add(row.split)
    assert {len(found) for found in splits.values()} == {1}


def test_unlabelled_queries_are_training_queries_of_no_split(corpus: Corpus) -> None:
    assert 10_000 <= len(corpus.unlabelled) <= python_docs.MAX_UNLABELLED
    keys = [text_key(row.query) for row in corpus.unlabelled]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & {text_key(row.query) for row in corpus.rows}
    shares = Counter(row.package for row in corpus.unlabelled)
    assert max(shares.values()) <= 0.15 * len(corpus.unlabelled)
    for row in corpus.unlabelled:
        assert (row.text, row.split) == ("", "train")
        assert len(row.query.split()) >= 4


def test_rows_are_questions_and_answers_without_markup(corpus: Corpus) -> None:
    queries = Counter(text_key(row.query) for row in corpus.rows)
    assert max(queries.values()) <= python_docs.MAX_ANSWERS
    assert len({(text_key(row.query), text_key(row.text)) for row in corpus.rows}) == len(
        corpus.rows
    )
    for row in corpus.rows:
        name, _, rest = row.text.partition(": ")
        assert len(row.query.split()) >= 4
        assert not row.query.lower().startswith(("see base class", "initialize self"))
        assert "\n" not in row.query + row.text
        assert len(rest) <= python_docs.MAX_CHARACTERS
        assert rest
        assert not any(part.startswith("_") for part in name.split("."))
    marked = sum("``" in row.query or ":class:" in row.text for row in corpus.rows)
    assert marked <= 0.001 * len(corpus.rows)


def test_the_corpus_names_the_versions_it_was_made_from(corpus: Corpus) -> None:
    present = {name: v for name, v in python_docs.installed_versions().items() if v is not None}
    assert corpus.info["versions"] == present
    assert sorted([*present, *corpus.info["absent"]]) == sorted(python_docs.PACKAGES)


def test_the_order_of_the_file_system_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build(packages=SMALL, max_share=1.0)
    read_text = importlib.metadata.PathDistribution.read_text

    def shuffled(self: importlib.metadata.PathDistribution, name: str) -> str | None:
        text = read_text(self, name)
        if name != "RECORD" or text is None:
            return text
        lines = text.splitlines()
        random.Random(3).shuffle(lines)
        return "\n".join(lines)

    monkeypatch.setattr(importlib.metadata.PathDistribution, "read_text", shuffled)
    assert build(packages=SMALL[::-1], max_share=1.0) == plain
    assert plain.info["absent"] == ["absent-package"]


def test_the_standard_library_is_listed_in_any_order_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = python_docs._files_of("python")
    walk = os.walk

    def shuffled(root: Path) -> object:
        for folder, below, names in walk(root):
            random.Random(3).shuffle(below)
            random.Random(4).shuffle(names)
            yield folder, below, names

    monkeypatch.setattr(os, "walk", shuffled)
    assert python_docs._files_of("python") == plain
    assert any(name == "json/encoder.py" for name, _ in plain[1])
    assert not any("test" in Path(name).parts or "site-packages" in name for name, _ in plain[1])


SCRIPT = """
import hashlib, json, sys
from paredown.eval.python_docs import build
corpus = build(packages={packages!r}, max_share=1.0)
rows = [corpus.rows, corpus.unlabelled]
scanned = [name for name in {packages!r} if name.replace("-", "_") in sys.modules]
print(json.dumps([hashlib.sha256(json.dumps(rows).encode()).hexdigest(), scanned]))
"""


def test_hash_randomisation_and_locale_do_not_matter_and_nothing_is_imported() -> None:
    expected = digest(build(packages=SMALL, max_share=1.0))
    environment = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(packages=SMALL)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [expected, []]


def test_rows_are_capped_by_a_hash_and_not_by_their_place() -> None:
    whole = build(packages=SMALL, max_share=1.0)
    some = build(packages=SMALL, max_share=1.0, max_rows=200)
    assert 150 < len(some.rows) <= 200
    assert set(some.rows) < set(whole.rows)
    assert {row.split for row in some.rows} == {"train", "validation", "test"}


def test_too_few_packages_for_the_share_are_an_error() -> None:
    with pytest.raises(DataError, match="too few for no one to give over 15%"):
        build(packages=("click", "rich"))


MODULE = '''
"""Tools that are good for testing things.

They are used by nobody else in the world.
"""
__all__ = ["Box", "shown"]

def shown(x):
    """Shows what is in the box of `numbers`. It never opens it.

    .. versionadded:: 1.2

    >>> shown(3)
    3

    See Also
    --------
    :func:`hidden` : Does the same with **no** light.
    """
    def inner():
        """Sums up what the outer function left. Nobody can see this one."""

def _private():
    """Does what nobody should see from outside. Really nobody at all."""

class Box:
    """Holds many numbers in one place.

    :param x: a number that is held
    """
    def open(self):
        """See base class for everything there. Or do not look at it."""
    async def close(self):
        """Closes the box so that it stays closed. Nothing falls out of it then."""

class Other:
    """Holds other numbers in another place. They are not the same numbers."""

if True:
    def either():
        """Chooses one of two things at random. Both are as likely as each other."""
'''


def test_public_names_of_a_module_are_rows() -> None:
    found = docs_of_module(MODULE.encode(), "pack/tools.py", MAX_CHARACTERS).pairs
    pairs = {text: query for query, text in found}
    assert pairs == {
        "pack.tools: They are used by nobody else in the world.": (
            "Tools that are good for testing things"
        ),
        "pack.tools.shown: It never opens it. See Also hidden : Does the same with no light.": (
            "Shows what is in the box of numbers"
        ),
        "pack.tools.Box: a number that is held": "Holds many numbers in one place",
        "pack.tools.Box.close: Nothing falls out of it then.": (
            "Closes the box so that it stays closed"
        ),
        "pack.tools.Other: They are not the same numbers.": (
            "Holds other numbers in another place"
        ),
        "pack.tools.either: Both are as likely as each other.": (
            "Chooses one of two things at random"
        ),
    }


def test_a_private_module_gives_what_it_exports_under_the_public_name() -> None:
    found = docs_of_module(MODULE.encode(), "pack/_impl/x.py", MAX_CHARACTERS)
    names = [text.split(":")[0] for _, text in found.pairs]
    assert names == ["pack.shown", "pack.Box", "pack.Box.close"]
    hidden = MODULE.replace("__all__", "names")
    assert docs_of_module(hidden.encode(), "pack/_impl.py", MAX_CHARACTERS) == ([], [])


def test_what_is_private_or_has_no_text_gives_its_summary_alone() -> None:
    extra = '''
def plain():
    """Says in one sentence all that it does."""
class _Hidden:
    """Keeps to itself and to its own methods."""
    def method(self):
        """Answers only to the class around it. Never to anyone else."""
'''
    private = "Does what nobody should see from outside"
    found = docs_of_module((MODULE + extra).encode(), "pack/tools.py", MAX_CHARACTERS).summaries
    assert found == [
        private,
        "Says in one sentence all that it does",
        "Keeps to itself and to its own methods",
        "Answers only to the class around it",
    ]
    found = docs_of_module(MODULE.encode(), "pack/_impl/x.py", MAX_CHARACTERS).summaries
    assert found == [
        "Tools that are good for testing things",
        private,
        "Holds other numbers in another place",
        "Chooses one of two things at random",
    ]


def test_unlabelled_queries_are_summaries_before_sentences() -> None:
    whole = build(packages=SMALL, max_share=1.0)
    some = build(packages=SMALL, max_share=1.0, max_unlabelled=100)
    answers = " ".join(row.text for row in whole.rows)
    among = [sum(row.query in answers for row in found.unlabelled) for found in (whole, some)]
    assert 0 < len(some.unlabelled) <= 100 < len(whole.unlabelled)
    assert among[0] > 100 and among[1] < 5
    assert build(packages=SMALL, max_share=1.0, max_unlabelled=2).unlabelled == []  # none for all


@pytest.mark.parametrize("mark", ["# This file was automatically generated.", "# DO NOT EDIT"])
def test_generated_files_give_nothing(mark: str) -> None:
    assert docs_of_module(f"{mark}\n{MODULE}".encode(), "pack/tools.py", MAX_CHARACTERS) == ([], [])


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "Short one.\n\nWith a rest that says a lot of things.",
        "There is a summary here and no rest at all.",
        "See base class for the full documentation.\n\nIt has everything that one needs.",
        "Initialize self.  See help(type(self)) for accurate signature of everything.",
        "Alias for another function here.\n\nThat one has all of the documentation.",
        "sum(axis=0, dtype=None)",
        "x" * 5000,
    ],
)
def test_docstrings_that_say_nothing_are_no_rows(docstring: str) -> None:
    assert split_docstring(docstring, 300) is None


def test_a_signature_is_not_the_summary() -> None:
    found = split_docstring(
        "sum(a, axis=0) -> array\n\nAdds all the numbers up, e.g. Those of a list. Gives one "
        "number for each axis.",
        300,
    )
    assert found == (
        "Adds all the numbers up, e.g. Those of a list",
        "Gives one number for each axis.",
    )


@given(st.text(max_size=400))
def test_any_docstring_is_cut_to_one_line_of_the_length_asked(docstring: str) -> None:
    found = split_docstring(docstring, 50)
    if found:
        assert all("\n" not in part and part == part.strip() for part in found)
        assert len(found[1]) <= 50
