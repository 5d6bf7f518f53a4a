"""Answers of a language model, many prompts at a time: greedy unless told otherwise.

Greedy means the likeliest token each time, whatever a checkpoint's ``generation_config.json`` asks
for: of that file only the tokens that end an answer are read, never its sampling or its penalties.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .batching import token_batches
from .errors import DataError, RecipeError, nearest
from .models import TextModel, autocast, context_length
from .next_token import stock_model

if TYPE_CHECKING:
    from transformers import GenerationConfig

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
OURS = (
    *("max_new_tokens", "max_length", "eos_token_id", "pad_token_id", "bos_token_id", "use_cache"),
    *("num_return_sequences", "return_dict_in_generate", "output_scores", "output_logits"),
)
KEEP = 0.8
"""Finished rows leave a batch once no more than this share of it is unfinished."""

_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        ids: Its tokens, without the one that ended it.
        text: The same as text, special tokens left out.
        finished: Whether the model ended it, rather than the limit of its length.
    """

    ids: list[int]
    text: str
    finished: bool


def generate(
    model: TextModel,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    precision: str = "fp32",
    batch_tokens: int = 8192,
    settings: Mapping[str, Any] = _NONE,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Lets a model answer prompts, in batches of like length, with a cache of keys and values.

    Prompts are padded on the left, whatever the tokenizer's side, and a row's answer does not
    depend on the others in its batch but for rounding. An answer also ends where the model's
    context does.

    Args:
        model: With the signal ``token_distribution``.
        prompts: Token ids of each prompt (`dialogues.Dialogues.prompt_ids`).
        max_new_tokens: Tokens of an answer, at most.
        precision: ``fp32``, or ``bf16``/``fp16`` under autocast.
        batch_tokens: Rows × tokens of the longest prompt with its answer in a batch, at most.
        settings: Empty for greedy; else what transformers' ``GenerationConfig`` takes, such as
            ``temperature`` (which then samples) or ``num_beams``.
        seed: Of sampling. What is sampled also depends on ``batch_tokens``.
        progress: Called with the number of rows of each finished batch.

    Returns:
        One answer for each prompt, in their order.

    Raises:
        RecipeError: If a setting is unknown or has no effect, or nothing can end an answer.
        DataError: If a prompt is empty or fills the model's context.
    """
    if model.signal != "token_distribution":
        raise RecipeError(f"Only a language model generates; this one gives {model.signal}.")
    if max_new_tokens < 1:
        raise RecipeError(f"max_new_tokens: expected at least 1, got {max_new_tokens}.")
    config = _configured(model, settings)
    limits = _limits(model, prompts, max_new_tokens)
    sizes = [len(ids) + limit for ids, limit in zip(prompts, limits, strict=True)]
    answer = _greedy if config is None and _steps(model) else _stock
    answers: list[Generated] = [Generated([], "", False)] * len(prompts)
    was_training = model.training
    model.eval()
    device = model.backbone.device
    try:
        with _seeded(device, seed), torch.inference_mode():
            for index in token_batches(sizes, batch_tokens):
                some = index.tolist()
                ids, mask = _padded([prompts[i] for i in some], model)
                with autocast(device, precision):
                    found = answer(model, ids, mask, [limits[i] for i in some], config)
                for i, tokens in zip(some, found, strict=True):
                    answers[i] = _decoded(model, tokens)
                if progress is not None:
                    progress(len(some))
    finally:
        model.train(was_training)
    return answers


def _limits(model: TextModel, prompts: Sequence[list[int]], max_new_tokens: int) -> list[int]:
    """Tokens that each answer may have; the context may leave fewer than asked for."""
    context = context_length(model.config)
    limits = [min(max_new_tokens, context - len(ids)) for ids in prompts]
    for row, (ids, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not ids or limit < 1:
            raise DataError(
                f"Row {row}: the prompt has {len(ids)} tokens and the model's context {context}; "
                "expected at least 1, and room for an answer. Shorten it or leave the row out."
            )
    return limits


def stop_tokens(model: TextModel) -> list[int]:
    """The tokens that end an answer: the generation config's, and the tokenizer's end of text.

    Raises:
        RecipeError: If there is none.
    """
    named = getattr(stock_model(model.backbone).generation_config, "eos_token_id", None)
    found = set(named if isinstance(named, list | tuple) else [named])
    found.add(model.tokenizer.eos_token_id)
    stops = sorted(int(token) for token in found if token is not None)
    if not stops:
        raise RecipeError(
            "Nothing ends an answer: neither the tokenizer nor generation_config.json names an "
            "end-of-text token (eos_token). Set tokenizer.eos_token and save the checkpoint again."
        )
    return stops


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuses what transformers' ``GenerationConfig`` does not have, or not in this combination.

    Raises:
        RecipeError: Naming the setting.
    """
    known = [name for name in vars(_generation_config()) if not name.startswith("_")]
    for name in settings:
        if name in OURS:
            raise RecipeError(f"The generation setting '{name}' is set by paredown; leave it out.")
        if name not in known:
            raise RecipeError(
                f"Unknown generation setting '{name}'.{nearest(name, known)} Known are those of "
                "transformers' GenerationConfig."
            )
    sampling = [name for name in SAMPLING if name in settings]
    if sampling and not settings.get("do_sample", True):
        raise RecipeError(f"'{sampling[0]}' has no effect with do_sample: false; leave one out.")
    _valid(settings, eos_token_id=[0], pad_token_id=0)


def _samples(settings: Mapping[str, Any]) -> bool:
    """Whether tokens are drawn: where it is said, or something says how."""
    return bool(settings.get("do_sample", any(name in settings for name in SAMPLING)))


def _valid(settings: Mapping[str, Any], **ids: Any) -> GenerationConfig:
    """The settings as transformers takes them."""
    try:
        made = _generation_config(**{**settings, "do_sample": _samples(settings)}, **ids)
        made.validate(strict=True)
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"The generation settings {dict(settings)} are refused: {error}"
        ) from error
    return made


