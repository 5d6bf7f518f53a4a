"""Stage ``distill`` of a generation task: the student trained on recorded token distributions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..eval.checkpoints import find_checkpoint
from ..eval.data import Data
from ..eval.dialogues import Dialogues, Example
from ..eval.errors import RecipeError, RunError
from ..eval.generation_cost import check_cost_known
from ..eval.models import TextModel, load_model, load_tokenizer
from ..eval.tasks import get_task
from ..prune.masks import Zeros
from .language_data import dialogues_of, examples_of
from .language_training import AnswersValidation, metric_names, train_and_save
from .layer_maps import hidden_layers
from .schema import Generation, Lora, Recipe
from .stage_capture_answers import UNFINISHED
from .stage_prune import prune_report
from .stage_teacher import CHECKPOINT, model_options, teacher_checkpoint
from .store import Context, Folder, Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from peft import LoraModel

    from ..distill.byte_spans import ByteSpans
    from ..distill.examples import Examples
    from ..distill.token_outputs import TokenOutputs

ALIGNED = 256
"""Rows whose alignment is measured, and must not be empty, before anything is trained."""


def distill_tokens_stage(
    recipe: Recipe,
    data: Folder,
    teacher: Folder,
    captured: Folder,
    pruned: Folder,
    *,
    seed: int,
    labels_only: bool = False,
) -> Stage:
    """Trains one student.

    Args:
        recipe: With a ``distill`` section.
        data: Training and validation rows.
        teacher: Asked itself where the student writes (``on_policy``).
        captured: What it said.
        pruned: The student to train.
        seed: Of the order of rows and of dropout.
        labels_only: Train on the data's completions, without the teacher: the baseline.
    """
    settings, task = recipe.distill, get_task(recipe.task)
    generation = recipe.generation or Generation()
    assert settings is not None
    losses: dict[str, Any] = {n: loss.model_dump() for n, loss in settings.losses.items()}
    if labels_only:
        losses = {"cross_entropy": 1.0}
    metric = recipe.target.metric or task.default_metric
    said = {
        **settings.model_dump(),
        "losses": losses,
        "on_policy": 0.0 if labels_only else settings.on_policy,
        "seed": seed,
        "metric": metric,
        "task": task.name,
        "generation": generation.model_dump(),
        "masked": recipe.prune is not None and recipe.prune.mask is not None,
        "options": model_options(recipe.student or recipe.teacher),
        "layers": {} if labels_only else hidden_layers(recipe, teacher_checkpoint(teacher.path)),
    }

    def work(context: Context) -> None:
        from ..distill.alignment import ULD
        from ..distill.language import token_terms
        from ..distill.language_rows import LanguageRows
        from ..distill.language_trainer import OnPolicy
        from ..distill.layer_terms import HIDDEN_MSE
        from ..distill.token_outputs import TokenOutputs

        rows = Data.open(context.inputs["data"])
        outputs = TokenOutputs(
            context.inputs["capture"],
            {"teacher": teacher.fingerprint, "data": rows.info["fingerprint"]},
        )
        terms = token_terms(losses)
        options = {**model_options(recipe.student or recipe.teacher)}
        student = load_model(context.inputs["prune"] / CHECKPOINT, task, **options)
        check_cost_known(student.config)
        asked = any(not term.needs_labels for term in terms)
        reads = asked and said["on_policy"] < 1  # else the student writes every row itself
        checkpoint = teacher_checkpoint(teacher.path)
        renumbered = kept_ids(context.inputs["prune"], outputs)
        names = [term.name for term in terms]
        shared = spans = None
        spelled = checkpoint or written_with(recipe)
        if asked and spelled is not None:
            found = shared_ids(tokenizer_before(recipe, student, renumbered), spelled, names)
            shared = found if renumbered is None else None
        if ULD in names:
            assert spelled is not None  # generation_rules asks for it
            spans, renumbered = spans_between(student, spelled), None
        folder = context.out / "training" / f"tokens-{context.world.rank}"
        dialogues = dialogues_of(student, rows, generation, settings.max_length)
        items = outputs.rows("train")
        if labels_only or outputs.manifest.get("over") != "generations":
            examples = examples_of(dialogues, rows, ["train"], folder)
        elif asked and spans is None:
            items = items[items >= 0]  # the others' log-probabilities could not be mapped
            if renumbered is not None:
                kept = spelled_by(outputs, items, renumbered)
                context.facts["not_in_vocabulary"] = len(items) - len(kept)
                items = kept
            examples = _written(outputs, items, renumbered, dialogues.max_length, folder)
        else:
            ended = finished(outputs, spelled)
            examples = _retold(outputs, items, ended, dialogues, rows, folder)
            items = items[items >= 0]
        live = policy = None
        if said["on_policy"]:
            live = live_teacher(recipe, checkpoint, renumbered is not None)
            eos = int(student.tokenizer.eos_token_id)
            policy = OnPolicy(settings.on_policy, generation.max_new_tokens, eos)
        adapters = with_adapters(student, settings.lora) if settings.lora else None
        zeros = Zeros.of(student) if said["masked"] else None
        trained_on = LanguageRows(
            examples,
            int(student.tokenizer.pad_token_id or 0),
            items=items if reads else None,
            outputs=outputs if reads else None,
            renumbered=renumbered,
            spans=spans,
            distributions=any(n not in (HIDDEN_MSE, "cross_entropy") for n in names),
            hidden_layers=sorted(set(said["layers"].values())),
        )
        if spans is not None:
            context.facts["aligned"] = trained_on.aligned(range(min(len(items), ALIGNED)))
        train_and_save(
            context,
            student,
            trained_on,
            terms,
            settings,
            AnswersValidation(
                rows,
                generation,
                metric_names(recipe.evaluate.metrics, metric),
                settings.precision,
            ),
            seed=seed,
            metric=metric,
            where="distill",
            teacher=live,
            shared=shared,
            on_policy=policy,
            layers=said["layers"],
            teacher_hidden=int(outputs.manifest.get("hidden_size", 0)),
            adapters=adapters,
            after_step=partial(zeros.keep, student) if zeros else None,
        )

    name = "distill-labels" if labels_only else "distill"
    inputs = {"data": data, "capture": captured, "prune": pruned}
    return Stage(name, "stage_distill_tokens", said, inputs, work, shared=True)


def kept_ids(pruned: Path, outputs: TokenOutputs) -> NDArray[np.int64] | None:
    """The student's id of each of the teacher's, −1 where a cut took it; None without a cut."""
    kept = (prune_report(pruned).get("index_map") or {}).get("vocabulary")
    if kept is None:
        return None
    size = max(int(outputs.manifest["vocabulary"] or 0), max(kept) + 1)
    found = np.full(size, -1, dtype=np.int64)
    found[np.asarray(kept)] = np.arange(len(kept))
    return found


def spelled_by(
    outputs: TokenOutputs, items: NDArray[np.int64], renumbered: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The items that the student has every token of.

    A teacher may spell a text in other tokens than its tokenizer does, and the cut saw the text.

    Raises:
        RunError: If there is none.
    """
    whole = [bool((renumbered[outputs.get([i])[0].ids] >= 0).all()) for i in items.tolist()]
    found: NDArray[np.int64] = items[np.asarray(whole, dtype=bool)]
    if not len(found):
        raise RunError(
            "Every completion that the teacher wrote has a token that prune.vocabulary cut from "
            "the student; leave prune.vocabulary out, or learn the references (capture.over)."
        )
    return found


