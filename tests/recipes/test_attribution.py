"""The way from the teacher to the exports: each step scored from its own folder, and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from paredown.eval.data import Data
from paredown.eval.errors import DataError, RecipeError
from paredown.eval.holm import holm
from paredown.eval.mcnemar import mcnemar
from paredown.eval.metrics import score_texts
from paredown.eval.tasks import get_task
from paredown.export.runner import load
from paredown.recipes import contenders
from paredown.recipes.api import run
from paredown.recipes.attribution import on_the_way, round_of
from paredown.recipes.contenders import Contender
from paredown.recipes.pipeline import RunResult
from paredown.recipes.smoke import _sentences, write_model
from paredown.recipes.store import Store

from . import generation_recipes as made

COUNTRIES = ("de", "fr", "at")
"""Of each eight test rows four, three and one: the last are too few to compare."""


def write_rows(folder: Path) -> dict[str, str]:
    """Questions of a bank's customers, by topic, action and country; and two of strangers."""
    rows = [
        {"text": text, "label": topic, "action": text.split()[3],
         "country": COUNTRIES[(i % 8 > 3) + (i % 8 > 6)]}
        for i, (text, topic) in enumerate(_sentences())
    ]  # fmt: skip
    files = {"train": rows[:240], "test": rows[240:]}
    files["strangers"] = [{"text": f"what does a {word} weigh"} for word in ("violin", "glacier")]
    return {name: made.write(folder / f"{name}.jsonl", part) for name, part in files.items()}


def recipe(folder: Path) -> dict[str, Any]:
    """A classifier that is cut in two rounds, trained with two seeds, and exported."""
    files = write_rows(folder)
    write_model("bert", folder / "teacher", layers=3, hidden=32)
    training = {"batch_size": 16, "learning_rate": 3e-3, "precision": "fp32"}
    return {
        "name": "topics",
        "task": "classification",
        "seeds": 2,
        "data": {"files": {split: files[split] for split in ("train", "test")}},
        "teacher": {"model": str(folder / "teacher"), "finetune": {**training, "epochs": 2}},
        "prune": {"layers": 1, "rounds": 2, "calibration_rows": 32},
        "distill": {**training, "epochs": 1, "losses": {"kl": 1.0}},
        "export": ["onnx"],
        "evaluate": {
            "latency_rows": 0,
            "resamples": 200,
            "slices": ["action", "country"],
            "out_of_scope": files["strangers"],
        },
    }


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The recipe that all of these tests are of."""
    return recipe(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def classes(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Its run."""
    return run(asked, out=tmp_path_factory.mktemp("runs") / "run")


def report(result: RunResult) -> dict[str, Any]:
    assert result.report is not None
    return result.report


def stage(result: RunResult, name: str) -> Path:
    return result.folder / "stages" / name


def kept(result: RunResult) -> pa.Table:
    with pa.OSFile(str(stage(result, "evaluate") / "scores.arrow")) as source:
        return pa.ipc.open_file(source).read_all()


def rows_of(result: RunResult) -> tuple[list[str], np.ndarray]:
    rows = Data.open(stage(result, "data")).split("test")
    return list(rows["text"]), np.asarray(rows["label"][:])


def classified(folder: Path, texts: list[str]) -> np.ndarray:
    """Decisions of a stage's checkpoint by stock transformers, or of its export by its runner."""
    if (folder / "exported").exists():
        return np.asarray(load(folder / "exported").signal(texts)).argmax(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "checkpoint").eval()
    with torch.inference_mode():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(1).numpy()


