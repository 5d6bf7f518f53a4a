"""Everything a run scores on the test rows: one entry a model, an export or recorded answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..distill.teachers import recorded_kind
from ..eval.data import Data
from ..eval.errors import RecipeError, RunError
from ..eval.hardware import model_device
from ..eval.metrics import Scores, score_classes, score_ranking
from ..eval.models import TextModel, load_model
from ..eval.tables import open_table
from ..eval.tasks import Task
from ..export.formats import FORMATS
from .stage_capture import given_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

Side = Literal[
    "base", "teacher", "cut", "healed", "pruned", "student", "labels", "export",
    "teacher_int8", "tfidf", "bm25", "token_embeddings",
]  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """A model to score.

    Attributes:
        side: Its part in the report: ``base`` is the teacher's checkpoint before its fine-tuning,
            ``cut`` and ``healed`` are what a round but the last has left.
        path: Its checkpoint, its exported folder, or the file of recorded test answers.
        fmt: The format of an export, else None.
        seed: Of a student.
        round: Of a cut that is made in several.
        symmetric: Whether it embeds the collection itself (retrieval).
        recorded: Whether ``path`` is a file of recorded answers.
    """

    side: Side
    path: Path
    fmt: str | None = None
    seed: int | None = None
    symmetric: bool = False
    recorded: bool = False
    round: int | None = None

    @property
    def name(self) -> str:
        """How it is called in the files of the evaluation."""
        parts = (self.side, self.fmt, self.seed, self.round)
        return "-".join(str(part) for part in parts if part is not None)


@dataclass(frozen=True)
class TestRows:
    """The test rows, opened by the evaluation alone.

    Attributes:
        task: Says how they are scored.
        data: Holds them.
        options: What the recipe says about loading the teacher.
    """

    task: Task
    data: Data
    options: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        """The text, or the query, of each row."""
        column = "text" if self.task.signal == "class_logits" else "query"
        return list(self.data.split("test")[column][:])

    @property
    def pairs(self) -> list[str] | None:
        """The second text of each row, or None."""
        rows = self.data.split("test")
        return list(rows["text_pair"][:]) if "text_pair" in rows.column_names else None

    @property
    def role(self) -> str:
        """Whose prompt goes in front of a test row."""
        return "text" if self.task.signal == "class_logits" else "query"

    def load(self, contender: Contender) -> TextModel:
        """Loads a checkpoint; the teacher with the recipe's options."""
        options = self.options if contender.side in ("base", "teacher") else {}
        return load_model(contender.path, self.task, **options)

    def signal(
        self, contender: Contender, progress: Callable[[int], None]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """A contender's signal on every test row, and on the collection if it is symmetric.

        Returns:
            (n, W) and (N, W) or None, float32.
        """
        if contender.recorded:
            values = given_values(
                contender.path, self.texts, self.pairs, self.task.signal, self.data.labels, "test"
            )
            return values, None
        if contender.fmt is not None and FORMATS[contender.fmt].loader is not None:
            return self._exported(contender, self.texts, self.pairs, progress), None
        model = self.load(contender).to(model_device())
        rows = model.predict(self.texts, self.pairs, self.role, progress=progress)
        if not contender.symmetric or self.task.signal != "embedding":
            return rows, None
        return rows, model.predict(self.data.collection()["text"][:], None, "document")

    def names_alone(self, contender: Contender) -> bool:
        """Whether a recording has the classes that were chosen, not how sure the teacher was."""
        if not contender.recorded:
            return False
        table = open_table(contender.path, "teacher.files.test")
        return recorded_kind(table.columns, self.task.signal, table.name) == "label"

    def answers(
        self, contender: Contender, texts: list[str], pairs: list[str] | None
    ) -> NDArray[np.float32]:
        """The signal on other rows than the test's, of a contender that is no recording, (n, W)."""
        if contender.fmt is not None and FORMATS[contender.fmt].loader is not None:
            return self._exported(contender, texts, pairs, lambda count: None)
        return self.load(contender).predict(texts, pairs, self.role)

    def _exported(
        self,
        contender: Contender,
        texts: list[str],
        pairs: list[str] | None,
        progress: Callable[[int], None],
    ) -> NDArray[np.float32]:
        import importlib

        module, _, function = str(FORMATS[str(contender.fmt)].loader).partition(":")
        runner = getattr(importlib.import_module(module), function)(contender.path)
        values = runner.signal(texts, pairs, self.role, progress=progress)
        return np.asarray(values, dtype=np.float32)

    def score(self, values: NDArray[np.float32], index: NDArray[np.float32] | None) -> Scores:
        """Scores a signal: by labels, or by where the relevant texts stand in the index."""
        rows = self.data.split("test")
        if self.task.signal == "class_logits":
            return score_classes(values, np.asarray(rows["label"][:]))
        if index is None:
            raise RunError("A retrieval model is scored against an index, and there is none.")
        if index.shape[1] != values.shape[1]:
            raise RecipeError(
                f"The student's embeddings have {values.shape[1]} numbers and the index "
                f"{index.shape[1]}: set symmetric: true, or leave the student its Dense module."
            )
        return score_ranking(values, index, rows["relevant"][:], rows["grades"][:])
