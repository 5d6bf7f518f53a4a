"""The folder of an export is written whole or not at all, and nothing outside it is touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.errors import RecipeError, RunError
from paredown.export.golden import seal
from paredown.export.verify import MANIFEST, ROWS, check_files, read_manifest
from paredown.recipes import export_folder
from paredown.recipes.export_folder import check_target, place
from paredown.recipes.run_folder import claim

ABOUT: dict[str, Any] = {
    "version": 1,
    "exact": True,
    "flip_rate": 0.005,
    "tolerance": None,
    "made_on": {},
}
ADDED = {"export.json": "{}"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An export in the store, as far as its files go."""
    folder = tmp_path / "store" / "exported"
    (folder / "1_Dense").mkdir(parents=True)
    for name in ("model.onnx", "1_Dense/config.json", ROWS):
        (folder / name).write_text(f"content of {name}")
    seal(folder, ABOUT)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


WHOLE = ["1_Dense/config.json", "export.json", MANIFEST, ROWS, "model.onnx"]


@pytest.mark.parametrize("there", [False, True])
def test_an_export_is_copied_whole_and_sealed(there: bool, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
    place(source, out, ADDED)
    assert files(out) == sorted(WHOLE)
    manifest = read_manifest(out)
    check_files(out, manifest)
    assert set(manifest["files"]) == set(WHOLE) - {MANIFEST} and manifest["flip_rate"] == 0.005
    assert (out / "model.onnx").read_text() == "content of model.onnx"


def test_an_earlier_export_is_replaced_and_what_a_team_added_stays(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    place(source, out, ADDED)
    (out / "index.npy").write_text("mine")
    (source / "model.onnx").rename(source / "model.xml")
    seal(source, ABOUT)
    place(source, out, ADDED)
    assert files(out) == sorted({*WHOLE, "model.xml", "index.npy"} - {"model.onnx"})
    assert "index.npy" not in read_manifest(out)["files"]
    check_files(out, read_manifest(out))


def test_a_half_written_export_is_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copyfile(source / MANIFEST, out / MANIFEST)  # what is written first
    place(source, out, ADDED)
    check_files(out, read_manifest(out))


def test_a_folder_with_other_things_in_it_is_refused_untouched(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("three years")
    for attempt in (lambda: check_target(out), lambda: place(source, out, ADDED)):
        with pytest.raises(RecipeError, match="with other things in it"):
            attempt()
    assert files(out) == ["thesis.txt"]
    with pytest.raises(RecipeError, match="is a file"):
        check_target(out / "thesis.txt")


def test_a_file_in_the_way_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    place(source, out, ADDED)
    before = (out / "model.onnx").stat().st_mtime_ns
    (source / "labels.txt").write_text("new")
    seal(source, ABOUT)
    (out / "labels.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"holds a 'labels\.txt' that is of no export"):
        place(source, out, ADDED)
    assert (out / "labels.txt").read_text() == "mine"
    assert (out / "model.onnx").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["../victim", "/tmp/../victim", "1_Dense/../../victim"])
def test_a_manifest_that_names_files_outside_is_no_export(
    name: str, source: Path, tmp_path: Path
) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    place(source, out, ADDED)
    victim.write_text("safe")
    content = json.loads((out / MANIFEST).read_text())
    content["files"][name] = "0"
    (out / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(RecipeError, match="names a file outside the folder"):
        place(source, out, ADDED)
    assert victim.read_text() == "safe"


def test_a_link_in_the_folder_is_not_followed(source: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    place(source, out, ADDED)
    shutil.rmtree(out / "1_Dense")
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text("safe")
    (out / "1_Dense").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(RecipeError, match="is a link or a file"):
        place(source, out, ADDED)
    (out / "1_Dense").unlink()
    (out / "model.onnx").unlink()
    (out / "model.onnx").symlink_to(elsewhere / "config.json")
    place(source, out, ADDED)
    assert (elsewhere / "config.json").read_text() == "safe"
    assert not (out / "model.onnx").is_symlink()
    check_files(out, read_manifest(out))


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest"])
def test_what_was_changed_in_the_store_is_not_handed_over(
    damage: str, source: Path, tmp_path: Path
) -> None:
    fresh, out = tmp_path / "fresh", tmp_path / "out"
    place(source, out, ADDED)
    if damage == "changed":
        (source / "model.onnx").write_text("content of another")
    else:
        (source / (MANIFEST if damage == "no manifest" else "model.onnx")).unlink()
    for target in (fresh, out):
        with pytest.raises(RunError, match=f"delete '{source.parent}'"):
            place(source, target, ADDED)
    assert not fresh.exists() and files(out) == sorted(WHOLE)
    check_files(out, read_manifest(out))


def test_what_lies_in_the_store_beside_an_export_is_no_part_of_it(
    source: Path, tmp_path: Path
) -> None:
    (source / "notes.txt").write_text("not judged")
    place(source, tmp_path / "out", ADDED)
    assert files(tmp_path / "out") == sorted(WHOLE)


def test_the_store_is_not_written_to(tmp_path: Path, source: Path) -> None:
    stage = tmp_path / "runs" / ".stages" / "export-onnx-12"
    stage.mkdir(parents=True)
    kept = source.rename(stage / "exported")
    for folder in ("linked", "copied"):  # a run on a file system without links has copies
        claim(tmp_path / "runs" / folder)
        (tmp_path / "runs" / folder / "stages").mkdir()
    linked, copied = (
        tmp_path / "runs" / n / "stages" / "export-onnx" for n in ("linked", "copied")
    )
    linked.symlink_to(stage)
    shutil.copytree(stage, copied)
    (tmp_path / "link").symlink_to(kept)
    new = [stage.parent / "new", linked.parent / "new", copied.parent / "new"]
    for out in (kept, linked / "exported", copied / "exported", tmp_path / "link", *new):
        for attempt in (lambda out=out: check_target(out), lambda out=out: place(kept, out, ADDED)):
            with pytest.raises(RecipeError, match="where runs keep their stages"):
                attempt()
    for folder in (kept, copied / "exported"):
        assert files(folder) == sorted(set(WHOLE) - {"export.json"})
        check_files(folder, read_manifest(folder))
    assert not any(out.exists() for out in new)
    place(kept, tmp_path / "stages" / "out", ADDED)  # of no run


def test_an_export_is_not_placed_onto_or_into_itself(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for out in (source, tmp_path / "link", source / "1_Dense" / "new"):
        with pytest.raises(RecipeError, match="where runs keep their stages"):
            place(source, out, ADDED)
    check_files(source, read_manifest(source))
    assert files(source) == sorted(set(WHOLE) - {"export.json"})


@pytest.mark.parametrize("there", [False, True])
def test_what_cannot_be_written_leaves_nothing(
    there: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, copied = tmp_path / "out", []
    if there:
        place(source, out, ADDED)
        (out / "notes.txt").write_text("mine")
    copy = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) == 3:
            raise OSError(28, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(export_folder.shutil, "copyfile", full)
    with pytest.raises(RunError, match="No space left on device"):
        place(source, out, ADDED)
    assert files(out) == ["notes.txt"] if there else not out.exists()
