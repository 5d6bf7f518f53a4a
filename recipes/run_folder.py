"""The folder a run leaves: whose it is, and that it says what the stages hold."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ..eval.errors import RecipeError, RunError
from ..export.formats import FORMATS
from ..export.golden import seal_again
from .kept_exports import check_kept
from .loading import dump_recipe
from .schema import Recipe
from .stage_export import EXPORTED
from .stage_report import CARD
from .stage_teacher import CHECKPOINT
from .store import Folder

MARK = ".paredown"
LINKS = "stages"
"""The folder with a link to each of the run's stages."""
PARTS = ("recipe.yaml", "report.html", LINKS, "student/config.json", f"student/{CARD}")


def claim(folder: Path) -> None:
    """Makes the run's folder, or makes sure that it is one.

    Raises:
        RecipeError: If the folder holds something else, which a run would overwrite.
        RunError: If it cannot be made.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).exists():
            raise RecipeError(
                f"--out '{folder}' is a folder with other things in it, which a run would "
                "overwrite. Name a new or an empty one."
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()
    except OSError as error:
        full = error.errno == 28
        raise RunError(
            f"Cannot write the run's folder '{folder}': "
            f"{'no space is left on its disk' if full else error.strerror}."
        ) from error


def fill(
    folder: Path,
    recipe: Recipe,
    stages: Mapping[str, Folder],
    student: Folder,
    exports: Mapping[str, Folder],
    report: Folder,
) -> None:
    """Makes the folder say what the stages hold; ``report.json`` comes last.

    Args:
        folder: Of the run.
        recipe: Resolved.
        stages: By the name that the run has for each.
        student: The stage with the student.
        exports: The export stages by format.
        report: The report stage.

    Raises:
        RunError: If an export is not what its stage left, or the folder cannot be written.
    """
    mark, current = folder / "report.json", report.path / "report.json"
    whole = all((folder / part).exists() for part in PARTS)
    whole = whole and all((folder / "export" / fmt).is_dir() for fmt in exports)
    if whole and mark.exists() and mark.read_bytes() == current.read_bytes():
        return
    for stage in exports.values():
        check_kept(stage.path / EXPORTED)  # the copies are sealed anew
    mark.unlink(missing_ok=True)
    try:
        (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        _link(folder / LINKS, {name: stage.path for name, stage in stages.items()})
        _copy(student.path / CHECKPOINT, folder / "student")
        shutil.copyfile(report.path / "card" / CARD, folder / "student" / CARD)
        for fmt, stage in exports.items():
            _copy(stage.path / EXPORTED, folder / "export" / fmt)
            if fmt in FORMATS and FORMATS[fmt].card:
                shutil.copyfile(report.path / "card" / CARD, folder / "export" / fmt / CARD)
                seal_again(folder / "export" / fmt)
        for stale in set(FORMATS) - set(exports):
            shutil.rmtree(folder / "export" / stale, ignore_errors=True)
        shutil.copyfile(report.path / "report.html", folder / "report.html")
        shutil.copyfile(current, mark.with_suffix(".part"))
        os.replace(mark.with_suffix(".part"), mark)
    except OSError as error:
        raise RunError(
            f"Cannot write the run's folder '{folder}': {error.strerror or error}. The stages are "
            "kept; run the same command again."
        ) from error


def _copy(source: Path, target: Path) -> None:
    """A copy, not a link: whoever changes the run's student must not change the store's."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)


def _link(folder: Path, stages: Mapping[str, Path]) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    for name, path in stages.items():
        try:
            (folder / name).symlink_to(os.path.relpath(path, folder), target_is_directory=True)
        except OSError:  # a file system without links
            shutil.copytree(path, folder / name)
