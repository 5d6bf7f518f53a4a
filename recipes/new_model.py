"""A teacher made from nothing: its tokenizer trained on the training rows, its weights random."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from ..eval.byte_pairs import train_byte_pairs
from ..eval.data import Data
from ..eval.errors import RecipeError, nearest
from ..eval.models import no_loading_bar
from .schema import NewModel

ALSO_READ = ("head_dim",)
"""What layers ask a config for where its class has no such field (qwen2)."""


def write_new_model(new: NewModel, data: Data, seed: int, folder: Path) -> None:
    """Saves the model as a stock checkpoint; one that is there already is kept.

    Args:
        new: Architecture, vocabulary and config.
        data: Whose training rows the tokenizer is trained on.
        seed: Of the weights.
        folder: Of the checkpoint.

    Raises:
        RecipeError: If transformers has no such architecture, or not such a config.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

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
    _check_names(new)
    try:
        config = transformers.AutoConfig.for_model(
            new.architecture, vocab_size=len(tokenizer), **ids, **sizes
        )
        with torch.random.fork_rng(), no_loading_bar():
            torch.manual_seed(seed)
            auto: Any = transformers.AutoModelForCausalLM
            model = auto.from_config(config)
    except (ValueError, TypeError, ZeroDivisionError, StrictDataclassError) as error:
        said = str(error.__cause__ or error)
        raise RecipeError(f"teacher.new.config: {new.architecture} refuses it: {said}") from error
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with no_loading_bar():
        model.save_pretrained(str(part))
    tokenizer.save_pretrained(str(part))
    part.rename(folder)


def _check_names(new: NewModel) -> None:
    """Refuses names that the config has not: transformers would keep and ignore them.

    Raises:
        RecipeError: Naming the first, and the nearest that there is.
    """
    import transformers

    known = transformers.CONFIG_MAPPING[new.architecture]()
    for name in new.config:
        if name not in ALSO_READ and not hasattr(known, name):
            raise RecipeError(
                f"teacher.new.config.{name}: the config of {new.architecture} has no such field."
                f"{nearest(name, known.to_dict())}"
            )
