"""The server scenario: rows arrive at random, and the highest rate is sought that a bound bears.

MLPerf's Server scenario (the inference rules, https://github.com/mlcommons/inference_policies, and
Reddi et al., arXiv 1911.02549): queries of one row arrive as a Poisson process, latency counts from
when a row was *scheduled* to arrive, so waiting behind others is in it, and the result is the
highest rate at which its 99th percentile meets the bound. Where this is smaller than MLPerf's: some
hundred rows a run instead of 270,336 in ten minutes, and no second run confirms the rate found.

Arrivals are put on the clock beforehand: gaps between rows are drawn once (seeded) from an
exponential distribution and divided by the rate, so that every engine and every rate is asked in
the same pattern. In the worker one thread waits for a row's time, answers it, and turns to the
next; rows that are due meanwhile wait in order. It is a queue with one server, as a process with
one thread is, without batching.

Each run is of the engine itself. A queue fed with the times of single rows predicts the rate to
start with, which is why few runs are enough.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_ROWS, MOST_ROWS = 100, 2000
"""Rows of a run: of 100, one may be late."""
RUNS = 5
"""Runs of an engine, at most."""
STEP = 1.15
"""Factor to the next rate while all runs so far went one way; it is squared each time."""
CLOSE = 1.03
"""Factor between a rate that meets the bound and one that does not, at which the search ends."""
SPIN_SECONDS = 0.0005
"""A sleep may last so much too long; the last bit before a row is due is waited out awake."""


def quantile(values: Sequence[float] | NDArray[np.float64], q: float) -> float:
    """The smallest value that a share ``q`` of all do not exceed (nearest rank).

    Examples:
        >>> quantile([3.0, 1.0, 2.0, 4.0], 0.75)
        3.0
    """
    return float(np.quantile(np.asarray(values, dtype=np.float64), q, method="inverted_cdf"))


def allowed_late(rows: int) -> int:
    """How many of so many rows may come after the bound, for the 99th percentile to meet it.

    Examples:
        >>> allowed_late(100), allowed_late(99), allowed_late(250)
        (1, 0, 2)
    """
    return rows - math.ceil(0.99 * rows)


def answer_arrivals(
    answer: Callable[[int], Any], rows: Sequence[int], due: Sequence[float], bound: float
) -> list[float]:
    """Answers rows one after the other, none before it is due.

    Ends early once so many rows are late that the 99th percentile cannot meet the bound.

    Args:
        answer: Answers a row, given its number.
        rows: The rows.
        due: When each arrives, in seconds from now, rising.
        bound: Seconds.

    Returns:
        Seconds from when each row that was answered was due to its answer.
    """
    latencies: list[float] = []
    late, start = 0, time.perf_counter()
    for row, at in zip(rows, due, strict=True):
        while (wait := start + at - time.perf_counter()) > 0:
            if wait > SPIN_SECONDS:
                time.sleep(wait - SPIN_SECONDS)
        answer(row)
        latencies.append(time.perf_counter() - start - at)
        late += latencies[-1] > bound
        if late > allowed_late(len(rows)):
            break
    return latencies


def queue_latencies(services: NDArray[np.float64], due: NDArray[np.float64]) -> NDArray[np.float64]:
    """Latencies in a queue with one server: row i is answered from max(due, the last's end) on.

    Args:
        services: Seconds that each row takes by itself, (n,).
        due: When each arrives, rising, (n,).

    Returns:
        (n,) seconds from arrival to answer.
    """
    found, free = np.empty(len(due)), 0.0
    for i, (takes, at) in enumerate(zip(services.tolist(), due.tolist(), strict=True)):
        free = max(free, at) + takes
        found[i] = free - at
    return found


def capacity(services: NDArray[np.float64]) -> float:
    """Rows a second that one after the other can be answered.

    Above it a queue grows for as long as rows arrive. A short run under a loose bound ends before
    that shows, so that no rate above it is tried.
    """
    return 1 / float(services.mean())


def predicted_rate(services: NDArray[np.float64], gaps: NDArray[np.float64], bound: float) -> float:
    """The rate at which a queue with these times just meets the bound; 0 if none does.

    Args:
        services: Seconds of single rows, used in turn.
        gaps: Between rows, of mean 1, (n,).
        bound: Seconds that the 99th percentile may take.
    """
    takes = np.resize(services, len(gaps))
    arrivals = np.cumsum(gaps)

    def meets(rate: float) -> bool:
        return quantile(queue_latencies(takes, arrivals / rate), 0.99) <= bound

    if quantile(takes, 0.99) > bound:
        return 0.0
    low, high = 0.0, capacity(services)
    if meets(high):
        return high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low


@dataclass
class RateSearch:
    """Bisects the highest rate whose 99th percentile meets a bound; holds the runs of one engine.

    Attributes:
        services: Seconds that single rows took.
        bound: Seconds.
        seconds: How long a run should last about; a slow engine's lasts as long as it must.
        seed: Of the arrivals.
        rate: Of the next run; None at the end.
        met: The highest rate that met the bound; 0 if none did.
        latencies: Of its run, in seconds.
        runs: How many there were.
    """

    services: NDArray[np.float64]
    bound: float
    seconds: float = 2.0
    seed: int = 0
    rate: float | None = None
    met: float = 0.0
    latencies: list[float] = field(default_factory=list)
    runs: int = 0

    def __post_init__(self) -> None:
        mean = float(self.services.mean())
        most = int(min(MOST_ROWS, max(LEAST_ROWS, self.seconds / mean)))
        self.gaps = np.random.default_rng(self.seed).exponential(1.0, most)
        self.missed = math.inf
        self.lowest = LEAST_ROWS / self.longest
        rate = predicted_rate(self.services, self.gaps, self.bound)
        if rate:  # at no rate at all a run would be in vain
            self.rate = max(rate, self.lowest)
            rows = min(most, max(LEAST_ROWS, self.rate * self.seconds))
            self.gaps = self.gaps[: int(rows)]

    @property
    def longest(self) -> float:
        """Seconds that a run may last: rates are not lowered beyond it."""
        return max(10 * self.seconds, 5 * LEAST_ROWS * float(self.services.mean()))

    @property
    def due(self) -> list[float]:
        """When the rows of the next run arrive, in seconds from its start."""
        assert self.rate is not None
        arrivals: list[float] = (np.cumsum(self.gaps) / self.rate).tolist()
        return arrivals

    def tell(self, latencies: Sequence[float]) -> None:
        """Takes the latencies of the run at `rate`, and sets the next rate, or None at the end."""
        assert self.rate is not None
        self.runs += 1
        whole = len(latencies) == len(self.gaps)
        if whole and quantile(latencies, 0.99) <= self.bound:
            self.met, self.latencies = self.rate, list(latencies)
        else:
            self.missed = self.rate
        self.rate = self._next()

    def _next(self) -> float | None:
        if self.runs >= RUNS:
            return None
        far: float = STEP ** (2 ** (self.runs - 1))
        if not self.met:
            return max(self.missed / far, self.lowest) if self.missed > self.lowest else None
        if self.missed == math.inf:
            further = min(self.met * far, capacity(self.services))
            return further if further > self.met else None
        return None if self.missed / self.met < CLOSE else math.sqrt(self.met * self.missed)


class Asked(Protocol):
    """A worker as `timing.Worker` is one."""

    timeout: float

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""


def measure_server(
    workers: Sequence[Asked],
    services: Sequence[NDArray[np.float64]],
    rows: int,
    bound_ms: float,
    *,
    seconds: float = 2.0,
    settle: float = 0.0,
) -> list[dict[str, Any]]:
    """Finds each engine's highest rate, the engines' runs in turns.

    Args:
        workers: One an engine, with its rows.
        services: Seconds that single rows took, of each engine.
        rows: How many rows the workers have; they are used in order, and again from the start.
        bound_ms: What the 99th percentile may take, in milliseconds.
        seconds: How long a run should last about.
        settle: Seconds to wait before a run.

    Returns:
        For each engine ``rate_per_s`` (0 if no rate that was tried met the bound), ``bound_ms``,
        ``p50``, ``p90``, ``p95`` and ``p99`` (ms, at that rate), ``examples_per_s`` (what was
        answered at it), ``model_p50`` (None), ``runs`` (rows of a run), ``rounds`` (runs) and
        ``peak_memory_bytes``; figures are None where there is no such run.
    """
    searches = [RateSearch(taken, bound_ms / 1e3, seconds) for taken in services]
    peaks: list[int | None] = [None] * len(workers)
    while any(search.rate is not None for search in searches):
        for number, (worker, search) in enumerate(zip(workers, searches, strict=True)):
            if search.rate is None:
                continue
            time.sleep(settle)
            due = search.due
            chosen = [i % rows for i in range(len(due))]
            worker.timeout = max(worker.timeout, 3 * search.longest)
            taken = worker.ask("server", rows=chosen, due=due, bound=search.bound, warmup=2)
            peaks[number] = taken["peak_memory"]
            search.tell(taken["total"])
    return [
        _told(search, bound_ms) | {"peak_memory_bytes": peak}
        for search, peak in zip(searches, peaks, strict=True)
    ]


def _told(search: RateSearch, bound_ms: float) -> dict[str, Any]:
    """A finished search as a measurement."""
    spent = search.latencies
    answered = None
    if search.met:
        arrived = np.cumsum(search.gaps) / search.met
        answered = len(spent) / float((arrived + np.asarray(spent)).max())
    return {
        **{f"p{q}": quantile(spent, q / 100) * 1e3 if spent else None for q in (50, 90, 95, 99)},
        "rate_per_s": search.met,
        "bound_ms": bound_ms,
        "model_p50": None,
        "examples_per_s": answered,
        "runs": len(search.gaps),
        "rounds": search.runs,
    }
