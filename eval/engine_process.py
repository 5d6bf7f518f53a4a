"""An engine, and the parent's end of the process that it is timed in."""

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

from .errors import RunError
from .hardware import SHAPE_CACHES


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
