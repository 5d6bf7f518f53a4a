"""A run writes its own folder and nothing of anybody else's, and restores what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.checkpoints import find_checkpoint
from paredown.eval.errors import RecipeError, RunError
from paredown.export.golden import seal
from paredown.export.verify import ROWS, check_files, read_manifest
from paredown.recipes.api import check, run
from paredown.recipes.run_folder import fill
from paredown.recipes.smoke import write_model
from paredown.recipes.stage_teacher import identity
from paredown.recipes.store import Folder

SHORT = ["export=[]", "evaluate.resamples=100", "evaluate.latency_rows=0"]


def smoke(folder: Path, *overrides: str, name: str = "search_query") -> Any:
    return run(name, [*SHORT, *overrides], smoke=True, out=folder)


def test_a_folder_with_other_things_in_it_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine" / "student").mkdir(parents=True)
    thesis = tmp_path / "mine" / "student" / "thesis.txt"
    thesis.write_text("three years")
    with pytest.raises(RecipeError, match="would overwrite"):
        smoke(tmp_path / "mine")
    assert thesis.read_text() == "three years"
    assert not (tmp_path / ".stages").exists()


def test_what_is_missing_of_a_finished_run_is_put_back(tmp_path: Path) -> None:
    first = smoke(tmp_path / "run", "distill=null")
    shutil.rmtree(first.folder / "student")
    (first.folder / "report.html").unlink()
    again = smoke(tmp_path / "run", "distill=null")
    assert again.cached
    assert (again.folder / "student" / "model.safetensors").exists()
    assert (again.folder / "report.html").exists()


@pytest.mark.parametrize("fmt", ["onnx", "safetensors"])  # the latter gets the model card
def test_an_export_that_was_changed_in_the_store_is_not_taken_into_a_run(
    fmt: str, tmp_path: Path
) -> None:
    def stage(name: str, *files: str) -> Folder:
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(f"content of {file}")
        return Folder(name, tmp_path / name, {}, cached=True)

    student = stage("distill", "checkpoint/config.json")
    report = stage("report", "report.json", "report.html", "card/README.md")
    export = stage("export", "exported/weights", "exported/README.md", f"exported/{ROWS}")
    kept, run_folder = export.path / "exported", tmp_path / "run"
    seal(kept, {"version": 1, "exact": True, "flip_rate": 0, "tolerance": 0, "made_on": {}})
    run_folder.mkdir()

    def filled() -> None:
        fill(run_folder, check("search_query"), {"distill": student}, student,
             {fmt: export}, report)  # fmt: skip

    filled()
    copy = run_folder / "export" / fmt
    check_files(copy, read_manifest(copy))
    (kept / "weights").write_text("content of another")
    (run_folder / "report.html").unlink()
    with pytest.raises(RunError, match=f"weights was changed .* delete '{export.path}'"):
        filled()
    assert (copy / "weights").read_text() == "content of exported/weights"
    check_files(copy, read_manifest(copy))


def test_a_smoke_run_follows_the_recipe(tmp_path: Path) -> None:
    smoke(tmp_path / "run", "distill=null")
    smoke(tmp_path / "run", "distill=null", "smoke.architecture=distilbert")
    config = (tmp_path / "run" / "student" / "config.json").read_text()
    assert '"model_type": "distilbert"' in config


def test_a_classifier_that_is_ready_can_be_smoked(tmp_path: Path) -> None:
    result = smoke(tmp_path / "run", "teacher.finetune=null", "distill=null", name="query_intent")
    assert result.report["quality"]["examples"] == 64


def test_a_teacher_in_another_place_is_another_teacher(tmp_path: Path) -> None:
    first = smoke(tmp_path / "a", "distill=null")
    second = smoke(tmp_path / "b", "distill=null")  # the same weights, beside it
    places = [(r.folder / "stages" / "teacher").resolve() for r in (first, second)]
    assert places[0] != places[1]


def test_only_the_hubs_own_folders_are_known_by_their_commit(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "v1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    before = identity(folder)
    (folder / "config.json").write_text('{"changed": true}')
    assert identity(folder) != before


def test_a_cache_with_half_a_model_is_not_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(half))
    package = tmp_path / "whole"
    write_model("bert", package, layers=1, hidden=32)
    monkeypatch.setattr("paredown.eval.checkpoints.packaged_copy", lambda name: package)
    assert find_checkpoint("a/b") == package
