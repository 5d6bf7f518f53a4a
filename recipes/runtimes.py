"""Shapes that stock transformers holds and llama.cpp or vLLM do not, or not as well.

Read from their sources, and said only where these say it:

- Qwen2 with a ``head_dim`` of its own. vLLM computes it as hidden size // heads
  (``vllm/model_executor/models/qwen2.py``, cb24295e), and llama.cpp takes the query and output
  projections as hidden × hidden (``LLM_ARCH_QWEN2`` and ``QWEN2MOE`` in ``src/llama-model.cpp``,
  00342301), while its converter writes the ``head_dim``. Llama, Mistral and Qwen3 have it in both.
- Gemma 3 with other than every sixth layer attending to all: llama.cpp sets that pattern itself
  (``set_swa_pattern(6)`` of ``LLM_ARCH_GEMMA3``, same file), whatever the config says.
- Widths that are no multiple of a quantised block: llama.cpp's K-quants take 256 columns at a time
  and fall back to a larger type; where 32 do not divide it either, to 16 bits
  (``llama_tensor_get_type`` in ``src/llama-quant.cpp``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OWN_HEAD_DIM = ("qwen2", "qwen2_moe")
"""Architectures whose ``head_dim`` both runtimes derive from hidden size and heads."""
GEMMA_PERIOD = 6
LARGE_BLOCK, SMALL_BLOCK = 256, 32


def runtime_notes(config: Mapping[str, Any]) -> list[str]:
    """What a reader who serves the student should know.

    Args:
        config: The content of a checkpoint's ``config.json``.

    Returns:
        Sentences; none where nothing is known against the shape.
    """
    return [*_head_dim(config), *_pattern(config), *_blocks(config)]


def _heads(config: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Hidden size, query heads and their width, where the config names them so."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not hidden or not heads:
        return None
    return int(hidden), int(heads), int(config.get("head_dim") or hidden // heads)


def _head_dim(config: Mapping[str, Any]) -> Iterator[str]:
    found = _heads(config)
    if found is None or config.get("model_type") not in OWN_HEAD_DIM:
        return
    hidden, heads, width = found
    if heads * width != hidden:
        yield (
            f"{heads} heads of {width} are not the hidden size {hidden}: transformers reads this "
            f"{config['model_type']}'s head_dim, vLLM and llama.cpp do not, and refuse the "
            "weights. To serve it there, keep the heads, or cut hidden_size in their proportion."
        )


def _pattern(config: Mapping[str, Any]) -> Iterator[str]:
    kinds = config.get("layer_types")
    if config.get("model_type") not in ("gemma3_text", "gemma3") or not kinds:
        return
    fixed = ["full_attention" if (i + 1) % GEMMA_PERIOD == 0 else "sliding_attention"
             for i in range(len(kinds))]  # fmt: skip
    if list(kinds) != fixed:
        full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        yield (
            f"The layers that attend to all are {full or 'none'}, and llama.cpp takes every "
            f"{GEMMA_PERIOD}th of a Gemma 3 to be one, whatever the config says: it would compute "
            "another model. transformers reads the config."
        )


def _blocks(config: Mapping[str, Any]) -> Iterator[str]:
    found = _heads(config)
    widths = {"intermediate_size": config.get("intermediate_size")}
    if found is not None:
        hidden, heads, width = found
        widths = {"hidden_size": hidden, "heads × head_dim": heads * width, **widths}
    known = {name: int(width) for name, width in widths.items() if isinstance(width, int)}
    odd = {name: width for name, width in known.items() if width % LARGE_BLOCK}
    if not odd:
        return
    said = ", ".join(f"{name} {width}" for name, width in odd.items())
    text = (
        f"No multiple of {LARGE_BLOCK}: {said}. llama.cpp's K-quants keep such matrices in a "
        "larger type (Q4_K becomes Q5_0)"
    )
    small = [name for name, width in odd.items() if width % SMALL_BLOCK]
    if small:
        text += f", and those of {', '.join(small)}, no multiple of {SMALL_BLOCK}, in 16 bits"
    yield f"{text}; files in full precision are as they are."
