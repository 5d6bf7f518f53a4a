"""Stage ``prune``: the student before any training, cut from the teacher or another checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..distill.outputs import TeacherOutputs
from ..eval.checkpoints import find_checkpoint, save_model
from ..eval.data import Data
from ..eval.models import Row, TextModel, load_model
from ..eval.tasks import get_task
from ..prune import CRITERIA, compose, mask_model, pattern_of, prune_model
from ..prune.calibration import MAX_TOKENS, drawn_sample
from .language_data import calibration_stream, vocabulary_texts
from .schema import Generation, Prune, Recipe
from .stage_teacher import CHECKPOINT, identity, model_options, teacher_checkpoint
from .store import Context, Folder, Stage
from .task_rows import streams, training_streams

if TYPE_CHECKING:
    from ..distill.capture import Stream

REPORT = "prune.json"
BLOCK = 2048
RIDGE = 1e-3
DENSE_ROWS = 4096


def prune_stage(
    recipe: Recipe,
    data: Folder,
    teacher: Folder,
    captured: Folder,
    *,
    source: Folder | None = None,
    earlier: Folder | None = None,
) -> Stage:
    """Loads the student, cuts it and masks it; without ``prune`` it is taken as it is.

    Args:
        recipe: Says which student, and what to cut.
        data: Training rows.
        teacher: The student, where no other is named.
        captured: What a map into the teacher's space is fitted to.
        source: A stage with the student, some of it cut already, instead.
        earlier: The stage that cut it, if that is not the source; what was kept is told in the
            numbering of the model that came before both.
    """
    task = get_task(recipe.task)
    prune = recipe.prune
    if prune is not None and source is not None:  # the source's vocabulary is cut already
        prune = prune.model_copy(update={"vocabulary": None})
    origin, earlier = origin_of(recipe, teacher, source), earlier or source
    settings: dict[str, Any] = {
        "task": task.name,
        "prune": prune.model_dump() if prune else None,
        "texts": recipe.distill.texts if recipe.distill else None,
        "seed": recipe.seed,
        "precision": recipe.capture.precision,
        "symmetric": recipe.symmetric,
        "options": model_options(recipe.student or recipe.teacher),
    }
    generation = recipe.generation or Generation()
    if task.signal == "token_distribution":
        settings["generation"] = generation.model_dump()
    if recipe.student:
        settings["student"] = identity(origin)

    def work(context: Context) -> None:
        rows = Data.open(context.inputs["data"])
        torch.manual_seed(recipe.seed)
        labels = rows.labels if recipe.student and source is None else None
        model = load_model(origin, task, labels=labels, **settings["options"])
        if task.signal == "token_distribution":
            every = vocabulary_texts(rows, model, generation, context.inputs["capture"])
            chosen = [calibration_stream(rows, model, generation)]
        else:
            found = streams(rows, task)
            chosen, every = training_streams(found, task, settings["texts"]), _every(found)
        facts: dict[str, Any] = {"index_map": None, "parameters": _parameters(model)}
        if prune is not None and (prune.sizes or prune.vocabulary):
            model, facts = _cut(model, recipe, prune, chosen, every)
        if earlier is not None:
            facts = _after(prune_report(earlier.path), facts)
        if prune is not None and prune.mask is not None:
            model, facts["mask"] = _mask(model, recipe, prune, chosen)
        if task.signal == "embedding":
            outputs = TeacherOutputs(context.inputs["capture"])
            if model.width != outputs.width:
                model.dense = fit_dense(model, chosen, outputs, settings["precision"])
        save_model(model, context.out / CHECKPOINT)
        text = json.dumps(facts, indent=1, ensure_ascii=False)
        (context.out / REPORT).write_text(text, encoding="utf-8")

    inputs = {"data": data, "teacher": teacher, "capture": captured}
    given = {"source": source, "earlier": None if earlier is source else earlier}
    inputs |= {name: folder for name, folder in given.items() if folder is not None}
    return Stage("prune", "stage_prune", settings, inputs, work)


def _after(before: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """A cut's facts as if it and the one before it had been one."""
    sizes = before.get("shapes", {}).get("before", {})
    heads = sizes.get("attention_heads", 1), sizes.get("kv_heads", 1)
    kept = compose(before.get("index_map"), facts.get("index_map"), *heads)
    found = facts | {"vocabulary": before.get("vocabulary"), "index_map": kept}
    for name in ("shapes", "parameters"):
        if name in facts and "before" in before.get(name, {}):
            found[name] = facts[name] | {"before": before[name]["before"]}
    return found


def origin_of(recipe: Recipe, teacher: Folder, source: Folder | None = None) -> Path:
    """The checkpoint that is cut: a stage's, the recipe's other student, or the teacher."""
    if source is not None:
        return source.path / CHECKPOINT
    found = teacher_checkpoint(teacher.path)
    if recipe.student:
        found = find_checkpoint(recipe.student.model, recipe.student.revision)
    assert found is not None  # the schema asks for a student where the teacher is recorded
    return found


def _cut(
    model: TextModel,
    recipe: Recipe,
    prune: Prune,
    chosen: list[Stream],
    every: Iterator[str],
) -> tuple[TextModel, dict[str, Any]]:
    texts, pairs, roles = _columns(chosen, prune, recipe.seed)
    pruned = prune_model(
        model,
        texts,
        roles=roles,
        pairs=pairs,
        **prune.sizes,
        vocabulary=prune.vocabulary,
        vocabulary_texts=every,
        importance=prune.importance,
        loss=importance_loss(prune.importance),
        compensate=prune.compensate,
        calibration_rows=prune.calibration_rows,
        round_to=prune.round_to,
        seed=recipe.seed,
        precision=recipe.capture.precision,
    )
    if said := pruned.facts.get("calibration"):
        _tell_dropped(said["rows"], said["dropped_rows"])
    return pruned.model, {"index_map": pruned.index_map, **pruned.facts}


