"""export, verify and predict on the student of a smoke run, as a person or a notebook uses them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paredown
from paredown.eval.data import Data
from paredown.eval.errors import RecipeError, RunError
from paredown.eval.splits import text_key
from paredown.eval.tasks import get_task
from paredown.export.verify import MANIFEST, ROWS, read_manifest, read_rows
from paredown.recipes import cli, deployment
from paredown.recipes.api import run
from paredown.recipes.deployment import FILE, Measured
from paredown.recipes.finished_run import open_run
from paredown.recipes.golden_rows import golden_rows
from paredown.recipes.stage_evaluate import evaluation
from paredown.recipes.store import Store

SHORT = ["evaluate.resamples=100"]
QUERIES = ["how do I open the card account", "find the bank", "größe, 你好", "cancel the loan"]


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished smoke run of classes, exported to onnx."""
    out = tmp_path_factory.mktemp("classes") / "run"
    return run("query_intent", [*SHORT, "export=[onnx]"], smoke=True, out=out).folder


@pytest.fixture(scope="module")
def retrieved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished smoke run of embeddings, exported to nothing."""
    out = tmp_path_factory.mktemp("embeddings") / "run"
    short = [*SHORT, "export=[]", "distill=null", "evaluate.latency_rows=0"]
    return run("search_query", short, smoke=True, out=out).folder


@pytest.fixture(scope="module")
def exported(classified: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Measured]:
    """The run of classes as onnx-int8, by the function behind the command."""
    out = tmp_path_factory.mktemp("exported") / "int8"
    return out, deployment.export_run(classified, "onnx-int8", out)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that were not there already."""
    found: list[str] = []
    ensure = Store.ensure

    def counted(self: Store, stage: Any, trial: str | None = None) -> Any:
        folder = ensure(self, stage, trial)
        found.extend([] if folder.cached else [stage.name])
        return folder

    monkeypatch.setattr(Store, "ensure", counted)
    return found


# Export


def test_an_export_says_what_was_measured(
    exported: tuple[Path, Measured], classified: Path
) -> None:
    out, content = exported
    assert json.loads((out / FILE).read_text(encoding="utf-8")) == content
    assert set(content) == set(Measured.__annotations__)
    report = paredown.report(classified)
    assert content["teacher"] == pytest.approx(report["quality"]["teacher"])
    assert content["student"] == pytest.approx(report["quality"]["student"])
    assert content["retention"] == pytest.approx(content["value"] / content["teacher"])
    low, high = content["retention_ci95"] or (0, 0)
    assert low <= content["retention"] <= high
    assert (content["examples"], content["metric"]) == (64, report["quality"]["metric"])
    assert 0 <= content["flip_rate"] <= 1 and content["flip_rate_limit"] is None
    assert content["calibration_shift"] is not None and 0 <= content["calibration_shift"] < 0.5
    assert content["latency_ms_p50"] and content["peak_memory_bytes"] and content["cold_start_s"]
    assert content["bytes"] == (out / "model.onnx").stat().st_size
    assert (content["format"], content["smoke"]) == ("onnx-int8", True)


def test_what_the_run_made_is_not_made_again(
    classified: Path, tmp_path: Path, made: list[str]
) -> None:
    content = deployment.export_run(classified, "onnx", tmp_path / "onnx")
    assert [name for name in made if name != "evaluate-export-onnx"] == []
    found = evaluation(classified / "stages" / "evaluate")["contenders"]["export-onnx"]
    assert content["value"] == pytest.approx(found["value"])
    assert content["flip_rate"] == found["flip_rate"] == 0 and content["flip_rate_limit"] == 0.005
    assert content["retention"] == pytest.approx(found["retention"])
    assert content["retention_ci95"] == pytest.approx(found["retention_ci95"])
    assert content["calibration_shift"] < 1e-4  # type: ignore[operator]
    made.clear()
    deployment.export_run(classified, "onnx", tmp_path / "onnx")
    assert made == []


