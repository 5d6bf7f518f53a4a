"""Latency and throughput of engines, each in a process of its own, measured in turns.

Two engines in one process disturb each other, and a machine's speed drifts. So every engine has a
worker (``python -m paredown.eval.timing``), only one of them works at any moment, and rounds
alternate: A B A B …
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any

import numpy as np

from .errors import RecipeError, RunError
from .hardware import SHAPE_CACHES
from .timing_worker import Timed, decide, load_generation, load_index, load_torch, serve

__all__ = [
    "Engine",
    "Timed",
    "decide",
    "load_generation",
    "load_index",
    "load_torch",
    "measure",
]

SCENARIOS = ("single_stream", "offline")
SETTLE_SECONDS = 0.02  # pools of threads spin for some milliseconds after their last work


@dataclass(frozen=True)
class Engine:
    """Something that turns texts into decisions.

    Attributes:
        name: Its side in the measurements, such as ``teacher`` or ``student``.
        path: What is loaded.
        loader: ``module:function``; called as ``function(path, threads=…, **options)`` in the
            worker, it gives an object with `Timed`'s methods. Its attributes ``runtime`` and
            ``precision`` go into the measurements.
        options: Further arguments of the loader, as JSON can carry them.
    """

    name: str
    path: str
    loader: str = "paredown.eval.timing:load_torch"
    options: dict[str, Any] = field(default_factory=dict)


class Worker:
    """The parent's end of one worker process.

    Args:
        threads: Threads of its engine.
        timeout: Seconds it may take for one answer.
        ahead: Import PyTorch at once, before it is known what to load.
    """

    def __init__(self, threads: int = 1, timeout: float = 600.0, *, ahead: bool = False) -> None:
        self.engine: Engine | None = None
        self.threads = threads
        self.timeout = timeout
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "paredown.eval.timing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=worker_environment(threads),
        )
        self.ahead = ahead
        if ahead:
            self.tell("prepare")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # the worker ends with its input
        try:
            self.process.wait(timeout=0.1 if kind else 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def load(self, engine: Engine) -> None:
        """Has the worker load an engine."""
        self.engine = engine
        if self.ahead:
            self.answer("prepare")
        asked = {"loader": engine.loader, "path": engine.path, "options": engine.options}
        self.tell("load", threads=self.threads, **asked)

    def loaded(self, texts: Sequence[str], pairs: Sequence[str] | None) -> dict[str, Any]:
        """Waits until it has, and hands the rows over.

        Returns:
            What the engine says of itself, ``side``, and ``cold_start_s`` (None if started
            ahead).
        """
        assert self.engine is not None
        said = self.answer("load")
        self.ask("rows", texts=list(texts), pairs=None if pairs is None else list(pairs))
        cold = None if self.ahead else time.perf_counter() - self.started
        return {"side": self.engine.name, "cold_start_s": cold} | said

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer, as `answer` does."""
        self.tell(do, **arguments)
        return self.answer(do)

    def tell(self, do: str, **arguments: Any) -> None:
        """Sends a command."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # if it has died, reading says so
            self.process.stdin.write(json.dumps({"do": do} | arguments).encode() + b"\n")
            self.process.stdin.flush()

    def answer(self, do: str) -> dict[str, Any]:
        """Waits for the answer to a command.

        Raises:
            RunError: If the worker fails, dies or does not answer in time.
        """
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(self.timeout):
                raise self._failure(f"gave no answer to '{do}' within {self.timeout:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise self._failure(f"{how} during '{do}'")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise self._failure(f"failed in '{do}': {found['error']}")
        return found

    def _failure(self, what: str) -> RunError:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()[-15:]
        said = "\nIts last lines:\n  " + "\n  ".join(lines) if lines else ""
        who = f" '{self.engine.name}' ({self.engine.path})" if self.engine else ""
        return RunError(f"Timing{who}: the worker {what}.{said}")


def worker_environment(threads: int) -> dict[str, str]:
    """This process's variables, with the number of threads fixed for all that a worker may load.

    The bounds that a training sets to its kernels' caches are no part of a deployment.
    """
    inherited = {n: v for n, v in os.environ.items() if SHAPE_CACHES.get(n) != v}
    names = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "RAYON", "VECLIB_MAXIMUM")
    fixed = {f"{name}_NUM_THREADS": str(threads) for name in names}
    parallel = "true" if threads > 1 else "false"
    return inherited | fixed | {"TOKENIZERS_PARALLELISM": parallel, "HF_HUB_OFFLINE": "1"}


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
    timeout: float = 600.0,
    together: bool = False,
    spare: Worker | None = None,
) -> list[dict[str, Any]]:
    """Measures engines side by side.

    ``single_stream`` is one row at a time, from text to decision with tokenisation, and after it
    the model alone; ``offline`` is batches of rows sorted by length (in characters), tokenisation
    included. Peak memory is what the worker process has held at most, everything it loads
    included; cold start is from starting the process to its first answer, with the files mostly in
    the system's cache.

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
        timeout: Seconds a worker may take for one turn.
        together: Start all engines at once: sooner done, but cold starts then disturb each other.
        spare: A worker that was started ahead, for the first engine; its owner ends it.

    Returns:
        One dict for each scenario and engine: ``side``, ``runtime``, ``precision``, ``threads``,
        ``batch``, ``scenario``, ``p50``, ``p90``, ``p95``, ``p99`` (ms; of a batch where offline),
        ``model_p50`` (ms; None where offline), ``examples_per_s`` (the median round's), ``runs``,
        ``rounds``, ``peak_memory_bytes``, ``cold_start_s``, ``load_average`` (1 minute) and
        ``busy_before`` (share of the processors in use just before, 0 to 1). Engines that write
        texts have ``tokens_per_s`` (the median round's) too, and where single ``ttft`` (time to
        first token: ``p50``, ``p90`` and ``p99`` in ms).

    Raises:
        RecipeError: If there is nothing to run, or a scenario is not known.
        RunError: If a worker fails; the message has its last lines.
    """
    if not len(texts):
        raise RecipeError("There are no rows to time; give at least one text.")
    if unknown := [name for name in scenarios if name not in SCENARIOS]:
        raise RecipeError(f"Unknown scenario '{unknown[0]}'; known: {', '.join(SCENARIOS)}.")
    state = machine_state()
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
        for scenario in scenarios:
            each = min(len(texts), offline_rows) if scenario == "offline" else -(-runs // rounds)
            turns = _take_turns(workers, scenario, len(texts), each, rounds, warmup, batch)
            for facts, taken in zip(about, turns, strict=True):
                size = batch if scenario == "offline" else 1
                shape = {"threads": threads, "batch": size, "scenario": scenario}
                found.append(facts | shape | _summary(taken, each) | state)
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
    )


def machine_state() -> dict[str, float]:
    """How busy the machine is: 1-minute load average, and the processors' use over 0.3 s."""
    import psutil

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {"load_average": load, "busy_before": psutil.cpu_percent(interval=0.3) / 100}


if __name__ == "__main__":
    serve()
