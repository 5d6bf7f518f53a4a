"""Cut students beside Torch-Pruning's and sentence-transformers' layer reduction, at equal FLOPs.

    python benchmarks/pruning.py --banking77 ../shared/data/banking77
    python benchmarks/pruning.py --quick     # the same code on few rows; figures mean nothing

Needs the `demo` and `bench` extras. BANKING77 (its train.csv and test.csv; left out, and said so,
where the folder is missing) and python_docs, at four shares of MiniLM's FLOPs: quality on the test
rows as cut, after 60 seconds of training by the clock, and after an equal number of rows at two of
them. All sides start from the same teacher with its vocabulary cut to the task, train on the same
rows and recorded outputs with the same batch size, precision and learning rate, and may choose by
agreement with the teacher on validation rows, as cut: paredown among its first proposals, a peer
among two ways to cut its one shape. A peer's shape is the nearest with at least our FLOPs.

- paredown: `budget.flops` without its rounds of healing, then the recipe's losses.
- Torch-Pruning: FFN widths, what it does that reloads, by magnitude or by Taylor score. It brings
  no training; it gets paredown's, losses included.
- sentence-transformers: evenly spaced layers, trained by mean squared error to the embeddings with
  its own trainer, or to a classifier's logits with paredown's.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from contest import Contest, Student
from cuts import OURS, PEERS, REACH, Cutter
from healing import Healed, Pace, heal
from recording import record, show

from paredown.eval.hardware import usable_cores
from paredown.eval.metrics import Scores, get_metric
from paredown.eval.python_docs import build
from paredown.eval.resampling import resample
from paredown.recipes import stage_importance
from paredown.recipes.loading import load_recipe
from paredown.recipes.progress import Display
from paredown.recipes.schema import Recipe
from paredown.recipes.store import Store
from paredown.recipes.world import join_world

AS_CUT = "as cut"
EXPECTED = "ahead at every ratio beyond the paired interval"


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes:
        ratios: Shares of the teacher's FLOPs.
        full: Those at which students are also trained on an equal number of rows.
        seconds: Of healing by the clock.
        passes: Over the training rows, for the full training; by data set.
        shapes: Proposals that paredown cuts before it chooses.
        rows: Calibration rows of each cut.
    """

    ratios: tuple[float, ...] = (0.5, 0.25, 0.10, 0.05)
    full: tuple[float, ...] = (0.5, 0.25)
    seconds: float = 60.0
    passes: Mapping[str, float] = field(default_factory=dict)
    shapes: int = 3
    rows: int = 512


