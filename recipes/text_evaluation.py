"""How answers in text are scored, costed and timed on the test rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.cost import artefact_bytes, artefact_parameters
from ..eval.data import Data
from ..eval.errors import RunError
from ..eval.generating import Generated, generate
from ..eval.generation_cost import (
    answer_flops,
    cache_bytes,
    generation_engine,
    measure_generation,
)
from ..eval.hardware import model_device
from ..eval.metrics import Scores, score_texts
from ..eval.models import TextModel, load_model
from ..eval.tasks import Task, get_task
from ..eval.timing import Engine, Worker, measure
from ..export.formats import FORMATS
from .contenders import Contender
from .judged_rows import ANSWERS
from .language_data import ROW, dialogues_of
from .language_training import metric_names
from .schema import Generation, Recipe
from .stage_teacher import model_options
from .store import Context
from .timing_notes import with_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHOWN = 200
TEXT_CHARACTERS = 600
CACHE_BYTES = 4  # of a number in float32, in which costs are told


@dataclass
class TextRows:
    """The test rows of a generation task, opened by the evaluation alone.

    Attributes:
        task: Says how a model is loaded.
        data: Holds the rows.
        options: What the recipe says about loading the teacher.
        settings: How prompts are written and answers made.
        metrics: Names of the metrics.
        prompts: By contender, each row's prompt in its tokens.
        answers: By contender that was asked here, what it wrote.
        texts: By contender, its answers as text, recorded ones too.
        models: By contender that was asked here, its config and tokenizer; its weights are let go.
    """

    task: Task
    data: Data
    options: dict[str, Any]
    settings: Generation
    metrics: list[str]
    prompts: dict[str, list[list[int]]] = field(default_factory=dict)
    answers: dict[str, list[Generated]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    models: dict[str, tuple[Any, PreTrainedTokenizerFast]] = field(default_factory=dict)

    def load(self, contender: Contender) -> TextModel:
        """Loads a checkpoint; the teacher with the recipe's options."""
        options = self.options if contender.side in ("base", "teacher") else {}
        return load_model(contender.path, self.task, **options)

    def written(self, model: TextModel) -> list[list[int]]:
        """Each row's prompt as a model's tokens."""
        dialogues = dialogues_of(model, self.data, self.settings)
        rows = self.data.split("test")["prompt"]
        return [dialogues.prompt_ids(prompt, f"{ROW['test']} {i}") for i, prompt in enumerate(rows)]


def open_rows(recipe: Recipe, data: Path) -> TextRows:
    """The test rows of a generation task."""
    metrics = metric_names(recipe.evaluate.metrics, recipe.target.metric)
    settings = recipe.generation or Generation()
    return TextRows(
        get_task(recipe.task), Data.open(data), model_options(recipe.teacher), settings, metrics
    )


def score(rows: TextRows, contenders: Sequence[Contender], context: Context) -> dict[str, Scores]:
    """Lets every contender answer the test rows, and scores what it wrote."""
    references = rows.data.split("test")["completion"][:]
    found: dict[str, Scores] = {}
    for number, contender in enumerate(contenders):
        done = 0

        def report(count: int, name: str = contender.name, number: int = number) -> None:
            nonlocal done
            done += count
            total = len(contenders) * len(references)
            context.bar.update(number * len(references) + done, total, name)

        if contender.recorded:
            texts = recorded_answers(contender.path, rows)
        elif exported(contender):
            texts = exported_answers(contender, rows, report)
        else:
            model = rows.load(contender).to(model_device())
            prompts = rows.written(model)
            answers = generate(
                model,
                prompts,
                max_new_tokens=rows.settings.max_new_tokens,
                settings=rows.settings.settings,
                progress=report,
            )
            rows.prompts[contender.name], rows.answers[contender.name] = prompts, answers
            rows.models[contender.name] = model.config, model.tokenizer
            texts = [answer.text for answer in answers]
        rows.texts[contender.name] = texts
        found[contender.name] = score_texts(texts, references, rows.metrics)
    return found


