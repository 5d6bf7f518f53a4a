"""Stage ``baseline``: an off-the-shelf model for the task, from training rows and the teacher."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ..eval.bm25 import BM25
from ..eval.data import Data
from ..eval.models import load_model
from ..eval.static_embeddings import StaticEmbeddings
from ..eval.tasks import get_task
from ..eval.tfidf import fit_tfidf
from .baselines import BASELINES
from .schema import Recipe
from .stage_teacher import model_options, teacher_checkpoint
from .store import Context, Folder, Stage
from .task_rows import labels_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL = "model"


def baseline_stage(recipe: Recipe, name: str, data: Folder, teacher: Folder) -> Stage:
    """Makes one baseline; no test row is touched.

    Args:
        recipe: For the task.
        name: A word of `BASELINES` whose stage keeps a model.
        data: Training and validation rows, or the collection.
        teacher: Whose token embeddings are averaged.
    """
    settings: dict[str, Any] = {"task": recipe.task, "name": name}
    inputs = {"data": data}
    if BASELINES[name].checkpoint:
        inputs["teacher"] = teacher
        settings["options"] = model_options(recipe.teacher)
    if name == "tfidf":
        settings["scikit-learn"] = metadata.version("scikit-learn")

    def work(context: Context) -> None:
        MADE[name](context, recipe)

    return Stage(f"baseline-{name}", "stage_baseline", settings, inputs, work)


def _tfidf(context: Context, recipe: Recipe) -> None:
    data = Data.open(context.inputs["data"])
    labels = labels_of(data)
    kept = labels >= 0
    texts = [text for text, has in zip(_texts(data, "train"), kept, strict=True) if has]
    held: NDArray[np.int64] = data.split("validation")["label"][:]
    validation = (_texts(data, "validation"), held)
    classes = len(data.labels or [])
    made = fit_tfidf(texts, labels[kept], classes, validation, context.bar.update)
    context.facts.update(terms=len(made.bag.places), strength=made.strength)
    made.save(context.out / MODEL)


def _texts(data: Data, split: str) -> list[str]:
    """The texts of a split's rows; a second text follows the first."""
    return joined(data.split(split))


def joined(rows: Any) -> list[str]:
    """Each row as one text for a bag of words."""
    if "text_pair" not in rows.column_names:
        return list(rows["text"][:])
    return [f"{a} {b}" for a, b in zip(rows["text"][:], rows["text_pair"][:], strict=True)]


def _bm25(context: Context, recipe: Recipe) -> None:
    collection = Data.open(context.inputs["data"]).collection()["text"]
    made = BM25.index(list(collection[:]))
    context.facts.update(texts=len(collection), terms=len(made.bag.places))
    made.save(context.out / MODEL)


def _token_embeddings(context: Context, recipe: Recipe) -> None:
    checkpoint = teacher_checkpoint(context.inputs["teacher"])
    assert checkpoint is not None  # the recipe was checked
    model = load_model(checkpoint, get_task(recipe.task), **model_options(recipe.teacher))
    StaticEmbeddings.of(model).save(context.out / MODEL)


MADE: dict[str, Callable[[Context, Recipe], None]] = {
    "tfidf": _tfidf,
    "bm25": _bm25,
    "token_embeddings": _token_embeddings,
}
"""What makes each of them."""
