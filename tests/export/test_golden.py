"""Golden rows say the same on the machine that made them, and tell damage from another machine."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.eval.errors import RunError
from paredown.export import verify as module
from paredown.export.golden import files_of, seal, write_golden
from paredown.export.runner import load
from paredown.export.verify import (
    MANIFEST,
    ROWS,
    VerifyError,
    compare,
    is_inside,
    machine_differences,
    read_manifest,
    read_rows,
    verify,
)

from .conftest import LABELS, TEXTS, Exported
from .test_predict import BARE

GOLDEN = [{"text": text} for text in TEXTS]
ROW = '{"text": "a", "decision": "a"}'
Sealed = Callable[..., Path]


@pytest.fixture
def sealed(exported: Exported, tmp_path: Path) -> Sealed:
    """A copy of a tiny export, with golden rows."""

    def make(task: str = "classification", fmt: str = "onnx", rows: Any = GOLDEN) -> Path:
        folder = tmp_path / f"{task}-{fmt}"
        shutil.copytree(exported("bert", task, fmt)[1], folder)
        write_golden(folder, fmt, load(folder, threads=1), rows)
        return folder

    return make


def check(folder: Path, flip_rate: float | None = None) -> module.Verified:
    return verify(folder, lambda: load(folder, threads=1), flip_rate)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes golden.json."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes every golden row, and seals the folder again as its maker would."""
    rows = [json.loads(line) for line in (folder / ROWS).read_text("utf-8").splitlines()]
    for row in rows:
        change(row)
    (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    about.pop("files")
    seal(folder, about)


@pytest.mark.parametrize(
    ("task", "fmt"),
    [("classification", "onnx"), ("classification", "onnx-int8"), ("retrieval", "onnx")],
)
def test_golden_rows_answer_the_same_where_they_were_made(
    task: str, fmt: str, sealed: Sealed
) -> None:
    folder = sealed(task, fmt)
    rows = read_rows(folder)
    assert [row["text"] for row in rows] == TEXTS
    values = load(folder, threads=1).signal(TEXTS)
    np.testing.assert_allclose([row["values"] for row in rows], values, rtol=1e-5)
    found = check(folder)
    assert (found.rows, found.differ, found.machine, found.met) == (len(TEXTS), 0, [], True)
    assert found.max_difference is not None and found.max_difference < 1e-4
    assert (found.tolerance is None) == (not found.exact) == fmt.endswith("int8")
    about = read_manifest(folder)
    assert about["made_on"]["versions"].keys() == {"onnxruntime", "tokenizers", "numpy"}
    assert set(about["files"]) == set(files_of(folder)) - {MANIFEST}


def test_decisions_are_classes_and_nearest_other_rows(sealed: Sealed) -> None:
    folder = sealed()
    runner = load(folder, threads=1)
    labels = [answer["label"] for answer in runner.predict(TEXTS)]
    assert [row["decision"] for row in read_rows(folder)] == labels
    folder = sealed("retrieval")
    vectors = load(folder, threads=1).signal(TEXTS)
    likeness = vectors @ vectors.T - 9 * np.eye(len(vectors))
    nearest = [row["decision"] for row in read_rows(folder)]
    assert nearest == likeness.argmax(1).tolist()


def test_pairs_are_golden_too(sealed: Sealed) -> None:
    rows = [{"text": a, "text_pair": b} for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    folder = sealed(rows=rows)
    expected = load(folder, threads=1).signal(TEXTS, TEXTS[::-1])
    np.testing.assert_allclose([r["values"] for r in read_rows(folder)], expected, rtol=1e-5)
    assert check(folder).met


def test_one_golden_row_is_enough(sealed: Sealed) -> None:
    assert check(sealed("retrieval", rows=GOLDEN[:1])).met


def test_rows_with_the_same_text_to_a_model_are_no_flips(sealed: Sealed) -> None:
    rows = [{"text": text} for text in ("Open it", "open it", "close it", "OPEN IT")]
    folder = sealed("retrieval", rows=rows)
    rewrite(folder, lambda row: row.update(decision=3) if row["decision"] == 1 else None)
    assert check(folder).differ == 0


def other_class(row: dict[str, Any]) -> None:
    row["decision"] = LABELS[0] if row["decision"] != LABELS[0] else LABELS[1]


def test_other_decisions_are_counted_and_judged_by_the_stated_share(sealed: Sealed) -> None:
    folder = sealed()
    rewrite(folder, other_class)
    found = check(folder)
    assert (found.differ, found.met) == (len(TEXTS), False)
    assert f"{len(TEXTS)} of {len(TEXTS)} golden rows differ (100.00%; 0.50% may)" in found.lines[0]
    assert len(found.differing) == module.SHOWN
    one = found.differing[0]
    assert one["now"] == load(folder, threads=1).predict(TEXTS[:1])[0]["label"] != one["then"]
    assert check(folder, flip_rate=1.0).met
    assert not check(folder, flip_rate=0.99).met


def test_other_values_are_told_and_judged_in_full_precision_alone(sealed: Sealed) -> None:
    def louder(row: dict[str, Any]) -> None:
        row["values"] = [value * 1.01 for value in row["values"]]

    for fmt in ("onnx", "onnx-int8"):
        folder = sealed("classification", fmt)
        rewrite(folder, louder)
        found = check(folder)
        assert found.differ == 0 and found.max_difference is not None
        assert found.max_difference > 1e-4 and found.met == (fmt == "onnx-int8")
        said = any("int8 results depend on the processor" in line for line in found.lines)
        assert said == (fmt == "onnx-int8")


def test_what_differs_between_the_machines_is_told(sealed: Sealed) -> None:
    folder = sealed()

    def elsewhere(content: dict[str, Any]) -> None:
        content["made_on"]["processor"] = "Abacus 3000"
        content["made_on"]["instructions"] = ["avx9000"]
        content["made_on"]["versions"]["onnxruntime"] = "0.0.1"

    edit(folder, elsewhere)
    found = check(folder)
    said = "; ".join(found.machine)
    assert "the processor was Abacus 3000, here it is" in said
    assert "it had avx9000, this one has not" in said
    assert "onnxruntime was 0.0.1, here it is" in said
    assert found.met and any(line.startswith("machines: ") for line in found.lines)


def test_an_unknown_machine_is_no_error() -> None:
    here = {"processor": "p", "system": "s", "instructions": [], "versions": {"numpy": "2"}}
    assert machine_differences(here, here) == []
    assert len(machine_differences({}, here)) == 2


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "paredown.json", ROWS])
def test_a_file_that_was_changed_or_is_gone_is_named(name: str, sealed: Sealed) -> None:
    folder = sealed()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + b" ")
    with pytest.raises(VerifyError, match=f"{name} was changed or is damaged") as caught:
        check(folder)
    assert caught.value.exit_code == 1
    (folder / name).unlink()
    with pytest.raises(VerifyError, match=f"{name} is missing"):
        check(folder)


