"""How well a model does: metrics as per-row statistics and a reducer over their sums.

A metric of this form can be computed from any weighting of the rows, so one bootstrap serves means
and macro-F1 alike (`compare.py`). A new metric is one entry in the table at the end of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from . import filter_metrics, ranking, text_metrics
from .calibration import confidence
from .class_metrics import Decided, class_counts, correct, macro_f1
from .errors import DataError, RecipeError, RunError, nearest
from .ranking import Floats, Ranking, Rows
from .splits import stable_hash
from .tasks import Signal
from .text_metrics import Texts

Statistics: TypeAlias = "Floats | sparse.csr_array[Any, Any]"


def mean(sums: Floats, counts: Floats) -> Floats:
    """The mean of a metric's only statistic: sums (…, 1), counts (…,) -> (…,)."""
    return np.asarray(sums[..., 0] / counts)


@dataclass(frozen=True)
class Metric:
    """One way to judge a model, larger is better unless it says otherwise.

    Attributes:
        name: The word used in recipes and reports.
        signal: Which models it judges.
        statistics: Takes what a model is judged by (`Decided` for class logits, `Ranking` for
            embeddings, `Texts` for token distributions) and returns one row of statistics per row
            of data: an array of shape (n,) or (n, k), or a scipy CSR array of shape (n, k) where
            most are 0.
        reduce: Turns weighted sums of the statistics (…, k) and sums of the weights (…,) into
            values (…,). The default is the mean of the only column.
        depth: Positions a ranking metric looks at.
        hub_id: The name the model hub knows the metric by, for model cards.
        on_request: Whether it is computed only where it is named, because it judges answers of one
            kind (numbers, JSON) and says nothing of others.
        higher_is_better: False for a count of what went wrong. Such a metric is reported and judges
            nothing: a share of the teacher's errors is no quality that was kept.
        right_or_wrong: Whether a row's only statistic is 1 for right and 0 for wrong, so that
            McNemar's test can count rows; others are of degrees, or no figure of a row.
    """

    name: str
    signal: Signal
    statistics: Callable[[Any], Any]
    reduce: Callable[[Floats, Floats], Floats] = mean
    depth: int = 10
    hub_id: str | None = None
    on_request: bool = False
    higher_is_better: bool = True
    right_or_wrong: bool = False

    def rows(self, judged: Decided | Ranking | Texts) -> Statistics:
        """Per-row statistics, always of shape (n, k)."""
        found = self.statistics(judged)
        if sparse.issparse(found):
            return sparse.csr_array(found, dtype=np.float64)
        array = np.asarray(found, dtype=np.float64)
        return array[:, None] if array.ndim == 1 else array

    def value(self, statistics: Statistics) -> float:
        """The metric over all rows.

        Raises:
            DataError: If there is no row.
        """
        if not statistics.shape[0]:
            raise DataError(f"{self.name} needs at least one test row, got none.")
        sums = np.asarray(statistics.sum(axis=0), dtype=np.float64)
        return float(self.reduce(sums, np.asarray(float(statistics.shape[0]))))


@dataclass(frozen=True)
class Scores:
    """How a model did on each test row.

    Attributes:
        statistics: Per-row statistics (n, k) by name of metric.
        decisions: The class, the row number of the top answer, or a number that stands for the
            text, shape (n,).
        top: The best classes or row numbers, best first, shape (n, at most 10).
        right: Whether each decision is right: the class, a relevant text, the reference, (n,).
        confidence: Probability of the class that was decided, (n,); None where there is none.
    """

    statistics: dict[str, Statistics]
    decisions: Rows
    top: Rows
    right: npt.NDArray[np.bool_]
    confidence: Floats | None = None

    def value(self, metric: str) -> float:
        """A metric over all rows."""
        return get_metric(metric).value(self.statistics[metric])

    def values(self) -> dict[str, float]:
        """Every metric over all rows."""
        return {name: self.value(name) for name in self.statistics}

    def agreement(self, other: Scores) -> float:
        """Share of rows that both models decide alike; 1 minus it is the flip rate.

        Raises:
            RunError: If the two were not scored on the same number of rows.
        """
        if len(self.decisions) != len(other.decisions):
            raise RunError(
                f"Expected decisions on the same rows, got {len(self.decisions)} and "
                f"{len(other.decisions)}; score both models on one test set."
            )
        return float(np.mean(self.decisions == other.decisions))


METRICS: dict[str, Metric] = {}


def register_metric(metric: Metric) -> Metric:
    """Adds a metric to the table; a name that is taken is refused.

    Raises:
        RecipeError: If another metric has the name.
    """
    if METRICS.get(metric.name, metric) != metric:
        raise RecipeError(f"A metric named '{metric.name}' exists already; choose another name.")
    METRICS[metric.name] = metric
    return metric


