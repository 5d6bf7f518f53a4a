"""A budget finds the student's shape: within it, on no test row, with no teacher asked again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.eval.data import Data
from paredown.eval.errors import RecipeError, RunError
from paredown.eval.models import TextModel, load_model
from paredown.eval.tasks import get_task
from paredown.recipes import pipeline, stage_score
from paredown.recipes.api import check, run
from paredown.recipes.frontier import Frontier
from paredown.recipes.shapes import Cost, Shape
from paredown.recipes.stage_score import Score
from paredown.recipes.store import Store
from paredown.recipes.trials import Trial, best_of

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
        "budget": {"flops": 0.4, "shapes": 6, "processes": 1},
        "evaluate": {"latency_rows": 0, "resamples": 100},
    }


def test_a_budget_finds_a_shape(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    split, searched = Data.split, pipeline.search

    def noted(self: Data, name: str) -> Any:
        opened.append(name)
        return split(self, name)

    def watched(*arguments: Any) -> Any:
        opened.clear()
        found = searched(*arguments)
        assert "test" not in opened and "validation" in opened
        return found

    monkeypatch.setattr(Data, "split", noted)
    monkeypatch.setattr(pipeline, "search", watched)
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
    spent = result.report["ledger"]["stages"]
    names = [line["name"] for line in spent]
    assert len(names) == len(set(names)) and names[-1].startswith("search (")
    assert spent[-1]["seconds"] > 0 and spent[-1]["flops"] > 0
    again = run(base, out=tmp_path / "runs" / "small")
    assert again.cached
    assert sorted(path.name for path in (tmp_path / "runs" / ".stages").iterdir()) == sorted(stages)


def test_sizes_that_are_fixed_stay(base: Base, tmp_path: Path) -> None:
    base["prune"] |= {"layers": [1], "hidden_size": 24}
    base["budget"] = {"parameters": 0.35, "shapes": 2, "processes": 1}
    result = run(base, out=tmp_path / "runs" / "small")
    assert result.report is not None
    prune = result.report["recipe"]["prune"]
    assert (prune["layers"], prune["hidden_size"]) == ([1], 24)
    assert prune["intermediate_size"] is not None
    assert result.report["cost"]["ratio"]["parameters"] <= 0.4


def test_without_training_the_shape_that_agrees_most_as_cut_is_chosen(
    base: Base, tmp_path: Path
) -> None:
    base |= {"distill": None, "budget": {"flops": 0.5, "shapes": 3, "processes": 1}}
    result = run(base, out=tmp_path / "runs" / "small")
    assert result.report is not None
    search = result.report["search"]
    assert search["healed"] == [0.0]
    assert [len(trial["agreement"]) for trial in search["trials"]] == [1, 1, 1]
    assert result.report["cost"]["ratio"]["flops"] <= 0.55


def test_trials_made_by_other_processes_are_the_stages_of_this_one(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    note = Store.note

    def noted(self: Store, name: str, seconds: float, trial: str) -> None:
        told.append(f"{name} {trial}")
        note(self, name, seconds, trial)

    monkeypatch.setattr(Store, "note", noted)
    base["budget"] = {"flops": 0.4, "shapes": 3, "processes": 2}
    result = run(base, out=tmp_path / "runs" / "beside")
    assert result.report is not None and not result.cached
    search = result.report["search"]
    for trial in search["trials"]:
        assert {f"prune {trial['name']}", f"score {trial['name']}"} <= set(told)
    assert run(base, out=tmp_path / "runs" / "beside").cached
    alone = base | {"budget": {"flops": 0.4, "shapes": 3, "processes": 1}}
    found = run(alone, out=tmp_path / "other" / "alone").report  # a store of its own
    assert found is not None
    for mine, theirs in zip(found["search"]["trials"], search["trials"], strict=True):
        assert (mine["name"], mine["predicted"]) == (theirs["name"], theirs["predicted"])
        # workers may have another number of threads
        assert mine["agreement"][0] == pytest.approx(theirs["agreement"][0], abs=1e-3)


def test_a_trial_that_fails_elsewhere_tells_its_error_here(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "failing.py").write_text(
        "import os\nfrom paredown.recipes import stage_score\n"
        "def refuse(*_, **__):\n    open(f'met-{os.getpid()}', 'w')\n"
        "    raise ValueError('this trial is bad')\n"
        "stage_score._classes = refuse\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(stage_score, "_classes", stage_score._classes)  # restored afterwards
    base["budget"] = {"flops": 0.4, "shapes": 3, "processes": 2}
    with pytest.raises(RunError, match="this trial is bad"):
        run(base, out=tmp_path / "runs" / "small", imports=["failing"])
    assert len(list(tmp_path.glob("met-*"))) > 1  # in workers first, then here


def milliseconds(model: TextModel) -> float:
    """The median time of a row."""
    times = []
    for _ in range(15):
        start = time.perf_counter()
        model.predict(["open the account file"])
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def test_a_budget_of_time_is_met_as_saved(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paredown.recipes.stage_speed.SHAPES", 3)
    base["budget"] = {"latency_ms": 1000.0, "shapes": 2, "processes": 1}
    result = run(base, out=tmp_path / "runs" / "small")
    assert result.report is not None
    search = result.report["search"]
    assert search["budget"] == {"latency_ms": 1000.0}
    own = milliseconds(load_model(result.folder / "student", get_task("classification")))
    for trial in search["trials"]:  # of the same size, on a machine that others may use
        for latency in (trial["measured"]["latency_ms"], trial["predicted"]["latency_ms"]):
            assert own / 20 < latency < 20 * own
    with monkeypatch.context() as patch:
        mixed = {"ms": 1000.5}, {"ms": 7.0}
        patch.setattr("paredown.recipes.search.times_of", lambda folder: mixed)
        found = run(base, out=tmp_path / "runs" / "again").report
        assert found is not None
        slow, quick = found["search"]["trials"]
        assert slow["measured"]["latency_ms"] == 1000.5 and quick["measured"]["latency_ms"] == 7.0
        assert slow["out"] == "latency_ms 1e+03 as saved" and not slow["chosen"]
        assert quick["out"] is None and quick["chosen"]
    with monkeypatch.context() as patch:
        slow = {"ms": 2000.0}, {"ms": 1500.0}
        patch.setattr("paredown.recipes.search.times_of", lambda folder: slow)
        with pytest.raises(RunError, match=r"tried takes more as saved. The nearest .* 1.5e\+03"):
            run(base, out=tmp_path / "runs" / "small")
    base["budget"] = {"latency_ms": 1e-6, "shapes": 2, "processes": 1}
    with pytest.raises(RecipeError, match=r"budget.latency_ms 1e-06: no shape is that small. The"):
        run(base, out=tmp_path / "runs" / "small")


@pytest.mark.parametrize("bound", [0.0, 0.9, 1.0])
def test_retain_finds_the_smallest_level_that_holds(bound: float) -> None:
    """Levels of which all, some or none hold; full training only where the bisection looks."""
    trained = []

    class Judge:
        def score(self, trials: list[Trial], share: float) -> None:
            for one in trials:
                low = one.shape.cost.flops  # a larger student keeps more
                score = Score(np.asarray([low] * 4), low, 1.0, low, 1, 1, (low, 1.0))
                one.scores.append(score)
                if share == 1:
                    trained.append(one)

    frontier = Frontier.__new__(Frontier)
    frontier.retain, frontier.share = bound, 0.08
    frontier.judge = Judge()  # type: ignore[assignment]
    costs = [0.99, 0.98, 0.95, 0.91, 0.88, 0.8, 0.7, 0.6]
    frontier.levels = [
        [Trial(Shape({"layers": i}, Cost(cost, 1, 1), 0.0))] for i, cost in enumerate(costs, 1)
    ]
    frontier.trials = [level[0] for level in frontier.levels]
    if bound == 1.0:

        class Prospects:
            teacher = Cost(1, 1, 1)

        frontier.prospects = Prospects()  # type: ignore[assignment]
        with pytest.raises(RunError, match=r"retain 1: no shape keeps .* nearest is 1 layer, at 0"):
            frontier.walk()
        return
    winner, trials, healed = frontier.walk()
    assert winner.shape.cost.flops == (0.6 if bound == 0 else 0.91)
    assert winner.out is None and all(t.out for t in trials if t is not winner)
    assert len(trained) <= 4 and healed == [0.0, 0.08, 1.0]


def test_the_student_of_a_retain_budget_is_the_trial_that_held(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def holds(self: Frontier, trial: Trial) -> bool:
        """In the place of a random teacher's metric: larger shapes keep enough."""
        assert trial.scores[-1].interval is None or len(trial.scores[-1].interval) == 2
        return trial.shape.cost.over(self.prospects.teacher).flops > 0.2

    monkeypatch.setattr(Frontier, "_holds", holds)
    base["budget"] = {"retain": 0.9, "shapes": 2, "processes": 1}
    result = run(base, out=tmp_path / "runs" / "small")
    assert result.report is not None
    search = result.report["search"]
    (chosen,) = [trial for trial in search["trials"] if trial["chosen"]]
    trained = {trial["name"] for trial in search["trials"] if len(trial["agreement"]) == 3}
    assert len(chosen["agreement"]) == 3 and chosen["predicted"]["flops"] > 0.2
    for trial in search["trials"]:
        if trial["predicted"]["flops"] < chosen["predicted"]["flops"] and trial["name"] in trained:
            assert trial["predicted"]["flops"] <= 0.2
    cached = {stage["name"]: stage["cached"] for stage in result.report["stages"]}
    assert cached["prune"] and cached["distill"]  # made while the search looked for it


