"""The whole of a cut: checks, calibration, choice, fit, vocabulary, surgery, and its facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..eval.errors import RecipeError
from ..eval.models import TextModel
from .anatomy import anatomy_of
from .calibration import drawn_sample
from .fitting import Calibrated
from .plan import Cut, IndexMap
from .scores import Loss
from .sizes import checked_sizes
from .surgery import cut
from .vocabulary import PrunedVocabulary, prune_vocabulary


@dataclass(frozen=True)
class Pruned:
    """A cut model.

    Attributes:
        model: Smaller, and a stock checkpoint once saved.
        index_map: What was kept, in the original's numbering, as `Cut` has it; an axis that was
            not cut is absent. Where the hidden space was turned first, ``hidden`` counts its
            principal directions.
        facts: For the report, made of JSON's types: shapes and parameters before and after, the
            distance to the original as cut and as fitted on held-out calibration rows, layer
            scores, rounding, vocabulary.
    """

    model: TextModel
    index_map: IndexMap
    facts: dict[str, Any] = field(default_factory=dict)


def prune_model(
    model: TextModel,
    texts: Sequence[str],
    *,
    roles: str | Sequence[str] | None = None,
    pairs: Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    intermediate_size: int | None = None,
    attention_heads: int | None = None,
    kv_heads: int | None = None,
    hidden_size: int | None = None,
    experts: int | None = None,
    vocabulary: Literal["task"] | None = None,
    vocabulary_texts: Iterable[str] | None = None,
    importance: str | None = None,
    loss: Loss | None = None,
    compensate: bool = True,
    calibration_rows: int = 1024,
    round_to: int | None = None,
    seed: int = 0,
    precision: str = "fp32",
) -> Pruned:
    """Cuts a model down to a smaller stock model.

    Args:
        model: Is not changed.
        texts: Of the task's training rows, to calibrate on; a seeded sample is read.
        roles: The role of all texts (``query`` …) or of each.
        pairs: The second text of each row, or None.
        layers: How many to keep, or which ones; None for all.
        intermediate_size: FFN channels to keep of each layer; None for all.
        attention_heads: Query heads to keep of each layer; None for all.
        kv_heads: Key and value heads to keep of each layer, with their query heads; None for all.
        hidden_size: Channels of the residual stream to keep; None for all. Where heads are as wide
            as hidden size ÷ heads, whole heads go with it.
        experts: To keep of each layer that has some; None for all.
        vocabulary: ``task`` to keep the tokens that ``vocabulary_texts`` use; None for all.
        vocabulary_texts: Streamed; the calibration's texts if None.
        importance: A criterion of `criteria.CRITERIA` that chooses what is kept; None for what can
            best be written by what stays.
        loss: For the criteria that ask one.
        compensate: Whether what remains is fitted to what was cut, where that comes nearer to the
            original on held-out rows. Nothing is fitted to layers or experts that a mixture lost.
        calibration_rows: Rows to fit on, at most; fewer where they would have more than
            `calibration.MAX_TOKENS` tokens, whose states are held in memory.
        round_to: FFN and hidden width are rounded to a multiple of this; None for 8, or 64 for
            models of over 100 M parameters.
        seed: Of the sample.
        precision: Of forward passes: ``fp32``, ``bf16`` or ``fp16``. Fits are in float64.

    Raises:
        RecipeError: If the architecture cannot be cut so, or a cut would have no effect.
    """
    anatomy = anatomy_of(model.config)
    if len(anatomy.stacks) > 1:
        raise RecipeError(
            f"A {anatomy.model_type} is an encoder and a decoder; calibration runs one stack of "
            "layers: choose what is kept yourself, and cut it with `cut_backbone`."
        )
    parameters = sum(p.numel() for p in model.parameters())
    asked = {
        "layers": layers,
        "intermediate_size": intermediate_size,
        "attention_heads": attention_heads,
        "kv_heads": kv_heads,
        "hidden_size": hidden_size,
        "experts": experts,
    }
    sizes = checked_sizes(anatomy, model.config, parameters, asked, round_to)
    if importance is not None and not sizes.any:
        raise RecipeError("`prune.importance` chooses what is kept, and no size is cut.")
    if not sizes.any and vocabulary is None:
        raise RecipeError(f"Nothing to cut: give `prune.{'`, `prune.'.join(anatomy.axes)}`.")
    before = anatomy.sizes(model.config)
    facts: dict[str, Any] = {"shapes": {"before": before}, "parameters": {"before": parameters}}
    source = model
    what = last = Cut()
    if sizes.any:
        drawn = drawn_sample(model, texts, pairs, roles, calibration_rows, seed)
        rows, held = drawn.fitting, drawn.held
        calibrated = Calibrated(model, anatomy, rows, held, precision, importance, loss)
        source, what, last = calibrated.prune(sizes, compensate, facts)
        facts["calibration"]["dropped_rows"] = drawn.dropped
        del calibrated  # what it holds is no longer needed
    smaller: PrunedVocabulary | None = None
    if vocabulary is not None:
        smaller = _vocabulary(model, before["vocabulary"], vocabulary_texts, texts, facts)
        what = dataclasses.replace(what, vocabulary=smaller.kept)
        last = dataclasses.replace(last, vocabulary=smaller.kept)
    if sizes.rounded:
        facts["rounded"] = sizes.rounded
    result = source
    if last != Cut():
        result, _ = cut(source, last, smaller.tokenizer if smaller else None)
    facts["shapes"]["after"] = anatomy.sizes(result.config)
    facts["parameters"]["after"] = sum(p.numel() for p in result.parameters())
    return Pruned(result, what.index_map(), facts)


def _vocabulary(
    model: TextModel,
    size: int,
    texts: Iterable[str] | None,
    calibration: Sequence[str],
    facts: dict[str, Any],
) -> PrunedVocabulary:
    specials = [
        value
        for name, value in vars(model.config).items()
        if name.endswith("_token_id") and isinstance(value, int)
    ]
    if anatomy_of(model.config).positions_follow_padding:
        specials += range(int(model.config.pad_token_id or 0) + 1)
    found = prune_vocabulary(
        model.tokenizer,
        calibration if texts is None else texts,
        size=size,
        prompts=model.encoding.prompts.values(),
        also=specials,
    )
    facts["vocabulary"] = {
        "kept": len(found.kept),
        "of": size,
        "training_identical": True,
        "texts": found.change["texts"],
        "tokens_per_text": found.change["tokens_before"],
    }
    return found