def keep_answers(rows: TextRows, out: Path) -> None:
    """Keeps what every contender wrote, a column each: any metric of it can be made again."""
    import pyarrow as pa

    table = pa.table({name: pa.array(texts, pa.string()) for name, texts in rows.texts.items()})
    with pa.OSFile(str(out / ANSWERS), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def recorded_answers(path: Path, rows: TextRows) -> list[str]:
    """What a recorded teacher answered to the test prompts.

    Args:
        path: The recipe's file of prompts and answers; or, of an endpoint, its texts row by row.
        rows: The test rows.

    Raises:
        RunError: If a prompt has no answer on file.
    """
    from ..distill.recorded_texts import read_answers
    from .stage_evaluate_teacher import FILE

    if path.name == FILE:  # no table's name: those end otherwise
        texts: list[str] = json.loads(path.read_text(encoding="utf-8"))
        return texts
    answers = read_answers(path, "teacher.files.test")
    found = []
    for number, prompt in enumerate(rows.data.split("test")["prompt"]):
        if prompt not in answers:
            raise RunError(f"{path.name}: no recorded answer for test row {number}.")
        found.append(answers[prompt].text)
    return found


def exported(contender: Contender) -> bool:
    """Whether a contender runs on a runtime of its own."""
    return contender.fmt is not None and FORMATS[contender.fmt].loader is not None


def exported_answers(
    contender: Contender, rows: TextRows, progress: Callable[[int], None]
) -> list[str]:
    """What an exported model answers to the test prompts, on its own runtime."""
    import importlib

    module, _, function = str(FORMATS[str(contender.fmt)].loader).partition(":")
    runner = getattr(importlib.import_module(module), function)(contender.path)
    prompts = list(rows.data.split("test")["prompt"][:])
    return [answer.text for answer in runner.generate(prompts, progress=progress)]


def kinds(rows: TextRows) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What the test rows are judged apart by, a value a row: the column ``slice``, which sorts."""
    return {"slice": list(rows.data.split("test")["slice"][:])}, {}


def costs(rows: TextRows, contenders: Sequence[Contender]) -> dict[str, Any]:
    """Parameters and bytes of each checkpoint, and FLOPs of its answers to the test rows."""
    found: dict[str, Any] = {}
    for contender in contenders:
        if exported(contender):
            found[contender.name] = {"bytes": artefact_bytes(contender.path)}
        if contender.name not in rows.answers:
            continue
        config, _ = rows.models[contender.name]
        asked = np.asarray([len(ids) for ids in rows.prompts[contender.name]])
        # The token that ends an answer is computed like any other.
        wrote = np.asarray([len(a.ids) + a.finished for a in rows.answers[contender.name]])
        prefill, decode = answer_flops(config, asked, wrote)
        found[contender.name] = {
            "bytes": artefact_bytes(contender.path),
            "parameters": artefact_parameters(contender.path),
            "flops_per_example": float((prefill + decode).mean()),
            "tokens_per_example": float(asked.mean()),
            "answer": {
                "prefill_flops": float(prefill.mean()),
                "decode_flops": float(decode.mean()),
                "new_tokens": float(wrote.mean()),
                "unfinished": sum(not a.finished for a in rows.answers[contender.name]),
                "kv_cache_bytes": float(np.mean(cache_bytes(config, asked + wrote, CACHE_BYTES))),
            },
        }
    return found


def tokens(rows: TextRows, contenders: Sequence[Contender]) -> dict[str, Any] | None:
    """How the student cuts the test prompts into tokens, beside the teacher."""
    from ..prune.vocabulary import tokenization_change

    teacher = contenders[0]
    student = next(c for c in contenders if c.side == "student")
    if teacher.recorded:
        return None
    before, after = (rows.models[contender.name][1] for contender in (teacher, student))
    test = rows.data.split("test")
    return dict(tokenization_change(before, after, [*test["prompt"], *test["completion"]]))


def differing(
    rows: TextRows, scores: dict[str, Scores], contenders: Sequence[Contender]
) -> list[dict[str, Any]]:
    """Rows that teacher and student answer differently, spread evenly over the test set."""
    student = next(c for c in contenders if c.side == "student").name
    where = np.flatnonzero(scores["teacher"].decisions != scores[student].decisions)
    if not len(where):
        return []
    chosen = where[np.unique(np.linspace(0, len(where) - 1, SHOWN).astype(int))]
    test, metric = rows.data.split("test"), rows.metrics[0]
    shown = []
    for i in map(int, chosen):
        row: dict[str, Any] = test[i]
        said: dict[str, Any] = {}
        for side, name in (("teacher", "teacher"), ("student", student)):
            said[side] = rows.texts[name][i][:TEXT_CHARACTERS]
            said[f"{side}_right"] = bool(scores[name].statistics[metric][i, 0] == 1)
        text, expected = str(row["prompt"]), str(row["completion"])
        shown.append(
            {"text": text[:TEXT_CHARACTERS], "expected": expected[:TEXT_CHARACTERS], **said}
        )
    return shown


def timings(
    recipe: Recipe,
    rows: TextRows,
    timed: Sequence[Contender],
    smoke: bool,
    spare: Worker | None,
) -> list[dict[str, Any]]:
    """Times some contenders side by side, from text to text."""
    timed = [contender for contender in timed if not contender.recorded]
    folders = [contender.path for contender in timed]
    engines = [_engine(contender, rows) for contender in timed]
    prompts = list(rows.data.split("test")["prompt"][:])
    if smoke:
        few: dict[str, Any] = {"runs": 5, "rounds": 2, "warmup": 1, "offline_rows": 8, "batch": 8}
        few |= {"server_ms": recipe.evaluate.server_ms, "server_seconds": 0.1}
        some = measure(engines, prompts[:8], **few, together=True, spare=spare)
        return with_bytes(some, folders)
    count = min(recipe.evaluate.latency_rows, len(prompts))
    # Drawn from all rows, so that short and long ones are timed in their true shares.
    drawn = np.random.default_rng(0).permutation(len(prompts))[: max(count, 128)]
    bound = recipe.evaluate.server_ms
    texts = [prompts[i] for i in drawn]
    return with_bytes(measure_generation(engines, texts, runs=count, server_ms=bound), folders)


def _engine(contender: Contender, rows: TextRows) -> Engine:
    side = "teacher" if contender.side == "teacher" else "student"
    if exported(contender):
        return Engine(side, str(contender.path), str(FORMATS[str(contender.fmt)].loader))
    return generation_engine(
        side,
        str(contender.path),
        max_new_tokens=rows.settings.max_new_tokens,
        form=rows.data.info["form"],
        template=rows.settings.template,
        model=rows.options if side == "teacher" else {},
    )
