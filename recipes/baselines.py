"""Off-the-shelf models that a student is compared with: which there are, and what each fits."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..eval.tasks import get_task
from .problem import Problem

if TYPE_CHECKING:
    from ..eval.tasks import Signal
    from .schema import Recipe

PATH = ("evaluate", "baselines")


@dataclass(frozen=True)
class Baseline:
    """An entry of the table.

    Attributes:
        title: What a report calls it.
        signals: The kinds of task it can do.
        checkpoint: Whether it is made of the teacher's checkpoint.
        modules: Import names it needs.
        extra: The extra of paredown that installs them.
        kept: Whether its stage keeps a model of its own kind, which `baseline_models` loads.
    """

    title: str
    signals: tuple[Signal, ...]
    checkpoint: bool = False
    modules: tuple[str, ...] = ()
    extra: str = ""
    kept: bool = True


BASELINES: dict[str, Baseline] = {
    "labels": Baseline(
        "same shape, trained on labels only",
        ("class_logits", "embedding", "token_distribution"),
        kept=False,
    ),
    "teacher_int8": Baseline(
        "the teacher itself in int8",
        ("class_logits", "embedding"),
        checkpoint=True,
        modules=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
        kept=False,
    ),
    "tfidf": Baseline(
        "TF-IDF and logistic regression",
        ("class_logits",),
        modules=("sklearn",),
        extra="baselines",
    ),
    "bm25": Baseline("BM25", ("embedding",)),
    "token_embeddings": Baseline(
        "mean of the teacher's token embeddings", ("embedding",), checkpoint=True
    ),
}
"""The words of ``evaluate.baselines``."""

TITLES = {"pruned": "as cut, before distillation"} | {n: b.title for n, b in BASELINES.items()}
"""What a report calls a contender that is compared with the student, by its side."""


def baseline_problems(recipe: Recipe) -> Iterator[Problem]:
    """Finds the baselines that do not fit the recipe's task or teacher."""
    signal = get_task(recipe.task).signal
    fitting = [name for name, entry in BASELINES.items() if signal in entry.signals]
    for name in recipe.evaluate.baselines:
        entry = BASELINES[name]
        if signal not in entry.signals:
            yield Problem(
                PATH, f"'{name}' does not do {recipe.task}; what does: {', '.join(fitting)}."
            )
        elif entry.checkpoint and recipe.teacher.kind != "checkpoint":
            yield Problem(
                PATH,
                f"'{name}' is made of the teacher's checkpoint, and a teacher of kind "
                f"{recipe.teacher.kind} has none; leave it out.",
            )
        elif name == "labels" and recipe.distill is None:
            yield Problem(
                PATH, "a baseline is trained as distill says, and it is missing; leave out labels."
            )


def missing_packages(recipe: Recipe) -> Iterator[Problem]:
    """Finds the baselines that need a package which is not installed."""
    for name in recipe.evaluate.baselines:
        entry = BASELINES[name]
        gone = [module for module in entry.modules if importlib.util.find_spec(module) is None]
        if gone:
            install = f"pip install 'paredown[{entry.extra}]'"
            yield Problem(PATH, f"'{name}' needs {', '.join(gone)}: {install}")
