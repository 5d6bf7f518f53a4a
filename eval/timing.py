"""Latency and throughput of engines, each in a process of its own, measured in turns.

Two engines in one process disturb each other, and a machine's speed drifts. So every engine has a
worker (``python -m paredown.eval.timing``), only one of them works at any moment, and rounds
alternate: A B A B …
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .engine_process import Engine, Worker
from .errors import RecipeError
from .machine_load import Others, machine_state
from .server_load import measure_server
from .timing_worker import Timed, decide, load_generation, load_index, load_torch, serve

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Engine",
    "Timed",
    "Worker",
    "decide",
    "load_generation",
    "load_index",
    "load_torch",
    "measure",
]

SCENARIOS = ("single_stream", "offline")
SERVER = "server"
"""Measured where a bound is given, behind the others."""
SETTLE_SECONDS = 0.02  # pools of threads spin for some milliseconds after their last work


def measure(
    engines: Sequence[Engine],
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    threads: int = 1,
    runs: int = 200,
    rounds: int = 5,
    warmup: int = 10,
    batch: int = 32,
    offline_rows: int = 512,
    scenarios: Sequence[str] = SCENARIOS,
    server_ms: float | None = None,
    server_seconds: float = 2.0,
    timeout: float = 600.0,
    together: bool = False,
    spare: Worker | None = None,
) -> list[dict[str, Any]]:
    """Measures engines side by side, in MLPerf Inference's scenarios.

    ``single_stream`` is one row at a time, from text to decision with tokenisation, and after it
    the model alone; ``offline`` is batches of rows sorted by length (in characters), tokenisation
    included; ``server`` is rows that arrive at random, as `server_load` says. Peak memory is what
    the worker process has held at most, everything it loads included; cold start is from starting
    the process to its first answer, with the files mostly in the system's cache. Energy is what
    the processors' counters counted while rows were timed (`energy`).

    Args:
        engines: What to measure; their names are told apart by the caller.
        texts: Rows to run, used again from the start where ``runs`` exceeds them.
        pairs: The second text of each row, or None.
        threads: Threads of each engine.
        runs: Rows each engine answers singly, at least.
        rounds: Turns each engine takes in each scenario.
        warmup: Untimed rows before an engine's first turn (two before each other turn).
        batch: Rows of an offline batch.
        offline_rows: Rows of an offline turn, at most.
        scenarios: Some of `SCENARIOS`.
        server_ms: What the 99th percentile may take in the scenario ``server``, in milliseconds;
            None measures no such rate. Needs ``single_stream``, whose times it starts from.
        server_seconds: How long a run of that scenario should last about.
        timeout: Seconds a worker may take for one turn.
        together: Start all engines at once: sooner done, but cold starts then disturb each other.
        spare: A worker that was started ahead, for the first engine; its owner ends it.

    Returns:
        One dict for each scenario and engine: ``side``, ``runtime``, ``precision``, ``threads``,
        ``batch``, ``scenario``, ``p50``, ``p90``, ``p95``, ``p99`` (ms; of a batch where offline),
        ``model_p50`` (ms; None where offline), ``examples_per_s`` (the median round's), ``runs``,
        ``rounds``, ``peak_memory_bytes``, ``cold_start_s``, ``energy_joules`` (of a row; None
        where nothing counts it), ``energy_source``, ``load_average`` (1 minute), ``busy_before``
        (share of the processors in use just before, 0 to 1) and ``busy_during`` (share of them that
        other processes used meanwhile; None of less than a second). Engines that write texts have
        ``tokens_per_s`` (the median round's) too, and where single ``ttft`` (time to first token:
        ``p50``, ``p90`` and ``p99`` in ms). ``server`` has what `server_load.measure_server` gives,
        and no energy.

    Raises:
        RecipeError: If there is nothing to run, or a scenario is not known.
        RunError: If a worker fails; the message has its last lines.
    """
    if not len(texts):
        raise RecipeError("There are no rows to time; give at least one text.")
    if unknown := [name for name in scenarios if name not in SCENARIOS]:
        raise RecipeError(f"Unknown scenario '{unknown[0]}'; known: {', '.join(SCENARIOS)}.")
    if server_ms is not None and "single_stream" not in scenarios:
        raise RecipeError("The server scenario starts from single_stream's times; measure it too.")
    state: dict[str, float | None] = {**machine_state()}
    with contextlib.ExitStack() as stack:
        workers: list[Worker] = []
        about = []
        for group in [engines] if together else [[engine] for engine in engines]:
            started = []
            for engine in group:
                ahead, spare = spare, None
                started.append(ahead or stack.enter_context(Worker(threads, timeout)))
                started[-1].load(engine)
            for worker in started:
                about.append(worker.loaded(texts, pairs))
            workers += started
        found = []
        services: list[NDArray[np.float64]] = []
        ours = [worker.process.pid for worker in workers]
        for scenario in scenarios:
            each = min(len(texts), offline_rows) if scenario == "offline" else -(-runs // rounds)
            others = Others(ours)
            turns = _take_turns(workers, scenario, len(texts), each, rounds, warmup, batch)
            busy = state | {"busy_during": others.share()}
            for facts, taken in zip(about, turns, strict=True):
                size = batch if scenario == "offline" else 1
                shape = {"threads": threads, "batch": size, "scenario": scenario}
                found.append(facts | shape | _summary(taken, each) | busy)
                if scenario == "single_stream":
                    services.append(np.concatenate([turn["total"] for turn in taken]))
        if server_ms is not None:
            others = Others(ours)
            rates = measure_server(
                workers, services, len(texts), server_ms,
                seconds=server_seconds, settle=SETTLE_SECONDS,
            )  # fmt: skip
            busy = state | {"busy_during": others.share()}
            shape = {"threads": threads, "batch": 1, "scenario": SERVER}
            nothing = {"energy_joules": None, "energy_source": None}
            for facts, rate in zip(about, rates, strict=True):
                found.append(facts | shape | rate | nothing | busy)
    return found


def _take_turns(
    workers: Sequence[Worker],
    scenario: str,
    rows: int,
    each: int,
    rounds: int,
    warmup: int,
    batch: int,
) -> list[list[dict[str, Any]]]:
    """Lets the workers work one after another, several times; gives each one's answers."""
    answers: list[list[dict[str, Any]]] = [[] for _ in workers]
    for turn in range(rounds):
        first = 0 if scenario == "offline" else turn * each
        chosen = [i % rows for i in range(first, first + each)]
        for worker, taken in zip(workers, answers, strict=True):
            time.sleep(SETTLE_SECONDS)
            if scenario == "offline":
                taken.append(worker.ask("offline", rows=chosen, batch=batch, warmup=1))
            else:
                before = 2 if turn else warmup
                taken.append(worker.ask("single", rows=chosen, warmup=before))
    return answers


def _summary(turns: Sequence[dict[str, Any]], each: int) -> dict[str, Any]:
    """Quantiles (ms) over all turns, and the median turn's rows per second."""
    total = np.concatenate([turn["total"] for turn in turns]) * 1e3
    alone = [turn["model"] for turn in turns if "model" in turn]
    quantiles = {f"p{q}": float(np.percentile(total, q)) for q in (50, 90, 95, 99)}
    written: dict[str, Any] = {}
    if all("tokens" in turn for turn in turns):
        rates = [sum(turn["tokens"]) / sum(turn["total"]) for turn in turns]
        written["tokens_per_s"] = float(np.median(rates))
    if all("ttft" in turn for turn in turns):
        first = np.concatenate([turn["ttft"] for turn in turns]) * 1e3
        written["ttft"] = {f"p{q}": float(np.percentile(first, q)) for q in (50, 90, 99)}
    return (
        quantiles
        | written
        | {
            "model_p50": float(np.median(np.concatenate(alone)) * 1e3) if alone else None,
            "examples_per_s": float(np.median([each / sum(turn["total"]) for turn in turns])),
            "runs": len(total),
            "rounds": len(turns),
            "peak_memory_bytes": max(turn["peak_memory"] for turn in turns),
        }
        | _energy(turns, each)
    )


def _energy(turns: Sequence[dict[str, Any]], each: int) -> dict[str, Any]:
    """Joules of a row over all turns; None if one was not counted."""
    spent = [turn["joules"] for turn in turns if turn.get("joules") is not None]
    if len(spent) < len(turns):
        return {"energy_joules": None, "energy_source": None}
    joules = sum(spent) / (each * len(turns))
    return {"energy_joules": joules, "energy_source": turns[0]["energy_source"]}


if __name__ == "__main__":
    serve()