def test_each_step_is_scored_from_its_own_folder(classes: RunResult) -> None:
    texts, labels = rows_of(classes)
    steps = report(classes)["attribution"]
    assert [(step["name"], step["stage"], step["before"]) for step in steps] == [
        ("teacher, fine-tuned", "teacher", None),
        ("cut, round 1", "prune-1", "teacher, fine-tuned"),
        ("healed, round 1", "heal-1", "cut, round 1"),
        ("cut, last round", "prune", "healed, round 1"),
        ("student, distilled", "distill", "cut, last round"),
        ("export, onnx", "export-onnx", "student, distilled"),
    ]
    right = {}
    for step in steps:
        right[step["name"]] = classified(stage(classes, step["stage"]), texts) == labels
        assert step["value"] == pytest.approx(right[step["name"]].mean())
    p_values = [
        mcnemar(right[step["name"]], right[step["before"]]).p if step["before"] else None
        for step in steps
    ]
    assert [step["p"] for step in steps] == pytest.approx(holm(p_values))
    for step in steps[1:]:
        low, high = step["difference_ci95"]
        gap = right[step["name"]].mean() - right[step["before"]].mean()
        assert step["difference"] == pytest.approx(gap) and low <= gap + 1e-9 and high >= gap - 1e-9
        assert step["retention"] == pytest.approx(step["value"] / steps[0]["value"])
    assert steps[0]["retention_ci95"] == [1, 1] and steps[0]["difference"] is None


def test_each_step_costs_what_its_own_artefact_does(classes: RunResult) -> None:
    found = report(classes)
    steps = {step["stage"]: step for step in found["attribution"]}
    assert steps["teacher"]["flops_per_example"] == found["cost"]["teacher"]["flops_per_example"]
    assert steps["distill"]["bytes"] == found["cost"]["student"]["bytes"]
    cuts = [steps[name]["flops_per_example"] for name in ("teacher", "prune-1", "prune")]
    assert cuts == sorted(cuts, reverse=True)
    export = steps["export-onnx"]
    assert export["bytes"] > 0
    assert export["flops_per_example"] == steps["distill"]["flops_per_example"]


def test_rows_are_kept_so_that_every_figure_can_be_made_again(classes: RunResult) -> None:
    _, labels = rows_of(classes)
    table, found = kept(classes), report(classes)
    bins = {entry["side"]: entry for entry in found["calibration"]}
    curves = {entry["side"]: entry for entry in found["risk_coverage"]}
    assert set(bins) == set(curves) == {"teacher", "student", "onnx"}
    for side, name in (("teacher", "teacher"), ("student", "student-0"), ("onnx", "export-onnx")):
        top = np.array([row[0] for row in table[name].to_pylist()])
        right = table[f"{name}.right"].to_numpy()
        said = table[f"{name}.confidence"].to_numpy()
        assert (right == (top == labels)).all() and ((said > 0) & (said <= 1)).all()
        place = np.minimum((said * 15).astype(int), 14)
        gaps = [abs((right[place == i] - said[place == i]).sum()) for i in range(15)]
        assert bins[side]["ece"] == pytest.approx(sum(gaps) / len(said))
        assert sum(one["rows"] for one in bins[side]["bins"]) == len(labels)
        curve = curves[side]
        assert curve["coverage"][0] == 1 and curve["risk"][0] == pytest.approx(1 - right.mean())
        assert len(curve["threshold"]) == len(curve["out_of_scope"]) <= 100
        assert curve["out_of_scope"][0] == 1 or curve["threshold"][0] > 0
    shift = table["export-onnx.confidence"].to_numpy() - table["student-0.confidence"].to_numpy()
    assert bins["onnx"]["shift"] == pytest.approx(shift.mean())
    assert bins["teacher"]["shift"] is bins["student"]["shift"] is None


def test_rows_that_one_alone_gets_right_are_counted(classes: RunResult) -> None:
    table, found = kept(classes), report(classes)["significance"]
    sides = [table[f"{name}.right"].to_numpy()
             for name in ("teacher", "student-0")]  # fmt: skip
    expected = mcnemar(*sides)
    assert (found["both"], found["neither"], found["p"]) == (
        expected.both, expected.neither, expected.p,
    )  # fmt: skip
    assert (found["teacher_alone"], found["student_alone"]) == (expected.first, expected.second)


