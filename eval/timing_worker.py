"""The process in which one engine is timed: one JSON object a line in, one a line out.

It imports neither torch nor an engine's library by itself, so that memory and cold start are the
engine's own. Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from .energy import Meter, rapl_counters
from .errors import PareError
from .server_load import answer_arrivals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .dialogues import Dialogues
    from .generating import Generated
    from .models import TextModel

Call = Callable[[], Any]


class Timed(Protocol):
    """What a loader gives.

    One that writes texts also has ``tokens(answers)``, how many it wrote in what ``run`` gave, and
    ``first_token(texts, pairs)``, which runs to the first token of each answer.
    """

    def run(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
        """From texts to decisions, as one batch."""

    def model_only(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Call:
        """Tokenises the texts, and returns what runs the model alone on them."""


def decide(
    values: NDArray[np.float32], index: NDArray[np.float32] | None = None
) -> NDArray[np.int64] | NDArray[np.float32]:
    """Decisions of class logits, or of embeddings over an index.

    Args:
        values: Class logits (n, C), or embeddings (n, d) with an index.
        index: Embeddings of the texts to be found, (N, d), or None.

    Returns:
        (n,) class or row of the index with the highest score.
    """
    scores = values if index is None else values @ index.T
    return np.asarray(scores.argmax(axis=1), dtype=np.int64)


class TorchEngine:
    """A PyTorch model as an engine."""

    runtime = "pytorch"

    def __init__(
        self, model: TextModel, role: str, precision: str, index: NDArray[np.float32] | None
    ) -> None:
        self.model = model
        self.role = role
        self.precision = precision
        self.index = index

    def run(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
        """Texts to classes, to embeddings, or with an index to top answers."""
        values = self.model_only(texts, pairs)()
        if self.index is None and self.model.signal == "embedding":
            return values
        return decide(values, self.index)

    def model_only(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Call:
        """Tokenises, and returns the forward pass over that one batch."""
        import torch

        from .models import autocast

        batch = self.model.collate(self.model.tokenize(texts, pairs, self.role))

        def forward() -> NDArray[np.float32]:
            with torch.inference_mode(), autocast(torch.device("cpu"), self.precision):
                values: NDArray[np.float32] = self.model(**batch).values.float().numpy()
            return values

        return forward


def load_torch(
    path: str,
    *,
    threads: int = 1,
    task: str | Mapping[str, Any],
    role: str = "text",
    precision: str = "fp32",
    index: str | None = None,
    model: Mapping[str, Any] | None = None,
) -> TorchEngine:
    """Loads a checkpoint folder as an engine, on the CPU.

    Args:
        path: The checkpoint.
        threads: Threads of torch.
        task: Name of the task, or its declaration as `Task.plain` gives it: of one that a user
            registers this process knows no name.
        role: Whose prompt is put in front of a text.
        precision: ``fp32``, or ``bf16`` under autocast.
        index: A ``.npy`` file of embeddings (N, d): the decision is then the top answer.
        model: Options of `load_model`, such as ``max_length``.
    """
    import torch

    from .models import load_model
    from .tasks import Task, get_task

    torch.set_num_threads(threads)
    declared = get_task(task) if isinstance(task, str) else Task.of(task)
    return TorchEngine(
        load_model(path, declared, **(model or {})), role, precision, load_index(index)
    )


class GenerationEngine:
    """A language model as an engine: from prompts to answers, greedily."""

    runtime = "pytorch"

    def __init__(
        self, model: TextModel, dialogues: Dialogues, max_new_tokens: int, precision: str
    ) -> None:
        self.model = model
        self.dialogues = dialogues
        self.max_new_tokens = max_new_tokens
        self.precision = precision

    def run(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Generated]:
        """Prompts to decoded answers, as one batch."""
        return self.model_only(texts)()

    def model_only(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> Callable[[], list[Generated]]:
        """Tokenises, and returns the generation of that one batch."""
        ids = [self.dialogues.prompt_ids(text) for text in texts]
        return lambda: self._answers(ids, self.max_new_tokens)

    def first_token(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
        """Prompts to the first token of each answer."""
        return self._answers([self.dialogues.prompt_ids(text) for text in texts], 1)

    def tokens(self, answers: Sequence[Generated]) -> int:
        """Tokens that were written, those that ended an answer included."""
        return sum(len(answer.ids) + answer.finished for answer in answers)

    def _answers(self, ids: list[list[int]], limit: int) -> list[Generated]:
        from .generating import generate

        batch = sum(len(row) + limit for row in ids) * len(ids)  # holds all of them
        return generate(
            self.model, ids, max_new_tokens=limit, precision=self.precision, batch_tokens=batch
        )


def load_generation(
    path: str,
    *,
    threads: int = 1,
    max_new_tokens: int,
    form: Literal["text", "messages"] = "text",
    template: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    model: Mapping[str, Any] | None = None,
) -> GenerationEngine:
    """Loads a checkpoint folder as an engine that answers prompts, on the CPU.

    Args:
        path: The checkpoint.
        threads: Threads of torch.
        max_new_tokens: Tokens of an answer, at most.
        form: How prompts are written, ``text`` or ``messages``.
        template: Further arguments of the chat template.
        precision: ``fp32``, or ``bf16`` under autocast.
        model: Options of `load_model`, such as ``max_length``.
    """
    import torch

    from .dialogues import Dialogues
    from .models import load_model
    from .tasks import GENERATION

    torch.set_num_threads(threads)
    loaded = load_model(path, GENERATION, **(model or {}))
    length = loaded.encoding.max_length
    dialogues = Dialogues(loaded.tokenizer, form, length, dict(template or {}))
    return GenerationEngine(loaded, dialogues, max_new_tokens, precision)


def load_index(path: str | None) -> NDArray[np.float32] | None:
    """Reads an index of embeddings (N, d) as float32, or nothing."""
    return None if path is None else np.load(path, allow_pickle=False).astype(np.float32)


def peak_memory() -> int:
    """Bytes of memory this process has had resident at most.

    Linux's ``VmHWM`` is of this program alone. ``ru_maxrss``, used elsewhere, can start from
    the size of the parent that forked it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Worker:
    """Answers the commands of one `measure`: load, rows, then single, offline and server.

    One that is started ahead is told first to prepare. Engines run on processors, and it is their
    energy that is counted.
    """

    def __init__(self) -> None:
        self.engine: Any = None
        self.counters = rapl_counters()
        self.texts: list[str] = []
        self.pairs: list[str] | None = None

    def prepare(self) -> dict[str, Any]:
        """Imports what a checkpoint needs."""
        importlib.import_module("transformers.modeling_utils")
        return {}

    def load(self, loader: str, path: str, options: dict[str, Any], threads: int) -> dict[str, Any]:
        """Makes the engine by calling ``module:function``."""
        module, _, function = loader.partition(":")
        self.engine = getattr(importlib.import_module(module), function)(
            path, threads=threads, **options
        )
        names = ("runtime", "precision")
        return {name: str(getattr(self.engine, name, "unknown")) for name in names}

    def rows(self, texts: list[str], pairs: list[str] | None) -> dict[str, Any]:
        """Takes the rows that the other commands name by number, and answers the first."""
        self.texts, self.pairs = texts, pairs
        self.engine.run(*self._pick([0]))
        return {}

    def single(self, rows: list[int], warmup: int) -> dict[str, Any]:
        """Times rows one by one: from text to decision, then the model alone (seconds)."""
        for row in rows[:warmup]:
            self.engine.run(*self._pick([row]))
        found = self._timed([[row] for row in rows])
        found["model"] = [_seconds(self.engine.model_only(*self._pick([row]))) for row in rows]
        if first := getattr(self.engine, "first_token", None):
            found["ttft"] = [_seconds(first, *self._pick([row])) for row in rows]
        return found | {"peak_memory": peak_memory()}

    def offline(self, rows: list[int], batch: int, warmup: int) -> dict[str, Any]:
        """Times rows in batches, longest first, tokenisation included (seconds)."""
        order = sorted(rows, key=lambda row: -len(self.texts[row]))
        batches = [order[i : i + batch] for i in range(0, len(order), batch)]
        for some in batches[:warmup]:
            self.engine.run(*self._pick(some))
        return self._timed(batches) | {"peak_memory": peak_memory()}

    def server(
        self, rows: list[int], due: list[float], bound: float, warmup: int
    ) -> dict[str, Any]:
        """Answers rows as they arrive, one by one (seconds from arrival to decision)."""
        for row in rows[:warmup]:
            self.engine.run(*self._pick([row]))
        found = answer_arrivals(lambda row: self.engine.run(*self._pick([row])), rows, due, bound)
        return {"total": found, "peak_memory": peak_memory()}

    def _timed(self, batches: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Seconds of each batch, all joules, and the tokens it wrote if the engine counts them."""
        total, tokens = [], []
        count = getattr(self.engine, "tokens", None)
        given = [self._pick(some) for some in batches]
        with Meter(self.counters, sample=False) as meter:
            for some in given:
                start = time.perf_counter()
                answers = self.engine.run(*some)
                total.append(time.perf_counter() - start)
                if count is not None:
                    tokens.append(count(answers))
        spent = {"joules": meter.joules, "energy_source": meter.source}
        return {"total": total} | spent | ({"tokens": tokens} if count else {})

    def _pick(self, rows: Iterable[int]) -> tuple[list[str], list[str] | None]:
        rows = list(rows)
        pairs = None if self.pairs is None else [self.pairs[row] for row in rows]
        return [self.texts[row] for row in rows], pairs


def _seconds(call: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def serve() -> None:
    """Reads commands from stdin until it ends and writes each one's answer to stdout."""
    atexit.register(gc.freeze)  # or the process takes another second to end
    commands = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    worker = Worker()
    for line in commands:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception as error:
            if not isinstance(error, PareError):
                traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
