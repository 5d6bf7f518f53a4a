"""What two parts of a recipe can say against each other, and keys that would have no effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..eval.sources import PYTHON_DOCS, QUERY_FILTERS
from ..eval.tasks import get_task
from .baselines import baseline_problems
from .generation_rules import generates, generation_problems
from .problem import Problem

SEARCHED = ("layers", "intermediate_size", "hidden_size")
"""Axes that a search varies."""
BOUNDS = ("flops", "parameters", "bytes", "latency_ms", "usd_per_million", "retain")
"""What a budget can bound."""

if TYPE_CHECKING:
    from .schema import Data, Prune, Recipe, Teacher


def contradictions(recipe: Recipe) -> list[Problem]:
    """Finds every contradiction in a recipe whose keys are fine one by one."""
    embeds = get_task(recipe.task).signal == "embedding"
    return [
        *_data(recipe.data, recipe.task, embeds),
        *_built_in_answers(recipe),
        *_teacher(recipe.teacher, has_student=recipe.student is not None),
        *(_prune(recipe.prune, recipe.budget is not None) if recipe.prune else ()),
        *_mask(recipe),
        *_budget(recipe),
        *_rounds(recipe),
        *_exports(recipe),
        *_student(recipe),
        *_hidden_losses(recipe),
        *_task(recipe, embeds),
        *_evaluated(recipe),
        *_repeated(recipe),
        *baseline_problems(recipe),
        *generation_problems(recipe),
    ]


def _data(data: Data, task: str, embeds: bool) -> Iterator[Problem]:
    if data.source is None and data.files is None:
        yield Problem(("data",), "no rows: give source (a hub name) or files.")
    if data.source is not None and data.files is not None:
        yield Problem(("data",), "both source and files are given; keep one.")
    from_hub = data.source is not None and data.source not in (PYTHON_DOCS, QUERY_FILTERS)
    for name in ("config", "revision"):
        if getattr(data, name) is not None and not from_hub:
            yield Problem(("data", name), "only a hub data set has one; leave it out.")
    if data.source == PYTHON_DOCS:
        if not embeds:
            yield Problem(
                ("data", "source"), f"{PYTHON_DOCS} has pairs for retrieval, not for {task}."
            )
        if data.columns:
            yield Problem(
                ("data", "columns"), f"{PYTHON_DOCS} has the task's own columns; leave it out."
            )
    if data.files is not None:
        beir = {"collection": data.files.collection, "queries": data.files.queries}
        given = [name for name, path in beir.items() if path is not None]
        if given and not embeds:
            yield Problem(("data", "files", given[0]), f"only retrieval has one; this is {task}.")
        elif given == ["queries"]:
            yield Problem(("data", "files", "queries"), "needs collection beside it.")


def _built_in_answers(recipe: Recipe) -> Iterator[Problem]:
    if recipe.data.source != QUERY_FILTERS:
        return
    if not generates(recipe):
        yield Problem(
            ("data", "source"), f"{QUERY_FILTERS} has prompts and answers, not {recipe.task}."
        )
    if recipe.data.columns:
        yield Problem(
            ("data", "columns"), f"{QUERY_FILTERS} has the task's own columns; leave it out."
        )


def _teacher(teacher: Teacher, *, has_student: bool) -> Iterator[Problem]:
    if teacher.kind == "endpoint":
        return  # generation's own
    if teacher.kind == "checkpoint":
        if teacher.model is None and teacher.new is None:
            yield Problem(("teacher",), "no model: give model, a hub name or a folder.")
        if teacher.files is not None:
            yield Problem(("teacher", "files"), "only for kind: recorded.")
        return
    if teacher.files is None:
        yield Problem(("teacher",), "kind recorded needs files, the recorded outputs.")
    for name in ("model", "revision", "attn_implementation", "max_length", "finetune"):
        if getattr(teacher, name) is not None:
            yield Problem(
                ("teacher", name),
                "a recorded teacher has no model that could use it; leave it out.",
            )
    if not has_student:
        yield Problem(
            ("teacher", "kind"), "recorded outputs leave nothing to prune: add student.model."
        )


def _budget(recipe: Recipe) -> Iterator[Problem]:
    budget = recipe.budget
    if recipe.evaluate.usd_per_hour is not None and not (
        recipe.evaluate.latency_rows or (budget and budget.usd_per_million)
    ):
        yield Problem(("evaluate", "usd_per_hour"), "prices what is timed, and latency_rows is 0.")
    if recipe.evaluate.server_ms is not None and not recipe.evaluate.latency_rows:
        yield Problem(
            ("evaluate", "server_ms"), "starts from the times of single rows: latency_rows is 0."
        )
    if budget is None:
        return
    given = [kind for kind in BOUNDS if getattr(budget, kind) is not None]
    if len(given) != 1:
        which = "none" if not given else " and ".join(given)
        yield Problem(("budget",), f"give one of {', '.join(BOUNDS)}; got {which}.")
    timed = {"latency_ms", "usd_per_million"} & set(given)
    if budget.runtime is not None and not timed:
        yield Problem(
            ("budget", "runtime"),
            "is where latency_ms or usd_per_million is measured; leave it out.",
        )
    if budget.usd_per_million is not None and recipe.evaluate.usd_per_hour is None:
        yield Problem(
            ("budget", "usd_per_million"), "needs the price of a core: give evaluate.usd_per_hour."
        )
    if recipe.teacher.kind == "recorded":
        yield Problem(
            ("budget",),
            "is measured beside the teacher's checkpoint, and recorded outputs have none: give "
            "prune's sizes.",
        )
    if recipe.prune is not None and set(SEARCHED) <= set(recipe.prune.sizes):
        yield Problem(("budget",), "prune says all the sizes already; leave one of them out.")


def _rounds(recipe: Recipe) -> Iterator[Problem]:
    prune = recipe.prune
    if prune is None or prune.rounds == 1:
        if prune is not None and prune.healing != type(prune).model_fields["healing"].default:
            yield Problem(("prune", "healing"), "is for rounds: give prune.rounds, 2 or more.")
        return
    if recipe.distill is None:
        yield Problem(("prune", "rounds"), "each is healed as distill says, and it is missing.")
    if not prune.sizes and recipe.budget is None:
        yield Problem(("prune", "rounds"), "are steps to a size, and prune says none.")


def _exports(recipe: Recipe) -> Iterator[Problem]:
    evaluate = recipe.evaluate
    whole = [name for name, _ in recipe.formats if not name.endswith("int8")]
    if not whole and evaluate.flip_rate != type(evaluate).model_fields["flip_rate"].default:
        yield Problem(
            ("evaluate", "flip_rate"),
            "is what an fp32 export may change, and export has none; add onnx, or leave it out.",
        )


def _prune(prune: Prune, searched: bool) -> Iterator[Problem]:
    if not prune.sizes and prune.vocabulary is None and prune.mask is None and not searched:
        yield Problem(
            ("prune",),
            "cuts nothing: give layers, intermediate_size, vocabulary or another axis, or a mask, "
            "or drop it.",
        )
    if not searched:
        yield from _without_effect(prune)
    if isinstance(prune.layers, list) and len(set(prune.layers)) < len(prune.layers):
        yield Problem(("prune", "layers"), f"a layer is named twice in {prune.layers}.")
    widths = {"intermediate_size", "hidden_size"} & set(prune.sizes)
    if prune.round_to is not None and not widths and not searched:
        yield Problem(
            ("prune", "round_to"), "rounds intermediate_size and hidden_size; neither is cut."
        )


def _without_effect(prune: Prune) -> Iterator[Problem]:
    """Keys that a cut of known sizes does not look at."""
    named = isinstance(prune.layers, list) and set(prune.sizes) == {"layers"}
    if prune.importance is not None and not prune.sizes:
        yield Problem(("prune", "importance"), "chooses what is kept, and no size is cut.")
    elif prune.importance is not None and named:
        yield Problem(
            ("prune", "importance"),
            "chooses what is kept, and prune.layers names it already; say how many, or leave it "
            "out.",
        )
    if not prune.sizes and not prune.compensate:
        yield Problem(
            ("prune", "compensate"), "fits what remains to what was cut, and no size is cut."
        )
    default = type(prune).model_fields["calibration_rows"].default
    if not reads_rows(prune) and prune.calibration_rows != default:
        masked = ", and magnitude looks at weights alone" if prune.mask is not None else ""
        yield Problem(
            ("prune", "calibration_rows"),
            f"nothing is measured on rows: no size is cut{masked}.",
        )


def _mask(recipe: Recipe) -> Iterator[Problem]:
    prune = recipe.prune
    if prune is None or prune.mask is None:
        return
    if recipe.budget is not None:
        yield Problem(
            ("prune", "mask"),
            "saves nothing in a dense checkpoint, and a budget asks what to save; leave one out.",
        )
    if prune.rounds > 1:
        yield Problem(
            ("prune", "mask"),
            f"is set once, and {prune.rounds} rounds would cut what is masked; say rounds: 1, or "
            "leave the mask out.",
        )


def reads_rows(prune: Prune) -> bool:
    """Whether something under ``prune`` is measured on calibration rows."""
    return bool(prune.sizes) or (prune.mask is not None and prune.mask.method != "magnitude")


def _student(recipe: Recipe) -> Iterator[Problem]:
    if recipe.distill is None:
        if recipe.student is None and recipe.prune is None and recipe.budget is None:
            yield Problem((), "the student would be the teacher: add prune, student or distill.")
        if recipe.seeds > 1:
            yield Problem(("seeds",), "only training varies with the seed, and distill is missing.")


def _hidden_losses(recipe: Recipe) -> Iterator[Problem]:
    losses = recipe.distill.losses if recipe.distill else {}
    narrower = recipe.prune is not None and recipe.prune.hidden_size is not None
    if "hidden_mse" in losses and narrower:
        yield Problem(
            ("distill", "losses", "hidden_mse"),
            "compares hidden states number by number, and prune.hidden_size cuts the student's; "
            "leave one of them out.",
        )
    changing = {"budget": recipe.budget is not None, "prune.rounds": recipe.prune is not None}
    changing["prune.rounds"] &= recipe.prune is not None and recipe.prune.rounds > 1
    for name in (name for name, there in changing.items() if there and "hidden_mse" in losses):
        yield Problem(
            ("distill", "losses", "hidden_mse"),
            f"compares layer with layer, and students of several depths and widths are trained "
            f"with {name}; leave one of them out.",
        )


def _task(recipe: Recipe, embeds: bool) -> Iterator[Problem]:
    if embeds:
        if recipe.teacher.finetune is not None:
            yield Problem(
                ("teacher", "finetune"), f"trains on class labels, which {recipe.task} has not."
            )
        return
    if recipe.symmetric:
        yield Problem(("symmetric",), f"only retrieval has two sides; this is {recipe.task}.")
    if recipe.distill is not None and recipe.distill.texts is not None:
        yield Problem(
            ("distill", "texts"), f"only retrieval has kinds of texts; this is {recipe.task}."
        )


def _evaluated(recipe: Recipe) -> Iterator[Problem]:
    if recipe.evaluate.out_of_scope is not None and (
        get_task(recipe.task).signal != "class_logits"
    ):
        yield Problem(
            ("evaluate", "out_of_scope"),
            f"only a classifier's classes leave something out; this is {recipe.task}.",
        )
    if recipe.evaluate.slices and recipe.data.source in (PYTHON_DOCS, QUERY_FILTERS):
        yield Problem(
            ("evaluate", "slices"),
            f"are columns of the rows, and {recipe.data.source} has the task's own alone.",
        )


def _repeated(recipe: Recipe) -> Iterator[Problem]:
    lists: dict[tuple[str, ...], list[str]] = {
        ("export",): [name for name, _ in recipe.formats],
        ("evaluate", "metrics"): recipe.evaluate.metrics,
        ("evaluate", "baselines"): list(recipe.evaluate.baselines),
        ("evaluate", "slices"): recipe.evaluate.slices,
        ("distill", "texts"): list(recipe.distill.texts or []) if recipe.distill else [],
    }
    for path, names in lists.items():
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield Problem(path, f"{', '.join(twice)} is named twice.")
