"""What the tables of the other packages say about a recipe: unknown names, and last defaults.

The tables of losses, metrics and formats can be added to (``--import``), so `schema` cannot list
their entries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from ..eval.errors import RecipeError, nearest
from ..eval.tasks import Task, get_task
from .baselines import missing_packages
from .consistency import SEARCHED
from .generation_rules import capture_defaults, generates
from .problem import Problem
from .schema import Budget, Distill, Finetune, Generation, Recipe
from .trial_pool import processes_here

_HUB_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def unknown_names(recipe: Recipe) -> list[Problem]:
    """Finds every loss, option, metric, format, mask and argument that does not exist."""
    task = get_task(recipe.task)
    return [
        *_columns(recipe, task),
        *_losses(recipe, task),
        *_metrics(recipe, task),
        *_formats(recipe, task),
        *_criterion(recipe),
        *_pattern(recipe),
        *_arguments(recipe),
        *missing_packages(recipe),
    ]


def _columns(recipe: Recipe, task: Task) -> Iterator[Problem]:
    known = [column.name for column in task.columns]
    for name in recipe.data.columns:
        if name not in known:
            yield Problem(
                ("data", "columns", name),
                f"{task.name} has no such column.{nearest(name, known)} "
                f"Its columns: {', '.join(known)}.",
            )


def _losses(recipe: Recipe, task: Task) -> Iterator[Problem]:
    if recipe.distill is None:
        return
    from ..distill.losses import get_loss

    for name, given in recipe.distill.losses.items():
        path = ("distill", "losses", name)
        try:
            loss = get_loss(name, task.signal)
            known = loss.options
        except RecipeError as error:
            yield Problem(path, str(error))
            continue
        if loss.uses == "documents" and recipe.distill.texts not in (None, ["queries"]):
            yield Problem(
                ("distill", "texts"),
                f"'{name}' is trained on queries and their texts; leave it out, or say [queries].",
            )
        if name == "hidden_mse" and not _layer_map(given.options.get("layers", "uniform")):
            yield Problem(
                (*path, "layers"),
                "expected uniform, last, or a map {student layer: teacher layer}.",
            )
        if loss.uses == "tokens":
            yield from _targets(recipe, name, {**known, **given.options})
        for option, value in given.options.items():
            if option not in known:
                has = f"It has: {', '.join(known)}." if known else "It has none."
                yield Problem(
                    (*path, option), f"'{name}' has no such option.{nearest(option, known)} {has}"
                )
            elif option in loss.choices and value not in loss.choices[option]:
                words = loss.choices[option]
                yield Problem(
                    (*path, option),
                    f"expected {' or '.join(words)}, got {value!r}.{nearest(str(value), words)}",
                )
            elif isinstance(known[option], float) and not _positive(value):
                yield Problem((*path, option), f"expected a number above 0, got {value!r}.")


def _targets(recipe: Recipe, name: str, options: dict[str, Any]) -> Iterator[Problem]:
    """A divergence that is not defined on what is recorded: told before anything is recorded."""
    from ..distill.divergences import DIVERGENCES, check_targets

    assert recipe.distill is not None
    alone = recipe.distill.on_policy == 1  # a live teacher gives whole distributions
    temperature = options.get("temperature", 1.0)
    if recipe.capture.encoding != "sampled" or alone or name not in DIVERGENCES:
        return
    try:
        check_targets(name, "sampled", temperature)
    except RecipeError as error:
        yield Problem(("distill", "losses", name), str(error))


def _layer_map(value: object) -> bool:
    if isinstance(value, dict):
        return all(str(part).isdigit() for pair in value.items() for part in pair)
    return value in ("uniform", "last")


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _metrics(recipe: Recipe, task: Task) -> Iterator[Problem]:
    from ..eval.metrics import METRICS, get_metric

    asked = [("target", "metric", recipe.target.metric)] if recipe.target.metric else []
    asked += [
        ("evaluate", "metrics", name)
        for name in recipe.evaluate.metrics
        # other plain names are asked of the hub, which has metrics of classes only
        if name in METRICS or task.signal != "class_logits" or not _HUB_METRIC.fullmatch(name)
    ]
    for section, key, name in asked:
        try:
            metric = get_metric(name, task.signal)
        except RecipeError as error:
            yield Problem((section, key), str(error))
            continue
        if section == "target" and not metric.higher_is_better:
            yield Problem(
                ("target", "metric"),
                f"'{name}' counts what went wrong, and no share of that is worth keeping; judge by "
                f"{task.default_metric} or another quality, and name it in evaluate.metrics.",
            )


def _formats(recipe: Recipe, task: Task) -> Iterator[Problem]:
    asked: list[tuple[tuple[str, ...], str, dict[str, Any]]] = [
        (("export",), name, options) for name, options in recipe.formats
    ]
    runtime = recipe.budget.runtime if recipe.budget else None
    if runtime not in (None, "pytorch"):
        asked.append((("budget", "runtime"), str(runtime), {}))
    if not asked:
        return
    from ..export import FORMATS, format_options

    settings = recipe.generation.settings if recipe.generation else {}
    for path, name, options in asked:
        try:
            format_options(name, task, options)
        except RecipeError as error:
            yield Problem(path, str(error))
            continue
        if FORMATS[name].loader is not None and set(settings) - {"do_sample"}:
            yield Problem(
                ("generation", "settings"),
                f"'{name}' answers greedily, and these ask for {', '.join(settings)}; leave one of "
                "them out.",
            )


def _criterion(recipe: Recipe) -> Iterator[Problem]:
    asked = recipe.prune.importance if recipe.prune else None
    if asked is None or recipe.prune is None:
        return
    from ..prune.criteria import CRITERIA

    path = ("prune", "importance")
    if asked not in CRITERIA:
        known = f"Known criteria: {', '.join(CRITERIA)}."
        yield Problem(path, f"unknown criterion '{asked}'.{nearest(asked, CRITERIA)} {known}")
        return
    axes: dict[str, Any] = recipe.prune.sizes
    if recipe.budget is not None:
        axes = dict.fromkeys(SEARCHED) | axes
    for axis, size in axes.items():
        named = axis == "layers" and isinstance(size, list)
        if not named and axis not in CRITERIA[asked].axes:
            can = [name for name, other in CRITERIA.items() if axis in other.axes]
            yield Problem(path, f"'{asked}' does not score {axis}; {', '.join(can)} can.")


def _pattern(recipe: Recipe) -> Iterator[Problem]:
    if recipe.prune is None or recipe.prune.mask is None:
        return
    from ..prune.masks import pattern_of

    try:
        pattern_of(recipe.prune.mask.pattern)
    except RecipeError as error:
        yield Problem(("prune", "mask", "pattern"), str(error))


def _arguments(recipe: Recipe) -> Iterator[Problem]:
    given: dict[tuple[str, ...], Finetune | Distill | None] = {
        ("teacher", "finetune"): recipe.teacher.finetune,
        ("distill",): recipe.distill,
    }
    for section, settings in given.items():
        for name in settings.arguments if settings else ():
            from ..distill.arguments import check_argument

            try:
                check_argument(name)
            except RecipeError as error:
                yield Problem((*section, "arguments", name), str(error))


def resolve(recipe: Recipe, device: str | None = None) -> Recipe:
    """Writes out the defaults that depend on the task, the losses or the machine.

    Args:
        recipe: A checked recipe.
        device: The torch device type training will use; found by itself if None.

    Returns:
        A recipe without ``auto``: the metric, the texts, each loss's options and each precision
        are what the run will use, and so is how a search works on this machine. Resolving it again
        changes nothing.
    """
    from ..eval.hardware import resolve_precision

    task = get_task(recipe.task)
    values = recipe.model_dump(mode="json")
    values["target"]["metric"] = recipe.target.metric or task.default_metric
    sections = [values["capture"], values["teacher"]["finetune"], values["distill"]]
    for section in filter(None, sections):
        section["precision"] = resolve_precision(section["precision"], device).name
    if recipe.budget is not None:
        values["budget"] |= _search_defaults(recipe.budget)
    if generates(recipe):
        values["capture"] |= capture_defaults(recipe)
        values["generation"] = (recipe.generation or Generation()).model_dump(mode="json")
    if recipe.distill is not None:
        from ..distill.losses import get_loss

        distill = values["distill"]
        if task.signal == "embedding":
            pairs = any(
                get_loss(name, task.signal).uses == "documents" for name in recipe.distill.losses
            )
            default = ["queries"] if pairs else ["queries", "collection"]
            distill["texts"] = recipe.distill.texts or default
        for name, loss in recipe.distill.losses.items():
            defaults = get_loss(name, task.signal).options
            distill["losses"][name] = {"weight": loss.weight, **defaults, **loss.options}
    return Recipe.model_validate(values)


def _search_defaults(budget: Budget) -> dict[str, Any]:
    """The runtime of a budget of time, and how many trials are made at the same time."""
    runtime = budget.runtime or ("pytorch" if budget.timed else None)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and (budget.processes or 1) > 1:
        raise RecipeError(
            f"budget.processes {budget.processes}: the {world} processes of this launch share each "
            "trial already. Leave it out, or launch one process."
        )
    return {"runtime": runtime, "processes": budget.processes or processes_here()}
