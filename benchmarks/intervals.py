"""Intervals of share kept and of difference: whether they cover the truth, and how long they take.

    python benchmarks/intervals.py
    python benchmarks/intervals.py --experiments 200

Coverage: a truth is chosen, test rows are drawn from it a thousand times, and each time the
interval is made as a run makes it (1,000 resamples instead of 10,000). A 95 % interval should hold
the truth in 95 % of the experiments; the table's "peer" is that share, and "ours" what was counted.
The last cases are of losses so rare that a few rows hardly show any, where an interval may have no
width; they are told apart from the others.

Speed: 10,000 resamples of 100,000 rows, ours and scipy.stats.bootstrap (paired, percentile), in one
process on one core.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from recording import record, row
from scipy import stats

from paredown.eval.compare import paired_bootstrap, paired_difference
from paredown.eval.metrics import Statistics, score_decisions

EXPERIMENTS, RESAMPLES = 1000, 1000
SIZES = (300, 1000)
LARGE = 3000  # of the truths whose draws are quick
SPEED_ROWS, SPEED_RESAMPLES = 100_000, 10_000
WITHIN = (0.93, 0.97)

Pair = tuple[Statistics, Statistics]


@dataclass(frozen=True)
class Truth:
    """How rows come about, and what a share kept and a difference of them truly are.

    Attributes:
        name: For the table.
        metric: What the statistics are of.
        draw: Gives student's and teacher's statistics of n rows.
        student: The student's metric over all rows there could be.
        teacher: The teacher's.
    """

    name: str
    metric: str
    draw: Callable[[np.random.Generator, int], Pair]
    student: float
    teacher: float


def decisions(both: float, teacher: float, student: float) -> Truth:
    """Rows that both, the teacher alone, or the student alone get right, by their shares."""

    def draw(rng: np.random.Generator, rows: int) -> Pair:
        kind = rng.random((rows, 1))
        alone = (kind >= both) & (kind < both + teacher)
        other = (kind >= both + teacher) & (kind < both + teacher + student)
        return ((kind < both) | other).astype(float), ((kind < both) | alone).astype(float)

    name = f"decisions, teacher {both + teacher:.0%} right, loses {teacher:.0%}, wins {student:.0%}"
    return Truth(name, "accuracy", draw, both + student, both + teacher)


def degrees(teacher: float, student: float) -> Truth:
    """Scores between 0 and 1 with a common part, as of a rank or an overlap of words."""

    def draw(rng: np.random.Generator, rows: int) -> Pair:
        # a Beta of mean m is thinned by another of mean r to one of mean m r
        base = rng.beta(2 * teacher, 2 * (1 - teacher), (rows, 1))
        rest = rng.beta(20 * student / teacher, 20 * (1 - student / teacher), (rows, 1))
        return base * rest, base

    name = f"degrees, means {teacher:.2f} and {student:.2f}"
    return Truth(name, "mrr@10", draw, student, teacher)


def positions(keeps: float) -> Truth:
    """Reciprocal ranks: a tenth of the queries find nothing; the student falls by some places."""
    places = np.array([1, 2, 3, 4, 5, np.inf])
    chances = np.array([0.6, 0.12, 0.08, 0.06, 0.04, 0.1])

    def draw(rng: np.random.Generator, rows: int) -> Pair:
        teacher = places[rng.choice(6, (rows, 1), p=chances)]
        falls = np.where(rng.random((rows, 1)) < keeps, 0, rng.integers(1, 4, (rows, 1)))
        return 1 / (teacher + falls), 1 / teacher

    fallen = np.mean([1 / (places + fall) for fall in (1, 2, 3)], axis=0)
    student = keeps * (chances / places).sum() + (1 - keeps) * (chances * fallen).sum()
    name = f"reciprocal ranks, {keeps:.0%} as the teacher's"
    return Truth(name, "mrr@10", draw, float(student), float((chances / places).sum()))


def classes(count: int, right: float, keeps: float) -> Truth:
    """Macro-F1 over classes of which one has half of the rows; errors go to any other class."""
    shares = np.array([0.5] + [0.5 / (count - 1)] * (count - 1))

    def decide(rng: np.random.Generator, labels: Any, share: float) -> Any:
        other = (labels + rng.integers(1, count, len(labels))) % count
        return np.where(rng.random(len(labels)) < share, labels, other)

    def draw(rng: np.random.Generator, rows: int) -> Pair:
        labels = rng.choice(count, rows, p=shares)
        teacher = decide(rng, labels, right)
        student = np.where(rng.random(rows) < keeps, teacher, decide(rng, labels, right - 0.1))
        scores = [score_decisions(side, labels, count, ["macro_f1"]) for side in (student, teacher)]
        return scores[0].statistics["macro_f1"], scores[1].statistics["macro_f1"]

    def truth(share: float) -> float:
        hits = shares * share
        taken = ((1 - share) * shares).sum() / (count - 1) - (1 - share) * shares / (count - 1)
        return float(np.mean(2 * hits / (2 * hits + taken + shares * (1 - share))))

    kept = keeps * right + (1 - keeps) * (right - 0.1)
    name = f"macro-F1 over {count} classes, {right:.0%} right"
    return Truth(name, "macro_f1", draw, truth(kept), truth(right))


TRUTHS = [
    decisions(0.88, 0.04, 0.02),
    decisions(0.70, 0.10, 0.10),
    decisions(0.55, 0.15, 0.05),
    degrees(0.6, 0.57),
    degrees(0.3, 0.2),
    positions(0.85),
    classes(5, 0.9, 0.7),
]
RARE = [(decisions(0.90, 0.01, 0.0), 300), (decisions(0.90, 0.01, 0.0), 1000)]


def coverage(truth: Truth, rows: int, experiments: int) -> dict[str, float]:
    """Shares of the experiments whose interval holds the truth, and the mean widths."""
    rng = np.random.default_rng([rows, len(truth.name)])
    held, widths = np.zeros(2), np.zeros(2)
    wanted = truth.student / truth.teacher, truth.student - truth.teacher
    for number in range(experiments):
        student, teacher = truth.draw(rng, rows)
        options: dict[str, Any] = {"resamples": RESAMPLES, "seed": number}
        found = (
            paired_bootstrap(truth.metric, student, teacher, **options),
            paired_difference(truth.metric, [student], teacher, **options),
        )
        held += [interval.low <= value <= interval.high for interval, value in
                 zip(found, wanted, strict=True)]  # fmt: skip
        widths += [interval.high - interval.low for interval in found]
    names = "share kept", "difference"
    return {name: float(count) / experiments for name, count in zip(names, held, strict=True)}


def covered(cases: list[tuple[Truth, int]], experiments: int) -> list[dict[str, Any]]:
    """A row of the table for each figure of each case."""
    rows = []
    for truth, size in cases:
        started = time.perf_counter()
        for figure, share in coverage(truth, size, experiments).items():
            case = f"{figure}: {truth.name}, n = {size:,}"
            rows.append(row(case, [share], [0.95], "share of experiments that hold the truth"))
        print(f"  {case}: {share:.3f}, {time.perf_counter() - started:.1f} s", flush=True)
    return rows


def speed() -> tuple[list[dict[str, Any]], float]:
    """Seconds of one interval over many rows, ours and scipy's; and ours of macro-F1."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 77, SPEED_ROWS)
    scores = []
    for share in (0.9, 0.92):
        other = rng.integers(0, 77, SPEED_ROWS)
        guess = np.where(rng.random(SPEED_ROWS) < share, labels, other)
        scores.append(score_decisions(guess, labels, 77).statistics)
    cases: list[tuple[str, str, list[Statistics]]] = [
        ("decisions", "accuracy", [arm["accuracy"] for arm in scores]),
        ("degrees", "mrr@10", [rng.random((SPEED_ROWS, 1)) for _ in range(2)]),
    ]
    rows = []
    for name, metric, arms in cases:
        ours = seconds(functools.partial(ours_of, metric, arms))
        theirs = seconds(functools.partial(by_scipy, arms))
        print(f"  {name}: {ours:.2f} s, scipy {theirs:.2f} s", flush=True)
        case = f"{SPEED_RESAMPLES:,} resamples of {SPEED_ROWS:,} rows: {name}"
        rows.append(row(case, [ours], [theirs], "seconds"))
    macro = seconds(functools.partial(ours_of, "macro_f1", [arm["macro_f1"] for arm in scores]))
    print(f"  macro-F1: {macro:.2f} s", flush=True)
    return rows, macro


