"""A criterion in a recipe: what the stages hand to it, and what it then chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.eval.models import TextModel
from paredown.eval.tasks import get_task
from paredown.prune import axis_importance, calibration
from paredown.prune.calibration import batches_of
from paredown.recipes import stage_prune
from paredown.recipes.api import run
from paredown.recipes.stage_prune import importance_loss

TEXTS = [f"{verb} the {thing}" for verb in ("open", "close", "find") for thing in ("file", "bank")]


@pytest.mark.parametrize("task", ["retrieval", "classification"])
@pytest.mark.parametrize("axis", ["layers", "intermediate_size"])
def test_ablation_in_a_recipe_is_the_distance_to_the_whole_models_answers(
    task: str, axis: str, tiny_model: Callable[..., TextModel]
) -> None:
    model = tiny_model("bert", get_task(task))
    batches = batches_of(model, model.tokenize(TEXTS))

    def scores(loss: Any) -> Any:
        return np.stack(axis_importance(model, axis, batches, "ablation", loss=loss))

    loss = importance_loss("ablation")
    first, again = scores(loss), scores(loss)
    assert np.array_equal(first, again)
    assert (first >= 0).all()  # the whole model is the nearest to itself
    assert np.array_equal(first, scores(None))


def test_only_who_asks_a_loss_gets_one(tiny_model: Callable[..., TextModel]) -> None:
    assert importance_loss(None) is importance_loss("magnitude") is None
    model = tiny_model("bert", get_task("retrieval"))
    batches = batches_of(model, model.tokenize(TEXTS))
    (scores,) = axis_importance(model, "layers", batches, "taylor", loss=importance_loss("taylor"))
    assert (scores > 0).all()


@pytest.mark.parametrize("criterion", ["ablation", "taylor"])
def test_a_recipe_cuts_by_its_criterion(
    criterion: str,
    tmp_path: Path,
    tiny_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, things, given = ("open", "close", "find"), ("file", "list", "key", "bank"), []
    for split, numbers in (("train", range(48)), ("test", range(48, 72))):
        rows = [
            {
                "text": f"{words[i % 3]} the {things[i % 4]}" + " a" * (i // 12),
                "label": words[i % 3],
            }
            for i in numbers
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cut = stage_prune.prune_model

    def watched(*args: Any, **kwargs: Any) -> Any:
        given.append((kwargs["importance"], kwargs["loss"] is not None))
        return cut(*args, **kwargs)

    monkeypatch.setattr(stage_prune, "prune_model", watched)
    monkeypatch.setattr(calibration, "MAX_TOKENS", 100)
    recipe = {
        "name": "by-criterion",
        "task": "classification",
        "data": {"files": {s: str(tmp_path / f"{s}.jsonl") for s in ("train", "test")}},
        "teacher": {
            "model": str(tiny_checkpoint("bert", "classification")),
            "finetune": {"epochs": 1, "precision": "fp32"},
        },
        "capture": {"precision": "fp32"},
        "prune": {"layers": 1, "importance": criterion, "calibration_rows": 16},
        "evaluate": {"latency_rows": 0, "resamples": 100},
    }
    result = run(recipe, out=tmp_path / "runs" / "cut")
    assert given == [(criterion, criterion == "taylor")]
    facts = json.loads((result.folder / "stages" / "prune" / "prune.json").read_text())
    importance = facts["layers"]["importance"]
    assert facts["index_map"]["layers"] == [int(np.argmax(importance))]
    assert facts["calibration"]["rows"] + facts["calibration"]["dropped_rows"] == 16
    assert facts["calibration"]["tokens"] <= 100 and facts["calibration"]["dropped_rows"] > 0
    log = (result.folder / "stages" / "prune" / "log.txt").read_text()
    assert f"Calibrated on {facts['calibration']['rows']} rows" in log
