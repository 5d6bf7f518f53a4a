"""A budget finds the student's shape: within it, on no test row, with no teacher asked again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.eval.data import Data
from paredown.eval.errors import RecipeError
from paredown.recipes.api import check, run
from paredown.recipes.search import Search, Trial
from paredown.recipes.shapes import Cost, Shape
from paredown.recipes.stage_score import Score

Base = dict[str, Any]


@pytest.fixture
def base(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> Base:
    """A recipe with a budget, on local rows, a third of them unlabelled."""
    kinds = ("open the account", "close the card", "find the bank")
    things, ends = ("file", "list", "key", "bank"), ("a", "b", "x")
    rows = [{"text": f"{kinds[i % 3]} {things[i % 4]} {ends[i % 7 % 3]}"} for i in range(90)]
    for i, row in enumerate(rows):
        row["text"] += " the" * (i // 12)
        if i % 3 or i < 30:
            row["label"] = kinds[i % 3].split()[0]
    files = {"train": rows[:75], "test": rows[75:]}
    for name, some in files.items():
        text = "\n".join(
            json.dumps({"label": "open"} | row if name == "test" else row) for row in some
        )
        (tmp_path / f"{name}.jsonl").write_text(text)
    return {
        "name": "small",
        "task": "classification",
        "data": {"files": {name: str(tmp_path / f"{name}.jsonl") for name in files}},
        "teacher": {
            "model": str(tiny_checkpoint("bert", "classification")),
            "finetune": {"epochs": 1, "precision": "fp32"},
        },
        "capture": {"precision": "fp32"},
        "prune": {"vocabulary": "task", "calibration_rows": 16},
        "distill": {"epochs": 4, "batch_size": 16, "losses": {"kl": 1.0}, "precision": "fp32"},
        "budget": {"flops": 0.4, "shapes": 6},
        "evaluate": {"latency_rows": 0, "resamples": 100},
    }


def test_a_budget_finds_a_shape(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    split, searched = Data.split, Search.run

    def noted(self: Data, name: str) -> Any:
        opened.append(name)
        return split(self, name)

    def watched(self: Search) -> Any:
        opened.clear()
        found = searched(self)
        assert "test" not in opened and "validation" in opened
        return found

    monkeypatch.setattr(Data, "split", noted)
    monkeypatch.setattr(Search, "run", watched)
    result = run(base, out=tmp_path / "runs" / "small")
    assert result.report is not None
    search = result.report["search"]
    assert search["budget"] == {"flops": 0.4}
    assert len(search["trials"]) == 6
    for trial in search["trials"]:
        assert trial["predicted"]["flops"] <= 0.4
        for kind, share in trial["predicted"].items():
            tolerance = 0.1 if kind != "bytes" else 0.4  # a tiny file is mostly its header
            assert trial["measured"][kind] == pytest.approx(share, rel=tolerance)
        assert trial["chosen"] == (trial["out"] is None) == (trial["name"] == search["chosen"])
    rounds = sorted(len(trial["agreement"]) for trial in search["trials"])
    assert rounds[-1] == 3 and rounds[0] >= 1 and rounds.count(3) <= 3
    assert result.report["cost"]["ratio"]["flops"] <= 0.44
    assert result.report["recipe"]["prune"]["vocabulary"] == "task"
    assert result.report["vocabulary"]["kept"] < result.report["vocabulary"]["of"]
    stages = [path.name for path in (tmp_path / "runs" / ".stages").iterdir()]
    assert len([name for name in stages if name.startswith("capture")]) == 1
    assert 6 <= len([name for name in stages if name.startswith("score")]) <= sum(rounds)
    again = run(base, out=tmp_path / "runs" / "small")
    assert again.cached
    assert sorted(path.name for path in (tmp_path / "runs" / ".stages").iterdir()) == sorted(stages)


def test_sizes_that_are_fixed_stay(base: Base, tmp_path: Path) -> None:
    base["prune"] |= {"layers": [1], "hidden_size": 24}
    base["budget"] = {"parameters": 0.35, "shapes": 2}
    result = run(base, out=tmp_path / "runs" / "small")
    assert result.report is not None
    prune = result.report["recipe"]["prune"]
    assert (prune["layers"], prune["hidden_size"]) == ([1], 24)
    assert prune["intermediate_size"] is not None
    assert result.report["cost"]["ratio"]["parameters"] <= 0.4


def test_a_budget_that_nothing_meets_says_what_is_nearest(base: Base, tmp_path: Path) -> None:
    base["budget"] = {"flops": 0.01}
    with pytest.raises(RecipeError, match=r"budget.flops 0.01: no shape is that small. The near"):
        run(base, out=tmp_path / "runs" / "small")


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"flops": 0}, "greater than 0"),
        ({"flops": 1.5}, "less than or equal to 1"),
        ({}, "give one of flops, parameters and bytes; got none"),
        ({"flops": 0.1, "bytes": 0.1}, "got flops and bytes"),
        ({"flop": 0.1}, "Did you mean 'flops'"),
    ],
)
def test_wrong_budgets_are_refused(base: Base, budget: dict[str, Any], said: str) -> None:
    base["budget"] = budget
    with pytest.raises(RecipeError, match=said):
        check(base)


def test_a_search_needs_training_and_something_to_find(base: Base) -> None:
    with pytest.raises(RecipeError, match="distill is missing"):
        check({**base, "distill": None})
    base["prune"] |= {"layers": 1, "intermediate_size": 16, "hidden_size": 16}
    with pytest.raises(RecipeError, match="prune says all the sizes already"):
        check(base)


def test_a_budget_on_the_command_line_frees_the_sizes_of_the_file() -> None:
    recipe = check("search_query", ["budget.flops=0.1"])
    assert recipe.prune is not None and recipe.prune.sizes == {}
    assert recipe.prune.vocabulary == "task"
    kept = check("search_query", ["budget.flops=0.1", "prune.layers=3"])
    assert kept.prune is not None and kept.prune.sizes == {"layers": 3}


def trial(name: str, agreement: list[float], flops: float, metric: float = 0.9) -> Trial:
    sizes = {"layers": len(name)}
    shape = Shape(sizes, Cost(flops, 1.0, 1.0), 0.0)
    return Trial(shape, [Score(np.asarray(agreement), metric, 0.95, flops, 1, 1)])


def best(trials: list[Trial], count: int) -> list[Trial]:
    search = Search.__new__(Search)
    search.kind = "flops"
    return search._best(trials, count)


def test_of_trials_that_rows_cannot_tell_apart_the_cheapest_wins() -> None:
    dear, cheap = trial("a", [0.9, 0.7, 0.8, 0.8], 0.1), trial("bb", [0.7, 0.9, 0.8, 0.79], 0.09)
    worse = trial("ccc", [0.5, 0.4, 0.5, 0.5], 0.01)
    assert best([dear, cheap, worse], 1) == [cheap]
    assert dear.out is not None and worse.out is not None


def test_a_trial_whose_metric_is_far_below_goes_first() -> None:
    good, bad = trial("a", [0.8] * 4, 0.1), trial("bb", [0.79] * 4, 0.1, metric=0.5)
    other = trial("ccc", [0.7] * 4, 0.1)
    assert best([good, bad, other], 2) == [good, other]
    assert bad.out == "metric 0.500 on validation rows"
