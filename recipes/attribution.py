"""The way from the teacher to what is deployed, stage by stage: which step loses what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..eval.compare import paired_difference
from ..eval.holm import holm
from ..eval.mcnemar import mcnemar
from ..eval.metrics import Scores, get_metric
from .contenders import Contender
from .generation_rules import generates
from .row_statistics import right_rows
from .schema import Recipe
from .stage_teacher import teacher_stage
from .store import Folder, Stage

BASE = "teacher-base"
"""The link of the checkpoint that a fine-tuned teacher was made from."""
WAY = ("base", "teacher", "cut", "healed", "pruned", "student", "export")
ROUNDS = {"prune": "cut", "heal": "healed"}
"""Stages of rounds, and the sides of what they leave."""


def base_stage(recipe: Recipe, data: Folder) -> Stage | None:
    """The checkpoint that the teacher is fine-tuned from, where it can do the task at all.

    One that is to tell classes has no head for them yet, and one of random weights nothing to say.
    """
    teacher = recipe.teacher
    if not generates(recipe) or teacher.finetune is None or teacher.new is not None:
        return None
    untuned = teacher.model_copy(update={"finetune": None})
    return teacher_stage(recipe.model_copy(update={"teacher": untuned}), data)


def round_of(name: str) -> tuple[Any, int] | None:
    """Side and round of a stage that a round but the last has left, by its link's name."""
    kind, _, number = name.partition("-")
    return (ROUNDS[kind], int(number)) if kind in ROUNDS and number.isdigit() else None


def on_the_way(contenders: Sequence[Contender]) -> list[tuple[Contender, Contender | None]]:
    """Contenders from the teacher to the exports, each with the one that it is made from.

    Of several students the first is deployed; other baselines lie on no way.
    """
    chosen = [c for c in contenders if c.side in WAY and (c.side != "teacher" or c.fmt is None)]
    students = [c for c in chosen if c.side == "student"]
    chosen = [c for c in chosen if c not in students[1:]]
    line = [c for c in chosen if c.side != "export"]
    line.sort(key=_place)
    before: list[Contender | None] = [None, *line[:-1]]
    exports = [(c, students[0]) for c in chosen if c.side == "export"]
    return [*zip(line, before, strict=True), *exports]


def _place(contender: Contender) -> tuple[int, int, int]:
    """Where a contender stands; cuts and their healings take turns."""
    place = WAY.index(contender.side)
    if contender.round is None:
        return place, 0, 0
    return WAY.index("cut"), contender.round, place


def steps(
    recipe: Recipe,
    contenders: Sequence[Contender],
    scores: Mapping[str, Scores],
    found: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Each step as `report_schema.Step` has it, with the contender that it is of.

    Args:
        recipe: For resamples and seed.
        contenders: Everything that was scored.
        scores: On the test rows, by contender.
        found: The evaluation so far: ``metric``, ``teacher``, ``contenders`` and ``models``.
    """
    metric = get_metric(found["metric"])
    rounds = any(contender.round for contender in contenders)
    made: list[dict[str, Any]] = []
    p_values: list[float | None] = []
    for contender, before in on_the_way(contenders):
        score, kept = scores[contender.name], found["contenders"].get(contender.name, {})
        if contender.side == "teacher" and found["teacher"] > 0:
            kept = {"retention": 1.0, "retention_ci95": [1.0, 1.0]}
        costs = found["models"].get(contender.name, {})
        spent = costs.get("flops_per_example")
        if contender.side == "export" and made:
            spent = made[-1]["flops_per_example"]  # the same multiplications on another runtime
        step: dict[str, Any] = {
            "name": _title(recipe, contender, rounds),
            "stage": _stage(recipe, contender),
            "before": None if before is None else _title(recipe, before, rounds),
            "value": score.value(metric.name),
            "difference": None,
            "difference_ci95": None,
            "p": None,
            "retention": kept.get("retention"),
            "retention_ci95": kept.get("retention_ci95"),
            "flops_per_example": spent,
            "bytes": costs.get("bytes"),
            "latency_ms_p50": None,
            "contender": contender.name,
        }
        p = None
        if before is not None:
            step |= _difference(recipe, metric.name, score, scores[before.name])
            rows = [right_rows(metric, one) for one in (score, scores[before.name])]
            if rows[0] is not None and rows[1] is not None:
                p = mcnemar(rows[0], rows[1]).p
        made.append(step)
        p_values.append(p)
    return [{**step, "p": p} for step, p in zip(made, holm(p_values), strict=True)]


def _difference(recipe: Recipe, metric: str, score: Scores, before: Scores) -> dict[str, Any]:
    interval = paired_difference(
        metric,
        [score.statistics[metric]],
        before.statistics[metric],
        resamples=recipe.evaluate.resamples,
        seed=recipe.seed,
    )
    return {"difference": interval.value, "difference_ci95": [interval.low, interval.high]}


def _title(recipe: Recipe, contender: Contender, rounds: bool) -> str:
    """What a step is called; the name of another step's ``before``."""
    prune = recipe.prune
    cut = "cut, last round" if rounds else "cut"
    if prune is None:
        cut = "student before training"
    elif prune.mask is not None and not prune.sizes and prune.vocabulary is None:
        cut = "masked"
    names = {
        "base": "teacher before fine-tuning",
        "teacher": "teacher" if recipe.teacher.finetune is None else "teacher, fine-tuned",
        "cut": f"cut, round {contender.round}",
        "healed": f"healed, round {contender.round}",
        "pruned": cut,
        "student": cut if recipe.distill is None else "student, distilled",
        "export": f"export, {contender.fmt}",
    }
    return names[contender.side]


def _stage(recipe: Recipe, contender: Contender) -> str:
    """The link under ``stages/`` to the folder that a step's score is of."""
    links = {
        "base": BASE,
        "teacher": "evaluate-teacher" if recipe.teacher.kind == "endpoint" else "teacher",
        "cut": f"prune-{contender.round}",
        "healed": f"heal-{contender.round}",
        "pruned": "prune",
        "student": "prune" if recipe.distill is None else "distill",
        "export": f"export-{contender.fmt}",
    }
    return links[contender.side]


def priced(
    made: Sequence[Mapping[str, Any]],
    sides: Mapping[str, Mapping[str, Any]],
    exports: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The steps of a report: with the latency of each that was timed, on its own runtime.

    Args:
        made: What `steps` gave.
        sides: What teacher and student cost in PyTorch.
        exports: The exports of the report.
    """
    timed = {f"export-{export['format']}": export.get("latency_ms_p50") for export in exports}
    found = []
    for step in made:
        side = str(step["contender"]).partition("-")[0]
        latency = sides[side]["latency_ms_p50"] if side in sides else timed.get(step["contender"])
        rest = {key: value for key, value in step.items() if key != "contender"}
        found.append({**rest, "latency_ms_p50": latency})
    return found
