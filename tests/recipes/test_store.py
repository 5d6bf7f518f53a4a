"""The engine: nothing twice, nothing half, one holder, and a folder that explains itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paredown.eval.errors import RecipeError, RunError
from paredown.recipes import sources
from paredown.recipes.progress import Display
from paredown.recipes.store import Context, Folder, Stage, Store
from paredown.recipes.world import World, join_world

Work = Callable[[Context], None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, Display(quiet=True), World())


def stage(work: Work, settings: object = None, inputs: dict[str, Folder] | None = None) -> Stage:
    return Stage("data", "stage_data", {"settings": settings}, inputs or {}, work)


def write(text: str) -> Work:
    def work(context: Context) -> None:
        (context.out / "file").write_text(text)
        context.facts["size"] = len(text)

    return work


def test_a_finished_stage_is_not_made_again(store: Store) -> None:
    first = store.ensure(stage(write("once")))

    def never(context: Context) -> None:
        raise AssertionError("made twice")

    again = store.ensure(stage(never))
    assert (first.cached, again.cached) == (False, True)
    assert again.path == first.path and (again.path / "file").read_text() == "once"


def test_the_record_explains_the_folder(store: Store) -> None:
    folder = store.ensure(stage(write("abc"), {"a": 1}))
    record = json.loads((folder.path / "stage.json").read_text())
    assert record["settings"] == {"settings": {"a": 1}}
    assert record["size"] == 3 and record["world_size"] == 1 and record["seconds"] >= 0
    assert record["versions"]["torch"] and record["peak_memory_bytes"] > 1e6


def test_settings_inputs_and_sources_each_make_another_stage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.ensure(stage(write("x"), 1))
    other = store.ensure(stage(write("x"), 2))
    after = store.ensure(stage(write("x"), 1, {"data": other}))
    monkeypatch.setattr("paredown.recipes.store.source_hash", lambda *at: "changed")
    changed = store.ensure(stage(write("x"), 1))
    assert len({f.fingerprint for f in (first, other, after, changed)}) == 4


def test_a_failed_stage_is_not_there_and_goes_on_from_what_it_wrote(store: Store) -> None:
    def fails(context: Context) -> None:
        (context.out / "half").write_text("kept")
        raise RecipeError("no such axis")

    with pytest.raises(RecipeError, match="no such axis"):
        store.ensure(stage(fails))
    assert not list(store.folder.glob("data-*"))

    def goes_on(context: Context) -> None:
        assert (context.out / "half").read_text() == "kept"

    assert not store.ensure(stage(goes_on)).cached


def test_an_unforeseen_error_names_the_stage_and_its_log(store: Store) -> None:
    def fails(context: Context) -> None:
        print("the library's last words")
        raise KeyError("x")

    with pytest.raises(RunError, match=r"stage data failed: KeyError.*\n.*log\.txt") as caught:
        store.ensure(stage(fails))
    log = Path(str(caught.value).split("Its log: ")[1].split(". What")[0])
    assert "the library's last words" in log.read_text()


def test_output_of_a_stage_goes_to_its_log_alone(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    def noisy(context: Context) -> None:
        print("from python")
        subprocess.run(["echo", "from a child"], check=True)

    folder = store.ensure(stage(noisy))
    seen = capfd.readouterr()
    assert "from" not in seen.out + seen.err
    assert {"from python", "from a child"} <= set((folder.path / "log.txt").read_text().split("\n"))


def test_a_full_disk_is_said_in_one_message(store: Store) -> None:
    def full(context: Context) -> None:
        raise RuntimeError("PytorchStreamWriter failed: No space left on device")

    with pytest.raises(RunError, match=r"No space is left .* what was finished is kept"):
        store.ensure(stage(full))


def test_a_damaged_record_says_what_to_do(store: Store) -> None:
    folder = store.ensure(stage(write("x")))
    (folder.path / "stage.json").write_text("{half")
    with pytest.raises(RunError, match="delete that folder and run again"):
        store.ensure(stage(write("x")))


HOLD = """
import sys, time
from pathlib import Path
from paredown.recipes.progress import Display
from paredown.recipes.store import Stage, Store
from paredown.recipes.world import World
def work(context):
    Path(sys.argv[2]).touch()
    time.sleep(60)
Store(Path(sys.argv[1]), Display(quiet=True), World()).ensure(
    Stage("data", "stage_data", {"settings": None}, {}, work))
"""


def test_a_second_run_names_the_holder_and_a_killed_one_frees_the_stage(
    store: Store, tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), str(sign)])
    try:
        for _ in range(600):
            if sign.exists():
                break
            time.sleep(0.05)
        with pytest.raises(RunError, match=f"being made by process {holder.pid} since"):
            store.ensure(stage(write("x")))
    finally:
        holder.kill()
        holder.wait()
    assert (store.ensure(stage(write("x"))).path / "file").exists()


def test_a_hash_covers_what_a_module_imports_and_nothing_else() -> None:
    imported = {at for at in sources._imports("recipes", "stage_capture")}
    assert ("distill", "capture") in imported
    ours = sources.source_hash("recipes", "stage_data")
    assert ours != sources.source_hash("recipes", "stage_capture")


def test_a_launch_that_meant_two_and_got_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RunError, match=r"names several processes, but one was started.*multi_gpu"):
        join_world()


def test_a_plain_start_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    world = join_world()
    assert (world.rank, world.size, world.main, world.agree(False)) == (0, 1, True, False)
    world.barrier()
