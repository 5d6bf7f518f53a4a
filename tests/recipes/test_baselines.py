"""Off-the-shelf models beside the student: which fit, what is refused, and what a report says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.errors import RecipeError
from paredown.recipes import stage_baseline
from paredown.recipes.api import check, run
from paredown.recipes.baselines import BASELINES, TITLES

from . import generation_recipes


@pytest.mark.parametrize(
    ("recipe", "asked", "message"),
    [
        ("search_query", "tfidf", "'tfidf' does not do retrieval; what does: labels, teacher_int8"),
        ("query_intent", "bm25", "'bm25' does not do classification; what does: labels, teacher_"),
        ("query_intent", "token_embeddings", "'token_embeddings' does not do classification"),
        ("query_filters", "teacher_int8", "'teacher_int8' does not do generation; what does: lab"),
        ("query_filters", "tfidf", "'tfidf' does not do generation"),
        ("search_query", "token_embedings", "Did you mean 'token_embeddings'?"),
        ("search_query", "bm25, bm25", "bm25 is named twice"),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused_by_name(
    recipe: str, asked: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check(recipe, [f"evaluate.baselines=[{asked}]"])
    assert message in str(caught.value) and "evaluate.baselines" in str(caught.value)


def test_a_recorded_teacher_has_no_embeddings_to_average(tmp_path: Path) -> None:
    files = {"train": "a.jsonl", "test": "b.jsonl", "collection": "c.jsonl"}
    recipe = {
        "name": "recorded",
        "task": "retrieval",
        "data": {"source": "python_docs"},
        "teacher": {"kind": "recorded", "files": files},
        "student": {"model": "any/other"},
        "evaluate": {"baselines": ["token_embeddings", "teacher_int8", "bm25"]},
    }
    with pytest.raises(RecipeError) as caught:
        check(recipe)
    message = str(caught.value)
    assert message.count("made of the teacher's checkpoint") == 2 and "'bm25'" not in message


@pytest.mark.parametrize(
    ("recipe", "asked", "module", "extra"),
    [("query_intent", "tfidf", "sklearn", "baselines"),
     ("search_query", "teacher_int8", "onnxruntime", "onnx")],
)  # fmt: skip
def test_what_is_not_installed_is_told_with_the_install_line(
    recipe: str, asked: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == module else find(name, *rest),
    )
    with pytest.raises(RecipeError) as caught:
        check(recipe, [f"evaluate.baselines=[{asked}]", "export=[]"])
    assert f"'{asked}' needs {module}: pip install 'paredown[{extra}]'" in str(caught.value)


def named(report: Any) -> dict[str, Any]:
    """A report's baselines by the word that asks for them."""
    words = {title: word for word, title in TITLES.items()}
    return {words[entry["name"]]: entry for entry in report["quality"]["baselines"]}


def test_a_retrieval_student_stands_beside_all_that_fit(tmp_path: Path) -> None:
    names = ["bm25", "token_embeddings", "teacher_int8"]
    asked = [f"evaluate.baselines=[{', '.join(names)}]", "evaluate.latency_rows=4",
             "evaluate.resamples=100", "export=[]", "distill=null"]  # fmt: skip
    result = run("search_query", asked, smoke=True, out=tmp_path / "run")
    report = result.report
    assert report is not None
    found = named(report)
    assert set(found) == set(names)
    for entry in found.values():
        assert 0 <= entry["value"] <= 1
        low, high = entry["retention_ci95"]
        assert low <= entry["retention"] <= high
    # rows of the stand-ins share their words with the texts that answer them
    assert found["bm25"]["value"] > 0.5 and found["bm25"]["flops_ratio"] is None
    assert 0 < found["token_embeddings"]["flops_ratio"] < 0.1
    assert found["teacher_int8"]["flops_ratio"] == 1
    timed = {(m["side"], m["runtime"], m["precision"]) for m in report["measurements"]}
    assert timed == {("student", "pytorch", "fp32"), ("teacher", "onnxruntime", "int8")}
    stages = [stage["name"] for stage in report["stages"]]
    assert {"baseline-bm25", "baseline-token_embeddings", "export-teacher-onnx-int8"} < set(stages)
    kept = sorted((result.folder / "stages" / "baseline-bm25" / "model").iterdir())
    assert {path.suffix for path in kept} == {".json", ".safetensors"}
    assert run("search_query", asked, smoke=True, out=tmp_path / "run").cached


def test_every_word_of_the_recipe_is_in_the_table() -> None:
    from typing import get_args

    from paredown.recipes.schema import Evaluate

    (words,) = get_args(Evaluate.model_fields["baselines"].annotation)
    assert set(get_args(words)) == set(BASELINES)
    kept = {name for name, entry in BASELINES.items() if entry.kept}
    assert set(stage_baseline.MADE) == kept


def test_labels_alone_still_need_a_training() -> None:
    recipe = {
        "name": "cut",
        "task": "retrieval",
        "data": {"source": "python_docs"},
        "teacher": {"model": "a/b"},
        "prune": {"layers": 1},
        "evaluate": {"baselines": ["bm25"]},
    }
    assert check(recipe).evaluate.baselines == ["bm25"]
    recipe["evaluate"] = {"baselines": ["bm25", "labels"]}
    with pytest.raises(RecipeError, match="a baseline is trained as distill says"):
        check(recipe)


def test_a_generation_student_keeps_labels(tmp_path: Path) -> None:
    recipe = generation_recipes.recipe(tmp_path)
    recipe["evaluate"]["baselines"] = ["labels"]
    assert check(recipe).evaluate.baselines == ["labels"]