def _mask(
    model: TextModel, recipe: Recipe, prune: Prune, chosen: list[Stream]
) -> tuple[TextModel, dict[str, Any]]:
    """Zeros in what is left, chosen on rows of the task."""
    assert prune.mask is not None
    method, pattern = prune.mask.method, pattern_of(prune.mask.pattern)
    rows: list[Row] = []
    if method != "magnitude":
        columns = _columns(chosen, prune, recipe.seed)
        drawn = drawn_sample(model, *columns, prune.calibration_rows, recipe.seed)
        rows = drawn.fitting
        _tell_dropped(len(rows), drawn.dropped)
    masked, facts = mask_model(model, rows, method, pattern, recipe.capture.precision)
    return masked, {**facts, "pattern": prune.mask.pattern}


def _tell_dropped(rows: int, dropped: int) -> None:
    """Says in the stage's log that fewer rows calibrate than the recipe asks for."""
    if dropped:
        print(
            f"Calibrated on {rows} rows: {dropped} more would have over {MAX_TOKENS} tokens, whose "
            "states are held in memory."
        )


def _columns(
    chosen: list[Stream], prune: Prune, seed: int
) -> tuple[list[str], list[str] | None, list[str]]:
    """Texts, second texts and roles to calibrate on."""
    # As many again, for the rows that the fit is measured on.
    rows = sample(chosen, 2 * prune.calibration_rows, seed)
    pairs = [row[1] or "" for row in rows] if any(row[1] is not None for row in rows) else None
    return [row[0] for row in rows], pairs, [row[2] for row in rows]


def importance_loss(criterion: str | None) -> Any:
    """A loss without labels whose gradient says what the model's answers hang on.

    For classes and tokens, cross-entropy with the model's own choice. For embeddings, their
    product with random directions: the squared gradient is then the Fisher information of a
    squared error.

    Both tell how the answers change near the whole model, and nothing of one with parts gone, which
    may be as sure of other answers. So it is for criteria that ask a loss alone (``taylor``);
    ``ablation`` measures the distance to the whole model's answers without one.

    Returns:
        None for other criteria.
    """
    if criterion not in CRITERIA or not CRITERIA[criterion].needs_loss:
        return None
    draw = torch.Generator().manual_seed(0)

    def loss(model: TextModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        values = model(**batch).values.float()
        if model.signal != "embedding":
            found = torch.nn.functional.cross_entropy(values, values.detach().argmax(-1))
        else:
            directions = torch.randn(values.shape, generator=draw).to(values.device)
            found = (values * directions).sum(-1).mean()
        return found

    return loss


def sample(chosen: list[Stream], rows: int, seed: int) -> list[tuple[str, str | None, str]]:
    """A seeded sample of (text, second text, role), each stream by its share of the rows."""
    draw = np.random.default_rng(seed)
    total = sum(len(s.texts) for s in chosen)
    sample: list[tuple[str, str | None, str]] = []
    for stream in chosen:
        count = min(len(stream.texts), round(rows * len(stream.texts) / total))
        picked = np.sort(draw.choice(len(stream.texts), count, replace=False)).tolist()
        texts, pairs = stream.read(picked)
        for i, text in enumerate(texts):
            sample.append((text, None if pairs is None else pairs[i], stream.role))
    return sample


def _every(found: dict[str, Stream]) -> Iterator[str]:
    """All training texts, and the collection."""
    for name, stream in found.items():
        if name.startswith("validation"):
            continue
        for start in range(0, len(stream.texts), BLOCK):
            texts, pairs = stream.read(range(start, min(start + BLOCK, len(stream.texts))))
            yield from texts
            yield from pairs or []


def fit_dense(
    model: TextModel, chosen: list[Stream], outputs: TeacherOutputs, precision: str
) -> torch.nn.Linear:
    """Fits the linear map from a student's embeddings to the teacher's space by least squares.

    Ridge regression on at most 4,096 rows, solved in float64; it starts the training closer.
    """
    encoding = model.encoding
    model.encoding = dataclasses.replace(encoding, normalize=False)  # the map comes before that
    draw = np.random.default_rng(0)
    found, targets = [], []
    for stream in chosen:
        count = min(len(stream.texts), DENSE_ROWS // len(chosen))
        rows = np.sort(draw.choice(len(stream.texts), count, replace=False))
        texts = stream.read(rows.tolist())[0]
        found.append(model.predict(texts, None, stream.role, precision=precision))
        targets.append(outputs.values(outputs.items(stream.name)[rows]))
    model.encoding = encoding
    x = np.concatenate(found).astype(np.float64)
    y = np.concatenate(targets).astype(np.float64)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    gram = x.T @ x
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    solved = np.linalg.solve(gram, x.T @ y)  # (H + 1, D)
    layer = torch.nn.Linear(x.shape[1] - 1, y.shape[1])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(solved[:-1].T))
        layer.bias.copy_(torch.from_numpy(solved[-1]))
    return layer.to(model.backbone.dtype)


def _parameters(model: TextModel) -> dict[str, int]:
    return {"after": sum(p.numel() for p in model.parameters())}


def prune_report(folder: Path) -> dict[str, Any]:
    """What was cut, and what it did before any training."""
    report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return report
