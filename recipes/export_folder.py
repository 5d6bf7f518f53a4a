"""The folder that `paredown export` writes: whose it is, and that nothing else is touched.

It is never one of the store's: what is there is shared by all runs, and stays as it was judged.

What it replaces are the files that an earlier export lists in its ``golden.json``. That file may
come from anywhere, so no name in it leads out of the folder, through a link or otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..eval.errors import RecipeError, RunError
from ..export.golden import seal
from ..export.verify import MANIFEST, VerifyError, read_manifest
from .kept_exports import check_kept
from .run_folder import LINKS, MARK
from .store import STAGES


def check_target(out: Path) -> None:
    """Makes sure that a folder may be written: it is new, empty, or an export, and no stage's.

    Raises:
        RecipeError: If it is something else.
    """
    for path in (Path(os.path.abspath(out)), Path(os.path.realpath(out))):
        if any(_keeps_stages(folder) for folder in (path, *path.parents)):
            raise _in_store(out)
    if out.exists() and not out.is_dir():
        raise RecipeError(f"--out '{out}' is a file. Name a new folder.")
    with contextlib.suppress(FileNotFoundError):
        if any(out.iterdir()):
            _earlier(out)


def _keeps_stages(folder: Path) -> bool:
    """Whether it is the store's, or a run's with links to stages, or copies of them."""
    return folder.name == STAGES or (folder.name == LINKS and (folder.parent / MARK).exists())


def _in_store(out: Path) -> RecipeError:
    return RecipeError(
        f"--out '{out}' lies where runs keep their stages, which stay as they were judged. Name a "
        "folder elsewhere."
    )


def _earlier(out: Path) -> list[str]:
    """The files of the export that a folder holds."""
    try:
        return [*read_manifest(out)["files"], MANIFEST]
    except VerifyError as error:
        raise RecipeError(
            f"--out '{out}' is a folder with other things in it, which an export would mix with "
            f"({error}). Name a new or an empty one."
        ) from None


def place(source: Path, out: Path, added: Mapping[str, str]) -> None:
    """Copies an export to a folder of its own, in the place of an earlier one there.

    What is copied are the files that the export's ``golden.json`` lists, as it lists them.

    Args:
        source: The exported folder, with golden rows.
        out: Where to; its other files stay.
        added: Further files of the export: their texts by name.

    Raises:
        RecipeError: If the folder holds something else, or a link where a file belongs, or is the
            source.
        RunError: If the export is not what its stage left; nothing is touched then. Or if it
            cannot be written; nothing of the export is left then.
    """
    check_target(out)
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise _in_store(out)  # which may have been moved
    earlier = _earlier(out) if out.is_dir() and any(out.iterdir()) else []
    manifest = check_kept(source)
    # The manifest first: what a kill leaves behind is then known as an export, and replaced.
    names = [MANIFEST, *manifest["files"]]
    every = [*names, *added]
    _refuse_links(out, [*every, *earlier])
    kept = [name for name in every if name not in earlier and os.path.lexists(out / name)]
    if kept:
        raise RecipeError(
            f"--out '{out}' holds a '{kept[0]}' that is of no export. Remove it, or name a new "
            "folder."
        )
    fresh = not out.exists()
    try:
        _remove(out, earlier)
        for name in names:
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)
        for name, text in added.items():
            (out / name).write_text(text, encoding="utf-8")
        about = {key: value for key, value in manifest.items() if key != "files"}
        seal(out, about, every)
    except OSError as error:
        _remove(out, every)
        if fresh:
            shutil.rmtree(out, ignore_errors=True)
        raise RunError(f"Cannot write '{out}': {error.strerror or error}.") from error


def _refuse_links(out: Path, names: Iterable[str]) -> None:
    """A link in the way of a file would lead out of the folder."""
    for name in names:
        for path in _parents(out, name):
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise RecipeError(
                    f"--out '{out}': '{path.relative_to(out)}' is a link or a file where the "
                    "export has a folder. Name a new folder."
                )


def _parents(out: Path, name: str) -> Iterator[Path]:
    """The folders between an export's folder and one of its files."""
    path = out
    for part in name.split("/")[:-1]:
        path = path / part
        yield path


def _remove(out: Path, names: Iterable[str]) -> None:
    for path in (out / name for name in names):
        if path.is_symlink() or path.is_file():
            path.unlink()


def as_text(content: Mapping[str, object]) -> str:
    """A file's text in JSON."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
