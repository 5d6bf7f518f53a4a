"""Test rows are opened by `data` and `evaluate` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.data import Data
from paredown.recipes import pipeline
from paredown.recipes.api import check, run
from paredown.recipes.store import Folder, Stage, Store

from ..distill.fault_server import serving
from . import generation_recipes


@pytest.mark.parametrize("name", ["search_query", "query_intent", "query_filters", "qwen_answers"])
def test_a_run_needs_no_test_row_between_data_and_evaluate(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    ensure = Store.ensure
    hidden: dict[Path, bytes] = {}

    def guarded(self: Store, stage: Stage, trial: str | None = None) -> Folder:
        made.append(stage.name)
        if stage.name == "evaluate":
            for path, content in hidden.items():
                path.write_bytes(content)
        folder = ensure(self, stage, trial)
        if stage.name == "data":
            for path in (folder.path / "test.arrow", tmp_path / "run/smoke/data/test.jsonl"):
                hidden[path] = path.read_bytes()
                path.write_bytes(b"unreadable")
        return folder

    monkeypatch.setattr(Store, "ensure", guarded)
    recipe = check(name, ["export=[]", "evaluate.resamples=100", "evaluate.latency_rows=0"])
    result = pipeline.run_recipe(recipe, out=tmp_path / "run", smoke=True, quiet=True)
    assert made.index("data") == 0 and "distill" in made and len(hidden) == 2
    assert result.report is not None and result.report["quality"]["examples"] == 64


def test_an_endpoint_is_asked_for_test_rows_by_the_evaluation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="the `endpoint` extra is not installed")
    made: list[str] = []
    asked: list[tuple[str, str]] = []
    hidden: dict[Path, bytes] = {}
    ensure = Store.ensure

    def guarded(self: Store, stage: Stage, trial: str | None = None) -> Folder:
        made.append(stage.name)
        for path, content in hidden.items() if stage.name.startswith("evaluate") else ():
            path.write_bytes(content)
        folder = ensure(self, stage, trial)
        if stage.name not in ("evaluate", "report"):
            path = next(p for p in self.folder.glob("data-*/test.arrow"))
            hidden.setdefault(path, path.read_bytes())
            path.write_bytes(b"unreadable")
        return folder

    def answer(number: int, body: dict[str, Any]) -> None:
        asked.append((made[-1], body["messages"][-1]["content"]))

    monkeypatch.setattr(Store, "ensure", guarded)
    recipe = generation_recipes.recipe(tmp_path)
    student = {"model": generation_recipes.model(tmp_path / "student")}
    with serving(answer) as server:
        endpoint = {"kind": "endpoint", "model": "m", "endpoint": {"base_url": server.url}}
        recipe |= {"teacher": endpoint, "student": student, "prune": None, "capture": {}}
        recipe["distill"]["losses"] = {"cross_entropy": 1.0}
        run(recipe, out=tmp_path / "run")
    tests = {row["prompt"] for row in generation_recipes.pairs(8, 100)}
    assert {stage for stage, _ in asked} == {"capture", "evaluate-teacher"}
    for stage, prompt in asked:
        assert (prompt in tests) == (stage == "evaluate-teacher")
    assert made.index("evaluate-teacher") < made.index("evaluate")


def test_no_training_text_is_a_test_text(tmp_path: Path) -> None:
    recipe = check(
        "query_intent", ["export=[]", "evaluate.resamples=100", "evaluate.latency_rows=0"]
    )
    result = pipeline.run_recipe(recipe, out=tmp_path / "run", smoke=True, quiet=True)
    data = Data.open(result.folder / "stages" / "data")
    tests = set(data.split("test")["text"][:])
    for split in ("train", "validation"):
        assert not tests & set(data.split(split)["text"][:])
    manifest = json.loads((result.folder / "stages/capture/manifest.json").read_text())
    assert list(manifest["streams"]) == ["train.text", "validation.text"]
