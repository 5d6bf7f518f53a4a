"""Rounds of cut and short training: the sizes go down in steps, and what was kept is told once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.checkpoints import save_model
from paredown.eval.errors import RecipeError
from paredown.eval.tasks import get_task
from paredown.recipes.api import check, run
from paredown.recipes.schedule import round_sizes
from paredown.recipes.schema import Prune

WORDS = ("open", "close", "find")


@pytest.fixture
def base(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> dict[str, Any]:
    """A retrieval recipe that reaches its sizes in two rounds."""
    for name, count in (("train", 40), ("test", 12)):
        rows = [
            {"query": f"{WORDS[i % 3]} the file {name} {i}", "text": f"the {WORDS[i % 3]} key {i}"}
            for i in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "rounds",
        "task": "retrieval",
        "data": {"files": {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}},
        "teacher": {"model": str(tiny_checkpoint("bert", "retrieval"))},
        "capture": {"precision": "fp32"},
        "prune": {
            "layers": [1],
            "intermediate_size": 16,
            "hidden_size": 16,
            "vocabulary": "task",
            "calibration_rows": 16,
            "rounds": 2,
        },
        "distill": {
            "epochs": 2,
            "batch_size": 16,
            "losses": {"embedding_cosine": 1.0},
            "precision": "fp32",
        },
        "evaluate": {"latency_rows": 0, "resamples": 100},
    }


def test_each_round_is_cut_from_the_healed_one_before(base: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "runs" / "rounds"
    report = run(base, out=out).report
    assert report is not None
    names = [stage["name"] for stage in report["stages"]]
    steps = ["prune-1", "heal-1", "prune", "distill"]
    assert names[:7] == ["data", "teacher", "capture", *steps]
    assert [note for note in report["notes"] if "2 rounds" in note]
    first, last = out / "stages" / "prune-1", out / "stages" / "prune"
    halfway = json.loads((first / "checkpoint" / "config.json").read_text())
    assert (halfway["num_hidden_layers"], halfway["intermediate_size"]) == (1, 24)
    facts = json.loads((last / "prune.json").read_text())
    assert facts["shapes"]["before"]["intermediate_size"] == 48
    assert facts["shapes"]["after"]["intermediate_size"] == 16
    assert facts["parameters"]["before"] > facts["parameters"]["after"]
    kept = facts["index_map"]
    assert kept["layers"] == [1] and len(kept["channels"][0]) == 16 and len(kept["hidden"]) == 16
    before = json.loads((first / "prune.json").read_text())["index_map"]
    assert set(kept["channels"][0]) <= set(before["channels"][0])
    assert kept["vocabulary"] == before["vocabulary"]
    assert run(base, out=out).cached


def test_sizes_go_down_by_equal_factors(tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    save_model(tiny_model("bert", get_task("retrieval")), tmp_path / "model")
    sizes = round_sizes(Prune(intermediate_size=6, rounds=3, round_to=1), tmp_path / "model")
    assert sizes == [{"intermediate_size": size} for size in (24, 12, 6)]
    with pytest.raises(RecipeError, match=r"`prune.rounds` 3: round 1 would cut nothing"):
        round_sizes(Prune(layers=1, rounds=3), tmp_path / "model")


@pytest.mark.parametrize(
    ("prune", "distill", "said"),
    [
        ({"layers": 1, "rounds": 2}, None, "prune.rounds: each is healed as distill says"),
        ({"vocabulary": "task", "rounds": 2}, {}, "prune.rounds: are steps to a size"),
        ({"layers": 1, "healing": 0.2}, {}, "prune.healing: is for rounds"),
        (
            {"layers": 1, "rounds": 2},
            {"losses": {"hidden_mse": 1.0}},
            "hidden_mse: compares layer with layer",
        ),
    ],
)
def test_rounds_that_cannot_be_are_refused(
    base: dict[str, Any], prune: dict[str, Any], distill: dict[str, Any] | None, said: str
) -> None:
    base["prune"] = prune
    base["distill"] = None if distill is None else base["distill"] | distill
    with pytest.raises(RecipeError, match=said):
        check(base)
