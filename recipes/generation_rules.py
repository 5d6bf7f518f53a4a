"""What a recipe for generation must say, and what only such a recipe can say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..eval.errors import RecipeError
from ..eval.tasks import get_task
from .problem import Problem

if TYPE_CHECKING:
    from ..distill.endpoint_settings import EndpointSettings
    from .schema import Recipe

TOP_K, DRAWS = 32, 50
"""What `topk` and `sampled` keep by themselves."""


def generates(recipe: Recipe) -> bool:
    """Whether the recipe's task is answered in tokens."""
    return get_task(recipe.task).signal == "token_distribution"


def generation_problems(recipe: Recipe) -> Iterator[Problem]:
    """Finds every contradiction that has to do with generation."""
    if not generates(recipe):
        yield from _only_generation(recipe)
        return
    yield from _teacher(recipe)
    yield from _capture(recipe)
    yield from _distill(recipe)
    yield from _settings(recipe)
    if recipe.budget is not None:
        yield Problem(
            ("budget",),
            "the search compares classes and rankings, not answers in text; give prune's sizes.",
        )
    if recipe.prune is not None and recipe.prune.rounds > 1:
        yield Problem(("prune", "rounds"), "are not healed for generation yet; leave it at 1.")


def _only_generation(recipe: Recipe) -> Iterator[Problem]:
    given: dict[tuple[str, ...], Any] = {
        ("generation",): recipe.generation,
        ("teacher", "new"): recipe.teacher.new,
        ("teacher", "endpoint"): recipe.teacher.endpoint,
        ("teacher", "tokenizer"): recipe.teacher.tokenizer,
        **{
            ("capture", name): getattr(recipe.capture, name)
            for name in ("encoding", "k", "draws", "hidden_rank", "over")
        },
    }
    if recipe.distill is not None:
        given[("distill", "on_policy")] = recipe.distill.on_policy or None
        given[("distill", "lora")] = recipe.distill.lora
    for path, value in given.items():
        if value is not None:
            yield Problem(path, f"is for task generation; this is {recipe.task}. Leave it out.")
    if recipe.teacher.kind == "endpoint":
        yield Problem(("teacher", "kind"), f"an endpoint answers in text; this is {recipe.task}.")


def _teacher(recipe: Recipe) -> Iterator[Problem]:
    teacher = recipe.teacher
    if teacher.kind == "checkpoint":
        if teacher.new is not None and teacher.model is not None:
            yield Problem(("teacher",), "both model and new are given; keep one.")
        if teacher.new is not None and teacher.finetune is None:
            yield Problem(("teacher", "new"), "has random weights: add teacher.finetune.")
    if teacher.files is not None and teacher.files.validation is not None:
        yield Problem(
            ("teacher", "files", "validation"),
            "the student is validated on the rows' own completions; leave it out.",
        )
    if teacher.kind == "endpoint":
        if teacher.endpoint is None:
            yield Problem(("teacher",), "kind endpoint needs endpoint, with a base_url.")
        if teacher.model is None:
            yield Problem(("teacher", "model"), "is missing: what the server calls the model.")
        for name in ("files", "new", "finetune", "revision", "attn_implementation"):
            if getattr(teacher, name) is not None:
                yield Problem(("teacher", name), "an endpoint has no use for it; leave it out.")
        if recipe.student is None:
            yield Problem(
                ("teacher", "kind"), "an endpoint leaves nothing to prune: add student.model."
            )
        yield from _server(recipe)
    elif teacher.endpoint is not None:
        yield Problem(("teacher", "endpoint"), "only for kind: endpoint.")
    scored = teacher.endpoint is not None and teacher.endpoint.top_logprobs > 0
    if scored and teacher.tokenizer is None:
        yield Problem(
            ("teacher", "tokenizer"),
            "is missing: log-probabilities come as text, and it maps them to token ids.",
        )
    if teacher.tokenizer is not None and teacher.kind == "checkpoint":
        yield Problem(("teacher", "tokenizer"), "a checkpoint has its own; leave it out.")
    if teacher.tokenizer is not None and teacher.endpoint is not None and not scored:
        yield Problem(
            ("teacher", "tokenizer"), "maps log-probabilities; set teacher.endpoint.top_logprobs."
        )


def server_settings(recipe: Recipe) -> EndpointSettings:
    """How the endpoint is asked.

    Raises:
        RecipeError: If it cannot be, or the address holds what might be a secret; a line for each.
    """
    from ..distill.endpoint_settings import EndpointSettings
    from .schema import Generation

    teacher, generation = recipe.teacher, recipe.generation
    assert teacher.endpoint is not None and teacher.model is not None
    values = teacher.endpoint.model_dump()
    if values["max_tokens"] is None:
        values["max_tokens"] = (generation or Generation()).max_new_tokens
    return EndpointSettings(model=teacher.model, **values)