@pytest.mark.parametrize("stages", ["linked", "copied", "elsewhere"])
def test_a_sweeps_point_is_exported_through_the_store_that_it_was_made_in(
    stages: str, classified: Path, tmp_path: Path, made: list[str]
) -> None:
    deployment.export_run(classified, "onnx", tmp_path / "first")
    made.clear()
    point = (tmp_path if stages == "elsewhere" else classified.parent / "sweep") / stages / "point"
    if stages == "copied":  # a file system without links
        shutil.copytree(classified, point)
    else:
        shutil.copytree(classified, point, ignore=shutil.ignore_patterns("stages"))
        (point / "stages").symlink_to(classified / "stages")
    deployment.export_run(point, "onnx", tmp_path / "onnx")
    assert made == []
    assert list(point.parent.iterdir()) == [point]


def test_an_export_that_was_changed_in_the_store_is_not_judged(
    classified: Path, tmp_path: Path, made: list[str]
) -> None:
    copy, out = tmp_path / "runs", tmp_path / "out"
    shutil.copytree(classified.parent, copy, symlinks=True)
    run_copy = copy / classified.name
    for path in (copy / ".stages").glob("evaluate-export-*"):
        shutil.rmtree(path)
    stage = (run_copy / "stages" / "export-onnx").resolve()
    with (stage / "exported" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(RunError, match=r"model\.onnx was changed or is damaged"):
        deployment.export_run(run_copy, "onnx", out)
    assert made == [] and not out.exists()
    shutil.rmtree(stage)  # what the message says
    deployment.export_run(run_copy, "onnx", out)
    assert made == ["export-onnx", "evaluate-export-onnx"]


def test_a_format_the_recipe_did_not_ask_for_is_made_of_one_that_it_did(
    exported: tuple[Path, Measured], classified: Path
) -> None:
    stages = (classified.parent / ".stages").glob("export-onnx-int8-*/stage.json")
    (record,) = [json.loads(path.read_text()) for path in stages]
    base = json.loads((classified / "stages" / "export-onnx" / "stage.json").read_text())
    assert record["inputs"]["base"] == base["fingerprint"]


def test_the_exports_of_a_run_carry_golden_rows_of_no_test_text(
    classified: Path, retrieved: Path
) -> None:
    folder = classified / "export" / "onnx"
    data = Data.open(classified / "stages" / "data")
    tests = {text_key(text) for text in data.split("test")["text"][:]}
    known = {text_key(t) for s in ("train", "validation") for t in data.split(s)["text"][:]}
    rows = {text_key(row["text"]) for row in read_rows(folder)}
    assert len(rows) == 64 and rows <= known and not rows & tests
    assert paredown.verify(folder).met
    for path, name in ((classified, "classification"), (retrieved, "retrieval")):
        task, opened = get_task(name), Data.open(path / "stages" / "data")
        first, again = (golden_rows(opened, task, seed=3) for _ in range(2))
        assert first == again != golden_rows(opened, task, seed=4)


def test_embeddings_are_exported_and_judged_by_the_index(
    retrieved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(retrieved), "--format", "sentence-transformers", "--out"]
    assert cli.main([*words, str(tmp_path / "st")]) == 0
    said = capsys.readouterr().out
    assert "MRR@10 of the export" in said and "0.00 % (0.50 % allowed)" in said
    assert "paredown verify" in said and "not measured" in said  # no latency was asked for
    content = json.loads((tmp_path / "st" / FILE).read_text(encoding="utf-8"))
    assert content["flip_rate"] == 0 and content["calibration_shift"] is None
    assert content["value"] == content["student"] and content["latency_ms_p50"] is None
    assert cli.main(["verify", str(tmp_path / "st"), "--threads", "1"]) == 0
    assert "Verified." in capsys.readouterr().out


def test_a_flip_rate_over_the_limit_writes_nothing(
    classified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = deployment.measured
    monkeypatch.setattr(deployment, "measured", lambda f: measured(f) | {"flip_rate": 0.0157})
    out = tmp_path / "out"
    for fmt, options in (("onnx", {}), ("onnx-int8", {"flip_rate": 0.015}),
                         ("onnx-int8", {"strict": True})):  # fmt: skip
        with pytest.raises(RunError, match=r"decides 1\.57% of the test rows otherwise"):
            deployment.export_run(classified, fmt, out, **options)  # type: ignore[arg-type]
        assert not out.exists()
    deployment.export_run(classified, "onnx-int8", out)
    before = (out / FILE).read_bytes()
    with pytest.raises(RunError, match="Nothing was written"):
        deployment.export_run(classified, "onnx", out)
    assert (out / FILE).read_bytes() == before
    content = deployment.export_run(classified, "onnx", out, flip_rate=0.02)
    assert content["flip_rate_limit"] == 0.02 and read_manifest(out)["format"] == "onnx"


def test_export_tells_what_is_wrong_with_its_arguments(
    classified: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def said(*words: str) -> tuple[int, str]:
        code = cli.main(["export", *words])
        return code, capsys.readouterr().err

    out, name = str(tmp_path / "out"), str(classified)
    code, text = said(name, "--format", "onnx-int4", "--out", out)
    assert code == 2 and "Unknown format 'onnx-int4'. Did you mean 'onnx-int8'?" in text
    code, text = said(name, "--format", "sentence-transformers", "--out", out)
    assert code == 2 and "gives class_logits" in text
    for wrong in ("2", "-1", "nan"):
        code, text = said(name, "--format", "onnx", "--out", out, "--flip-rate", wrong)
        assert code == 2 and "--flip-rate is a share" in text
    code, text = said(name, "--format", "onnx", "--out", out, "--flip-rate", "0", "--strict")
    assert code == 2 and "Drop one" in text
    assert said(name, "--format", "onnx")[0] == 2
    code, text = said(str(tmp_path / "nothing"), "--format", "onnx", "--out", out)
    assert code == 2 and "There is no run" in text
    code, text = said(name, "--format", "onnx", "--out", name)
    assert code == 2 and "with other things in it" in text
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, text = said(name, "--format", "onnx", "--out", out)
    assert code == 2 and "one process" in text
    assert not Path(out).exists() and "Traceback" not in text


def test_a_package_that_is_missing_comes_with_its_install_line(
    classified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    out = str(tmp_path / "out")
    assert cli.main(["export", str(classified), "--format", "onnx-int8", "--out", out]) == 2
    assert "pip install 'paredown[onnx]'" in capsys.readouterr().err


def test_a_run_that_is_not_finished_or_was_changed_is_refused(
    classified: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "runs" / "copy"
    shutil.copytree(classified, copy, symlinks=True)
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"The stage 'data' of .* is not there any more"):
        deployment.export_run(copy, "onnx", out)
    shutil.rmtree(copy / "stages")
    (copy / "stages").symlink_to(classified / "stages")
    weights = copy / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(RunError, match=r"student' is not the student of this run: model\.saf"):
        deployment.export_run(copy, "onnx", out)
    (copy / "recipe.yaml").unlink()
    with pytest.raises(RunError, match=r"has no recipe\.yaml"):
        deployment.export_run(copy, "onnx", out)
    (copy / "report.json").unlink()
    (copy / "recipe.yaml").touch()
    with pytest.raises(RunError, match="The run is not finished"):
        deployment.export_run(copy, "onnx", out)
    with pytest.raises(RecipeError, match="is a file"):
        open_run(classified / "report.json")
    assert not out.exists()


# Verify


def test_verify_exits_with_3_where_decisions_differ(
    exported: tuple[Path, Measured], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "int8"
    shutil.copytree(exported[0], folder)
    assert cli.main(["verify", str(folder)]) == 0
    assert "decisions: 0 of 64 golden rows differ" in capsys.readouterr().out
    from paredown.export.predict import Predictor

    signal = Predictor.signal
    monkeypatch.setattr(Predictor, "signal", lambda *a, **k: -signal(*a, **k))
    assert cli.main(["verify", str(folder)]) == 3
    said = capsys.readouterr().out
    assert "Not verified." in said and "int8 results depend on the processor" in said
    assert cli.main(["verify", str(folder), "--flip-rate", "1"]) == 0
    assert cli.main(["verify", str(folder), "--flip-rate", "7"]) == 2


def test_verify_tells_damage_from_a_wrong_folder(
    exported: tuple[Path, Measured], classified: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "int8"
    shutil.copytree(exported[0], folder)

    def said(path: Path) -> tuple[int, str]:
        return cli.main(["verify", str(path)]), capsys.readouterr().err

    with (folder / ROWS).open("a", encoding="utf-8") as file:
        file.write("\n")
    code, text = said(folder)
    assert code == 1 and f"{ROWS} was changed or is damaged" in text
    shutil.copyfile(exported[0] / ROWS, folder / ROWS)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:100])
    code, text = said(folder)
    assert code == 1 and "model.onnx was changed or is damaged" in text
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    content["files"]["../../etc/passwd"] = "0"
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    code, text = said(folder)
    assert code == 1 and "names a file outside the folder" in text
    code, text = said(classified)
    assert code == 2 and "is a run" in text and "export/onnx" in text
    for path in (classified / "student", tmp_path / "nowhere"):
        code, text = said(path)
        assert code == 2 and "golden rows" in text


def test_verify_and_predict_import_no_torch(exported: tuple[Path, Measured]) -> None:
    code = (
        f"import sys; from paredown.recipes.cli import main; folder = {str(exported[0])!r};"
        "codes = [main([word, folder]) for word in ('verify', 'predict')];"
        "print(codes, [n for n in ('torch', 'transformers', 'datasets') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, input="a text\n"
    )
    assert done.stdout.splitlines()[-1] == "[0, 0] []"


# Predict


@pytest.fixture
def answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, list[dict[str, Any]], str]]]:
    """Runs `paredown predict` with rows on stdin: exit code, answers, stderr."""

    def go(*words: str | Path, rows: str = "") -> tuple[int, list[dict[str, Any]], str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows.encode())))
        code = cli.main(["predict", *map(str, words)])
        said = capsys.readouterr()
        return code, [json.loads(line) for line in said.out.splitlines()], said.err

    yield go