def _configured(model: TextModel, settings: Mapping[str, Any]) -> GenerationConfig | None:
    """The settings as transformers takes them; None for greedy."""
    stops = stop_tokens(model)
    check_settings(settings)
    if not _samples(settings) and not set(settings) - {"do_sample"}:
        return None
    pad = model.tokenizer.pad_token_id
    return _valid(settings, eos_token_id=stops, pad_token_id=stops[0] if pad is None else pad)


def _generation_config(**settings: Any) -> GenerationConfig:
    import transformers

    make: Any = transformers.GenerationConfig
    made: GenerationConfig = make(**settings)
    return made


def _steps(model: TextModel) -> bool:
    """Whether the model can be run token by token here; others go through stock ``generate``."""
    backbone = stock_model(model.backbone)
    accepted = inspect.signature(backbone.forward).parameters
    needed = ("position_ids", "past_key_values", "logits_to_keep")
    stateful = getattr(backbone, "_is_stateful", False)
    return not stateful and all(name in accepted for name in needed)


def _padded(prompts: Sequence[list[int]], model: TextModel) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded on the left, (B, T) on the model's device."""
    longest = max(len(ids) for ids in prompts)
    ids = torch.full((len(prompts), longest), model.tokenizer.pad_token_id or 0)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    return ids.to(model.backbone.device), mask.to(model.backbone.device)


def _greedy(
    model: TextModel, ids: Tensor, mask: Tensor, limits: Sequence[int], _: GenerationConfig | None
) -> list[list[int]]:
    """The likeliest tokens, the one that ends an answer included.

    Rows that are done leave the batch, which stock ``generate`` computes to the end.
    """
    from transformers import DynamicCache

    device, backbone = ids.device, stock_model(model.backbone)
    stops = torch.tensor(stop_tokens(model), device=device)
    allowed = torch.tensor(limits, device=device)
    last = context_length(model.config) - 1
    written = torch.full((len(ids), max(limits)), -1, device=device)
    rows = torch.arange(len(ids), device=device)  # which rows are still in the batch
    open_rows = torch.ones(len(ids), dtype=torch.bool, device=device)
    cache = DynamicCache(config=model.config)
    tokens, positions = ids, (mask.cumsum(1) - 1).clamp(min=0)
    for step in range(max(limits)):
        out: Any = backbone(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = out.logits[:, -1].argmax(-1, keepdim=True)  # (B, 1)
        written[rows[open_rows], step] = tokens[open_rows, 0]
        open_rows &= ~torch.isin(tokens[:, 0], stops) & (allowed[rows] > step + 1)
        left = int(open_rows.sum())
        if not left:
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        # rows that are done and still here must not leave the table of positions
        positions = (positions[:, -1:] + 1).clamp(max=last)
        if left <= KEEP * len(rows):
            kept = open_rows.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, tokens, mask, positions = rows[kept], tokens[kept], mask[kept], positions[kept]
            open_rows = open_rows[kept]
    return [[token for token in row if token >= 0] for row in written.tolist()]


def _stock(
    model: TextModel,
    ids: Tensor,
    mask: Tensor,
    limits: Sequence[int],
    config: GenerationConfig | None,
) -> list[list[int]]:
    """What stock ``generate`` gives, the token that ends an answer included."""
    stops = stop_tokens(model)
    pad = model.tokenizer.pad_token_id
    made = config or _generation_config(
        do_sample=False, eos_token_id=stops, pad_token_id=stops[0] if pad is None else pad
    )
    made.max_new_tokens = max(limits)
    try:
        with _own_settings(model):
            found = stock_model(model.backbone).generate(
                input_ids=ids, attention_mask=mask, generation_config=made
            )
    except ValueError as error:  # some settings are checked only when they are used
        if config is None:
            raise
        raise RecipeError(f"The generation settings are refused: {error}") from error
    answers = []
    for row, limit in zip(found[:, ids.shape[1] :].tolist(), limits, strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
        answers.append(row[: min(end, limit)])
    return answers


@contextlib.contextmanager
def _own_settings(model: TextModel) -> Iterator[None]:
    """Runs a block without the checkpoint's generation config, which fills in what is not given."""
    backbone = stock_model(model.backbone)
    before = backbone.generation_config
    backbone.generation_config = _generation_config()
    try:
        yield
    finally:
        backbone.generation_config = before


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Runs a block with its own random numbers."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _decoded(model: TextModel, ids: list[int]) -> Generated:
    finished = bool(ids) and ids[-1] in stop_tokens(model)
    ids = ids[:-1] if finished else ids
    text = model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Generated(ids, str(text), finished)