def _server(recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with an endpoint's settings, before any of them is written to a file."""
    endpoint = recipe.teacher.endpoint
    if endpoint is None or recipe.teacher.model is None:
        return
    try:
        settings = server_settings(recipe)
        # A key that is not set yet is asked for when the recording starts.
        if endpoint.key_env is not None and os.environ.get(endpoint.key_env):
            settings.key()
    except RecipeError as error:
        for line in str(error).splitlines():
            named = re.match(r"teacher\.endpoint\.(\w+) ", line)
            path = ("teacher", "endpoint", *([named[1]] if named else []))
            yield Problem(path, line[named.end() :] if named else line)


def _capture(recipe: Recipe) -> Iterator[Problem]:
    capture, kind = recipe.capture, recipe.teacher.kind
    if capture.k is not None and capture.encoding not in (None, "topk"):
        yield Problem(("capture", "k"), f"is for encoding topk, not {capture.encoding}.")
    if capture.draws is not None and capture.encoding != "sampled":
        yield Problem(("capture", "draws"), "is for encoding sampled; say so, or leave it out.")
    if kind == "checkpoint":
        return
    if capture.over is not None:
        yield Problem(
            ("capture", "over"), f"a teacher of kind {kind} has answered already; leave it out."
        )
    if capture.encoding in ("full", "sampled"):
        yield Problem(
            ("capture", "encoding"),
            f"{capture.encoding} needs whole distributions, which kind {kind} does not give: "
            "topk, or text.",
        )
    if capture.encoding == "topk" and _gives_texts(recipe):
        needed = "teacher.endpoint.top_logprobs above 0"
        if kind == "recorded":
            needed = "teacher.tokenizer, of which the log-probabilities on file are"
        yield Problem(("capture", "encoding"), f"topk needs {needed}.")


def _distill(recipe: Recipe) -> Iterator[Problem]:
    distill = recipe.distill
    if distill is None:
        return
    if distill.on_policy and recipe.teacher.kind != "checkpoint":
        yield Problem(
            ("distill", "on_policy"),
            f"a live teacher scores what the student writes, and kind {recipe.teacher.kind} is "
            "none; leave it out.",
        )
    if distill.on_policy and set(distill.losses) == {"cross_entropy"}:
        yield Problem(
            ("distill", "on_policy"),
            "cross_entropy learns the reference's tokens, and what a student writes has none; add "
            "a divergence such as jsd.",
        )
    yield from _apart(recipe)
    reads_teacher = set(distill.losses) - {"cross_entropy", "hidden_mse"}
    texts_only = recipe.capture.encoding == "text" or _gives_texts(recipe)
    if texts_only and reads_teacher and distill.on_policy < 1:
        yield Problem(
            ("distill", "losses", sorted(reads_teacher)[0]),
            "compares token distributions, and only texts are recorded: set capture.encoding topk "
            "(of an endpoint, teacher.endpoint.top_logprobs; of recorded answers, "
            "teacher.tokenizer), or learn by cross_entropy alone.",
        )
    if recipe.prune is not None and recipe.prune.mask is not None and distill.lora is not None:
        yield Problem(
            ("distill", "lora"), "adds to weights that prune.mask keeps at zero; leave one out."
        )


def _settings(recipe: Recipe) -> Iterator[Problem]:
    """What transformers would refuse of how answers are made, once a model is there."""
    if recipe.generation is None or not recipe.generation.settings:
        return
    from ..eval.generating import check_settings

    try:
        check_settings(recipe.generation.settings)
    except RecipeError as error:
        yield Problem(("generation", "settings"), str(error))


def _gives_texts(recipe: Recipe) -> bool:
    """Whether nothing is said of distributions: not asked for, or no tokenizer to read them."""
    teacher = recipe.teacher
    if teacher.kind == "recorded":
        return teacher.tokenizer is None
    return teacher.endpoint is not None and teacher.endpoint.top_logprobs == 0


def _apart(recipe: Recipe) -> Iterator[Problem]:
    """What the losses ask for that do not compare token by token."""
    distill, capture = recipe.distill, recipe.capture
    assert distill is not None
    for name in ("uld", "hidden_mse"):
        if name in distill.losses and distill.on_policy:
            yield Problem(
                ("distill", "on_policy"),
                f"{name} reads what was recorded, and nothing is of what the student writes; leave "
                "one of them out.",
            )
    if "hidden_mse" in distill.losses and recipe.teacher.kind != "checkpoint":
        yield Problem(
            ("distill", "losses", "hidden_mse"),
            f"compares hidden states, which a teacher of kind {recipe.teacher.kind} does not give; "
            "leave it out.",
        )
    if "hidden_mse" not in distill.losses and capture.hidden_rank is not None:
        yield Problem(
            ("capture", "hidden_rank"), "hidden states are recorded for hidden_mse alone: add it."
        )
    if "uld" not in distill.losses:
        return
    path = ("distill", "losses", "uld")
    if recipe.student is None:
        yield Problem(
            path,
            "is for a teacher with another tokenizer, and this student is cut from the teacher: "
            "add student.model, or use forward_kl.",
        )
    if capture.encoding == "sampled":
        yield Problem(path, "compares probabilities in order of size: capture.encoding topk, full.")
    warm = distill.losses["uld"].options.get("temperature", 1) != 1
    if warm and capture.encoding != "full":
        yield Problem((*path, "temperature"), "other than 1 needs capture.encoding full.")


def capture_defaults(recipe: Recipe) -> dict[str, Any]:
    """How token distributions are recorded, written out."""
    capture = recipe.capture
    encoding = capture.encoding or ("text" if _gives_texts(recipe) else "topk")
    return {
        "encoding": encoding,
        "k": (capture.k or TOP_K) if encoding == "topk" else None,
        "draws": (capture.draws or DRAWS) if encoding == "sampled" else None,
        "over": (capture.over or "references") if recipe.teacher.kind == "checkpoint" else None,
    }


def encoding_spec(capture: Any) -> dict[str, Any] | None:
    """What `distill.token_encoding` is asked for; None where only texts are kept."""
    if capture.encoding == "text":
        return None
    spec = {"encoding": capture.encoding, "k": capture.k, "draws": capture.draws}
    return {name: value for name, value in spec.items() if value is not None}
