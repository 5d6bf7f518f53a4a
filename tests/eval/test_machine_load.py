"""How busy a machine was, by made-up processor times."""

from __future__ import annotations

import os
from types import SimpleNamespace

import psutil
import pytest

from paredown.eval import machine_load
from paredown.eval.machine_load import Others, machine_state


@pytest.mark.parametrize(
    ("seconds", "machine", "ours", "share"),
    [
        (10.0, 5.0, 5.0, 0.0),  # all of it was ours
        (10.0, 15.0, 5.0, 0.5),  # of two processors
        (10.0, 4.9, 5.0, 0.0),  # clocks of different grain
        (10.0, 40.0, 5.0, 1.0),
        (0.5, 1.0, 0.5, None),  # too short to tell
    ],
)
def test_what_others_use_is_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    machine: float,
    ours: float,
    share: float | None,
) -> None:
    at = {"clock": 0.0, "machine": 100.0, "ours": 7.0}
    half = lambda key: SimpleNamespace(user=at[key] / 2, system=at[key] / 2, idle=1e9)  # noqa: E731

    def process(number: int) -> SimpleNamespace:
        if number != os.getpid():
            raise psutil.NoSuchProcess(number)
        return SimpleNamespace(cpu_times=lambda: half("ours"))

    monkeypatch.setattr(psutil, "cpu_times", lambda: half("machine"))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(psutil, "Process", process)
    monkeypatch.setattr(machine_load.time, "perf_counter", lambda: at["clock"])
    others = Others([99_999_999])  # one that has ended is no trouble
    at |= {"clock": seconds, "machine": 100.0 + machine, "ours": 7.0 + ours}
    assert others.share() == (None if share is None else pytest.approx(share))


def test_the_state_before_is_two_figures() -> None:
    state = machine_state()
    assert set(state) == {"load_average", "busy_before"} and 0 <= state["busy_before"] <= 1