PASSES = {"BANKING77": 4.0, "python_docs": 0.5}
"""What fits into an hour on 2 cores with all else; the recipes themselves make 10 and 2."""
QUICK = Plan(
    ratios=(0.5, 0.10), full=(0.5,), seconds=4.0, shapes=2, rows=48,
    passes={"BANKING77": 1.0, "python_docs": 0.5},
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A student on the test rows after one treatment.

    Attributes:
        scores: Its scores.
        share: Its FLOPs there, as a share of the teacher's.
        healed: Its training; None as cut.
    """

    scores: Scores
    share: float
    healed: Healed | None


class Measured:
    """Trains and scores each student once a treatment: a peer's shape can serve several ratios."""

    def __init__(self, contest: Contest, folder: Path) -> None:
        self.contest, self.folder = contest, folder
        self.found: dict[tuple[Path, str], Found] = {}

    def of(self, student: Student, treatment: str, pace: Pace | None) -> Found:
        """What a student is after a treatment; None as the pace leaves it as cut."""
        key = (student.path, treatment)
        if key not in self.found:
            path, healed = student.path, None
            if pace is not None:
                out = self.folder / f"trained-{len(self.found)}"
                healed = heal(self.contest, student, pace, out)
                path = healed.path
            scores = self.contest.scores(path)
            self.found[key] = Found(scores, self.contest.share(path), healed)
            told = "" if healed is None else f", {healed.seconds:.0f} s, {healed.rows:,} rows"
            value = scores.value(self.contest.metric)
            print(f"  {student.side}, {student.shape}, {treatment}{told}: {value:.4f}", flush=True)
        return self.found[key]


def treatments(plan: Plan, contest: Contest, name: str, ratio: float) -> dict[str, Pace | None]:
    """What is done to students of a ratio, by name."""
    warmup = contest.distill.warmup
    found: dict[str, Pace | None] = {AS_CUT: None}
    found[f"healed {plan.seconds:g} s"] = Pace(warmup, seconds=plan.seconds)
    if ratio in plan.full:
        passes = plan.passes[name]
        steps = max(1, round(passes * contest.training_rows / contest.distill.batch_size))
        found[f"{steps * contest.distill.batch_size:,} rows ({passes:g} passes)"] = Pace(
            warmup, steps=steps
        )
    return found


def compete(plan: Plan, contest: Contest, name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """All rows of one data set; the sides take turns, and the first is not always the same."""
    cutter = Cutter(contest, folder, shapes=plan.shapes, rows=plan.rows)
    measured = Measured(contest, folder)
    for turn, ratio in enumerate(plan.ratios):
        ours = cutter.ours(ratio)
        peers = {side: cutter.peer(side, ours.predicted) for side in PEERS}
        reached = {s: p for s, p in peers.items() if p.predicted <= REACH * ours.predicted}
        for treatment, pace in treatments(plan, contest, name, ratio).items():
            for student in [ours, *reached.values()][:: 1 if turn % 2 == 0 else -1]:
                measured.of(student, treatment, pace)
            for side, peer in peers.items():
                theirs = measured.of(peer, treatment, pace) if side in reached else None
                case = f"{name}, {ratio:g} of the FLOPs, {treatment}, {side}"
                mine = measured.of(ours, treatment, pace)
                yield row(contest, case, ours, mine, peer, theirs)


def row(
    contest: Contest, case: str, ours: Student, mine: Found, peer: Student, theirs: Found | None
) -> dict[str, Any]:
    """One line: what both sides keep of the teacher's metric, and the paired difference."""
    metric = contest.metric
    teacher = contest.teacher_scores.value(metric)
    line: dict[str, Any] = {
        "case": case,
        "ours": mine.scores.value(metric) / teacher,
        "peer": None,
        "unit": f"{metric} kept",
        "ratio": None,
        "shapes": {OURS: ours.shape, peer.side: peer.shape},
        "flops": {OURS: mine.share, peer.side: theirs.share if theirs else peer.predicted},
    }
    if mine.healed:
        line["seconds"] = {OURS: mine.healed.seconds}
        line["rows"] = {OURS: mine.healed.rows}
    if theirs is None:
        return line
    line["peer"] = theirs.scores.value(metric) / teacher
    line["ratio"] = line["ours"] / line["peer"] if line["peer"] else None
    line |= difference(contest, mine.scores, theirs.scores)
    if theirs.healed:
        line["seconds"][peer.side] = theirs.healed.seconds
        line["rows"][peer.side] = theirs.healed.rows
    return line


def difference(contest: Contest, ours: Scores, peer: Scores) -> dict[str, Any]:
    """The middle 95 % of what we keep more than a peer, on the same draws of test rows."""
    metric = get_metric(contest.metric)
    arms = [scores.statistics[metric.name] for scores in (ours, peer, contest.teacher_scores)]
    drawn = resample(metric, arms, resamples=contest.recipe.evaluate.resamples)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / drawn[:, 2], [0.025, 0.975])
    return {"difference": [float(low), float(high)], "ahead": bool(low > 0)}


def recipes(banking77: Path, quick: Path | None) -> Iterator[tuple[str, Recipe]]:
    """The data sets and the shipped recipes whose stages they use.

    Args:
        banking77: Folder of its files.
        quick: Where a few rows of each are written to be used instead; None for all rows.
    """
    if (banking77 / "train.csv").exists():
        files = {split: banking77 / f"{split}.csv" for split in ("train", "test")}
        settings = []
        if quick is not None:
            files = few_intents(files, quick)
            settings = ["teacher.finetune.epochs=2"]
        settings += [f"data.files.{split}={file}" for split, file in files.items()]
        yield "BANKING77", load_recipe("query_intent", settings)
    else:
        print(f"BANKING77 is left out: there is no train.csv in {banking77}.", flush=True)
    settings = []
    if quick is not None:
        files = few_questions(quick)
        settings = [f"data.files.{split}={file}" for split, file in files.items()]
    yield "python_docs", load_recipe("search_query", settings)


def few_intents(files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Files with rows of eight of the intents."""
    found: dict[str, Path] = {}
    kept: set[str] = set()
    for split, file in files.items():
        with file.open(encoding="utf-8", newline="") as source:
            rows = list(csv.reader(source))
        kept = kept or set(sorted({line[1] for line in rows[1:]})[:8])
        found[split] = folder / file.name
        with found[split].open("w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows([rows[0], *(line for line in rows[1:] if line[1] in kept)])
    return found


def few_questions(folder: Path) -> dict[str, Path]:
    """Files with some hundred pairs of python_docs."""
    few = build(packages=("click", "networkx", "rich"), max_share=1.0, max_rows=900)
    rows = [one for one in few.rows if one.text]
    found = {}
    for split, part in (("train", rows[:700]), ("test", rows[700:])):
        found[split] = folder / f"{split}.jsonl"
        lines = [json.dumps({"query": one.query, "text": one.text}) for one in part]
        found[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found


def compare(options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """Runs one data set in this process."""
    store = Store(Path("runs"), Display(), join_world())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        some = recipes(options.banking77, folder if options.quick else None)
        recipe = dict(some).get(options.only)
        if recipe is None:
            return {"rows": [], "teacher": None}
        contest = Contest(recipe, store)
        rows = list(compete(plan, contest, options.only, folder / options.only))
        value = contest.teacher_scores.value(contest.metric)
        teacher = {contest.metric: value, "rows": len(contest.test.texts)}
        return {"rows": rows, "teacher": teacher}


def side_by_side(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Runs each data set in a process of its own, with an even share of the cores.

    Small models gain little from a second thread, and two processes of one thread each take less
    than two in turn. Both share the machine all the time, so a minute by the clock is as long for
    every side.
    """
    threads = str(max(1, usable_cores() // len(PASSES)))
    found, running = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in PASSES:
            out = Path(folder) / f"{name}.json"
            command = [sys.executable, __file__, *arguments, "--only", name, "--out", str(out)]
            running[name] = (
                out,
                subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": threads}),
            )
        for name, (out, process) in running.items():
            if process.wait() != 0:
                raise SystemExit(f"{name}: ended with exit code {process.returncode}.")
            found[name] = json.loads(out.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Runs both data sets and records what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--banking77", type=Path, default=Path("../shared/data/banking77"))
    parser.add_argument("--passes", type=float, help="of the full training, for both data sets")
    parser.add_argument("--quick", action="store_true", help="few rows; nothing is recorded")
    parser.add_argument("--only", choices=PASSES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    plan = QUICK if options.quick else Plan(passes=PASSES)
    if options.passes:
        plan = Plan(passes=dict.fromkeys(PASSES, options.passes))
    if options.only:
        if (
            options.quick
        ):  # coarse curves; the stage's settings say so: no run takes them for its own
            stage_importance.ROWS, stage_importance.POINTS = 48, 2
        options.out.write_text(json.dumps(compare(options, plan)), encoding="utf-8")
        return
    started = time.perf_counter()
    found = side_by_side(sys.argv[1:])
    rows = [row for one in found.values() for row in one["rows"]]
    teachers = {name: one["teacher"] for name, one in found.items() if one["teacher"]}
    minutes = (time.perf_counter() - started) / 60
    print(f"{minutes:.1f} minutes")
    if options.quick:
        show("pruning (few rows: the figures mean nothing)", rows)
    else:
        tools = {name: metadata.version(name) for name in PEERS}
        facts = {"teachers": teachers, "minutes": minutes, "peers": tools}
        record("pruning", rows, **facts, expected=EXPECTED)


if __name__ == "__main__":
    main()
