"""How busy a machine is: before something is timed, and by others while it is."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
"""What a processor's time goes to when it is not idle; stolen time is a neighbour's."""
LEAST_SECONDS = 1.0
"""Processor times are counted in hundredths of a second: a shorter measurement says nothing."""


def machine_state() -> dict[str, float]:
    """How busy the machine is: 1-minute load average, and the processors' use over 0.3 s."""
    import psutil

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {"load_average": load, "busy_before": psutil.cpu_percent(interval=0.3) / 100}


class Others:
    """Counts what other processes use of the processors from its construction on.

    Args:
        processes: Ids of those that are not others, this one aside.
    """

    def __init__(self, processes: Iterable[int]) -> None:
        self.processes = [os.getpid(), *processes]
        self.started = time.perf_counter()
        self.before = self._times()

    def share(self) -> float | None:
        """Share of all processors that others have used since, 0 to 1.

        Returns:
            None where too little time went by to tell.
        """
        import psutil

        seconds = time.perf_counter() - self.started
        if seconds < LEAST_SECONDS:
            return None
        (every, ours), (every_before, ours_before) = self._times(), self.before
        used = (every - every_before) - (ours - ours_before)
        return min(1.0, max(0.0, used / (seconds * (psutil.cpu_count() or 1))))

    def _times(self) -> tuple[float, float]:
        """Seconds that all processors were busy, and that our own processes used of them."""
        import psutil

        machine = psutil.cpu_times()
        ours = 0.0
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                times = psutil.Process(process).cpu_times()
                ours += times.user + times.system
        return sum(getattr(machine, kind, 0.0) for kind in BUSY), ours