def test_predict_answers_as_the_folders_own_program(
    exported: tuple[Path, Measured], answered: Any, tmp_path: Path
) -> None:
    folder = exported[0]
    rows = "".join(f"{query}\n" for query in QUERIES) + "\n"
    program = [sys.executable, str(folder / "predict.py"), "--top", "2"]
    own = subprocess.run(program, input=rows.encode(), capture_output=True, check=False)
    code, found, said = answered(folder, "--top", "2", rows=rows)
    assert code == own.returncode == 1 and "1 of 5 rows could not be answered" in said
    assert found == [json.loads(line) for line in own.stdout.decode().splitlines()]
    assert found[-1] == {"row": 5, "error": "empty"}
    (tmp_path / "rows.csv").write_text(
        "id,question\n" + "".join(f'{i},"{q}"\n' for i, q in enumerate(QUERIES)), encoding="utf-8"
    )
    out = tmp_path / "answers.jsonl"
    words = (folder, tmp_path / "rows.csv", "--column", "question", "--top", "2", "--out", out)
    assert answered(*words)[:2] == (0, [])
    assert [json.loads(line) for line in out.read_text("utf-8").splitlines()] == found[:-1]
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


def test_predict_takes_a_run_and_a_checkpoint(classified: Path, answered: Any) -> None:
    rows = "\n".join(QUERIES)
    code, found, _ = answered(classified, rows=rows)
    assert code == 0 and set(found[0]) == {"label", "probability"}
    assert answered(classified / "student", rows=rows)[1] == found
    export = answered(classified / "export" / "onnx", rows=rows)[1]
    assert [one["label"] for one in export] == [one["label"] for one in found]
    assert list(paredown.predict(classified, QUERIES)) == found


