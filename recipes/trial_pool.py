"""Processes that make trials, or points of a sweep, beside each other. Nothing heavy is imported.

A worker makes ordinary stages in the store, and the search or the sweep then finds them there: what
a trial is does not depend on who made it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Result = TypeVar("Result")

MEMORY = 3 << 30
"""Bytes that a trial's process may take, by experience with small encoders."""
MOST = 8

Made = list[tuple[str, float]]
"""The stages that were made, each with its seconds."""


def trial_processes(cores: int, memory: int, gpus: int) -> int:
    """How many trials a machine bears at the same time.

    One a GPU; without any, as many as there are cores and gigabytes for, since a small model's
    training gains little from a second thread.

    Args:
        cores: Processor cores.
        memory: Bytes of the machine.
        gpus: How many there are.
    """
    return max(1, gpus or min(cores, memory // MEMORY, MOST))


def processes_here() -> int:
    """How many trials this machine bears at the same time; one in a launch of several processes."""
    import psutil
    import torch

    from ..eval.hardware import default_device, usable_cores

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or default_device() not in ("cpu", "cuda"):
        return 1  # the processes of a launch share each trial
    memory = int(psutil.virtual_memory().total)
    return trial_processes(usable_cores(), memory, torch.cuda.device_count())


def _prepare(threads: int, gpus: Any) -> None:
    """Sets a worker up: its share of the processor or its GPU, and no life beyond its parent's."""
    for name in ("OMP", "MKL", "OPENBLAS", "RAYON"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)
    gpu = gpus.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(threads)


class WorkersDied(Exception):
    """A process that made trials was ended, or could not start."""


class TrialPool:
    """Processes that stay for the whole of a search or sweep; they start with its first tasks.

    Args:
        processes: How many work at the same time.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None
        self._others = set(multiprocessing.active_children())

    def __enter__(self) -> TrialPool:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self._pool is not None:
            if kind is not None:  # a trial that is under way would be waited for
                for child in set(multiprocessing.active_children()) - self._others:
                    child.terminate()
            self._pool.shutdown(cancel_futures=True)

    def run(
        self, work: Callable[[Any], Result], tasks: Sequence[Any]
    ) -> Iterator[tuple[int, Result]]:
        """Does tasks at the same time.

        Args:
            work: A function of a module; called with a task.
            tasks: Picklable.

        Yields:
            The number of a task that is done, and what was made for it, in the order they end. One
            that failed is left out: whoever goes on meets its error where it can be told.

        Raises:
            WorkersDied: If a process ended; the pool then has none any more.
        """
        if self._pool is None:
            self._pool = self._start()
        waiting = {self._pool.submit(work, task): number for number, task in enumerate(tasks)}
        for future in as_completed(waiting):
            error = future.exception()
            if error is None:
                yield waiting[future], future.result()
            elif isinstance(error, BrokenProcessPool):
                self._pool.shutdown(cancel_futures=True)
                self._pool, self.processes = None, 1
                raise WorkersDied(str(error)) from error

    def _start(self) -> ProcessPoolExecutor:
        import torch

        from ..eval.hardware import usable_cores

        context = multiprocessing.get_context("spawn")
        gpus, found = context.SimpleQueue(), torch.cuda.device_count()
        named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        names = named[:found] or [str(number) for number in range(found)]
        for number in range(self.processes):
            gpus.put(names[number % found] if found else None)
        threads = max(1, usable_cores() // self.processes)
        return ProcessPoolExecutor(self.processes, context, _prepare, (threads, gpus))
