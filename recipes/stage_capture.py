"""Stage ``capture``: the teacher's outputs on the training rows, on disk, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..distill.capture import capture, record_given
from ..distill.teachers import recorded_kind, recorded_values
from ..eval.checkpoints import sha256
from ..eval.data import Data
from ..eval.errors import RecipeError
from ..eval.hardware import model_device
from ..eval.models import load_model
from ..eval.problems import Problems
from ..eval.splits import text_key
from ..eval.tables import open_table
from ..eval.tasks import get_task
from .flops_spent import recording_flops
from .schema import Recipe
from .stage_teacher import model_options, teacher_checkpoint, teacher_record
from .store import Context, Folder, Stage
from .task_rows import streams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def capture_stage(
    recipe: Recipe, data: Folder, teacher: Folder, layers: Sequence[int] = ()
) -> Stage:
    """Records the teacher on every distinct training and validation text, and the collection.

    Args:
        recipe: For the precision and the size of batches and shards.
        data: The rows.
        teacher: Whom to ask.
        layers: Its layers whose token vectors a loss asks for.
    """
    task = get_task(recipe.task)
    checkpoint = teacher_checkpoint(teacher.path)

    def work(context: Context) -> None:
        rows = Data.open(context.inputs["data"])
        belongs = {"teacher": teacher.fingerprint, "data": rows.info["fingerprint"]}
        if checkpoint is None:
            if context.world.main:
                _record_given(context, rows, recipe, belongs)
            return
        model = load_model(checkpoint, task, **model_options(recipe.teacher))
        model.to(model_device(context.world.rank))
        tokenizer = checkpoint / "tokenizer.json"
        outputs = capture(
            model,
            list(streams(rows, task).values()),
            context.out,
            identity={
                **belongs,
                "tokenizer": sha256(tokenizer) if tokenizer.exists() else None,
                "prompts": model.encoding.prompts,
                "max_length": model.encoding.max_length,
            },
            precision=recipe.capture.precision,
            batch_tokens=recipe.capture.batch_tokens,
            shard_rows=recipe.capture.shard_rows,
            hidden_layers=list(layers),
            rank=context.world.rank,
            world_size=context.world.size,
            barrier=context.world.barrier,
            progress=context.bar.update,
        )
        if outputs is not None:
            kept = ("items", "tokens", "bytes_per_item")
            facts = {k: outputs.manifest[k] for k in kept}
            flops = recording_flops(model, facts["items"], facts["tokens"])
            context.facts.update(facts, flops=flops)

    settings = {**recipe.capture.model_dump(), "task": task.name, "hidden_layers": list(layers)}
    inputs = {"data": data, "teacher": teacher}
    return Stage("capture", "stage_capture", settings, inputs, work, shared=checkpoint is not None)


def _record_given(context: Context, data: Data, recipe: Recipe, belongs: dict[str, Any]) -> None:
    """Writes a recorded teacher's answers as teacher outputs, matched by text."""
    task = get_task(recipe.task)
    files = teacher_record(context.inputs["teacher"])["files"]
    values = {}
    for name, stream in streams(data, task).items():
        split = name.split(".")[0]
        # Validation rows are often a part of the training rows that was set aside.
        path = files.get(split) or (files["train"] if split == "validation" else None)
        if path is None:
            raise RecipeError(f"A recorded teacher for {task.name} needs teacher.files.{split}.")
        texts, pairs = stream.read(range(len(stream.texts)))
        values[name] = given_values(Path(path), texts, pairs, task.signal, data.labels, split)
    record_given(values, context.out, signal=task.signal, identity=belongs)


def given_values(
    path: Path,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    signal: str,
    labels: Sequence[str] | None,
    split: str,
) -> NDArray[np.float32]:
    """The recorded answers for some texts, in their order, (n, W) float32.

    Raises:
        RecipeError: If a column is missing, or a text has no answer on file.
        DataError: If an answer is not what its column says.
    """
    table = open_table(path, f"teacher.files.{split}")
    kind = recorded_kind(table.columns, signal, table.name)
    column = next((n for n in ("text", "query") if n in table.columns), None)
    if column is None:
        raise RecipeError(f"{table.name}: no column 'text' or 'query' to match the rows by.")
    wanted = [column, kind] + ["text_pair"] * (pairs is not None)
    problems = Problems()
    answers = {}
    for _, (text, answer, *pair) in table.read(
        wanted, lambda place, what: problems.add_row(table.name, f"{table.unit} {place}", what)
    ):
        answers[tuple(text_key(str(part)) for part in (text, *pair))] = answer
    problems.raise_if_any()
    rows = []
    for i, text in enumerate(texts):
        key = (text_key(text),) if pairs is None else (text_key(text), text_key(pairs[i]))
        if key not in answers:
            raise RecipeError(f"{table.name}: no recorded answer for the row '{text[:80]}'.")
        rows.append({kind: answers[key]})
    return recorded_values(rows, kind, labels, table.name)