def test_predict_finds_answers_in_an_index(retrieved: Path, answered: Any, tmp_path: Path) -> None:
    vectors = [one["embedding"] for one in paredown.predict(retrieved, QUERIES)]
    np.save(tmp_path / "index.npy", np.asarray(vectors, np.float32))
    texts = "".join(json.dumps({"text": query}) + "\n" for query in QUERIES)
    (tmp_path / "texts.jsonl").write_text(texts, encoding="utf-8")
    index = ("--index", tmp_path / "index.npy", "--texts", tmp_path / "texts.jsonl")
    code, found, _ = answered(retrieved, *index, "--top", "2", rows="\n".join(QUERIES))
    assert code == 0
    assert [one["answers"][0]["text"] for one in found] == QUERIES
    assert {len(one["answers"]) for one in found} == {2}


def test_predict_tells_what_is_wrong_with_its_arguments(
    exported: tuple[Path, Measured], retrieved: Path, answered: Any, tmp_path: Path
) -> None:
    folder = exported[0]
    (tmp_path / "rows.txt").write_text("a\n")
    (tmp_path / "rows.csv").write_text("id\n1\n")
    here = tmp_path / "rows.txt"
    for words, code, expected in [
        ((tmp_path,), 2, "holds no model that can be run"),
        ((tmp_path / "nowhere",), 2, "There is no folder"),
        ((folder, tmp_path / "nowhere.txt"), 2, "There is no file"),
        ((folder, "--format", "xml"), 2, "Unknown format of rows 'xml'"),
        ((folder, "--column", "a"), 2, "--column is for rows with keys"),
        ((folder, "--texts", "a"), 2, "--texts needs --index"),
        ((folder, "--index", "a"), 2, "--index is for embedding models"),
        ((retrieved, "--top", "3"), 2, "--top is for classes"),
        ((retrieved, "--index", tmp_path / "a.npy"), 2, "cannot be read"),
        ((folder, here, "--out", here), 2, "is the file that is read"),
        ((folder, here, "--out", tmp_path / "no" / "a"), 2, "There is no folder"),
        ((folder, tmp_path / "rows.csv"), 2, "No column text"),
        ((folder, "--top", "0"), 2, "--top"),
    ]:
        found = answered(*words)
        assert found[:2] == (code, []) and expected in found[2], words
        assert "Traceback" not in found[2]
    assert here.read_text() == "a\n"


