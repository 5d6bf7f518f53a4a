"""The metadata of a student's model card, as https://huggingface.co/docs/hub/model-cards has it.

Nothing that is not known is claimed: a data set or a base model appear only where the run has their
hub names, and a licence that no card gives is ``unknown``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..eval.tasks import get_task
from . import figures
from .card_origins import UNKNOWN, Origins, hub_data, on_hub

PIPELINES = {
    "class_logits": "text-classification",
    "embedding": "sentence-similarity",
    "token_distribution": "text-generation",
}
"""What the hub calls a model of each signal."""


def card_metadata(report: Mapping[str, Any], origins: Origins | None = None) -> dict[str, Any]:
    """What the hub files the model under; keys without a known value are left out.

    Args:
        report: The content of ``report.json``.
        origins: What the cards of teacher and data say; nothing is known without.
    """
    from huggingface_hub import ModelCardData

    from ..eval.metrics import METRICS

    origins = origins or Origins()
    signal = get_task(report["task"]).signal
    embeds, recipe = signal == "embedding", report["recipe"]
    base, source = base_model(recipe), (recipe.get("data") or {}).get("source")
    metrics = [METRICS[name].hub_id for name in report["quality"]["metrics"] if name in METRICS]
    done = [kind for kind, key in (("distillation", "distill"), ("pruning", "prune"))
            if recipe.get(key)]  # fmt: skip
    weights, results = origins.weights, _results(report, PIPELINES[signal])
    card = ModelCardData(
        language=_languages(origins),
        license=weights.licence if weights else UNKNOWN,
        license_name=weights.remark or None if weights and weights.licence == "other" else None,
        library_name="sentence-transformers" if embeds else "transformers",
        pipeline_tag=PIPELINES[signal],
        base_model=base if on_hub(base) else None,
        # The hub knows adapter, merge, quantized and finetune; changed weights are the last.
        base_model_relation="finetune" if on_hub(base) else None,
        datasets=[str(source)] if hub_data(source) else None,
        metrics=[name for name in metrics if name] or None,
        tags=["paredown", *done, *(["feature-extraction"] if embeds else [])],
        model_name=str(report["name"]) if results else None,
        eval_results=results or None,
    )
    found: dict[str, Any] = card.to_dict()  # type: ignore[no-untyped-call]
    return found


def base_model(recipe: Mapping[str, Any]) -> str | None:
    """The checkpoint whose weights the student started from; None for one made in the run."""
    for section in ("student", "teacher"):
        name = (recipe.get(section) or {}).get("model")
        if name:
            return str(name)
    return None


def _languages(origins: Origins) -> list[str] | None:
    """Those of the data; else the teacher's if it has but one."""
    if origins.data and origins.data.languages:
        return list(origins.data.languages)
    known = origins.weights.languages if origins.weights else ()
    return list(known) if len(known) == 1 else None


def _results(report: Mapping[str, Any], pipeline: str) -> list[Any]:
    """Every metric of the student on the test rows; a smoke run's are none."""
    from huggingface_hub import EvalResult

    from ..eval.metrics import METRICS

    if report["smoke"]:
        return []
    data = report["recipe"].get("data") or {}
    files = any((data.get("files") or {}).values())
    name = "local files" if files else str(data.get("source") or "local files")
    return [
        EvalResult(
            task_type=pipeline,
            task_name=str(report["task"]),
            dataset_type=name if hub_data(name) else name.replace(" ", "-"),
            dataset_name=name,
            dataset_config=data.get("config"),
            dataset_split="test",
            dataset_revision=data.get("revision"),
            metric_type=(METRICS[key].hub_id if key in METRICS else None) or key,
            metric_name=figures.metric_name(key),
            metric_value=value,
        )
        for key, pair in report["quality"]["metrics"].items()
        if (value := figures.number(pair["student"])) is not None
    ]
