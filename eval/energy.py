"""Energy from the machine's own counters: RAPL for processors, NVML for GPUs. Nothing is guessed.

Linux shows a processor's counters as files (``/sys/class/powercap``, the kernel's
Documentation/power/powercap). A package's counter covers its cores, its caches and the graphics on
it; ``core`` and ``uncore`` are parts of it, and ``psys`` contains it, so neither is added. Memory
(``dram``) is outside the package and is added where it can be read. NVIDIA's driver counts each
board's energy (``nvmlDeviceGetTotalEnergyConsumption``).

Counters are of the hardware: whatever else runs meanwhile, and what an idle processor uses, is in
the figure.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
DRIVERS = ("intel-rapl", "intel-rapl-mmio")
"""Two ways to the same counters (AMD's are under the first name too); the first that is there."""
SAMPLE_SECONDS = 20.0
"""Counters are read at least so often, since a small one starts anew after two minutes of work."""
NVML = "libnvidia-ml.so.1"


class Counter(Protocol):
    """A count of energy that only grows, but for starting anew."""

    @property
    def name(self) -> str:
        """What it is of."""

    @property
    def span(self) -> int | None:
        """Microjoules after which it starts anew from 0; None if it does not."""

    def read(self) -> int:
        """Microjoules so far.

        Raises:
            OSError: If it cannot be read any more.
        """


@dataclass(frozen=True)
class RaplCounter:
    """A power domain of a processor, as Linux shows it."""

    name: str
    folder: Path
    span: int | None

    def read(self) -> int:
        """Microjoules so far."""
        return _number(self.folder / "energy_uj")


def rapl_counters(root: Path = POWERCAP) -> list[RaplCounter]:
    """The counters of all processor packages and of their memory; none if one cannot be read.

    Files of these counters are often readable by root alone (CVE-2020-8694), and a virtual machine
    mostly has none. A part of the packages would be a wrong figure, so it is all of them or none;
    memory is added where all of it can be read.

    Args:
        root: Where the kernel shows power domains.
    """
    for driver in DRIVERS:
        folders = sorted(root.glob(f"{driver}:*"))
        named = [(folder, _name(folder)) for folder in folders]
        packages = [(f, n) for f, n in named if f.name.count(":") == 1 and n.startswith("package")]
        if not packages:
            continue
        found = _counters(packages)
        parents = {folder.name for folder, _ in packages}
        memory = [
            (f, f"{n} of {_name(root / f.name.rpartition(':')[0])}")
            for f, n in named
            if f.name.rpartition(":")[0] in parents and n == "dram"
        ]
        return found + _counters(memory) if found else []
    return []


def _counters(domains: Sequence[tuple[Path, str]]) -> list[RaplCounter]:
    """Counters of all these domains, or of none."""
    found = []
    for folder, name in domains:
        try:
            counter = RaplCounter(f"RAPL {name}", folder, _number(folder / "max_energy_range_uj"))
            counter.read()
        except (OSError, ValueError):
            return []
        found.append(counter)
    return found


def _name(folder: Path) -> str:
    try:
        return (folder / "name").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


@dataclass(frozen=True)
class GpuCounter:
    """An NVIDIA board, as its driver counts it since it was loaded."""

    name: str
    library: Any
    handle: Any
    span: int | None = None

    def read(self) -> int:
        """Microjoules so far."""
        millijoules = ctypes.c_ulonglong()
        asked = self.library.nvmlDeviceGetTotalEnergyConsumption
        _check(asked(self.handle, ctypes.byref(millijoules)))
        return int(millijoules.value) * 1000


def gpu_counters(library: Any = None) -> list[GpuCounter]:
    """The counters of the GPUs that this process may use; none if one cannot be read.

    A part of a board (MIG) has no counter of its own.

    Args:
        library: NVML; the driver's own if None.
    """
    with contextlib.suppress(OSError, ValueError):
        nvml = ctypes.CDLL(NVML) if library is None else library
        _check(nvml.nvmlInit_v2())
        found = [
            GpuCounter(f"NVML gpu {number}", nvml, handle)
            for number, handle in enumerate(_boards(nvml))
        ]
        for counter in found:
            counter.read()
        return found
    return []


def _boards(nvml: Any) -> list[Any]:
    """The boards that CUDA_VISIBLE_DEVICES names, by number or UUID; all if it is not set."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        count = ctypes.c_uint()
        _check(nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
        names = [str(number) for number in range(count.value)]
    else:
        names = [name.strip() for name in named.split(",") if name.strip()]
    found = []
    for name in names:
        handle = ctypes.c_void_p()
        if name.startswith("GPU-"):
            code = nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
        else:
            number = ctypes.c_uint(int(name))
            code = nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle))
        _check(code)
        found.append(handle)
    return found


def _check(code: int) -> None:
    if code != 0:
        raise OSError(f"NVML answered with code {code}.")


class Meter:
    """Counts the energy that is used while it is open.

    Examples:
        >>> with Meter([]) as meter:
        ...     pass
        >>> meter.joules is None and meter.source is None
        True

    Attributes:
        joules: What all counters counted together; None without counters, or if one failed.
        source: What they are of, such as ``RAPL package-0, RAPL dram of package-0``.
    """

    def __init__(self, counters: Sequence[Counter] | None = None, *, sample: bool = True) -> None:
        """Takes the counters.

        Args:
            counters: What to read; the processors' if None.
            sample: Read them now and then meanwhile too, so that one that starts anew several
                times is counted right. Short measurements need no thread for that.
        """
        self.counters: Sequence[Counter] = rapl_counters() if counters is None else counters
        self.sample = sample
        self.joules: float | None = None
        self._used = 0
        self._last: list[int] = []
        self._failed = not self.counters
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def source(self) -> str | None:
        """What was counted; None if nothing was."""
        if self.joules is None:
            return None
        return ", ".join(counter.name for counter in self.counters)

    def __enter__(self) -> Meter:
        if not self._failed:
            self._last = self._read()
        if self.sample and not self._failed:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._advance()
        self.joules = None if self._failed else self._used / 1e6

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self._advance()

    def _advance(self) -> None:
        """Adds what was used since the last reading."""
        now = [] if self._failed else self._read()
        if self._failed:
            return
        for counter, last, value in zip(self.counters, self._last, now, strict=True):
            if value < last and counter.span is None:
                self._failed = True  # its driver was loaded anew meanwhile
                return
            self._used += value - last if value >= last else value - last + int(counter.span or 0)
        self._last = now

    def _read(self) -> list[int]:
        try:
            return [counter.read() for counter in self.counters]
        except (OSError, ValueError):
            self._failed = True
            return []
