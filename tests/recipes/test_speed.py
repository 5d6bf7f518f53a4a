"""What a shape takes is predicted from shapes that were timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paredown.eval.tasks import get_task
from paredown.recipes.shapes import Cost, Costs, grid
from paredown.recipes.stage_speed import Clock, features, spread
from paredown.recipes.trial_pool import trial_processes


@pytest.fixture
def costs(tiny_model: Callable[..., Any]) -> Costs:
    return Costs(tiny_model("bert", get_task("retrieval")), np.asarray([5, 9, 14]))


def test_shapes_to_time_reach_from_the_smallest_to_the_whole(costs: Costs) -> None:
    sizes = grid(costs.anatomy, costs.model.config, {}, 8)
    shapes = spread(sizes, costs)
    assert shapes[0] == {axis: every[0] for axis, every in sizes.items()}
    assert shapes[-1] == {axis: every[-1] for axis, every in sizes.items()}
    assert len({str(shape) for shape in shapes}) == len(shapes) <= 10


@pytest.mark.parametrize("truth", [[3.0, 0.5, 0.0, 0.0], [0.2, 0.0, 0.01, 1e-6], [1, 0, 0, 0]])
def test_times_that_are_sums_of_the_features_are_predicted(
    costs: Costs, truth: list[float]
) -> None:
    shapes = spread(grid(costs.anatomy, costs.model.config, {}, 8), costs)
    timed = [
        {"features": (row := features(costs, one)), "ms": float(np.dot(row, truth))}
        for one in shapes
    ]
    clock = Clock(timed, costs, "latency_ms")
    other = {"layers": 1, "intermediate_size": 24, "hidden_size": 16}
    found = clock(other, Cost(1, 1, 1))
    assert found.latency_ms == pytest.approx(np.dot(features(costs, other), truth), rel=1e-3)
    assert found.over(Cost(2, 2, 2)).latency_ms == found.latency_ms  # no share of anything
    priced = Clock(timed, costs, "usd_per_million", 3.6)(other, Cost(1, 1, 1))
    assert found.latency_ms is not None
    assert priced.usd_per_million == pytest.approx(found.latency_ms)


@pytest.mark.parametrize(
    ("cores", "memory", "gpus", "processes"),
    [(2, 24 << 30, 0, 2), (1, 24 << 30, 0, 1), (16, 8 << 30, 0, 2), (64, 1 << 40, 0, 8),
     (64, 1 << 40, 4, 4), (2, 1 << 30, 0, 1)],
)  # fmt: skip
def test_as_many_trials_as_the_machine_bears(
    cores: int, memory: int, gpus: int, processes: int
) -> None:
    assert trial_processes(cores, memory, gpus) == processes
