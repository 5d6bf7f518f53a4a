"""A run against a baseline: paired on the same test rows, and refused on others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from paredown.eval.data import DataSettings, prepare_data
from paredown.eval.errors import RecipeError, RunError
from paredown.eval.tasks import get_task
from paredown.recipes.gate import gate
from paredown.recipes.report_schema import SCHEMA

LABELS = ("close", "find", "open")
Make = Callable[..., Path]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def labelled(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"text": f"row number {i}", "label": LABELS[i % 3]} for i in range(first, first + count)
    ]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a run's folder: a report, the data stage, and what its students decided."""

    def run(
        name: str,
        decided: dict[str, list[Any]],
        *,
        task: str = "classification",
        metric: str = "accuracy",
        rows: dict[str, list[dict[str, Any]]] | None = None,
        file: str = "scores.arrow",
        **report: Any,
    ) -> Path:
        folder = tmp_path / name
        evaluated = folder / "stages" / "evaluate"
        evaluated.mkdir(parents=True)
        rows = rows or {"train": labelled(30, 1000), "test": labelled(200)}
        files = {split: write(folder / f"{split}.jsonl", some) for split, some in rows.items()}
        prepare_data(DataSettings(files=files), get_task(task), folder / "stages" / "data", seed=0)
        seeds = [int(column.split("-")[1]) for column in decided]
        (evaluated / "evaluation.json").write_text(json.dumps({"seeds_used": seeds}))
        table = pa.table(decided)
        with (
            pa.OSFile(str(evaluated / file), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        content = {
            "schema": SCHEMA, "smoke": False, "task": task, "quality": {"metric": metric}, **report
        }  # fmt: skip
        (folder / "report.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    return run


def decisions(right: float, seed: int = 0, rows: int = 200) -> list[list[int]]:
    """A right decision on a share of the rows, by the order of the labels."""
    draw = np.random.default_rng(seed)
    return [
        [int(i % 3 if good else (i + 1) % 3)] for i, good in enumerate(draw.random(rows) < right)
    ]


def test_a_run_is_not_worse_than_itself(make: Make) -> None:
    same = decisions(0.9)
    mine, base = make("mine", {"student-0": same}), make("base", {"student-0": same})
    for folder in (mine, base):
        (folder / "stages" / "evaluate" / "stage.json").write_text('{"fingerprint": "a"}')
    (found,) = gate(mine, against=base, margin=0)
    assert found.met and found.value == 0.0 and found.name == "against"
    assert found.text.startswith("against >= 0: met, +0.0000 is the lower end of the 95 % interval")
    for mark in ('{"fingerprint": "b"}', "{", "[]", "{}"):
        (mine / "stages" / "evaluate" / "stage.json").write_text(mark)
        (found,) = gate(mine, against=base, margin=0)
        assert found.outcome == "undecided" and "no number of rows without a loss" in found.text


def test_a_few_rows_without_a_difference_show_little(make: Make) -> None:
    rows = {"train": labelled(30, 1000), "test": labelled(800)}
    same = decisions(0.9, rows=800)
    mine, base = (make(name, {"student-0": same}, rows=rows) for name in ("mine", "base"))
    assert gate(mine, against=base)[0].met
    few = [make(name, {"student-0": decisions(0.9)}) for name in ("few", "fewer")]
    (found,) = gate(few[0], against=few[1])
    assert found.outcome == "undecided" and "it takes 736 test rows" in found.text
    assert gate(few[0], against=few[1], margin=0.02)[0].met


def test_the_interval_is_that_of_the_paired_difference(make: Make) -> None:
    ours, theirs = decisions(0.93, 1), decisions(0.9, 2)
    mine, base = make("mine", {"student-0": ours}), make("base", {"student-0": theirs})
    (found,) = gate(mine, against=base)
    truth = np.arange(200) % 3
    apart = (np.ravel(ours) == truth).astype(float) - (np.ravel(theirs) == truth)
    half = 1.96 * apart.std() / len(apart) ** 0.5
    assert found.value == pytest.approx(apart.mean() - half, abs=0.01)
    assert found.limit == -0.005
    (worse,) = gate(base, against=mine, margin=0.0)
    assert worse.outcome == ("undecided" if apart.mean() - half < 0 else "not met")
    assert not worse.met


def test_a_far_worse_student_does_not_pass_and_few_rows_are_undecided(make: Make) -> None:
    good = make("good", {"student-0": decisions(0.95, 1)})
    bad = make("bad", {"student-0": decisions(0.5, 2)})
    near = make("near", {"student-0": decisions(0.95, 3)})
    assert gate(bad, against=good)[0].outcome == "not met"
    assert gate(good, against=bad)[0].outcome == "met"
    (undecided,) = gate(near, against=good, margin=0.001)
    assert undecided.outcome in ("undecided", "met") and "0.9" in undecided.text


def test_the_mean_over_seeds_is_compared(make: Make) -> None:
    half, whole = decisions(0.0), decisions(1.1)
    mine = make("mine", {"student-3": half, "student-4": whole})
    base = make("base", {"student-0": whole})
    (found,) = gate(mine, against=base)
    assert "(0.5000 less the baseline's 1.0000, 200 rows)" in found.text


def test_training_rows_and_labels_may_differ_but_not_test_rows(make: Make) -> None:
    same = decisions(0.9)
    base = make("base", {"student-0": same})
    more = [
        *labelled(30, 1000),
        *({"text": f"another {i}", "label": "a new one"} for i in range(9)),
    ]
    # the new label is the first, and all others have the next number
    moved = [[decided + 1] for (decided,) in same]
    mine = make("mine", {"student-0": moved}, rows={"train": more, "test": labelled(200)})
    (found,) = gate(mine, against=base, margin=0)
    assert found.value == 0.0
    other = make("other", {"student-0": same}, rows={"train": more, "test": labelled(200, 1)})
    with pytest.raises(RunError, match="were scored on different test rows"):
        gate(other, against=base)


def test_rankings_are_compared_on_one_collection(make: Make) -> None:
    pairs = [{"query": f"what is {i}", "text": f"it is {i}"} for i in range(40)]
    rows = {"train": pairs[:30], "test": pairs[30:]}
    options: dict[str, Any] = {"task": "retrieval", "metric": "mrr@10"}
    top = [[i, *[n for n in range(12) if n != i][:9]] for i in range(30, 40)]
    base = make("base", {"student-0": top}, rows=rows, **options)
    second = [[row[1], row[0], *row[2:]] for row in top]
    mine = make("mine", {"student-0": second}, rows=rows, **options)
    (found,) = gate(mine, against=base)
    assert "0.5000 less the baseline's 1.0000" in found.text and not found.met
    larger = {"train": [*pairs[:30], {"query": "new", "text": "a text"}], "test": pairs[30:]}
    other = make("other", {"student-0": top}, rows=larger, **options)
    with pytest.raises(RunError, match="different test rows"):
        gate(other, against=base)


def test_answers_in_text_are_compared(make: Make) -> None:
    turns = [{"prompt": f"{i} + 1", "completion": str(i + 1)} for i in range(40)]
    rows = {"train": turns[:30], "test": turns[30:]}
    options: dict[str, Any] = {"task": "generation", "metric": "exact_match", "rows": rows}
    right = [turn["completion"] for turn in turns[30:]]
    base = make("base", {"student-0": ["no"] * 10}, file="answers.arrow", **options)
    mine = make("mine", {"student-0": right}, file="answers.arrow", **options)
    (found,) = gate(mine, against=base)
    assert found.met and "1.0000 less the baseline's 0.0000" in found.text


def test_a_baseline_that_cannot_be_used_is_told(make: Make) -> None:
    mine = make("mine", {"student-0": decisions(0.9)})
    other = make("other", {"student-0": decisions(0.9)})
    with pytest.raises(RecipeError, match="There is no run"):
        gate(mine, against=mine.parent / "nothing")
    (other / "stages" / "evaluate" / "scores.arrow").write_bytes(b"no table")
    with pytest.raises(RunError, match=r"scores\.arrow' cannot be read"):
        gate(mine, against=other)
    report = json.loads((other / "report.json").read_text())
    (other / "report.json").write_text(json.dumps(report | {"task": "retrieval"}))
    with pytest.raises(RunError, match="only runs over the same test rows"):
        gate(mine, against=other)
    (other / "report.json").write_text(json.dumps(report | {"smoke": True}))
    with pytest.raises(RecipeError, match="is a smoke run"):
        gate(mine, against=other)
    (other / "report.json").write_text(json.dumps(report | {"schema": SCHEMA + 1}))
    with pytest.raises(RunError, match="newer paredown"):
        gate(mine, against=other)
    bare = make("bare", {"student-0": decisions(0.9)})
    (bare / "stages" / "data").rename(bare / "elsewhere")
    with pytest.raises(RunError, match="has no stages/data"):
        gate(mine, against=bare)