def test_the_model_is_not_touched_before_its_files_are_known(sealed: Sealed) -> None:
    folder = sealed()
    (folder / "model.onnx").write_bytes(b"hostile")
    with pytest.raises(VerifyError, match="is not what was exported"):
        verify(folder, lambda: pytest.fail("loaded"))


def test_what_a_team_adds_to_the_folder_is_left_alone(sealed: Sealed) -> None:
    folder = sealed()
    (folder / "notes.txt").write_text("deployed on Monday")
    assert check(folder).met


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("files"),
        lambda c: c.pop("version"),
        lambda c: c.pop("made_on"),
        lambda c: c.update(files=[]),
        lambda c: c.update(files={}),
        lambda c: c.update(exact="yes"),
        lambda c: c.update(flip_rate=None),
        lambda c: c.update(flip_rate=math.nan),
        lambda c: c.update(tolerance="1e-4"),
        lambda c: c["made_on"].update(versions=["numpy"]),
        lambda c: c["made_on"].update(instructions="avx2"),
        lambda c: c["files"].update({"../model.onnx": "0"}),
        lambda c: c["files"].update({"/etc/passwd": "0"}),
        lambda c: c["files"].update({"a/../../b": "0"}),
        lambda c: c["files"].update({"C:\\key": "0"}),
        lambda c: c["files"].update({"": "0"}),
    ],
)
def test_a_damaged_or_hostile_manifest_is_refused(change: Any, sealed: Sealed) -> None:
    folder = sealed()
    edit(folder, change)
    with pytest.raises(VerifyError, match=r"golden\.json' is damaged") as caught:
        check(folder)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content, encoding="utf-8")
    with pytest.raises(VerifyError, match="is damaged"):
        read_manifest(tmp_path)


