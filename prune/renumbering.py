"""A fast tokenizer with some of its tokens, renumbered, through its own files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..eval.errors import RecipeError
from ..eval.models import load_tokenizer
from .subwords import subwords_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Where a post-processor says ids, by its type; the others hold none.
_PLAIN = frozenset({"ByteLevel"})
_PAIRS = frozenset({"BertProcessing", "RobertaProcessing"})


def renumbered(tokenizer: PreTrainedTokenizerFast, kept: Sequence[int]) -> PreTrainedTokenizerFast:
    """Makes the tokenizer of a cut vocabulary.

    Args:
        tokenizer: Is not changed.
        kept: Old ids, ascending; the place in the list is the new id.

    Returns:
        A tokenizer loaded from its files the way a stock checkpoint's is.

    Raises:
        RecipeError: If a part of the tokenizer is of an unknown kind.
    """
    place = {old: new for new, old in enumerate(kept)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        tokenizer.save_pretrained(folder)
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        for name in ("vocab.txt", "vocab.json", "merges.txt"):  # tokenizer.json holds them all
            (path / name).unlink(missing_ok=True)
        _write(path / "tokenizer.json", _renumber(spec, place))
        config_path = path / "tokenizer_config.json"
        config = json.loads(config_path.read_text(encoding="utf-8"))
        if decoder := config.get("added_tokens_decoder"):
            config["added_tokens_decoder"] = {
                str(place[int(i)]): token for i, token in decoder.items() if int(i) in place
            }
            _write(config_path, config)
        smaller = load_tokenizer(path)
    # The folder is gone: neither the name nor a later save may speak of it.
    smaller.name_or_path = tokenizer.name_or_path
    smaller.init_kwargs = {
        k: v for k, v in smaller.init_kwargs.items() if not str(v).startswith(folder)
    }
    return smaller


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _renumber(spec: dict[str, Any], place: dict[int, int]) -> dict[str, Any]:
    new = {**spec, "model": subwords_of(spec).smaller(place), "truncation": None, "padding": None}
    new["added_tokens"] = [
        {**token, "id": place[token["id"]]}
        for token in spec["added_tokens"]
        if token["id"] in place
    ]
    new["post_processor"] = _processor(spec["post_processor"], place)
    return new


def _processor(step: dict[str, Any] | None, place: dict[int, int]) -> dict[str, Any] | None:
    if step is None or step["type"] in _PLAIN:
        return step
    if step["type"] == "Sequence":
        return {**step, "processors": [_processor(one, place) for one in step["processors"]]}
    if step["type"] in _PAIRS:
        return {**step, **{key: [step[key][0], place[step[key][1]]] for key in ("sep", "cls")}}
    if step["type"] == "TemplateProcessing":
        tokens = {
            name: {**token, "ids": [place[i] for i in token["ids"]]}
            for name, token in step["special_tokens"].items()
        }
        return {**step, "special_tokens": tokens}
    raise RecipeError(
        f"The tokenizer's post-processor {step['type']} cannot be renumbered; leave "
        "`prune.vocabulary` out."
    )