def written_with(recipe: Recipe) -> Path | None:
    """The folder of the tokenizer that a teacher without a checkpoint was mapped with, if any."""
    name = recipe.teacher.tokenizer
    return None if name is None else find_checkpoint(name)


def tokenizer_before(recipe: Recipe, student: TextModel, renumbered: Any) -> Any:
    """The student's tokenizer, as it was before a cut of its vocabulary gave it other ids."""
    if renumbered is None or recipe.student is None:
        return student.tokenizer if renumbered is None else None
    return load_tokenizer(find_checkpoint(recipe.student.model, recipe.student.revision))


def shared_ids(student: Any, teacher: Path, losses: list[str]) -> int | None:
    """How many ids, from 0, student and teacher share.

    Args:
        student: Its tokenizer; None where it is the teacher's.
        teacher: The folder of the teacher's.
        losses: What the student learns by.

    Raises:
        RecipeError: If the tokenizers differ and a loss compares token with token.
    """
    from ..distill.alignment import check_losses, match_vocabularies

    theirs = load_tokenizer(teacher)
    match = match_vocabularies(theirs if student is None else student, theirs)
    check_losses(losses, match)
    return match.shared


def live_teacher(recipe: Recipe, checkpoint: Path | None, renumbered: bool) -> TextModel:
    """The teacher itself, to score what the student writes.

    Raises:
        RecipeError: If the student's ids are not the teacher's.
    """
    if renumbered:
        raise RecipeError(
            "distill.on_policy: the teacher scores what the student writes, token by token, and "
            "prune.vocabulary gives the student other ids; leave one out."
        )
    assert checkpoint is not None  # generation_rules asks for one
    return load_model(checkpoint, get_task(recipe.task), **model_options(recipe.teacher))


