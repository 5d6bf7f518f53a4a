"""Stage ``capture`` of a generation task: what the teacher says of each token, on disk, once."""

from __future__ import annotations

from collections.abc import Sequence

from ..eval.checkpoints import sha256
from ..eval.data import Data
from ..eval.generation_cost import check_cost_known
from ..eval.hardware import model_device
from ..eval.models import load_model
from ..eval.tasks import get_task
from .flops_spent import language_flops
from .generation_rules import encoding_spec
from .language_data import dialogues_of, examples_of, recorded_streams
from .schema import Generation, Recipe
from .stage_teacher import model_options, teacher_checkpoint
from .store import Context, Folder, Stage

STREAMS = ("train", "validation")


def capture_tokens_stage(
    recipe: Recipe, data: Folder, teacher: Folder, layers: Sequence[int] = ()
) -> Stage:
    """Records the teacher's token distributions over the training and validation rows.

    Args:
        recipe: For the encoding, and whose completions are recorded.
        data: The rows.
        teacher: Whom to ask.
        layers: Its layers whose token vectors a loss asks for.
    """
    task, generation = get_task(recipe.task), recipe.generation or Generation()
    checkpoint = teacher_checkpoint(teacher.path)
    assert checkpoint is not None
    settings = {
        **recipe.capture.model_dump(),
        "task": task.name,
        "generation": generation.model_dump(),
        "seed": recipe.seed,
        "options": model_options(recipe.teacher),
        # What the student is not trained on is not recorded.
        "max_length": recipe.distill.max_length if recipe.distill else None,
        "hidden_layers": list(layers),
    }

    def work(context: Context) -> None:
        from ..distill.token_capture import Writing, capture_tokens

        rows = Data.open(context.inputs["data"])
        model = load_model(checkpoint, task, **model_options(recipe.teacher))
        check_cost_known(model.config)
        model.to(model_device(context.world.rank))
        writes = recipe.capture.over == "generations"
        scratch = context.out / f"tokens-{context.world.rank}"
        dialogues = dialogues_of(model, rows, generation, settings["max_length"])
        examples = examples_of(dialogues, rows, STREAMS, scratch, prompts=writes)
        outputs = capture_tokens(
            model,
            examples,
            recorded_streams(rows),
            context.out,
            identity={
                "teacher": teacher.fingerprint,
                "data": rows.info["fingerprint"],
                "tokenizer": sha256(checkpoint / "tokenizer.json"),
                "generation": generation.model_dump(mode="json"),
                "over": recipe.capture.over,
            },
            encoding=encoding_spec(recipe.capture),
            writing=Writing(generation.max_new_tokens, generation.settings, recipe.seed)
            if writes
            else None,
            hidden_layers=list(layers),
            hidden_rank=recipe.capture.hidden_rank,
            precision=recipe.capture.precision,
            batch_tokens=recipe.capture.batch_tokens,
            shard_rows=recipe.capture.shard_rows,
            rank=context.world.rank,
            world_size=context.world.size,
            barrier=context.world.barrier,
            progress=context.bar.update,
        )
        for file in scratch.glob("*"):
            file.unlink()
        scratch.rmdir()
        if outputs is not None:
            kept = ("items", "bytes_per_token", "divergence", "truncated")
            context.facts.update({k: outputs.manifest.get(k) for k in kept})
            once = None if writes else language_flops(model, examples)
            share = outputs.manifest["items"] / max(1, len(examples))  # equal rows are asked once
            context.facts["flops"] = None if once is None else once * share
            if writes:
                end = int(model.tokenizer.eos_token_id)
                context.facts["unfinished"] = int((outputs.last_ids() != end).sum())
            if layers:
                stated = ("hidden", "hidden_bytes_per_token")
                context.facts.update({k: outputs.manifest[k] for k in stated})

    inputs = {"data": data, "teacher": teacher}
    return Stage("capture", "stage_capture_tokens", settings, inputs, work, shared=True)
