"""A teacher made from nothing: its tokenizer trained on the training rows, its weights random."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from ..eval.byte_pairs import train_byte_pairs
from ..eval.data import Data
from ..eval.errors import RecipeError
from ..eval.models import no_loading_bar
from .schema import NewModel


def write_new_model(new: NewModel, data: Data, seed: int, folder: Path) -> None:
    """Saves the model as a stock checkpoint; one that is there already is kept.

    Args:
        new: Architecture, vocabulary and config.
        data: Whose training rows the tokenizer is trained on.
        seed: Of the weights.
        folder: Of the checkpoint.

    Raises:
        RecipeError: If transformers has no such architecture, or refuses its config.
    """
    import transformers

    if folder.exists():
        return
    if new.architecture not in transformers.CONFIG_MAPPING:
        raise RecipeError(
            f"teacher.new.architecture: transformers has no '{new.architecture}'; llama and qwen3 "
            "are common."
        )
    context = int(new.config.get("max_position_embeddings", 512))
    rows = data.split("train")
    texts = (text for name in ("prompt", "completion") for text in rows[name])
    tokenizer = train_byte_pairs(texts, new.vocabulary, context, new.words)
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    sizes: dict[str, Any] = {"max_position_embeddings": context, **new.config}
    try:
        config = transformers.AutoConfig.for_model(
            new.architecture, vocab_size=len(tokenizer), **ids, **sizes
        )
        with torch.random.fork_rng(), no_loading_bar():
            torch.manual_seed(seed)
            auto: Any = transformers.AutoModelForCausalLM
            model = auto.from_config(config)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"teacher.new.config: {error}") from error
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with no_loading_bar():
        model.save_pretrained(str(part))
    tokenizer.save_pretrained(str(part))
    part.rename(folder)
