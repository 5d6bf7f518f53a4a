"""How a student gets its sizes: in one cut, or in rounds of cut and short training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..distill.losses import get_loss
from ..eval.cost import artefact_parameters
from ..eval.data import Data
from ..eval.errors import RecipeError
from ..eval.tasks import Task, get_task
from ..prune import anatomy_of
from ..prune.anatomy import Anatomy
from ..prune.sizes import LARGE, checked_sizes, hidden_step
from .schema import Prune, Recipe
from .stage_distill import distill_stage
from .stage_prune import origin_of, prune_stage
from .store import Folder, Stage
from .task_rows import paired_texts, streams, training_streams

LEAST_STEPS = 10


class Ensure(Protocol):
    """`Store.ensure`: gives a stage's folder, making it if it is not there."""

    def __call__(self, stage: Stage, trial: str | None = None) -> Folder:
        """Gives the folder."""


def student_stages(
    recipe: Recipe,
    ensure: Ensure,
    data: Folder,
    teacher: Folder,
    captured: Folder,
    *,
    source: Folder | None = None,
    trial: str | None = None,
) -> dict[str, Folder]:
    """Makes the student as cut, in as many rounds as the recipe says.

    Args:
        recipe: With all sizes.
        ensure: Makes the stages.
        data: Stage.
        teacher: Stage.
        captured: Stage; what the student is healed with.
        source: A stage with the student, its vocabulary cut already, instead of the recipe's.
        trial: What it is a trial of, if it is one.

    Returns:
        The stages of all rounds in order; ``prune`` is the last.
    """
    prune = recipe.prune
    made: dict[str, Folder] = {}
    earlier = source
    if prune is not None and prune.rounds > 1:
        rows, task = Data.open(data.path), get_task(recipe.task)
        origin, asked = origin_of(recipe, teacher, source), recipe.budget is None
        steps = round_sizes(prune, origin, every_round=asked)
        for number, sizes in enumerate(steps[:-1], 1):
            cut = recipe.model_copy(update={"prune": _with(prune, sizes)})
            stage = prune_stage(cut, data, teacher, captured, source=source, earlier=earlier)
            made[f"prune-{number}"] = earlier = ensure(stage, trial)
            short = healing(recipe, rows, task, prune.healing)
            stage = distill_stage(short, data, teacher, captured, earlier, seed=recipe.seed)
            made[f"heal-{number}"] = source = ensure(stage, trial)
        recipe = recipe.model_copy(update={"prune": _with(prune, steps[-1])})
    stage = prune_stage(recipe, data, teacher, captured, source=source, earlier=earlier)
    return made | {"prune": ensure(stage, trial)}


def _with(prune: Prune, sizes: Mapping[str, Any]) -> Prune:
    """A round's own cut: sizes that it does not reach are left as they are."""
    return prune.model_copy(update=dict.fromkeys(prune.sizes) | dict(sizes))


def healing(recipe: Recipe, rows: Data, task: Task, share: float) -> Recipe:
    """The recipe with a training of a share of its steps."""
    distill = recipe.distill
    assert distill is not None
    steps = max(LEAST_STEPS, round(share * _steps(recipe, rows, task)))
    arguments = distill.arguments | {"max_steps": steps, "eval_strategy": "no"}
    arguments["load_best_model_at_end"] = False
    shorter = distill.model_copy(update={"arguments": arguments})
    return recipe.model_copy(update={"distill": shorter})


def _steps(recipe: Recipe, rows: Data, task: Task) -> float:
    """Steps of the recipe's whole training."""
    distill = recipe.distill
    assert distill is not None
    if distill.arguments.get("max_steps", -1) > 0:
        return float(distill.arguments["max_steps"])
    chosen = training_streams(streams(rows, task), task, distill.texts)
    count = sum(len(stream.texts) for stream in chosen)
    if any(get_loss(name, task.signal).uses == "documents" for name in distill.losses):
        count = len(paired_texts(rows)[0])
    each = distill.batch_size * int(distill.arguments.get("gradient_accumulation_steps", 1))
    return float(distill.arguments.get("num_train_epochs", distill.epochs)) * count / each


def round_sizes(
    prune: Prune, checkpoint: Path, *, every_round: bool = True
) -> list[dict[str, Any]]:
    """The sizes of each round: equal factors from the checkpoint's to those asked for.

    Layers that are named go in equal parts, spread over the depth.

    Args:
        prune: With sizes and rounds.
        checkpoint: What is cut first.
        every_round: Whether each round must cut something; else those that would not are left out.

    Returns:
        For each round the axes that it cuts, in the numbering of the model before it.

    Raises:
        RecipeError: If a size cannot be, or a round would cut nothing.
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(checkpoint)
    anatomy = anatomy_of(config)
    parameters = artefact_parameters(checkpoint)
    checked = checked_sizes(anatomy, config, parameters, prune.sizes, prune.round_to)
    ends = {axis: getattr(checked, axis) for axis in prune.sizes}
    whole = anatomy.sizes(config)
    multiple = prune.round_to or (64 if parameters > LARGE else 8)
    left = list(range(whole["layers"]))
    before, found = dict(whole), []
    for number in range(1, prune.rounds + 1):
        sizes: dict[str, Any] = {}
        for axis, last in ends.items():
            if isinstance(last, list):
                gone = [i for i in range(whole["layers"]) if i not in last]
                stay = set(left) - set(gone[number - 1 :: prune.rounds])
                if len(stay) < len(left):
                    sizes[axis] = [place for place, layer in enumerate(left) if layer in stay]
                left = sorted(stay)
                continue
            size = last
            if number < prune.rounds:
                rough = whole[axis] * (last / whole[axis]) ** (number / prune.rounds)
                unit = _unit(axis, anatomy, config, multiple, sizes)
                size = max(last, round(rough / unit) * unit)
            if size < before[axis]:
                sizes[axis] = before[axis] = size
        if sizes:
            found.append(sizes)
        elif every_round:
            raise RecipeError(
                f"`prune.rounds` {prune.rounds}: round {number} would cut nothing, because sizes "
                "go in steps. Ask for fewer rounds."
            )
    return found


def _unit(axis: str, anatomy: Anatomy, config: Any, multiple: int, sizes: Mapping[str, Any]) -> int:
    """What a size must be a multiple of, the axes before it being cut already."""
    if axis == "intermediate_size":
        return multiple
    if axis == "hidden_size":
        return hidden_step(anatomy, config, multiple, sizes.get("attention_heads"))
    groups = anatomy.kv_heads(config)
    if axis == "attention_heads" and groups < anatomy.heads(config):
        return groups
    return 1
