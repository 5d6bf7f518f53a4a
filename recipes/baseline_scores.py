"""How the off-the-shelf models of `baselines` are scored on the test rows, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..eval.bm25 import BM25
from ..eval.metrics import Scores, score_top
from ..eval.static_embeddings import StaticEmbeddings
from ..eval.tfidf import Tfidf
from .baselines import BASELINES
from .stage_baseline import MODEL, joined

if TYPE_CHECKING:
    from .contenders import Contender, TestRows


def is_baseline(contender: Contender) -> bool:
    """Whether a contender is a model of a kind of its own, no checkpoint and no export."""
    return contender.side in BASELINES and BASELINES[contender.side].kept


def baseline_scores(
    rows: TestRows, contender: Contender, progress: Callable[[int], None]
) -> Scores:
    """Scores a baseline on the test rows; each has an index of its own where there is one."""
    folder = contender.path / MODEL
    test = rows.data.split("test")
    if contender.side == "tfidf":
        return rows.score(Tfidf.load(folder).logits(joined(test), progress), None)
    if contender.side == "bm25":
        top = BM25.load(folder).top(rows.texts, progress=progress)
        return score_top(top, test["relevant"][:], test["grades"][:])
    model = StaticEmbeddings.load(folder)
    index = model.embed(list(rows.data.collection()["text"][:]))
    return rows.score(model.embed(rows.texts, progress), index)


def baseline_costs(rows: TestRows, contender: Contender) -> dict[str, Any]:
    """Bytes of what is kept, and FLOPs of a test row where they can be told.

    BM25 does what a search in an index does, which is counted for no other contender either.
    """
    folder = contender.path / MODEL
    found: dict[str, Any] = {"bytes": _bytes(folder)}
    if contender.side == "tfidf":
        flops = Tfidf.load(folder).flops(joined(rows.data.split("test")))
        found["flops_per_example"] = float(flops.mean())
    elif contender.side == "token_embeddings":
        found["flops_per_example"] = float(StaticEmbeddings.load(folder).flops(rows.texts).mean())
    return found


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
