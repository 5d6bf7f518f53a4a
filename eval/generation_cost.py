"""What an answer costs: FLOPs of prompt and tokens, bytes of the cache, tokens a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .cost import ARCHITECTURES, LayerShape
from .errors import RecipeError
from .timing import Engine, measure

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def answer_flops(
    config: Any, prompt_tokens: ArrayLike, new_tokens: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Forward FLOPs of answers, each alone and unpadded, with a cache of keys and values.

    Prefill: all layers on the T tokens of the prompt, attention as the full square
    (`LayerShape.flops`), and the head over the vocabulary on the last one, which gives the first
    new token. Decode: each further token goes through the layers alone, attends to itself and all
    before it (within its window where a layer has one), and through the head: N − 1 such steps for
    N new tokens, as the last is not read again.

    Args:
        config: A transformers config of one of `cost.ARCHITECTURES`.
        prompt_tokens: Tokens T of each prompt, specials included, (n,).
        new_tokens: Tokens N that were written, the one that ended the answer included, (n,).

    Returns:
        FLOPs of prefill and of decode, each (n,) int64.

    Raises:
        RecipeError: If the architecture has no formula.
    """
    shape = _shape(config)
    prompts = np.asarray(prompt_tokens, dtype=np.int64)
    steps = np.maximum(np.asarray(new_tokens, dtype=np.int64) - 1, 0)
    head = 2 * shape.hidden * int(config.vocab_size)
    prefill = shape.flops(prompts) + head
    one = int(shape.flops(np.ones(1, np.int64))[0]) - 4 * shape.layers * shape.attention
    # attention is counted apart, by the keys it reads
    keys = np.zeros(np.broadcast(prompts, steps).shape, dtype=np.int64)
    for window in windows(config):
        keys += _keys_read(prompts, steps, window)
    return prefill, steps * (one + head) + 4 * shape.attention * keys


def cache_bytes(config: Any, tokens: ArrayLike, bytes_per_number: int) -> NDArray[np.int64]:
    """Bytes of keys and values that attention reads behind so many tokens.

    2 × KV heads × their width × bytes, for each layer and token; a layer with a sliding window
    holds no more tokens than that.

    Args:
        config: A transformers config of one of `cost.ARCHITECTURES`.
        tokens: Tokens of prompt and answer together, (n,).
        bytes_per_number: 4 for fp32, 2 for bf16 and fp16.

    Returns:
        (n,) int64.

    Raises:
        RecipeError: If the architecture has no formula.
    """
    shape = _shape(config)
    counts = np.asarray(tokens, dtype=np.int64)
    held = sum(counts if w is None else np.minimum(counts, w) for w in windows(config))
    return np.asarray(2 * shape.keys * bytes_per_number * held, dtype=np.int64)


def windows(config: Any) -> list[int | None]:
    """Tokens that each layer attends to at most; None for all.

    A config without ``layer_types`` has its window in every layer, as transformers' cache has it.
    """
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    kinds = kinds or ["sliding_attention"] * _shape(config).layers
    return [int(window) if window and kind == "sliding_attention" else None for kind in kinds]


def _keys_read(
    prompts: NDArray[np.int64], steps: NDArray[np.int64], window: int | None
) -> NDArray[np.int64]:
    """Keys that one layer reads in all steps: the sum of T + i, or of the window where smaller."""
    growing = steps if window is None else np.clip(window - prompts, 0, steps)
    read = growing * prompts + growing * (growing + 1) // 2
    return read if window is None else read + (steps - growing) * window


def check_cost_known(config: Any) -> None:
    """Refuses a model whose answers have no stated cost, before anything is trained.

    Raises:
        RecipeError: If the architecture has no formula.
    """
    _shape(config)


def _shape(config: Any) -> LayerShape:
    if config.model_type not in ARCHITECTURES:
        raise RecipeError(
            f"The cost of an answer of architecture '{config.model_type}' is not known by formula "
            f"(known: {', '.join(sorted(ARCHITECTURES))}); add its LayerShape to ARCHITECTURES."
        )
    return ARCHITECTURES[config.model_type](config)


def generation_engine(
    name: str,
    path: str,
    *,
    max_new_tokens: int,
    form: str = "text",
    template: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    model: Mapping[str, Any] | None = None,
) -> Engine:
    """A checkpoint that answers prompts, for `timing.measure`.

    Args:
        name: Its side in the measurements, such as ``teacher`` or ``student``.
        path: The checkpoint's folder.
        max_new_tokens: Tokens of an answer, at most.
        form: ``text`` or ``messages``, as `dialogues.Dialogues` has it.
        template: Further arguments of the chat template.
        precision: ``fp32``, or ``bf16`` under autocast.
        model: Options of `load_model`, such as ``max_length``.
    """
    options = {"max_new_tokens": max_new_tokens, "form": form, "precision": precision}
    options |= {"template": dict(template or {}), "model": dict(model or {})}
    return Engine(name, path, "paredown.eval.timing:load_generation", options)


def measure_generation(
    engines: Sequence[Engine],
    prompts: Sequence[str],
    *,
    threads: int = 1,
    runs: int = 50,
    rounds: int = 5,
    warmup: int = 3,
    batch: int = 32,
    offline_rows: int = 128,
    server_ms: float | None = None,
    timeout: float = 600.0,
) -> list[dict[str, Any]]:
    """Measures models that answer side by side: one prompt at a time, then in batches.

    Args:
        engines: Made by `generation_engine`.
        prompts: As the data's ``prompt`` column has them; used again where ``runs`` exceeds them.
        threads: Threads of each engine.
        runs: Prompts each engine answers singly, at least.
        rounds: Turns each engine takes in each scenario.
        warmup: Untimed prompts before an engine's first turn.
        batch: Prompts of a batch.
        offline_rows: Prompts of a turn in batches, at most.
        server_ms: What the 99th percentile of whole answers may take where prompts arrive at
            random; None does not look for the rate.
        timeout: Seconds a worker may take for one turn.

    Returns:
        As `timing.measure`: latency is from a prompt's text to the answer's, ``tokens_per_s``
        counts what was written, and ``ttft`` (time to first token, from a prompt's text to that
        token's id, in ms at ``p50``, ``p90`` and ``p99``) stands with single prompts.
    """
    return measure(
        engines,
        prompts,
        threads=threads,
        runs=runs,
        rounds=rounds,
        warmup=warmup,
        batch=batch,
        offline_rows=offline_rows,
        server_ms=server_ms,
        timeout=timeout,
    )
