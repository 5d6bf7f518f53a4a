"""A file is whole or as it was; devices, pipes and links stay what they are."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paredown.eval.errors import RecipeError
from paredown.recipes import sweep_page
from paredown.recipes.gate_files import write_junit
from paredown.recipes.row_files import written
from paredown.recipes.whole_files import write_whole


def write_rows(text: str, path: Path) -> None:
    """As `paredown predict --out` writes."""
    with written(path) as file:
        file.write(text)


WRITERS = [write_rows, write_junit, write_whole]
every = pytest.mark.parametrize("write", WRITERS)
Write = Callable[[str, Path], None]


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@every
def test_a_new_file_is_as_any_other_and_an_old_one_keeps_its_permissions(
    write: Write, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    write("größe\n", path)
    assert path.read_text(encoding="utf-8") == "größe\n" and mode(path) == 0o640
    path.chmod(0o600)
    write("again\n", path)
    assert path.read_text() == "again\n" and mode(path) == 0o600
    assert os.listdir(tmp_path) == ["out"]


@every
def test_a_pipe_is_written_and_stays(write: Write, tmp_path: Path) -> None:
    path, seen = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: seen.append(path.read_text()), daemon=True)
    reader.start()
    write("through\n", path)
    reader.join(10)
    assert seen == ["through\n"] and path.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


@every
def test_a_device_is_not_replaced(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "null"
    path.symlink_to(os.devnull)
    write("nowhere\n", path)
    assert path.is_symlink() and path.is_char_device()
    write("nowhere\n", Path(os.devnull))
    assert Path(os.devnull).is_char_device()


@every
def test_what_a_link_leads_to_is_written(write: Write, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    path, target = tmp_path / "link", tmp_path / "there" / "file"
    path.symlink_to(target)
    for text in ("new\n", "again\n"):
        write(text, path)
        assert path.is_symlink() and target.read_text() == text
    assert os.listdir(target.parent) == ["file"]


@every
def test_files_that_are_there_beside_are_left_alone(write: Write, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    for name in (".out.part", "out.part"):
        (tmp_path / name).symlink_to(other)
    write("text\n", tmp_path / "out")
    assert other.read_text() == "mine" and (tmp_path / "out").read_text() == "text\n"
    assert (tmp_path / ".out.part").is_symlink() and (tmp_path / "out.part").is_symlink()


def test_two_at_once_do_not_meet_and_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with written(path) as first, written(path) as second:
        first.write("first\n")
        second.write("second\n")
    assert path.read_text() == "first\n"
    with pytest.raises(ZeroDivisionError), written(path) as file:
        file.write("half")
        raise ZeroDivisionError
    assert path.read_text() == "first\n" and os.listdir(tmp_path) == ["out"]
    with pytest.raises(RecipeError, match="There is no folder"), written(tmp_path / "no" / "a"):
        pass


def test_a_sweeps_page_may_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_page, "page", lambda sweep: "half \ud800")
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / sweep_page.PAGE).symlink_to(tmp_path / "page.html")
    sweep_page.write_sweep({"name": "a"}, folder)
    assert (folder / sweep_page.PAGE).is_symlink()
    assert (tmp_path / "page.html").read_text() == "half \\ud800"
    assert sorted(os.listdir(folder)) == sorted([sweep_page.PAGE, sweep_page.JSON])
