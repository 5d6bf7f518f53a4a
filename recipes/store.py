"""The one engine: stages that read folders and write one folder, kept by what they depend on.

A stage's fingerprint covers its settings, its inputs' fingerprints, the sources it is made of and
the versions of the libraries that matter. A finished stage lies in
``<root>/.stages/<name>-<fingerprint>/`` and is shared by all runs under the same root. A stage in
progress lies beside it, locked; it is renamed when it is whole, and goes on where it was after a
kill.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..eval.energy import Meter
from ..eval.errors import PareError, RunError
from ..eval.hardware import cores_used, library_versions, run_counters
from .progress import Bar, Display, log_to
from .sources import extension_hashes, source_hash
from .world import World

RECORD = "stage.json"
LOG = "log.txt"
STAGES = ".stages"
"""The folder of all stages, below the store's root."""


@dataclass(frozen=True)
class Folder:
    """A finished stage.

    Attributes:
        name: The stage.
        path: Its folder.
        record: The content of its ``stage.json``.
        cached: Whether it was there already.
    """

    name: str
    path: Path
    record: dict[str, Any]
    cached: bool

    @property
    def fingerprint(self) -> str:
        """What the stage depends on, as a hash."""
        return str(self.record["fingerprint"])


@dataclass(frozen=True)
class Context:
    """What a stage is given.

    Attributes:
        out: The folder to write into; it may hold what a stopped try left.
        inputs: The folders of the stages it reads.
        world: The processes that take part.
        bar: Where progress is told.
        facts: Entries for ``stage.json``.
    """

    out: Path
    inputs: Mapping[str, Path]
    world: World
    bar: Bar
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A step of a run.

    Attributes:
        name: Names its folder.
        module: The module of ``recipes`` that does it.
        settings: All it depends on beside its inputs (plain JSON).
        inputs: The stages it reads.
        work: Does it, in every process of the launch if ``shared``, else in one.
        shared: Whether the processes share the work.
    """

    name: str
    module: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Folder]
    work: Callable[[Context], None]
    shared: bool = False

    def fingerprint(self, extensions: Mapping[str, str]) -> str:
        """Sixteen hex digits over all the stage depends on, the extensions' sources included."""
        content = {
            "stage": self.name,
            "settings": self.settings,
            "inputs": {name: folder.fingerprint for name, folder in self.inputs.items()},
            "sources": source_hash("recipes", self.module),
            "versions": library_versions(),
            **({"extensions": dict(extensions)} if extensions else {}),
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class NotMade(Exception):
    """A stage was looked for and is not there."""


class Store:
    """Finds or makes stages under one root."""

    def __init__(
        self,
        root: Path,
        display: Display,
        world: World,
        imports: Sequence[str] = (),
        *,
        patient: bool = False,
        metered: bool = True,
    ) -> None:
        """Takes what all stages share.

        Args:
            root: Stages lie in ``.stages`` below it.
            display: Where progress is shown.
            world: The processes of the launch.
            imports: Extensions that are in use.
            patient: Wait for a stage that another process is at, instead of refusing it.
            metered: Whether the machine's energy counters are this store's to read: what several
                stages use at the same time cannot be told apart.
        """
        self.metered = metered
        self.folder = root / STAGES
        self.display = display
        self.world = world
        self.imports = tuple(imports)
        self.patient = patient
        self.extensions = extension_hashes(imports)
        self.given: list[Folder] = []
        self.elsewhere = False

    def ensure(self, stage: Stage, trial: str | None = None) -> Folder:
        """Gives a stage's folder, making it if it is not there.

        Args:
            stage: What to make.
            trial: What it is a trial of, for the display, where it is no stage of the run itself.

        Raises:
            PareError: If the stage fails, or another run is at it.
        """
        mark = stage.fingerprint(self.extensions)
        final = self.folder / f"{stage.name}-{mark}"
        there = self.world.main and self._finished(stage.name, final) is not None
        # One process looks, so that all do the same even while another run is at work.
        if self.world.agree(there):
            folder = self._finished(stage.name, final)
            if folder is None:
                raise _not_shared(stage, final)
        else:
            if self.world.main:
                _make(self.folder)
            folder = self._make(stage, mark, final, trial)
        self.given.append(folder)
        return folder

    def found(self, stage: Stage, trial: str | None = None) -> Folder:
        """Gives a stage's folder if it is there.

        Args:
            stage: What to look for.
            trial: As in `ensure`.

        Raises:
            NotMade: If it is not there.
        """
        mark = stage.fingerprint(self.extensions)
        folder = self._finished(stage.name, self.folder / f"{stage.name}-{mark}")
        if folder is None:
            raise NotMade(stage.name)
        return folder

    def note(self, name: str, seconds: float, trial: str) -> None:
        """Tells that another process of this run has made a trial's stage."""
        self.elsewhere = True
        self.display.say(f"  {name:<12} {seconds:8.1f} s  {trial}")

    @property
    def cached(self) -> bool:
        """Whether everything that was asked for was there."""
        return not self.elsewhere and all(folder.cached for folder in self.given)

    def _finished(self, name: str, final: Path) -> Folder | None:
        try:
            record = json.loads((final / RECORD).read_text(encoding="utf-8"))
        except OSError:
            return None
        except json.JSONDecodeError as error:
            raise RunError(
                f"{RECORD} in {final} is damaged ({error}); delete that folder and run again."
            ) from error
        return Folder(name, final, record, cached=True)

    def _make(self, stage: Stage, mark: str, final: Path, trial: str | None) -> Folder:
        work = self.folder / f".{stage.name}-{mark}"
        if self.world.main:
            with self._lock(stage, mark):
                if self._finished(stage.name, final) is None:
                    work.mkdir(exist_ok=True)
                    self._work(stage, mark, work, final, trial)
        elif stage.shared:
            self._run(stage, work)
        self.world.barrier()
        folder = self._finished(stage.name, final)
        if folder is None:
            raise _not_shared(stage, final)
        return Folder(folder.name, folder.path, folder.record, cached=False)

    def _work(self, stage: Stage, mark: str, work: Path, final: Path, trial: str | None) -> None:
        """Does the work, writes the record and gives the folder its final name."""
        started = time.monotonic()
        reset_peak_memory()
        with Meter(run_counters(self.world.size) if self.metered else []) as meter:
            context = self._run(stage, work)
        record = {
            "name": stage.name,
            "fingerprint": mark,
            "settings": stage.settings,
            "inputs": {name: folder.fingerprint for name, folder in stage.inputs.items()},
            "versions": library_versions(),
            "world_size": self.world.size if stage.shared else 1,
            "seconds": round(time.monotonic() - started, 3),
            "cores": cores_used(),
            "energy_joules": meter.joules,
            "energy_source": meter.source,
            "peak_memory_bytes": peak_memory(),
            **context.facts,
        }
        with _space_left(work):
            text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
            (work / RECORD).write_text(text, encoding="utf-8")
        os.replace(work, final)
        if record["seconds"] > 2:  # a short stage has little to give back
            release_memory()
        what = f"  {trial}" if trial else ""
        self.display.say(f"  {stage.name:<12} {record['seconds']:8.1f} s{what}")

    def _run(self, stage: Stage, work: Path) -> Context:
        if stage.shared:
            self.world.barrier()  # until the folder is there
        log = work / (LOG if self.world.main else f"log-{self.world.rank}.txt")
        with self.display.task(stage.name) as bar:
            paths = {name: folder.path for name, folder in stage.inputs.items()}
            context = Context(work, paths, self.world, bar)
            try:
                with _space_left(work), log_to(log):
                    try:
                        stage.work(context)
                    except Exception:
                        traceback.print_exc()  # into the log
                        raise
            except PareError:
                raise
            except Exception as error:
                raise RunError(
                    f"The stage {stage.name} failed: {type(error).__name__}: {error}\n"
                    f"Its log: {log}. What was finished before it is kept."
                ) from error
        return context

    @contextlib.contextmanager
    def _lock(self, stage: Stage, mark: str) -> Iterator[None]:
        """Holds the stage. One that another run is at is waited for, or refused, naming the run."""
        path = self.folder / f".{stage.name}-{mark}.lock"
        holder = path.with_suffix(".holder")
        lock = FileLock(str(path))
        try:
            lock.acquire(timeout=-1 if self.patient else 0)
        except Timeout:
            who = "another process"
            with contextlib.suppress(OSError):
                who = holder.read_text(encoding="utf-8").strip() or who
            raise RunError(
                f"The stage {stage.name} is being made by {who}. Wait for it, or use another "
                "runs folder (--out)."
            ) from None
        try:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            holder.write_text(f"process {os.getpid()} since {since}\n", encoding="utf-8")
            yield
        finally:
            # The lock's file stays: to remove it would let two others hold two files of one name.
            holder.unlink(missing_ok=True)
            lock.release()


def _not_shared(stage: Stage, final: Path) -> RunError:
    return RunError(
        f"The stage {stage.name} left no folder; all processes must see '{final.parent}'."
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Cannot write the runs folder '{folder}': {error.strerror}.") from error


@contextlib.contextmanager
def _space_left(folder: Path) -> Iterator[None]:
    """Turns the many ways in which libraries say that a disk is full into one."""
    try:
        yield
    except Exception as error:
        full = "No space left" in str(error) or getattr(error, "errno", None) == 28
        if not full:
            with contextlib.suppress(OSError):
                # Some only say that a write failed.
                full = not isinstance(error, PareError) and shutil.disk_usage(folder).free < 1 << 16
        if full:
            raise RunError(
                f"No space is left on the disk of '{folder.parent}'. Free some and run the same "
                "command again: what was finished is kept."
            ) from error
        raise


def release_memory() -> None:
    """Gives freed memory back to the system, where the C library can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peak_memory() -> None:
    """Starts the count of this process's peak memory anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """The most memory this process held since the last reset, in bytes."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
