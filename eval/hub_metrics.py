"""Our metrics as `evaluate` metrics, and `evaluate`'s own for names that are not ours."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import RecipeError, RunError, nearest
from .metrics import METRICS, Metric, get_metric, score_decisions, score_texts, score_top

if TYPE_CHECKING:
    import evaluate

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def as_evaluate_metric(name: str, **options: Any) -> evaluate.Metric:
    """One of our metrics as an `evaluate.Metric`: needs no network, and takes batches.

    Classification takes decided classes as ``predictions`` and labels as ``references``. Retrieval
    takes, per query, the row numbers found (best first) as ``predictions`` and the relevant row
    numbers as ``references``, or [row, grade] pairs where they are graded. Generation takes texts.

    Args:
        name: One of `METRICS`.
        options: `evaluate.Metric`'s own. Over several processes give each ``num_process``,
            ``process_id`` and the same ``experiment_id`` and ``cache_dir``: process 0 gets the
            value over all rows, the others ``None``.

    Raises:
        RecipeError: If the metric is unknown.
    """
    import datasets
    import evaluate

    metric = get_metric(name)
    whole = datasets.Value("int64")
    several = datasets.List(whole)
    features: Any = datasets.Features({"predictions": whole, "references": whole})
    if metric.signal == "embedding":
        features = [
            datasets.Features({"predictions": several, "references": several}),
            datasets.Features({"predictions": several, "references": datasets.List(several)}),
        ]

    if metric.signal == "token_distribution":
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})

    class PareMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no annotations
        """A metric of paredown behind the interface of `evaluate`."""

        def _info(self) -> Any:
            return evaluate.MetricInfo(
                description=f"{name}, as paredown computes it.",
                citation="",
                features=features,
            )

        def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
            return {name: _value(metric, predictions, references)}

    return PareMetric(config_name=name, **options)


def _value(metric: Metric, predictions: list[Any], references: list[Any]) -> float:
    if metric.signal == "class_logits":
        classes = 1 + max(max(predictions), max(references))
        return score_decisions(predictions, references, classes, [metric.name]).value(metric.name)
    if metric.signal == "token_distribution":
        return score_texts(predictions, references, [metric.name]).value(metric.name)
    depth = min(metric.depth, min(len(found) for found in predictions))
    if depth < metric.depth and len({len(found) for found in predictions}) > 1:
        raise RunError(
            f"{metric.name} needs {metric.depth} row numbers per query, or the same number for "
            f"all where the collection is smaller; one query has {depth}."
        )
    top = np.asarray([found[: metric.depth] for found in predictions])
    if any(len(row) and isinstance(row[0], list) for row in references):
        relevant = [[pair[0] for pair in row] for row in references]
        grades = [[pair[1] for pair in row] for row in references]
        return score_top(top, relevant, grades, [metric.name]).value(metric.name)
    return score_top(top, references, None, [metric.name]).value(metric.name)


def hub_metric(name: str) -> evaluate.EvaluationModule:
    """Loads a metric that is not ours from the hub, through `evaluate`.

    Only `evaluate`'s own metrics are asked for: a name with a slash would run a stranger's code.

    Raises:
        RecipeError: If it is not a plain name, there is no such metric, or no network.
    """
    ours = f"{nearest(name, METRICS)} Metrics that need no network: {', '.join(sorted(METRICS))}."
    if not _PLAIN_NAME.fullmatch(name):
        raise RecipeError(
            f"Unknown metric '{name}', and only `evaluate`'s own metrics (a plain name such as "
            f"'matthews_correlation') are loaded from the hub.{ours}"
        )
    import evaluate

    try:
        return evaluate.load(name, module_type="metric")
    except Exception as problem:  # no common class: connection, missing file, missing dependency
        reason = str(problem).strip().splitlines()
        raise RecipeError(
            f"Metric '{name}' is not one of paredown's and could not be had from the hub "
            f"({type(problem).__name__}: {reason[0] if reason else 'no reason given'}).{ours}"
        ) from problem


def hub_value(name: str, decisions: Any, labels: Any) -> float:
    """A hub metric of decided classes (n,) against labels (n,), without an interval.

    Raises:
        RecipeError: If the metric cannot be had, or gives no single number for classes.
    """
    module = hub_metric(name)
    try:
        result = module.compute(
            predictions=np.asarray(decisions).tolist(), references=np.asarray(labels).tolist()
        )
        value = result[name] if name in result else next(iter(result.values()))
        return float(value)
    except (TypeError, ValueError, StopIteration) as problem:
        raise RecipeError(
            f"Metric '{name}' from the hub gives no single number for decided classes ({problem}); "
            f"choose another.{nearest(name, METRICS)}"
        ) from problem
