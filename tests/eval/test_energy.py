"""Energy counters: which are added, what starts anew, and that nothing is guessed."""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.eval import energy, timing_worker
from paredown.eval.energy import Meter, gpu_counters, rapl_counters

Domains = dict[str, tuple[str, str]]
SPAN = 262_143_328_850
ONE: Domains = {
    "intel-rapl:0": ("package-0", "100"),
    "intel-rapl:0:0": ("core", "60"),
    "intel-rapl:0:1": ("uncore", "10"),
    "intel-rapl:0:2": ("dram", "7"),
    "intel-rapl:1": ("psys", "900"),
    "intel-rapl-mmio:0": ("package-0", "100"),
}
TWO: Domains = {
    "intel-rapl:0": ("package-0", "100"),
    "intel-rapl:1": ("package-1", "200"),
    "intel-rapl:0:0": ("dram", "1"),
    "intel-rapl:1:0": ("dram", "2"),
}


def powercap(root: Path, domains: Domains) -> Path:
    """Power domains as the kernel shows them: folder → name and microjoules."""
    for folder, (name, value) in domains.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "name").write_text(f"{name}\n")
        (root / folder / "energy_uj").write_text(f"{value}\n")
        (root / folder / "max_energy_range_uj").write_text(f"{SPAN}\n")
    return root


@dataclass
class Readings:
    """A counter that gives these values, one after the other."""

    values: Sequence[int]
    span: int | None = SPAN
    name: str = "made up"
    read: Callable[[], int] = field(init=False)

    def __post_init__(self) -> None:
        self.read = iter(self.values).__next__


def names(root: Path) -> list[str]:
    return [counter.name for counter in rapl_counters(root)]


def test_a_package_and_its_memory_are_added_and_no_part_twice(tmp_path: Path) -> None:
    root = powercap(tmp_path, ONE)
    assert names(root) == ["RAPL package-0", "RAPL dram of package-0"]
    with Meter(rapl_counters(root)) as meter:
        (root / "intel-rapl:0" / "energy_uj").write_text("2000100\n")
        (root / "intel-rapl:0:0" / "energy_uj").write_text("2000060\n")
        (root / "intel-rapl:1" / "energy_uj").write_text("3000900\n")
        (root / "intel-rapl:0:2" / "energy_uj").write_text("500007\n")
    assert meter.joules == pytest.approx(2.5)
    assert meter.source == "RAPL package-0, RAPL dram of package-0"


def test_several_packages_are_added(tmp_path: Path) -> None:
    root = powercap(tmp_path, TWO)
    assert len(names(root)) == 4
    with Meter(rapl_counters(root)) as meter:
        for folder in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "intel-rapl:1:0"):
            (root / folder / "energy_uj").write_text("1000300\n")
    assert meter.joules == pytest.approx((4 * 1_000_300 - 303) / 1e6)


def test_the_second_driver_is_read_where_the_first_is_missing(tmp_path: Path) -> None:
    root = powercap(tmp_path, {"intel-rapl-mmio:0": ("package-0", "5")})
    assert names(root) == ["RAPL package-0"]


@pytest.mark.parametrize("broken", ["missing", "no number", "a folder"])
@pytest.mark.parametrize("file", ["energy_uj", "max_energy_range_uj"])
def test_one_package_that_cannot_be_read_leaves_nothing(
    tmp_path: Path, file: str, broken: str
) -> None:
    root = powercap(tmp_path, TWO)
    path = root / "intel-rapl:1" / file
    path.unlink()
    if broken == "no number":
        path.write_text("many\n")
    elif broken == "a folder":
        path.mkdir()
    assert names(root) == []
    with Meter(rapl_counters(root)) as meter:
        pass
    assert meter.joules is None and meter.source is None


def test_memory_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    root = powercap(tmp_path, TWO)
    (root / "intel-rapl:1:0" / "energy_uj").unlink()
    assert names(root) == ["RAPL package-0", "RAPL package-1"]


@pytest.mark.parametrize("domains", [{}, {"intel-rapl:0": ("psys", "1")}])
def test_without_a_package_nothing_is_measured(tmp_path: Path, domains: Domains) -> None:
    assert rapl_counters(powercap(tmp_path, domains)) == []
    assert rapl_counters(tmp_path / "nowhere") == []


