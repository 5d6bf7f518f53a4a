"""One small run of a classifier: what it cost, and the words and weights that it stands beside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.data import Data
from paredown.recipes import stage_baseline, store
from paredown.recipes.api import run

ASKED = ("export=[]", "evaluate.resamples=100", "evaluate.latency_rows=5",
         "evaluate.baselines=[tfidf]", "evaluate.usd_per_hour=0.1",
         "evaluate.server_ms=200")  # fmt: skip


@dataclass
class Counting:
    """A counter that has used another joule whenever it is read."""

    name: str = "made up"
    span: int | None = None
    used: int = 0

    def read(self) -> int:
        self.used += 1_000_000
        return self.used


@dataclass
class Costed:
    """A run's report and folder, and the splits that the baseline's stage has opened."""

    report: dict[str, Any]
    folder: Path
    opened: list[str]


@pytest.fixture(scope="module")
def costed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Costed]:
    """Runs it with a counter of energy that is made up."""
    opened: list[str] = []
    fitting = False
    split, make = Data.split, stage_baseline.MADE["tfidf"]

    def noted(self: Data, name: str) -> Any:
        opened.extend([name] * fitting)
        return split(self, name)

    def watched(*arguments: Any) -> None:
        nonlocal fitting
        fitting = True
        make(*arguments)
        fitting = False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Data, "split", noted)
        patch.setitem(stage_baseline.MADE, "tfidf", watched)
        patch.setattr(store, "run_counters", lambda processes: [Counting()])
        out = tmp_path_factory.mktemp("costed") / "run"
        result = run("query_intent", ASKED, smoke=True, out=out)
    assert result.report is not None
    yield Costed(result.report, result.folder, opened)


def test_the_ledger_has_every_stage_with_its_figures(costed: Costed) -> None:
    ledger = costed.report["ledger"]
    lines = {line["name"]: line for line in ledger["stages"]}
    assert set(lines) == {stage["name"] for stage in costed.report["stages"]}
    for name in ("teacher", "capture", "distill"):
        assert lines[name]["flops"] > 0
    assert lines["evaluate"]["flops"] is None
    # a long stage is read meanwhile too
    assert all(line["energy_joules"] >= 1.0 and line["usd"] > 0 for line in lines.values())
    total = sum(line["energy_joules"] for line in lines.values())
    assert ledger["total"]["energy_joules"] == total and ledger["energy_source"] == "made up"
    assert ledger["student"] > 0 and "smoke" in ledger["reason"]
    record = json.loads((costed.folder / "stages" / "distill" / "stage.json").read_text())
    assert record["cores"] >= 1 and record["energy_source"] == "made up"


def test_every_timing_has_bytes_memory_and_a_rate_within_the_bound(costed: Costed) -> None:
    for entry in costed.report["measurements"]:
        assert entry["bytes"] == costed.report["cost"]["student"]["bytes"]
        assert entry["peak_memory_bytes"] > 0
    rate = next(m for m in costed.report["measurements"] if m["scenario"] == "server")
    assert rate["bound_ms"] == 200 and rate["rate_per_s"] > 0 and rate["p99"] <= 200


def test_a_classifier_stands_beside_words_fitted_on_training_rows_alone(costed: Costed) -> None:
    assert set(costed.opened) == {"train", "validation"}
    names = {entry["name"]: entry for entry in costed.report["quality"]["baselines"]}
    entry = names["TF-IDF and logistic regression"]
    assert entry["value"] > 0.9  # the made-up rows name their class
    assert 0 < entry["flops_ratio"] < 0.1
