"""What a task is: its columns, its head, the signal a model gives for it, and its metrics.

A task is one declaration in the table at the end of this file. Other modules dispatch on the
*signal*, never on a task's name, so that a new task with a known signal needs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import RecipeError, nearest

Signal = Literal["class_logits", "embedding", "token_distribution"]
Role = Literal["text", "query", "document"]


@dataclass(frozen=True)
class Column:
    """One column of a task's rows.

    Attributes:
        name: The task's own name for it; ``data.columns`` maps it to the file's.
        kind: ``text``, ``label``, ``document`` (a text of the collection to be found), ``prompt``
            and ``completion`` (what is asked and what is to be answered), ``messages`` (both as
            turns of a conversation) or ``slice`` (a name that results are also reported by).
        required: Whether every training row must have the column.
    """

    name: str
    kind: Literal["text", "label", "document", "prompt", "completion", "messages", "slice"]
    required: bool = True


@dataclass(frozen=True)
class Task:
    """A declaration of one kind of work a model does.

    Attributes:
        name: The word used in ``task:``.
        signal: What the model gives for a row: class logits, an embedding, or the distribution of
            the next token.
        head: The transformers Auto class that loads a model for the task.
        columns: The columns of a row, in order.
        metrics: Names of the metrics that are always reported.
        default_metric: The metric of ``target`` when the recipe names none.
        decision: What a row is decided to be; two models that decide differently flip.
    """

    name: str
    signal: Signal
    head: str
    columns: tuple[Column, ...]
    metrics: tuple[str, ...]
    default_metric: str
    decision: str

    def plain(self) -> dict[str, Any]:
        """The declaration as JSON can carry it."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Task:
        """The task that `plain` was made of."""
        columns = tuple(Column(**column) for column in plain["columns"])
        return cls(**{**plain, "columns": columns, "metrics": tuple(plain["metrics"])})


TASKS: dict[str, Task] = {}


def register_task(task: Task) -> Task:
    """Adds a task to the table; a name that is taken is refused.

    Raises:
        RecipeError: If another task has the name.
    """
    if TASKS.get(task.name, task) != task:
        raise RecipeError(f"A task named '{task.name}' exists already; choose another name.")
    TASKS[task.name] = task
    return task


def get_task(name: str) -> Task:
    """Looks a task up by name.

    Raises:
        RecipeError: If there is none; the message names the nearest and lists all.
    """
    if name not in TASKS:
        raise RecipeError(
            f"Unknown task '{name}'.{nearest(name, TASKS)} Known tasks: {', '.join(sorted(TASKS))}."
        )
    return TASKS[name]


CLASSIFICATION = register_task(
    Task(
        name="classification",
        signal="class_logits",
        head="AutoModelForSequenceClassification",
        columns=(
            Column("text", "text"),
            Column("text_pair", "text", required=False),
            Column("label", "label", required=False),
        ),
        metrics=("accuracy", "macro_f1"),
        default_metric="accuracy",
        decision="class",
    )
)

RETRIEVAL = register_task(
    Task(
        name="retrieval",
        signal="embedding",
        head="AutoModel",
        columns=(Column("query", "text"), Column("text", "document", required=False)),
        metrics=("mrr@10", "recall@1", "recall@10", "ndcg@10"),
        default_metric="mrr@10",
        decision="top answer",
    )
)

GENERATION = register_task(
    Task(
        name="generation",
        signal="token_distribution",
        head="AutoModelForCausalLM",
        columns=(
            Column("prompt", "prompt"),  # or messages, which hold prompt and completion
            Column("completion", "completion", required=False),
            Column("messages", "messages", required=False),
            Column("slice", "slice", required=False),
        ),
        metrics=("exact_match", "token_f1", "rouge_l"),
        default_metric="exact_match",
        decision="decoded text",
    )
)