def get_metric(name: str, signal: Signal | None = None) -> Metric:
    """Looks a metric up by name, and checks that it judges models with this signal.

    Raises:
        RecipeError: If there is none, or it is for another kind of model.
    """
    fitting = sorted(key for key, m in METRICS.items() if signal is None or m.signal == signal)
    if name not in METRICS:
        raise RecipeError(
            f"Unknown metric '{name}'.{nearest(name, fitting)} Known metrics: {', '.join(fitting)}."
        )
    if name not in fitting:
        raise RecipeError(
            f"Metric '{name}' judges {METRICS[name].signal.replace('_', ' ')}, but this task gives "
            f"{str(signal).replace('_', ' ')}; choose one of {', '.join(fitting)}."
        )
    return METRICS[name]


def score_classes(
    logits: npt.ArrayLike, labels: npt.ArrayLike, metrics: Sequence[str] | None = None
) -> Scores:
    """Judges class logits (n, C) by labels (n,); of equal logits the lowest class is decided.

    Args:
        logits: One score per class and row.
        labels: The right class of each row, 0 to C - 1.
        metrics: Names; every one for classification if not given.

    Raises:
        RunError: If a logit is not finite, or the shapes do not fit.
        DataError: If there is no row, or a label is not a class.
    """
    array = np.asarray(logits)
    if array.ndim != 2 or not array.shape[1]:
        raise RunError(f"Expected class logits of shape (rows, classes), got {array.shape}.")
    if not np.isfinite(array).all():
        raise RunError("Some class logits are NaN or infinite; the model that made them diverged.")
    best = np.argsort(-array, axis=1, kind="stable")[:, :10].astype(np.int64)
    scores = score_decisions(best, labels, array.shape[1], metrics)
    return replace(scores, confidence=confidence(array))


def score_decisions(
    top: npt.ArrayLike, labels: npt.ArrayLike, classes: int, metrics: Sequence[str] | None = None
) -> Scores:
    """Judges classes that were decided already: (n,), or the best few of each row (n, m).

    Raises:
        RunError: If the shapes do not fit or a decision is not a class.
        DataError: If there is no row, or a label is not a class.
    """
    best = np.asarray(top, dtype=np.int64)
    best = best[:, None] if best.ndim == 1 else best
    truth = np.asarray(labels, dtype=np.int64)
    if len(best) != len(truth):
        raise RunError(f"Expected a label for each of {len(best)} rows, got {len(truth)}.")
    if not len(truth):
        raise DataError("Expected at least one test row with a label, got none.")
    if truth.min() < 0 or truth.max() >= classes:
        row = int(np.argmax((truth < 0) | (truth >= classes)))
        raise DataError(
            f"Test row {row} has label {truth[row]}, but the classes are 0 to {classes - 1}; "
            "every test row needs a label that the training rows have too."
        )
    if best.min() < 0 or best.max() >= classes:
        raise RunError(
            f"Expected decisions between 0 and {classes - 1}, got {best.min()} to {best.max()}."
        )
    judged = Decided(best[:, 0], truth, classes)
    return _scores("class_logits", judged, best, metrics)


def score_ranking(
    queries: npt.NDArray[np.floating],
    collection: npt.NDArray[np.floating],
    relevant: Sequence[Sequence[int]],
    grades: Sequence[Sequence[int]] | None = None,
    *,
    k: int = 10,
    block: int = 8192,
    metrics: Sequence[str] | None = None,
) -> Scores:
    """Judges embeddings of queries (n, d) by where the relevant texts of a collection (N, d) come.

    The score is the dot product of the embeddings as given; see `ranking.top_rows`.

    Args:
        queries: One embedding per query.
        collection: One embedding per text; may be memory-mapped.
        relevant: Row numbers of the texts that answer each query, at least one.
        grades: How well each does; 1 each if not given.
        k: Texts kept per query; the deepest metric may ask for more.
        block: Texts compared at a time; bounds memory.
        metrics: Names; every one for retrieval if not given.

    Raises:
        RunError: If widths differ or an embedding is not finite.
        DataError: If there is no query, or one has no relevant text.
    """
    depth = max(
        [k, *(get_metric(name, "embedding").depth for name in _names("embedding", metrics))]
    )
    return score_top(ranking.top_rows(queries, collection, depth, block), relevant, grades, metrics)


def score_top(
    top: npt.ArrayLike,
    relevant: Sequence[Sequence[int]],
    grades: Sequence[Sequence[int]] | None = None,
    metrics: Sequence[str] | None = None,
) -> Scores:
    """Judges row numbers that were found already, best first, shape (n, positions).

    Raises:
        DataError: If there is no query, or one has no relevant text.
    """
    found = np.asarray(top, dtype=np.int64)
    if found.ndim != 2 or not found.size:
        raise DataError(f"Expected the best texts of at least one query, got shape {found.shape}.")
    names = _names("embedding", metrics)
    depth = max([found.shape[1], *(get_metric(name, "embedding").depth for name in names)])
    return _scores("embedding", ranking.rank(found, relevant, grades, depth), found, names)