def ours_of(metric: str, arms: list[Statistics]) -> None:
    paired_bootstrap(metric, *arms, resamples=SPEED_RESAMPLES)


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def by_scipy(arms: list[Any]) -> Any:
    """The same interval by scipy, ten resamples at a time so that they fit memory."""

    def kept(student: Any, teacher: Any, axis: int = -1) -> Any:
        return student.mean(axis=axis) / teacher.mean(axis=axis)

    data = [arm[:, 0] for arm in arms]
    return stats.bootstrap(
        data, kept, paired=True, vectorized=True, method="percentile", batch=10,
        n_resamples=SPEED_RESAMPLES, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage and speed of intervals.")
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS)
    experiments = parser.parse_args().experiments
    cases = [(truth, size) for truth in TRUTHS for size in SIZES]
    cases += [(truth, LARGE) for truth in TRUTHS if truth.name.startswith(("dec", "rec"))]
    usual = covered(cases, experiments)
    rare = covered(RARE, experiments)
    for line in rare:
        line["case"] = f"beyond the claim, losses too rare: {line['case']}"
    shares = [line["ours"] for line in usual]
    timed, macro = speed()
    record(
        "intervals",
        [*usual, *rare, *timed],
        expected=f"{WITHIN[0]:.0%} to {WITHIN[1]:.0%} of experiments hold the truth; under 5 s for "
        "decisions and 60 s for degrees",
        experiments=experiments,
        resamples=RESAMPLES,
        covered=[min(shares), max(shares)],
        macro_f1_seconds=macro,
        met=bool(
            WITHIN[0] <= min(shares) <= max(shares) <= WITHIN[1]
            and timed[0]["ours"] < 5
            and timed[1]["ours"] < 60
        ),
    )


if __name__ == "__main__":
    main()