def test_a_folder_without_golden_rows_and_a_newer_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(VerifyError, match="golden rows") as caught:
            read_manifest(folder)
        assert caught.value.exit_code == 2
    (tmp_path / MANIFEST).write_text('{"version": 99}', encoding="utf-8")
    with pytest.raises(VerifyError, match="newer paredown"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_flip_rate_is_a_share(rate: float, sealed: Sealed) -> None:
    with pytest.raises(VerifyError, match="--flip-rate is a share") as caught:
        check(sealed(), rate)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "damaged"),
        ("3", "line 1 is no golden row"),
        ('{"text": 1, "decision": "a"}', "line 1 is no golden row"),
        ('{"text": "a", "values": [1]}', "line 1 is no golden row"),
        ('{"text": "a", "values": ["1"], "decision": "a"}', "line 1 is no golden row"),
        ('{"text": "a", "values": [NaN], "decision": "a"}', "line 1 is no golden row"),
        ('{"text": "a", "text_pair": null, "decision": "a"}', "line 1 is no golden row"),
        (f'{ROW}\n{{"text": "a", "text_pair": "b", "decision": "a"}}', "not of one kind"),
        (f'{ROW}\n{{"text": "a", "values": [1], "decision": "a"}}', "not of one kind"),
        ("", "it is empty"),
    ],
)
def test_a_damaged_golden_row_is_named(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / ROWS).write_text(line, encoding="utf-8")
    with pytest.raises(VerifyError, match=problem):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda row: row.update(values=row["values"][:-1]), "they are of another model"),
        (lambda row: row.update(decision="no class"), "decides no class, which is none"),
    ],
)
def test_golden_rows_of_another_model_are_refused(
    change: Any, problem: str, sealed: Sealed
) -> None:
    folder = sealed()
    rewrite(folder, change)
    with pytest.raises(VerifyError, match=problem):
        check(folder)


def test_numbers_that_are_not_finite_make_no_golden_rows(sealed: Sealed) -> None:
    folder = sealed()
    runner = load(folder, threads=1)
    broken: Any = lambda *a, **k: np.full((len(TEXTS), 3), np.nan, np.float32)  # noqa: E731
    runner.signal = broken  # type: ignore[method-assign]
    with pytest.raises(RunError, match="not finite"):
        write_golden(folder, "onnx", runner, GOLDEN)
    found = compare(runner, read_rows(folder), read_manifest(folder))
    assert found.differ == len(TEXTS) and found.max_difference == math.inf and not found.met


class Writer:
    """Stands in for a language model: answers by a rule."""

    runtime = "onnxruntime"

    def __init__(self, ending: str = "!") -> None:
        self.settings = {"signal": "token_distribution"}
        self.ending = ending

    def generate(self, texts: list[str]) -> list[str]:
        return [text.upper() + self.ending for text in texts]


def test_texts_are_golden_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w")
    write_golden(tmp_path, "onnx-int8", Writer(), GOLDEN)
    assert [row["decision"] for row in read_rows(tmp_path)] == [f"{t.upper()}!" for t in TEXTS]
    found = verify(tmp_path, Writer)
    assert found.met and found.max_difference is None
    found = verify(tmp_path, lambda: Writer("?"))
    assert not found.met and found.differing[1]["now"].endswith("?")
    assert any("int8 results" in line for line in found.lines)


def run_verify(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A folder's verify.py, where torch and paredown cannot be imported."""
    command = [sys.executable, "-c", BARE, str(folder / "verify.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_folder_verifies_itself_where_only_three_packages_are(sealed: Sealed) -> None:
    folder = sealed()
    assert "python verify.py" in (folder / "README.md").read_text(encoding="utf-8")
    done = run_verify(folder, "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"decisions: 0 of {len(TEXTS)} golden rows differ")
    rewrite(folder, other_class)
    assert run_verify(folder).returncode == 3
    assert run_verify(folder, "--flip-rate", "2").returncode == 2
    done = run_verify(folder, "--threads", "0")
    assert done.returncode == 2 and "at least 1; got 0" in done.stderr
    (folder / "model.onnx").write_bytes(b"")
    done = run_verify(folder)
    assert done.returncode == 1 and "model.onnx was changed or is damaged" in done.stderr
    assert "Traceback" not in done.stderr


PARTS = st.sampled_from(["..", ".", "", "a", "b.onnx", "1_Dense", "C:", "\\", "a\0b", "…"])


@given(st.lists(PARTS, min_size=1, max_size=5).map("/".join))
def test_a_name_that_is_inside_stays_inside(name: str) -> None:
    if is_inside(name):
        joined = PurePosixPath("/folder", name)
        assert joined.parts[:2] == ("/", "folder") and ".." not in joined.parts
        assert len(joined.parts) > 2 and "\0" not in name
    for wrong in (None, 3, ["a"]):
        assert not is_inside(wrong)
