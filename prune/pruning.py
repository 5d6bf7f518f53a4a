"""The whole of a cut: checks, calibration, choice, fit, vocabulary, surgery, and its facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..eval.errors import RecipeError
from ..eval.models import Row, TextModel
from .anatomy import Anatomy, anatomy_of
from .calibration import LayerRunner, batches_of, distance, only_layers, sample_rows, signals
from .compensation import fit, unfitted
from .importance import layer_importance, rank_layers
from .surgery import Cut, IndexMap, cut
from .vocabulary import PrunedVocabulary, prune_vocabulary

if TYPE_CHECKING:
    from torch import Tensor

LAYER_ROWS = 128
"""Calibration rows that subsets of layers are compared on, at most."""
CANDIDATE_ROWS = 256
"""Calibration rows that the best subsets of layers are fitted on, at most, to choose among them."""
CANDIDATES = 3
LARGE = 100_000_000
"""Parameters from which on widths are multiples of 64 and not of 8."""


@dataclass(frozen=True)
class Pruned:
    """A cut model.

    Attributes:
        model: Smaller, and a stock checkpoint once saved.
        index_map: What was kept, in the original's numbering: ``layers``, ``channels`` of each
            kept layer, ``vocabulary``; an axis that was not cut is absent.
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
    vocabulary: Literal["task"] | None = None,
    vocabulary_texts: Iterable[str] | None = None,
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
        vocabulary: ``task`` to keep the tokens that ``vocabulary_texts`` use; None for all.
        vocabulary_texts: Streamed; the calibration's texts if None.
        compensate: Whether what remains is fitted to what was cut.
        calibration_rows: Rows to fit on, at most.
        round_to: The FFN width is rounded to a multiple of this; None for 8, or 64 for models of
            over 100 M parameters.
        seed: Of the sample.
        precision: Of forward passes: ``fp32``, ``bf16`` or ``fp16``. Fits are in float64.

    Raises:
        RecipeError: If the architecture cannot be cut so, or a cut would have no effect.
    """
    anatomy = anatomy_of(model.config)
    if layers is None and intermediate_size is None and vocabulary is None:
        raise RecipeError(
            "Nothing to cut: give `prune.layers`, `prune.intermediate_size` or `prune.vocabulary`."
        )
    before = {axis: anatomy.size(model.config, axis) for axis in anatomy.axes}
    parameters = sum(p.numel() for p in model.parameters())
    wanted = None if layers is None else _checked_layers(anatomy, before["layers"], layers)
    multiple = round_to if round_to is not None else 64 if parameters > LARGE else 8
    width = None
    if intermediate_size is not None:
        width = _checked_width(anatomy, before["intermediate_size"], intermediate_size, multiple)
    facts: dict[str, Any] = {"shapes": {"before": before}, "parameters": {"before": parameters}}
    source, kept, channels = model, None, None
    if wanted is not None or width is not None:
        rows, held = sample_rows(model, texts, pairs, roles, calibration_rows, seed)
        calibrated = _Calibrated(model, anatomy, rows, held, precision)
        source, kept, channels = calibrated.prune(wanted, width, compensate, facts)
        if wanted is None:
            kept = None
    smaller: PrunedVocabulary | None = None
    if vocabulary is not None:
        smaller = _vocabulary(model, before["vocabulary"], vocabulary_texts, texts, facts)
    if width != intermediate_size:
        facts["rounded"] = {"asked": intermediate_size, "used": width, "multiple_of": multiple}
    result, index_map = cut(
        source,
        Cut(kept, channels, smaller.kept if smaller else None),
        smaller.tokenizer if smaller else None,
    )
    facts["shapes"]["after"] = {axis: anatomy.size(result.config, axis) for axis in anatomy.axes}
    facts["parameters"]["after"] = sum(p.numel() for p in result.parameters())
    return Pruned(result, index_map, facts)


def _checked_layers(anatomy: Anatomy, size: int, layers: int | Sequence[int]) -> int | list[int]:
    anatomy.fields("layers")
    if isinstance(layers, int):
        if not 0 < layers < size:
            raise RecipeError(
                f"`prune.layers` asks for {layers} layers and the model has {size}: it can keep 1 "
                f"or more, and fewer than {size}."
            )
        return layers
    kept = sorted(layers)
    if not kept or len(set(kept)) < len(kept) or kept[0] < 0 or kept[-1] >= size:
        raise RecipeError(
            f"`prune.layers` is {list(layers)}; the model has the layers 0 to {size - 1}: name "
            "those to keep, each once."
        )
    if len(kept) == size:
        raise RecipeError(f"`prune.layers` names all {size} layers of the model: that is no cut.")
    return kept


def _checked_width(anatomy: Anatomy, size: int, asked: int, multiple: int) -> int:
    anatomy.fields("intermediate_size")
    if multiple < 1:
        raise RecipeError(f"`prune.round_to` is {multiple}; it must be 1 or more.")
    if not 0 < asked < size:
        raise RecipeError(
            f"`prune.intermediate_size` asks for {asked} channels and the model has {size}: it "
            f"can keep 1 or more, and fewer than {size}."
        )
    width = max(multiple, (asked + multiple // 2) // multiple * multiple)
    if width >= size:
        raise RecipeError(
            f"`prune.intermediate_size` {asked}, as a multiple of {multiple}, is {width}, and the "
            f"model has {size}: that is no cut. Ask for less, or set `prune.round_to` to 1."
        )
    return width


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


class _Calibrated:
    """A model with the rows that cuts of it are chosen, fitted and measured on."""

    def __init__(
        self, model: TextModel, anatomy: Anatomy, rows: list[Row], held: list[Row], precision: str
    ) -> None:
        self.model, self.anatomy, self.precision = model, anatomy, precision
        self.rows = rows
        self.held_rows = len(held)
        self.held = batches_of(model, held)
        self.reference = signals(model, self.held, precision)

    def prune(
        self,
        wanted: int | list[int] | None,
        width: int | None,
        compensate: bool,
        facts: dict[str, Any],
    ) -> tuple[TextModel, list[int], list[list[int]] | None]:
        """Chooses and fits; gives the model to cut, the layers and the channels to keep."""
        every = list(range(self.anatomy.size(self.model.config, "layers")))
        kept = every if wanted is None else self.layers(wanted, compensate, facts)
        source, channels = self.model, None
        if compensate or width is not None:
            source, channels = self.fit(self.runner(self.rows), kept, width, compensate)
        found: dict[str, Any] = {"measure": _MEASURES[self.model.signal]}
        plain = unfitted(self.model, self.anatomy, kept, channels) if compensate else source
        found |= {"as_cut": self.distance(plain, kept)}
        if compensate:
            found["fitted"] = self.distance(source, kept)
            found["fit_used"] = found["fitted"] < found["as_cut"]
            source = source if found["fit_used"] else plain
        facts["distance"] = found
        facts["calibration"] = {
            "rows": len(self.rows),
            "tokens": sum(len(row["input_ids"]) for row in self.rows),
            "held_out_rows": self.held_rows,
            "precision": self.precision,
        }
        return source, kept, channels

    def layers(self, wanted: int | list[int], compensate: bool, facts: dict[str, Any]) -> list[int]:
        """The layers to keep: those named, or those nearest to the whole model once fitted."""
        batches = batches_of(self.model, self.rows[:LAYER_ROWS])
        scores = layer_importance(self.model, self.anatomy, batches, self.precision)
        facts["layers"] = {"importance": [scores[i] for i in sorted(scores)]}
        if not isinstance(wanted, int):
            return wanted
        ranked = rank_layers(self.model, self.anatomy, batches, self.precision, wanted)
        tried: list[dict[str, Any]] = [
            {"layers": list(kept), "as_cut": score} for score, kept in ranked[:CANDIDATES]
        ]
        facts["layers"]["tried"] = tried
        if not compensate or len(tried) == 1:
            return list(ranked[0][1])
        # What looks best as cut is not always what can be mended best.
        runner = self.runner(self.rows[:CANDIDATE_ROWS])
        for one in tried:
            source, _ = self.fit(runner, one["layers"], None, compensate)
            one["fitted"] = self.distance(source, one["layers"])
        chosen: list[int] = min(tried, key=lambda one: one["fitted"])["layers"]
        return chosen

    def runner(self, rows: list[Row]) -> LayerRunner:
        """The model's layers on rows."""
        return LayerRunner(self.model, self.anatomy, batches_of(self.model, rows), self.precision)

    def fit(
        self, runner: LayerRunner, kept: list[int], width: int | None, compensate: bool
    ) -> tuple[TextModel, list[list[int]] | None]:
        """Chooses channels and fits, on a runner's rows."""
        return fit(self.model, self.anatomy, runner, kept, width, compensate=compensate)

    def distance(self, model: TextModel, kept: list[int]) -> float:
        """How far a model with some layers is from the original, on held-out rows."""
        with only_layers(model, self.anatomy, kept):
            found: Tensor = signals(model, self.held, self.precision)
        return distance(self.model.signal, self.reference, found)


_MEASURES = {"embedding": "1 - cosine", "class_logits": "KL divergence (nats)"}
