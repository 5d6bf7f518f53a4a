"""The server scenario: the queue, the search for its highest rate, and rows on the clock."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paredown.eval.server_load import (
    LEAST_ROWS,
    MOST_ROWS,
    RUNS,
    RateSearch,
    allowed_late,
    answer_arrivals,
    capacity,
    measure_server,
    predicted_rate,
    quantile,
    queue_latencies,
)

times = st.lists(st.floats(0.001, 10), min_size=1, max_size=150)


@given(values=times, bound=st.floats(0.001, 10))
def test_the_bound_is_met_if_no_more_rows_are_late_than_allowed(
    values: list[float], bound: float
) -> None:
    late = sum(value > bound for value in values)
    assert (quantile(values, 0.99) <= bound) == (late <= allowed_late(len(values)))


@given(services=times, seed=st.integers(0, 9))
def test_waiting_follows_lindleys_recursion(services: list[float], seed: int) -> None:
    takes = np.asarray(services)
    gaps = np.random.default_rng(seed).exponential(1.0, len(takes))
    waiting, expected = 0.0, []
    for i in range(len(takes)):
        waiting = max(0.0, waiting + takes[i - 1] - gaps[i]) if i else 0.0
        expected.append(waiting + takes[i])
    found = queue_latencies(takes, np.cumsum(gaps))
    assert found == pytest.approx(np.asarray(expected), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("bound", [0.015, 0.03, 0.2])
def test_the_predicted_rate_just_meets_the_bound(bound: float) -> None:
    services = np.random.default_rng(1).uniform(0.008, 0.012, 64)
    gaps = np.random.default_rng(2).exponential(1.0, 500)
    rate = predicted_rate(services, gaps, bound)

    def p99(at: float) -> float:
        return quantile(queue_latencies(np.resize(services, 500), np.cumsum(gaps) / at), 0.99)

    assert p99(rate) <= bound
    assert bound < p99(1.02 * rate) or rate == capacity(services)


def ideal(search: RateSearch, services: NDArray[np.float64]) -> None:
    """Runs a search on a queue that takes exactly these times."""
    while search.rate is not None:
        due = np.asarray(search.due)
        search.tell(queue_latencies(np.resize(services, len(due)), due).tolist())


@settings(max_examples=40, deadline=None)
@given(
    mean=st.floats(0.0005, 0.02),
    times=st.floats(4.0, 40.0),
    slower=st.floats(0.95, 1.05),
    seed=st.integers(0, 50),
)
def test_the_search_ends_near_the_highest_rate(
    mean: float, times: float, slower: float, seed: int
) -> None:
    services = mean * np.random.default_rng(seed).uniform(0.9, 1.1, 100)
    search = RateSearch(services, times * mean, seed=seed)
    assert LEAST_ROWS <= len(search.gaps) <= MOST_ROWS
    ideal(search, slower * services)
    assert 1 <= search.runs <= RUNS
    true = predicted_rate(slower * services, search.gaps, times * mean)
    assert search.met <= max(1.001 * true, capacity(services))
    assert search.met >= 0.6 * true
    assert quantile(search.latencies, 0.99) <= times * mean


@pytest.mark.parametrize(("takes", "bound"), [(0.001, 1.0), (0.01, 0.5), (0.05, 1.0)])
def test_no_rate_is_found_that_an_engine_cannot_serve_for_long(takes: float, bound: float) -> None:
    services = np.full(100, takes)
    search = RateSearch(services, bound)
    ideal(search, services)
    assert 0.9 / takes <= search.met <= 1.0001 / takes


def test_a_bound_below_a_single_rows_time_needs_no_run() -> None:
    search = RateSearch(np.full(50, 0.01), 0.009)
    assert search.rate is None and search.met == 0


def test_a_rate_is_not_lowered_for_ever() -> None:
    search = RateSearch(np.full(50, 0.01), 0.011, seconds=0.5)
    while search.rate is not None:
        assert search.due[-1] < 2 * search.longest
        search.tell([1.0])  # much slower than it was by itself
    assert search.met == 0 and 1 <= search.runs <= RUNS


def test_rows_are_answered_in_order_and_not_before_they_are_due() -> None:
    seen: list[tuple[int, float]] = []
    start = time.perf_counter()
    found = answer_arrivals(
        lambda row: seen.append((row, time.perf_counter() - start)), [3, 1, 2], [0.0, 0.02, 0.02], 9
    )
    assert [row for row, _ in seen] == [3, 1, 2]
    assert seen[1][1] >= 0.02 and len(found) == 3
    assert all(latency >= 0 for latency in found)


def test_waiting_behind_others_counts() -> None:
    found = answer_arrivals(lambda row: time.sleep(0.01), [0, 1, 2], [0.0, 0.0, 0.0], 9)
    assert found[0] >= 0.01 and found[1] >= 0.02 and found[2] >= 0.03


def test_a_run_ends_once_it_cannot_meet_the_bound_any_more() -> None:
    found = answer_arrivals(lambda row: time.sleep(0.002), range(200), [0.0] * 200, 0.001)
    assert len(found) == allowed_late(200) + 1


class Ideal:
    """A worker whose rows take exactly so long, without waiting for it."""

    timeout = 1.0

    def __init__(self, seconds: float, log: list[float]) -> None:
        self.seconds, self.log = seconds, log

    def ask(self, do: str, **said: object) -> dict[str, object]:
        assert do == "server" and said["warmup"] == 2
        due = np.asarray(said["due"])
        rows = said["rows"]
        assert isinstance(rows, list) and rows[:8] == [0, 1, 2, 3, 4, 5, 6, 0]
        self.log.append(self.seconds)
        return {
            "total": queue_latencies(np.full(len(due), self.seconds), due).tolist(),
            "peak_memory": 5,
        }


def test_engines_are_asked_in_turns() -> None:
    log: list[float] = []
    workers = [Ideal(0.005, log), Ideal(0.001, log), Ideal(0.5, log)]
    services = [np.full(20, worker.seconds) for worker in workers]
    slow, fast, hopeless = measure_server(workers, services, 7, 20.0)
    assert log[:2] == [0.005, 0.001] and 0.5 not in log
    assert workers[0].timeout >= 20
    assert 0 < slow["rate_per_s"] < 200 and slow["rate_per_s"] < fast["rate_per_s"] < 1000
    for found in (slow, fast):
        assert found["p50"] <= found["p90"] <= found["p95"] <= found["p99"] <= 20.0
        assert found["bound_ms"] == 20.0 and found["peak_memory_bytes"] == 5
        assert found["examples_per_s"] == pytest.approx(found["rate_per_s"], rel=0.25)
    assert hopeless["rate_per_s"] == 0 and hopeless["rounds"] == 0
    assert hopeless["p99"] is None and hopeless["examples_per_s"] is None
