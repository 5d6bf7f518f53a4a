"""Stage ``report``: verdict, report.json, report.html and the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..eval.data import Data
from ..eval.hardware import environment
from ..eval.metrics import METRICS
from ..export.formats import FORMATS
from . import answer_report, attribution
from .baselines import TITLES
from .card_origins import find_origins
from .contenders import Contender
from .generation_rules import generates
from .html import write_html
from .ledger import ledger_of
from .model_card import write_model_card
from .report import build_report, write_report
from .runtimes import runtime_notes
from .schema import Recipe
from .stage_evaluate import evaluation
from .stage_export import export_facts
from .stage_prune import prune_report
from .statistics_report import seeds_sentence, slice_sentences
from .store import Context, Folder, Stage
from .timing_notes import timing_notes

CARD = "README.md"
SIDE_KEYS = ("parameters", "bytes", "flops_per_example")


def report_stage(
    recipe: Recipe,
    folders: Mapping[str, Folder],
    contenders: Sequence[Contender],
    exports: Mapping[str, Folder],
    *,
    command: str,
    smoke: bool,
    search: dict[str, Any] | None = None,
    trials: Sequence[dict[str, Any]] = (),
) -> Stage:
    """Puts what the stages found together.

    Args:
        recipe: Resolved.
        folders: Every stage before this one, by name, in the order they were made.
        contenders: What was scored.
        exports: The export stages by format.
        command: What to type to get this report.
        smoke: Whether it is not to be judged.
        search: How the student's shape was found, where the recipe has a budget.
        trials: What the stages took that it made beside the run's own (`ledger.spent_record`).
    """
    settings: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "command": command,
        "smoke": smoke,
        "search": search,
        "trials": list(trials),
    }

    def work(context: Context) -> None:
        found = evaluation(folders["evaluate"].path)
        info = Data.open(folders["data"].path).info
        costs = {side: _side(found, side) for side in ("teacher", "student")}
        quality = _quality(found, contenders)
        exported = [_export(fmt, folder, found) for fmt, folder in exports.items()]
        report = build_report(
            recipe=settings["recipe"],
            command=command,
            smoke=smoke,
            quality=quality,
            teacher=costs["teacher"],
            student=costs["student"],
            measurements=found.get("measurements", []),
            exports=exported,
            stages=[_stage(name, folder) for name, folder in folders.items()],
            vocabulary=_vocabulary(folders["prune"].path, found),
            mask=_mask(recipe, folders["prune"].path, costs),
            data={
                "rows": info["rows"],
                "dropped": info["dropped"],
                "source": info["source"],
            },
            environment=environment(),
            differing=found["differing"],
            notes=[
                *_notes(found, recipe),
                *_statistics_notes(recipe, quality, len(info["labels"] or ())),
                *_runtime_notes(recipe, contenders),
            ],
            search=settings["search"],
            recorded=answer_report.recorded(recipe, folders) if generates(recipe) else None,
            judged={
                "attribution": attribution.priced(found["attribution"], costs, exported),
                **{key: found[key] for key in ("significance", "calibration", "risk_coverage")},
            },
            ledger=ledger_of(recipe, folders, trials, found.get("measurements", []), smoke=smoke),
        )
        write_report(report, context.out / "report.json")
        write_html(report, report["differing"], context.out / "report.html")
        card = context.out / "card"
        card.mkdir(exist_ok=True)
        write_model_card(card, report, find_origins(settings["recipe"]))

    inputs = dict(folders)
    return Stage("report", "stage_report", settings, inputs, work)


def _student(found: Mapping[str, Any]) -> str:
    return f"student-{found['seeds_used'][0]}"


def _quality(found: Mapping[str, Any], contenders: Sequence[Contender]) -> Any:
    metric, student = found["metric"], found["contenders"][_student(found)]
    seeds, teacher = found["seeds"], found["values"]["teacher"]
    base = found["models"].get("teacher", {}).get("flops_per_example")
    baselines = []
    for contender in contenders:
        if contender.side not in TITLES:
            continue
        entry = found["contenders"][contender.name]
        spent = found["models"][contender.name].get("flops_per_example")
        if contender.side == "teacher_int8":
            spent = base  # the same multiplications, of smaller numbers
        baselines.append(
            {
                "name": TITLES[contender.side],
                "value": entry["value"],
                "retention": entry.get("retention"),
                "retention_ci95": entry.get("retention_ci95"),
                "flops_ratio": spent / base if spent and base else None,
            }
        )
    students = [c for c in contenders if c.side == "student"]
    return {
        "metric": metric,
        "teacher": found["teacher"],
        "student": sum(found["contenders"][c.name]["value"] for c in students) / len(students),
        "retention": seeds["retention"],
        "retention_ci95": seeds["retention_ci95"],
        "retention_std_seeds": seeds["std"],
        "examples": seeds["examples"],
        "agreement": student["agreement"],
        "metrics": {
            name: {
                "teacher": value,
                "student": found["values"]["student"].get(name),
                "higher_is_better": name not in METRICS or METRICS[name].higher_is_better,
            }
            for name, value in teacher.items()
        },
        "baselines": baselines,
        "seeds": [
            {
                "seed": c.seed,
                "student": found["contenders"][c.name]["value"],
                "retention": retention,
            }
            for c, retention in zip(students, seeds["each"], strict=True)
        ],
        "slices": found["slices"],
    }


def _timing(
    found: Mapping[str, Any], side: str, runtime: str, precision: str, scenario: str
) -> dict[str, Any]:
    """The one measurement of a side, or an empty one."""
    for entry in found.get("measurements", []):
        keys = (entry["side"], entry["runtime"], entry["precision"], entry["scenario"])
        if keys == (side, runtime, precision, scenario):
            return dict(entry)
    return {}


def _side(found: Mapping[str, Any], side: str) -> Any:
    """What a model costs in PyTorch, fp32, one thread; figures not measured are None."""
    name = side if side == "teacher" else _student(found)
    model = found["models"].get(name, {})
    single = _timing(found, side, "pytorch", "fp32", "single_stream")
    return {
        **{key: model.get(key) for key in SIDE_KEYS},
        "latency_ms_p50": single.get("p50"),
        "latency_ms_p95": single.get("p95"),
        "examples_per_s": single.get("examples_per_s"),
        "peak_memory_bytes": single.get("peak_memory_bytes"),
        "usd_per_million": _timing(found, side, "pytorch", "fp32", "offline").get(
            "usd_per_million"
        ),
        "answer": model.get("answer"),
        "tokens_per_s": single.get("tokens_per_s"),
        "ttft_ms_p50": (single.get("ttft") or {}).get("p50"),
    }


def _export(fmt: str, folder: Folder, found: Mapping[str, Any]) -> Any:
    facts, made = export_facts(folder.path), FORMATS[fmt]
    entry = found["contenders"][f"export-{fmt}"]
    timing = _timing(found, "student", made.runtime, made.precision, "single_stream")
    return {
        "format": fmt,
        "bytes": facts["bytes"],
        "metric": entry["value"],
        "retention": entry.get("retention"),
        "retention_ci95": entry.get("retention_ci95"),
        "flip_rate": entry["flip_rate"],
        "latency_ms_p50": timing.get("p50"),
    }


def _stage(name: str, folder: Folder) -> Any:
    record = folder.record
    return {
        "name": name,
        "seconds": record["seconds"],
        "cached": folder.cached,
        "peak_memory_bytes": record["peak_memory_bytes"],
        "fingerprint": folder.fingerprint,
        "world_size": record["world_size"],
    }


def _vocabulary(pruned: Path, found: Mapping[str, Any]) -> Any:
    """What cutting the vocabulary changed, or None where it was not cut."""
    cut, change = prune_report(pruned).get("vocabulary"), found.get("vocabulary")
    if not cut or not change:
        return None
    return {
        "kept": cut["kept"],
        "of": cut["of"],
        "training_identical": cut["training_identical"],
        "test_identical_share": change["identical_share"],
        "tokens_per_text_before": change["tokens_before"],
        "tokens_per_text_after": change["tokens_after"],
    }


def _mask(recipe: Recipe, pruned: Path, costs: Mapping[str, Any]) -> Any:
    """What was set to zero, and what both models cost; None without a mask.

    That the zeros are still there after a training is what its stage has made sure of.
    """
    facts, prune = prune_report(pruned).get("mask"), recipe.prune
    if not facts or prune is None:
        return None
    pairs = {
        key: {side: costs[side][key] for side in ("teacher", "student")}
        for key in ("bytes", "latency_ms_p50")
    }
    cut = bool(prune.sizes or prune.vocabulary or recipe.student)
    found = {key: facts[key] for key in ("method", "pattern", "zeros", "maps")}
    return {**found, "cut": cut, **pairs}


def _notes(found: Mapping[str, Any], recipe: Recipe) -> list[str]:
    notes = []
    if not found["teacher"] > 0:
        notes.append("The teacher's metric is 0 on these rows, so no share of it can be kept.")
    notes += timing_notes(found.get("measurements", []))
    if recipe.prune is not None and recipe.prune.rounds > 1:
        notes.append(
            f"The sizes were reached in {recipe.prune.rounds} rounds of cut and training, each but "
            f"the last with {recipe.prune.healing:.0%} of the training's steps."
        )
    if recipe.task == "retrieval" and not recipe.symmetric:
        notes.append(
            "The student replaces the query encoder; texts stay as the teacher embedded them. "
            "Cost is that of a query, without the search in the index."
        )
        if recipe.distill is not None and "collection" in (recipe.distill.texts or ()):
            notes.append(
                "The student also learned the teacher's embeddings of the collection: of all texts "
                "that a query may find, those that answer test queries included; of no test query."
            )
    return notes


def _statistics_notes(recipe: Recipe, quality: Any, classes: int) -> list[str]:
    """The spread over seeds, which slices pay for the rest, and a step that is no step."""
    seeds = seeds_sentence(quality)
    notes = [seeds] if seeds else []
    notes += slice_sentences(quality, classes)
    if recipe.teacher.finetune is not None and recipe.teacher.new is not None:
        notes.append("The attribution starts with the teacher: before its training it was random.")
    elif recipe.teacher.finetune is not None and not generates(recipe):
        notes.append(
            "The attribution starts with the fine-tuned teacher: before, it had no head for these "
            "classes."
        )
    if recipe.evaluate.out_of_scope is not None and recipe.teacher.kind == "recorded":
        notes.append("The recorded teacher was not asked for the rows out of scope.")
    return notes


def _runtime_notes(recipe: Recipe, contenders: Sequence[Contender]) -> list[str]:
    """What serves the student, and what does not; of language models."""
    if not generates(recipe):
        return []
    student = next(c for c in contenders if c.side == "student")
    config = json.loads((student.path / "config.json").read_text(encoding="utf-8"))
    return runtime_notes(config)