def test_a_budget_that_nothing_meets_says_what_is_nearest(base: Base, tmp_path: Path) -> None:
    base["budget"] = {"flops": 0.01}
    with pytest.raises(RecipeError, match=r"budget.flops 0.01: no shape is that small. The near"):
        run(base, out=tmp_path / "runs" / "small")


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"flops": 0}, "greater than 0"),
        ({"flops": 1.5}, "less than or equal to 1"),
        ({}, "give one of flops, parameters, bytes, latency_ms, .*; got none"),
        ({"flops": 0.1, "bytes": 0.1}, "got flops and bytes"),
        ({"flops": 0.1, "runtime": "onnx"}, "budget.runtime: is where latency_ms or usd_per_m"),
        ({"usd_per_million": 1.0}, "needs the price of a core: give evaluate.usd_per_hour"),
        ({"latency_ms": 0}, "greater than 0"),
        ({"retain": 1.1}, "less than or equal to 1"),
        ({"flop": 0.1}, "Did you mean 'flops'"),
    ],
)
def test_wrong_budgets_are_refused(base: Base, budget: dict[str, Any], said: str) -> None:
    base["budget"] = budget
    with pytest.raises(RecipeError, match=said):
        check(base)


def test_a_search_needs_something_to_find(base: Base) -> None:
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