def test_classes_and_named_columns_are_told_apart(classes: RunResult) -> None:
    texts, labels = rows_of(classes)
    slices = report(classes)["quality"]["slices"]
    names = Data.open(stage(classes, "data")).labels or []
    values = {
        "label": [names[i] for i in labels],
        "action": [text.split()[3] for text in texts],
        "country": [COUNTRIES[(i % 8 > 3) + (i % 8 > 6)] for i in range(240, 240 + len(texts))],
    }
    told = [(part["by"], part["name"]) for part in slices]
    assert told == [(by, name) for by, column in values.items() for name in sorted(set(column))]
    table, p_values = kept(classes), []
    right = [table[f"{name}.right"].to_numpy()
             for name in ("teacher", "student-0", "student-1")]  # fmt: skip
    for part in slices:
        rows = np.array(values[part["by"]]) == part["name"]
        teacher, first, second = (float(side[rows].mean()) for side in right)
        assert part["rows"] == rows.sum() and part["teacher"] == pytest.approx(teacher)
        assert part["student"] == pytest.approx((first + second) / 2)
        compared = rows.sum() >= 20
        p_values.append(mcnemar(right[1][rows], right[0][rows]).p if compared else None)
        assert (part["difference"] is not None) == compared
        if compared:
            assert part["difference"] == pytest.approx(part["student"] - teacher)
    assert [part["p"] for part in slices] == pytest.approx(holm(p_values))
    assert None in p_values and len([p for p in p_values if p is not None]) > 3
    assert any("slices have fewer than 20 rows" in note for note in report(classes)["notes"])


