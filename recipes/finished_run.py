"""A run that is finished: its recipe, its report and its stages, to go on from."""

from __future__ import annotations

import filecmp
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..eval.cost import weight_files
from ..eval.errors import RecipeError, RunError
from .gate import read_report
from .loading import load_recipe
from .schema import Recipe
from .stage_teacher import CHECKPOINT
from .store import RECORD, Folder


@dataclass(frozen=True)
class FinishedRun:
    """What a run left.

    Attributes:
        folder: The run's folder, without links in its path.
        recipe: Resolved.
        report: The content of ``report.json``.
    """

    folder: Path
    recipe: Recipe
    report: dict[str, Any]

    def stage(self, name: str) -> Folder:
        """The folder of one of the run's stages.

        Raises:
            RunError: If it is not there any more.
        """
        path = (self.folder / "stages" / name).resolve()
        try:
            record = json.loads((path / RECORD).read_text(encoding="utf-8"))
            record["fingerprint"], record["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(
                f"The stage '{name}' of '{self.folder}' is not there any more (a copied folder has "
                "links only). Run the recipe again, or name the run where it was made."
            ) from None
        return Folder(name, path, record, cached=True)

    @property
    def student(self) -> Folder:
        """The stage that made the first student.

        Raises:
            RunError: If it is gone, or ``student/`` holds other weights than it.
        """
        stage = self.stage("prune" if self.recipe.distill is None else "distill")
        for path in weight_files(stage.path / CHECKPOINT):
            name = path.relative_to(stage.path / CHECKPOINT)
            copy = self.folder / "student" / name
            if not copy.is_file() or not filecmp.cmp(path, copy, shallow=False):
                raise RunError(
                    f"'{self.folder / 'student'}' is not the student of this run: {name} was "
                    "changed or is missing. The same `paredown run` puts it back once the folder "
                    "student/ is removed."
                )
        return stage


def open_run(run: str | Path) -> FinishedRun:
    """Opens the folder of a finished run.

    Raises:
        RecipeError: If it is none.
        RunError: If the run is not finished, or its report or recipe is damaged.
    """
    folder = Path(run)
    if folder.is_file():
        raise RecipeError(f"'{folder}' is a file. Name a run's folder, such as runs/search_query.")
    report = read_report(folder)
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise RunError(f"'{folder}' has no recipe.yaml. Run the recipe again.")
    return FinishedRun(folder.resolve(), load_recipe(path), report)
