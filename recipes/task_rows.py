"""How a task's rows become texts to ask a teacher, rows to train on, and a validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..distill.capture import Stream
from ..eval.data import Data
from ..eval.metrics import score_classes, score_ranking
from ..eval.tasks import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..distill.outputs import TeacherOutputs
    from ..eval.models import TextModel


def streams(data: Data, task: Task) -> dict[str, Stream]:
    """The texts of the training and validation rows, by name; no test row is touched.

    For embeddings the collection is a stream too: it is what queries are answered from, and holds
    the texts of all splits.
    """
    found = {}
    if task.signal == "class_logits":
        for split in ("train", "validation"):
            rows = data.split(split)
            pairs = rows["text_pair"] if "text_pair" in rows.column_names else None
            found[f"{split}.text"] = Stream(f"{split}.text", rows["text"], pairs)
        return found
    for split in ("train", "validation"):
        name = f"{split}.query"
        found[name] = Stream(name, data.split(split)["query"], role="query")
    found["collection.text"] = Stream("collection.text", data.collection()["text"], role="document")
    return found


def training_streams(
    found: dict[str, Stream], task: Task, texts: Sequence[str] | None
) -> list[Stream]:
    """The streams a student is trained on: ``texts`` of a retrieval task are its two kinds."""
    if task.signal == "class_logits":
        return [found["train.text"]]
    names = {"queries": "train.query", "collection": "collection.text"}
    return [found[names[kind]] for kind in ("queries", "collection") if kind in (texts or names)]


@dataclass(frozen=True)
class Validation:
    """Scores a model on the validation rows while it is trained.

    Attributes:
        data: The rows.
        task: Says how they are scored.
        outputs: The recorded teacher outputs.
        symmetric: Whether the model embeds the collection itself.
        precision: Of the forward passes.
    """

    data: Data
    task: Task
    outputs: TeacherOutputs
    symmetric: bool
    precision: str

    def __call__(self, model: TextModel) -> dict[str, float]:
        """Every metric of the task, and the agreement with the teacher."""
        if self.task.signal == "class_logits":
            return self._classes(model)
        rows = self.data.split("validation")
        collection = (
            model.predict(
                self.data.collection()["text"][:], None, "document", precision=self.precision
            )
            if self.symmetric
            else collection_values(self.outputs)
        )
        queries = model.predict(rows["query"][:], None, "query", precision=self.precision)
        scores = score_ranking(queries, collection, rows["relevant"][:], rows["grades"][:])
        teacher = self.outputs.values(self.outputs.items("validation.query"))
        near = float((queries * teacher).sum(1).mean()) if queries.shape == teacher.shape else 0.0
        return {**scores.values(), "cosine": near}

    def _classes(self, model: TextModel) -> dict[str, float]:
        rows = self.data.split("validation")
        pairs = rows["text_pair"][:] if "text_pair" in rows.column_names else None
        logits = model.predict(rows["text"][:], pairs, precision=self.precision)
        scores = score_classes(logits, np.asarray(rows["label"][:]))
        teacher = self.outputs.values(self.outputs.items("validation.text")).argmax(1)
        return {**scores.values(), "agreement": float(np.mean(scores.decisions == teacher))}


def collection_values(outputs: TeacherOutputs) -> NDArray[np.float32]:
    """The teacher's embeddings of the collection: the index queries are answered from, (N, D)."""
    return outputs.values(outputs.items("collection.text"))


def labels_of(data: Data) -> NDArray[np.int64]:
    """The class of each training row, −1 where there is none."""
    return np.asarray(data.split("train")["label"][:], dtype=np.int64)


def paired_texts(data: Data) -> tuple[list[str], list[str]]:
    """Each training query that has an answer, and the first text that answers it."""
    rows = data.split("train")
    collection = data.collection()["text"]
    queries, texts = [], []
    for query, relevant in zip(rows["query"], rows["relevant"], strict=True):
        if relevant:
            queries.append(query)
            texts.append(collection[relevant[0]])
    return queries, texts


def count_unlabelled(data: Data, task: Task) -> int:
    """Training rows without a label, or queries without a text."""
    info: dict[str, Any] = data.info
    return int(info.get("unlabelled", {}).get("train", 0))
