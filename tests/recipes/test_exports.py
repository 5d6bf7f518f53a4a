"""Exports within a run: scored and timed on their own runtimes, options and flips told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.errors import RecipeError, RunError
from paredown.export import load
from paredown.recipes.answering import verify
from paredown.recipes.api import run
from paredown.recipes.pipeline import check_flips
from paredown.recipes.stage_export import export_facts, export_stage

from . import generation_recipes as made


def exports_of(report: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    assert report is not None
    return {entry["format"]: entry for entry in report["exports"]}


def test_a_language_models_exports_are_scored_and_timed(tmp_path: Path) -> None:
    recipe = made.recipe(tmp_path) | {"export": ["onnx", "onnx-int8", "safetensors"]}
    recipe |= {"evaluate": {"latency_rows": 4}, "smoke": {"architecture": "llama"}}
    result = run(recipe, smoke=True, out=tmp_path / "run")
    found = exports_of(result.report)
    assert list(found) == ["onnx", "onnx-int8", "safetensors"]
    assert found["onnx"]["flip_rate"] == 0 == found["safetensors"]["flip_rate"]
    assert result.report is not None
    assert found["onnx"]["metric"] == result.report["quality"]["student"]
    assert all(entry["latency_ms_p50"] > 0 for entry in found.values())
    timed = {(m["side"], m["runtime"], m["precision"]) for m in result.report["measurements"]}
    assert {("student", "onnxruntime", "fp32"), ("student", "onnxruntime", "int8")} <= timed
    runner = load(result.folder / "export" / "onnx", threads=1)
    assert runner.settings["max_new_tokens"] == 4
    assert len(runner.predict(["how do I open the card -> "] * 2)) == 2
    card = (result.folder / "export" / "safetensors" / "README.md").read_text(encoding="utf-8")
    assert card == (result.folder / "student" / "README.md").read_text(encoding="utf-8")
    for fmt in found:
        assert verify(result.folder / "export" / fmt).differ == 0


def test_options_are_the_exporters_and_part_of_its_stage(tmp_path: Path) -> None:
    options = {"calibration": "static", "calibration_rows": 24}
    asked = {"evaluate.resamples": 100, "evaluate.latency_rows": 0}
    result = run(
        "query_intent",
        {**asked, "export": [{"onnx-int8": options}]},
        smoke=True,
        out=tmp_path / "run",
    )
    facts = export_facts(result.folder / "stages" / "export-onnx-int8")
    assert (facts["calibration"], facts["calibration_rows"]) == ("static", 24)
    recorded = json.loads((result.folder / "report.json").read_text())["recipe"]["export"]
    assert recorded == [{"onnx-int8": options}]
    folder: Any = None
    plain, static = (
        export_stage("classification", "onnx-int8", folder, folder, tmp_path, options=given)
        for given in ({}, options)
    )
    assert plain.settings["options"] == {"calibration": "dynamic", "calibration_rows": 256}
    assert static.settings["options"] == options


def test_an_exact_export_that_flips_fails_the_run_and_int8_does_not() -> None:
    found = {"export-openvino": {"flip_rate": 0.01}, "export-onnx-int8": {"flip_rate": 0.4}}
    check_flips(found, ["onnx-int8"], 0.005)
    check_flips(found, ["openvino"], 0.01)
    message = r"The openvino export decides 1\.00% .* evaluate\.flip_rate allows 0\.50%"
    with pytest.raises(RunError, match=message):
        check_flips(found, ["onnx-int8", "openvino"], 0.005)


def test_sampling_and_an_export_that_is_greedy_contradict(tmp_path: Path) -> None:
    recipe = made.recipe(tmp_path)
    recipe["generation"]["settings"] = {"temperature": 0.7}
    with pytest.raises(RecipeError, match="'onnx' answers greedily, and these ask for temperature"):
        run({**recipe, "export": ["onnx"]}, out=tmp_path / "run")