def score_texts(
    texts: Sequence[str], references: Sequence[str], metrics: Sequence[str] | None = None
) -> Scores:
    """Judges texts by the references, n of each.

    A decision is 63 bits that stand for the text (NFC, no space around it), the same for equal
    texts in every call, so that two models' decisions can be compared.

    Args:
        texts: What a model wrote for each row.
        references: What it should have written.
        metrics: Names; every one for texts of any kind if not given.

    Raises:
        RunError: If there are not as many texts as references.
        DataError: If there is no row.
    """
    if len(texts) != len(references):
        raise RunError(
            f"Expected a reference for each of {len(texts)} texts, got {len(references)}."
        )
    if not len(texts):
        raise DataError("Expected at least one test row with a completion, got none.")
    decided = [stable_hash(text_metrics.canonical(text)) >> 1 for text in texts]
    top = np.asarray(decided, dtype=np.int64)[:, None]
    return _scores("token_distribution", Texts(texts, references), top, metrics)


def _names(signal: Signal, metrics: Sequence[str] | None) -> list[str]:
    if metrics is not None:
        return list(metrics)
    every = (m for m in METRICS.values() if m.signal == signal and not m.on_request)
    return [metric.name for metric in every]


def _scores(
    signal: Signal,
    judged: Decided | Ranking | Texts,
    top: Rows,
    metrics: Sequence[str] | None,
) -> Scores:
    names = _names(signal, metrics)
    statistics = {name: get_metric(name, signal).rows(judged) for name in names}
    return Scores(statistics, decisions=top[:, 0].copy(), top=top, right=_right(judged))


def _right(judged: Decided | Ranking | Texts) -> npt.NDArray[np.bool_]:
    """Whether each row's decision is right, whatever the metrics make of it, shape (n,)."""
    if isinstance(judged, Decided):
        return np.asarray(judged.decisions == judged.labels)
    if isinstance(judged, Ranking):
        return np.asarray(judged.grades[:, 0] > 0)
    return np.asarray(text_metrics.exact_match(judged) == 1)


def ranking_metric(name: str, judge: Callable[[Ranking, int], Floats], depth: int) -> Metric:
    """A metric that is the mean of ``judge(ranking, depth)`` over queries."""
    return Metric(name, "embedding", lambda judged: judge(judged, depth), depth=depth)


def text_metric(
    name: str,
    judge: Callable[[Texts], Floats],
    *,
    hub_id: str | None = None,
    any_text: bool = True,
    right_or_wrong: bool = False,
) -> Metric:
    """A metric that is the mean of ``judge(texts)``, one number a row.

    Args:
        name: The word used in recipes and reports.
        judge: Takes `Texts`, gives (n,).
        hub_id: The name the model hub knows it by.
        any_text: Whether it is computed where no metric is named.
        right_or_wrong: Whether every number is 1 or 0.
    """
    return Metric(
        name,
        "token_distribution",
        judge,
        hub_id=hub_id,
        on_request=not any_text,
        right_or_wrong=right_or_wrong,
    )


register_metric(Metric("accuracy", "class_logits", correct, hub_id="accuracy", right_or_wrong=True))
register_metric(Metric("macro_f1", "class_logits", class_counts, macro_f1, hub_id="f1"))
register_metric(ranking_metric("mrr@10", ranking.reciprocal_rank, 10))
register_metric(ranking_metric("recall@1", ranking.recall, 1))
register_metric(ranking_metric("recall@10", ranking.recall, 10))
register_metric(ranking_metric("ndcg@10", ranking.ndcg, 10))
register_metric(
    text_metric("exact_match", text_metrics.exact_match, hub_id="exact_match", right_or_wrong=True)
)
register_metric(text_metric("token_f1", text_metrics.token_f1))
register_metric(text_metric("rouge_l", text_metrics.rouge_l, hub_id="rouge"))
register_metric(
    text_metric("numeric_match", text_metrics.numeric_match, any_text=False, right_or_wrong=True)
)
register_metric(
    text_metric(
        "json_match",
        lambda judged: filter_metrics.exact_matches(judged.texts, judged.references)[:, 0],
        any_text=False,
        right_or_wrong=True,
    )
)
register_metric(
    Metric(
        "invalid_json",
        "token_distribution",
        lambda judged: filter_metrics.invalid_json(judged.texts),
        on_request=True,
        higher_is_better=False,
    )
)
register_metric(
    Metric(
        "field_f1",
        "token_distribution",
        lambda judged: filter_metrics.field_counts(judged.texts, judged.references),
        filter_metrics.field_f1,
        on_request=True,
    )
)