def test_spread_over_seeds_stands_beside_that_over_rows(
    classes: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from paredown.recipes.report import print_summary

    quality = report(classes)["quality"]
    each = [seed["retention"] for seed in quality["seeds"]]
    assert quality["retention_std_seeds"] == pytest.approx(np.std(each, ddof=1))
    (note,) = [note for note in report(classes)["notes"] if "Spread between" in note]
    assert "between 2 training runs" in note and "between test rows" in note
    assert "of the first of them, seed 0, whose student is handed out" in note
    print_summary(report(classes), Console(width=130))
    text = capsys.readouterr().out
    for words in ("Attribution", "export, onnx", "student, distilled", "2 training seeds",
                  "Calibration:", "rows out of scope answered", "Significance:"):  # fmt: skip
        assert words in text


def test_another_slice_makes_nothing_anew_but_the_evaluation(
    asked: dict[str, Any], classes: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = []
    ensure = Store.ensure

    def counted(self: Store, stage: Any, trial: str | None = None) -> Any:
        folder = ensure(self, stage, trial)
        again.extend([] if folder.cached else [stage.name])
        return folder

    monkeypatch.setattr(Store, "ensure", counted)
    evaluate = asked["evaluate"] | {"slices": ["country"], "out_of_scope": None}
    result = run({**asked, "evaluate": evaluate}, out=classes.folder.with_name("other"))
    assert again == ["evaluate-rows", "evaluate", "report"]
    assert report(result)["risk_coverage"][0]["out_of_scope"] is None
    assert {part["by"] for part in report(result)["quality"]["slices"]} == {"label", "country"}


@pytest.mark.parametrize(
    ("evaluate", "kind", "message"),
    [
        ({"slices": ["county"]}, RecipeError, "Did you mean 'country'"),
        ({"out_of_scope": "gone.csv"}, RecipeError, "there is no file 'gone.csv'"),
        ({"out_of_scope": "test.jsonl"}, DataError, "is a test row of the task"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_anything_is_trained(
    evaluate: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    given = recipe(tmp_path)
    if (file := tmp_path / str(evaluate.get("out_of_scope"))).exists():
        evaluate = {"out_of_scope": str(file)}
    with pytest.raises(kind, match=message):
        run({**given, "evaluate": evaluate}, out=tmp_path / "run")
    stages = [path.name.split("-")[0] for path in (tmp_path / ".stages").glob("[!.]*")]
    assert stages == ["data"]


def test_answers_are_attributed_from_before_the_teachers_training(tmp_path: Path) -> None:
    given = made.recipe(tmp_path)
    training = {"epochs": 6, "batch_size": 8, "learning_rate": 1e-2, "precision": "fp32"}
    given["teacher"] |= {"finetune": training}
    given |= {"target": {"metric": "token_f1"}, "generation": {"max_new_tokens": 12}}
    result = run(given, out=tmp_path / "run")
    steps = report(result)["attribution"]
    assert [(step["name"], step["stage"]) for step in steps] == [
        ("teacher before fine-tuning", "teacher-base"),
        ("teacher, fine-tuned", "teacher"),
        ("cut", "prune"),
        ("student, distilled", "distill"),
    ]
    rows = Data.open(stage(result, "data")).split("test")
    for step in steps:
        folder = stage(result, step["stage"])
        record = folder / "teacher.json"
        where = json.loads(record.read_text())["path"] if record.exists() else "checkpoint"
        texts = [written(folder / where, prompt, 12) for prompt in rows["prompt"]]
        expected = score_texts(texts, rows["completion"][:]).value("token_f1")
        assert step["value"] == pytest.approx(expected) and step["p"] is None
    assert steps[0]["value"] < steps[1]["value"]
    assert report(result)["significance"]["both"] >= 0 and not report(result)["calibration"]


def written(folder: Path, prompt: str, limit: int) -> str:
    """What stock transformers makes a checkpoint write, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**ids, max_new_tokens=limit, do_sample=False)
    return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def test_rankings_have_intervals_and_no_p(tmp_path: Path) -> None:
    short = ["export=[]", "evaluate.resamples=100", "evaluate.latency_rows=0"]
    found = report(run("search_query", short, smoke=True, out=tmp_path / "run"))
    steps = found["attribution"]
    assert [step["name"] for step in steps] == ["teacher", "cut", "student, distilled"]
    assert {step["p"] for step in steps} == {None}
    assert all(len(step["difference_ci95"]) == 2 for step in steps[1:])
    assert sum(found["significance"][key] for key in
               ("both", "teacher_alone", "student_alone", "neither")) == 64  # fmt: skip
    assert found["calibration"] == found["risk_coverage"] == []


def test_the_way_is_the_same_in_whatever_order_it_was_made() -> None:
    def entry(side: Any, **more: Any) -> Contender:
        return Contender(side, Path(side), **more)

    way = [
        entry("base"), entry("teacher"), entry("cut", round=1), entry("healed", round=1),
        entry("cut", round=2), entry("healed", round=2), entry("pruned"), entry("student", seed=0),
    ]  # fmt: skip
    exports = [entry("export", fmt="onnx"), entry("export", fmt="onnx-int8")]
    aside = [entry("student", seed=1), entry("labels"), entry("teacher", fmt="onnx")]
    mixed = [way[1], way[7], *aside, *exports, *way[6:1:-1], way[0]]
    expected: list[Any] = [*zip(way, [None, *way[:-1]], strict=True)]
    assert on_the_way(mixed) == expected + [(export, way[7]) for export in exports]
    assert round_of("prune-2") == ("cut", 2) and round_of("heal-1") == ("healed", 1)
    assert round_of("prune") is None and round_of("distill-1") is None


def test_classes_on_file_have_no_probability(classes: RunResult, tmp_path: Path) -> None:
    rows = contenders.TestRows(get_task("classification"), Data.open(stage(classes, "data")), {})
    given: dict[str, Any] = {"label": "card", "scores": [0.2] * 6}
    alone = {}
    for kind, answer in given.items():
        path = Path(made.write(tmp_path / f"{kind}.jsonl", [{"text": "a", kind: answer}]))
        alone[kind] = rows.names_alone(Contender("teacher", path, recorded=True))
    assert alone == {"label": True, "scores": False}
    assert not rows.names_alone(Contender("teacher", tmp_path))
