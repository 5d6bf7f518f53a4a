"""A data folder: the same for the same content, and open only where it must be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.data import Data, DataSettings, prepare_data
from paredown.eval.errors import DataError, RecipeError, RunError
from paredown.eval.tasks import get_task

Row = dict[str, Any]
Write = Callable[..., dict[str, str]]
Prepare = Callable[..., Data]


def labelled(*pairs: tuple[str, str | None]) -> list[Row]:
    return [{"text": text, "label": label} for text, label in pairs]


def many(count: int, start: int = 0) -> list[Row]:
    return labelled(*((f"row number {i}", "xyz"[i % 3]) for i in range(start, start + count)))


TEST_ROWS = labelled(("test a", "x"), ("test b", "y"), ("test c", "z"))


def pairs(*found: tuple[str | None, str | None]) -> list[Row]:
    return [{"query": query, "text": text} for query, text in found]


def questions(count: int, start: int = 0) -> list[Row]:
    return pairs(*((f"question {i}", f"answer {i}") for i in range(start, start + count)))


def test_the_same_content_gives_the_same_folder_byte_for_byte(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    files = write(tmp_path, train=many(100), test=TEST_ROWS)
    first = prepare(tmp_path, files)
    kept = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    second = prepare(tmp_path, files)
    assert {path.name: path.read_bytes() for path in second.folder.iterdir()} == kept


def test_the_fingerprint_covers_every_row_and_the_labels(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    def fingerprint(train: list[Row], test: list[Row]) -> str:
        files = write(tmp_path, train=train, test=test)
        return str(prepare(tmp_path, files).info["fingerprint"])

    train, test = many(30), list(TEST_ROWS)
    prints = {
        fingerprint(train, test),
        fingerprint([*train[:-1], {"text": "another", "label": "z"}], test),
        fingerprint(train, test[:-1]),
        fingerprint(upper(train), upper(test)),
    }
    assert len(prints) == 4


def upper(rows: list[Row]) -> list[Row]:
    return [{**row, "label": row["label"].upper()} for row in rows]


def test_only_the_file_that_is_asked_for_is_opened(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    data = prepare(tmp_path, write(tmp_path, train=many(30), test=TEST_ROWS))
    (data.folder / "test.arrow").write_bytes(b"not arrow at all")
    assert len(Data.open(data.folder).split("train")) == 27
    with pytest.raises(DataError, match=r"test\.arrow: cannot be opened"):
        data.split("test")
    (data.folder / "test.arrow").unlink()
    with pytest.raises(DataError, match=r"test\.arrow: cannot be opened"):
        data.split("test")
    with pytest.raises(DataError, match="no 'collection' rows; there are: train"):
        data.collection()


def test_a_file_that_was_cut_short_is_refused(
    write: Write, prepare: Prepare, tmp_path: Path
) -> None:
    data = prepare(tmp_path, write(tmp_path, train=many(5000), test=TEST_ROWS))
    path = data.folder / "train.arrow"
    whole = path.read_bytes()
    for share in (0.2, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=r"train\.arrow: (cannot be opened|expected 4500 rows)"):
            data.split("train")


def test_a_folder_without_a_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the description of a data folder"):
        Data.open(tmp_path)
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(DataError, match="lacks rows"):
        Data.open(tmp_path)


def test_test_rows_stand_in_no_other_file(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    secret = labelled(("utterly secret words", "x"), ("and some others", "y"))
    train = [*many(60), *labelled(("Utterly  SECRET words", "x"))]
    data = prepare(tmp_path, write(tmp_path, train=train, test=secret))
    for path in data.folder.iterdir():
        content = path.read_bytes().lower()
        assert (b"secret" in content) == (path.name == "test.arrow")


def test_nothing_is_written_outside_of_the_folder(write: Write, tmp_path: Path) -> None:
    files = write(tmp_path, train=many(300), test=TEST_ROWS)
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "import sys; from pathlib import Path\n"
        "from paredown.eval.data import *; from paredown.eval.tasks import get_task\n"
        f"prepare_data(DataSettings(files={files!r}), get_task('classification'), "
        "Path('out'), seed=0)\n"
        "Data.open(Path('out')).split('train')[0]\n"
    )
    place = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    subprocess.run(
        [sys.executable, "-c", script], env={**environment, **place}, cwd=tmp_path, check=True
    )
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_a_full_disk_is_said_in_one_message(write: Write, tmp_path: Path) -> None:
    files = write(tmp_path, train=many(3000), test=TEST_ROWS)
    script = (
        "import errno, sys; from pathlib import Path\n"
        "import paredown.eval.labelled_rows as rows\n"
        "from paredown.eval.data import *; from paredown.eval.tasks import get_task\n"
        "def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "rows.ArrowFiles.add = full\n"
        f"prepare_data(DataSettings(files={files!r}), get_task('classification'), "
        "Path('out'), seed=0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert RunError.__name__ in done.stderr
    assert "No space left where the data is written (out)" in done.stderr
    assert list((tmp_path / "out").glob(".staging*")) == []


@pytest.mark.parametrize("task", ["classification", "retrieval"])
def test_memory_does_not_grow_with_the_rows(write: Write, tmp_path: Path, task: str) -> None:
    def peak(count: int) -> float:
        rows = many(count) if task == "classification" else questions(count)
        test = TEST_ROWS if task == "classification" else questions(3, 10**6)
        files = write(tmp_path, train=rows, test=test)
        script = (
            "import resource, sys; from pathlib import Path\n"
            "import paredown.eval.staging as staging; staging._CACHE_KIB = 1024\n"
            "from paredown.eval.data import *; from paredown.eval.tasks import get_task\n"
            f"prepare_data(DataSettings(files={files!r}), get_task({task!r}), "
            f"Path('out{count}'), seed=0)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return int(done.stdout) / 1024

    assert peak(60_000) - peak(1000) < 8  # MiB


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.validation: expected a share"):
        DataSettings(validation=1.0)
    with pytest.raises(RecipeError, match=r"data\.max_validation"):
        DataSettings(max_validation=0)
    with pytest.raises(RecipeError, match="has queries and texts, not classes"):
        prepare_data(
            DataSettings(source="python_docs"), get_task("classification"), tmp_path, seed=0
        )
