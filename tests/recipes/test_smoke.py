"""Every shipped recipe goes through all of its stages on a tiny model, and runs once only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from paredown.eval.cost import artefact_bytes, artefact_parameters
from paredown.recipes.api import check, run
from paredown.recipes.loading import packaged_recipes
from paredown.recipes.smoke import smoke_recipe, write_stand_ins

Command = Callable[..., Any]
HEADS = {
    "retrieval": AutoModel,
    "classification": AutoModelForSequenceClassification,
    "generation": AutoModelForCausalLM,
}


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_a_shipped_recipe_runs_from_end_to_end(
    name: str, paredown: Command, tmp_path: Path
) -> None:
    done = paredown("run", name, "--smoke")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / f"{name}-smoke"
    report = json.loads((folder / "report.json").read_text())
    recipe = check(name)
    assert report["smoke"] is True and report["schema"] == 1
    assert [entry["format"] for entry in report["exports"]] == recipe.export
    assert 0 < report["cost"]["ratio"]["flops"] < 1
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert f"runs/{name}-smoke/report.json" in done.stdout

    loaded, info = HEADS[recipe.task].from_pretrained(folder / "student", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    count = sum(p.numel() for p in loaded.parameters())
    assert count == report["cost"]["student"]["parameters"]

    if "onnx-int8" in recipe.export:
        predict = folder / "export" / "onnx-int8" / "predict.py"
        answers = subprocess.run(
            [sys.executable, str(predict)],
            input="open the card account\nfind the bank\n",
            capture_output=True,
            text=True,
            check=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )
        assert len([json.loads(line) for line in answers.stdout.splitlines()]) == 2
    else:
        assert not (folder / "export").exists()

    again = paredown("run", name, "--smoke")
    assert again.returncode == 0 and "nothing to do" in again.stdout.lower()
    everything = [p for p in (tmp_path / "runs").rglob("*") if p.is_file() and not p.is_symlink()]
    assert not [p for p in everything if p.suffix in (".pt", ".pth", ".bin", ".pkl", ".npz")]
    texts = [p for p in everything if p.suffix in (".json", ".html", ".md", ".yaml")]
    shared = [p for p in texts if ".stages" not in p.parts]
    assert not [p for p in shared if str(Path.home()) in p.read_text()]


@pytest.mark.parametrize(
    "override",
    [
        ["smoke.architecture=roberta", "prune.vocabulary=null"],
        ["smoke.architecture=distilbert"],
        ["symmetric=true"],
        ["student={model: any/other}", "prune=null"],
        ["evaluate.baselines=[labels]", "seeds=2"],
        ["distill.losses={embedding_cosine: 1.0, hidden_mse: 0.1}"],
        ["distill=null"],
        ["prune.rounds=3"],
        ["budget.retain=0.98", "budget.shapes=2"],
    ],
    ids=lambda override: override[0],
)
def test_what_a_recipe_may_ask_for_works(override: list[str], tmp_path: Path) -> None:
    short = ["export=[]", "evaluate.resamples=100", "evaluate.latency_rows=0"]
    result = run("search_query", [*short, *override], smoke=True, out=tmp_path / "run")
    assert result.report is not None
    quality = result.report["quality"]
    assert quality["retention"] is None or quality["retention"] > 0
    folder, cost = tmp_path / "run" / "student", result.report["cost"]["student"]
    assert cost["parameters"] == artefact_parameters(folder)  # a Dense module is there once
    assert cost["bytes"] == artefact_bytes(folder)
    if "seeds=2" in override:
        assert [entry["seed"] for entry in quality["seeds"]] == [0, 1]
        names = [entry["name"] for entry in quality["baselines"]]
        assert any("labels" in name for name in names)


def test_slices_and_rows_out_of_scope_have_stand_ins(tmp_path: Path) -> None:
    recipe = check("query_intent", ["evaluate.slices=[channel]", "evaluate.out_of_scope=any.csv"])
    write_stand_ins(recipe, tmp_path)
    small = check(smoke_recipe(recipe, tmp_path))
    assert small.evaluate.slices == ["channel"] and small.data.files is not None
    for path, column in ((small.evaluate.out_of_scope, "text"), (small.data.files.test, "channel")):
        rows = [json.loads(line) for line in Path(str(path)).read_text().splitlines()]
        assert len(rows) > 1 and all(row[column] for row in rows)
    assert smoke_recipe(check("query_intent"), tmp_path).evaluate.out_of_scope is None


@pytest.mark.slow
def test_the_optimizer_that_is_asked_for_trains_teacher_and_student(tmp_path: Path) -> None:
    short = ["export=[]", "evaluate.resamples=100", "evaluate.latency_rows=0", "prune=null"]
    weights: dict[str, list[bytes]] = {"teacher": [], "student": []}
    for number, asked in enumerate(
        ([], ["distill.optimizer=muon"], ["teacher.finetune.optimizer=muon"])
    ):
        folder = tmp_path / f"run{number}"
        run("query_intent", [*short, *asked], smoke=True, out=folder)
        for side, path in (("teacher", "stages/teacher/checkpoint"), ("student", "student")):
            weights[side].append((folder / path / "model.safetensors").read_bytes())
    assert weights["teacher"][0] == weights["teacher"][1] != weights["teacher"][2]
    assert weights["student"][0] != weights["student"][1]


def test_a_recorded_teacher_is_read_from_files(tmp_path: Path) -> None:
    rows = [{"text": f"{word} card number {i}", "label": word} for i in range(30) for word in
            ("open", "close")]  # fmt: skip
    paths = {}
    for split, part in (("train", rows[:48]), ("test", rows[48:])):
        answers = [{**row, "scores": [0.1, 0.9] if row["label"] == "open" else [0.8, 0.2]}
                   for row in part]  # fmt: skip
        for kind, lines in (("rows", part), ("answers", answers)):
            path = tmp_path / f"{split}-{kind}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            paths[split, kind] = str(path)
    student = tmp_path / "student"
    from paredown.recipes.smoke import write_model

    write_model("bert", student, layers=2, hidden=32)
    recipe = {
        "name": "recorded",
        "task": "classification",
        "data": {"files": {s: paths[s, "rows"] for s in ("train", "test")}},
        "teacher": {
            "kind": "recorded",
            "files": {s: paths[s, "answers"] for s in ("train", "test")},
        },
        "student": {"model": str(student)},
        "distill": {"epochs": 3, "losses": {"kl": 1.0}, "learning_rate": 1e-2},
        "evaluate": {"latency_rows": 0, "resamples": 100},
    }
    report = run(recipe, out=tmp_path / "run").report
    assert report is not None
    assert report["quality"]["teacher"] == 1.0
    assert report["cost"]["teacher"]["flops_per_example"] is None
    assert report["cost"]["ratio"]["flops"] is None and report["verdict"] != "pass"


def test_prune_only_cuts_another_checkpoint_of_another_task(
    tmp_path: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    kinds = ("close", "find", "open")
    checkpoint = tiny_checkpoint("bert", "classification")
    config = json.loads((checkpoint / "config.json").read_text())
    config["id2label"] = dict(enumerate(kinds))
    config["label2id"] = {kind: i for i, kind in enumerate(kinds)}
    (checkpoint / "config.json").write_text(json.dumps(config))
    for split, count in (("train", 60), ("test", 30)):
        rows = [{"text": f"how do I {kinds[i % 3]} {i}", "label": kinds[i % 3]}
                for i in range(count)]  # fmt: skip
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    overrides = {
        "teacher.model": str(checkpoint),
        "task": "classification",
        "data.files.train": str(tmp_path / "train.jsonl"),
        "data.files.test": str(tmp_path / "test.jsonl"),
        "prune.layers": 1,
        "export": [],
        "evaluate.latency_rows": 0,
        "evaluate.resamples": 100,
    }
    result = run("prune_only", overrides, out=tmp_path / "run")
    report = result.report
    assert report is not None
    names = [stage["name"] for stage in report["stages"]]
    assert names == ["data", "teacher", "capture", "prune", "evaluate"]
    quality = report["quality"]
    assert (quality["metric"], quality["examples"], quality["baselines"]) == ("accuracy", 30, [])
    assert 0 <= quality["student"] <= 1  # of random weights: no share of the teacher's is sure
    assert report["cost"]["ratio"]["flops"] < 0.6
    card = (result.folder / "student" / "README.md").read_text()
    assert "re-fitted by least squares" in card and "Not trained" in card
    assert "distillation" not in card and "trained on" not in card
    assert "before distillation" not in (result.folder / "report.html").read_text()