def spans_between(student: TextModel, teacher: Path) -> ByteSpans:
    """What aligns the student's tokens with those that the teacher's outputs are of."""
    from ..distill.byte_spans import ByteSpans

    return ByteSpans(student.tokenizer, load_tokenizer(teacher))


def finished(outputs: TokenOutputs, spelled: Path | None) -> NDArray[np.bool_]:
    """Whether each item's text is all that the teacher had to say, (items,).

    Args:
        outputs: What it wrote.
        spelled: The folder of the tokenizer that recorded ids are of; there may be none.
    """
    last = outputs.last_ids()
    found = np.ones(len(last), dtype=bool)
    if spelled is not None:
        found = (last < 0) | (last == int(load_tokenizer(spelled).eos_token_id))
    if UNFINISHED in outputs.streams:
        found[outputs.rows(UNFINISHED)] = False
    return found


def _retold(
    outputs: TokenOutputs,
    items: NDArray[np.int64],
    ended: NDArray[np.bool_],
    dialogues: Dialogues,
    data: Data,
    folder: Path,
) -> Examples:
    """The texts that the teacher wrote, in the student's tokens."""
    from ..distill.examples import Examples

    def every() -> Any:
        prompts = data.split("train")["prompt"]
        for row, (prompt, item) in enumerate(zip(prompts, items.tolist(), strict=True)):
            if item < 0:
                continue
            (record,) = outputs.get([item])
            whole = bool(ended[item])
            yield dialogues.example(
                prompt, record.text or "", f"Training row {row}", finished=whole
            )

    return Examples(every(), folder)


def _written(
    outputs: TokenOutputs,
    items: NDArray[np.int64],
    renumbered: NDArray[np.int64] | None,
    longest: int,
    folder: Path,
) -> Examples:
    """What the teacher wrote, as tokens on disk."""
    from ..distill.examples import Examples

    def every() -> Any:
        for row, item in enumerate(items.tolist()):
            (record,) = outputs.get([item])
            if len(record.ids) > longest:
                raise RunError(
                    f"Training row {row}: the teacher's completion ends behind {len(record.ids)} "
                    f"tokens and the student's maximum length is {longest}; lower "
                    "generation.max_new_tokens, or raise distill.max_length."
                )
            ids = np.asarray(record.ids)
            mask = np.zeros(len(ids), dtype=int)
            mask[record.positions] = 1
            ids = ids if renumbered is None else renumbered[ids]
            yield Example(ids.tolist(), mask.tolist(), False)

    return Examples(every(), folder)


def with_adapters(model: TextModel, settings: Lora) -> LoraModel:
    """Puts low-rank adapters (arXiv 2106.09685) into a model; they alone are trained.

    Returns:
        What merges them again.
    """
    from peft import LoraConfig, LoraModel, TaskType

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft divides it, whole or not
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
    )
    try:
        return LoraModel(model.backbone, config, "default")
    except ValueError as error:
        raise RecipeError(f"distill.lora: {error}") from error