def test_of_trials_that_rows_cannot_tell_apart_the_cheapest_wins() -> None:
    dear, cheap = trial("a", [0.9, 0.7, 0.8, 0.8], 0.1), trial("bb", [0.7, 0.9, 0.8, 0.79], 0.09)
    worse = trial("ccc", [0.5, 0.4, 0.5, 0.5], 0.01)
    assert best_of([dear, cheap, worse], 1, "flops") == [cheap]
    assert dear.out is not None and worse.out is not None


def test_a_trial_whose_metric_is_far_below_goes_first() -> None:
    good, bad = trial("a", [0.8] * 4, 0.1), trial("bb", [0.79] * 4, 0.1, metric=0.5)
    other = trial("ccc", [0.7] * 4, 0.1)
    assert best_of([good, bad, other], 2, "flops") == [good, other]
    assert bad.out == "metric 0.500 on validation rows"


def test_a_metric_that_is_far_below_drops_the_one_that_agrees_most() -> None:
    parrot = trial("a", [0.8] * 4, 0.1, metric=0.5)
    near, far = trial("bb", [0.79] * 4, 0.1), trial("ccc", [0.6] * 4, 0.05)
    assert best_of([parrot, near, far], 1, "flops") == [near]  # told apart from it, not from a
    assert parrot.out == "metric 0.500 on validation rows"
    assert far.out == "agreement 0.6000"