@given(
    first=st.integers(0, SPAN - 1),
    steps=st.lists(st.integers(0, SPAN - 1), min_size=1, max_size=8),
)
def test_a_counter_that_starts_anew_is_followed(first: int, steps: list[int]) -> None:
    values = [value % SPAN for value in itertools.accumulate([first, *steps])]
    with Meter([Readings(values)], sample=False) as meter:
        for _ in steps[:-1]:
            meter._advance()
    assert meter.joules == pytest.approx(sum(steps) / 1e6)


def test_long_measurements_are_sampled_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "SAMPLE_SECONDS", 0.001)

    class Fast:
        """Starts anew at 100, and is 60 further on at each reading."""

        name, span, readings = "fast", 100, 0

        def read(self) -> int:
            self.readings += 1
            return self.readings * 60 % 100

    counter = Fast()
    with Meter([counter]) as meter:
        while counter.readings < 20:
            time.sleep(0.001)
    assert meter.joules == pytest.approx((counter.readings - 1) * 60 / 1e6)


def test_a_counter_that_goes_away_makes_the_measurement_none(tmp_path: Path) -> None:
    root = powercap(tmp_path, ONE)
    with Meter(rapl_counters(root)) as meter:
        (root / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.joules is None and meter.source is None


def test_a_counter_without_a_span_that_falls_makes_the_measurement_none() -> None:
    with Meter([Readings([9, 3], span=None)], sample=False) as meter:
        pass
    assert meter.joules is None


class Nvml:
    """NVIDIA's library with boards that have used so many millijoules; None has no counter."""

    def __init__(self, boards: Sequence[int | None], code: int = 0) -> None:
        self.boards, self.code = list(boards), code

    def nvmlInit_v2(self) -> int:
        return self.code

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.boards)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number: ctypes.c_uint, handle: Any) -> int:
        handle._obj.value = number.value + 1
        return 0 if number.value < len(self.boards) else 2

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        handle._obj.value = int(uuid[-1:]) + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, used: Any) -> int:
        value = self.boards[int(handle.value or 0) - 1]
        used._obj.value = value or 0
        return 3 if value is None else 0


def test_boards_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = Nvml([1000, 5000])
    with Meter(gpu_counters(nvml)) as meter:
        nvml.boards = [1500, 7000]
    assert meter.joules == pytest.approx(2.5)
    assert meter.source == "NVML gpu 0, NVML gpu 1"


@pytest.mark.parametrize(
    ("visible", "used"),
    [("1", 5.0), ("0,1", 6.0), ("GPU-1", 5.0), ("", None), ("MIG-7", None), ("7", None)],
)
def test_only_visible_boards_are_counted(
    monkeypatch: pytest.MonkeyPatch, visible: str, used: float | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = Nvml([0, 0])
    with Meter(gpu_counters(nvml)) as meter:
        nvml.boards = [1000, 5000]
    assert meter.joules == used


@pytest.mark.parametrize("nvml", [Nvml([1, None]), Nvml([1], code=9)])
def test_a_board_that_cannot_be_read_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, nvml: Nvml
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_counters(nvml) == []


def test_a_machine_without_the_driver_has_no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "NVML", "libno-such-driver.so.1")
    assert gpu_counters() == []


def test_a_timing_says_what_its_rows_used() -> None:
    class Silent:
        def run(self, texts: list[str], pairs: list[str] | None = None) -> None: ...

        def model_only(self, texts: list[str], pairs: list[str] | None = None) -> Any:
            return lambda: None

    worker = timing_worker.Worker()
    worker.engine, worker.texts = Silent(), ["a", "b"]
    worker.counters = [Readings([0, 3_000_000])]  # type: ignore[list-item]
    found = worker.offline([0, 1], batch=2, warmup=0)
    assert (found["joules"], found["energy_source"]) == (3.0, "made up")
    worker.counters = []
    found = worker.single([0, 1], warmup=0)
    assert (found["joules"], found["energy_source"]) == (None, None)