def test_rows_from_python_are_checked_one_by_one(exported: tuple[Path, Measured]) -> None:
    rows: list[Any] = ["fine", {"text": "fine", "text_pair": "too"}, "", {"words": 1}, 3]
    found = list(paredown.predict(exported[0], rows, batch=2))
    assert ["label" in one for one in found] == [True, True, False, False, False]
    assert [one.get("row") for one in found] == [None, None, 3, 4, 5]
    with pytest.raises(RecipeError, match="--batch"):
        list(paredown.predict(exported[0], ["a"], batch=0))


def test_a_language_models_rows(tmp_path: Path, answered: Any) -> None:
    from paredown.recipes.smoke import write_model

    write_model("llama", tmp_path / "model", layers=1, hidden=32)
    turns = [{"role": "user", "content": "find the bank"}]
    lines = [{"prompt": "find the bank"}, {"messages": turns}, "find the bank", {"a": 1}, 3]
    lines += [{"prompt": "card " * 500}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    code, found, said = answered(tmp_path / "model", tmp_path / "rows.jsonl")
    assert code == 1 and "3 of 6 rows" in said
    assert found[0] == found[1] == found[2] and set(found[0]) == {"text", "finished"}
    assert "no key prompt or messages or text" in found[3]["error"]
    assert "expected a text" in found[4]["error"] and found[5]["row"] == 6
    for words in (("--pair-column", "a", tmp_path / "rows.jsonl"), ("--top", "2")):
        code, _, said = answered(tmp_path / "model", *words)
        assert code == 2 and "paredown: --" in said


def test_an_export_that_is_a_checkpoint_carries_golden_rows_too(
    retrieved: Path, tmp_path: Path
) -> None:
    content = deployment.export_run(retrieved, "sentence-transformers", tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert content["format"] == manifest["format"] == "sentence-transformers"
    assert {"torch", "transformers"} <= set(manifest["made_on"]["versions"])
    assert "predict.py" not in manifest["files"] and "verify.py" not in manifest["files"]
