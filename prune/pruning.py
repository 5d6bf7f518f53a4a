"""The whole of a cut: checks, calibration, choice, fit, vocabulary, surgery, and its facts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..eval.errors import RecipeError
from ..eval.models import Row, TextModel
from .anatomy import Anatomy, anatomy_of
from .calibration import LayerRunner, batches_of, distance, only_layers, sample_rows, signals
from .choices import States, choose
from .compensation import fit, unfitted
from .criteria import Loss, axis_importance
from .importance import choose_by_score, layer_importance, rank_layers
from .narrowing import narrow, narrow_and_fit
from .rotation import can_rotate, principal_basis, rotate
from .sizes import Sizes, checked_sizes
from .surgery import Cut, IndexMap, cut
from .vocabulary import PrunedVocabulary, prune_vocabulary

if TYPE_CHECKING:
    from torch import Tensor

LAYER_ROWS = 128
"""Calibration rows that subsets of layers are compared on, at most."""
CANDIDATE_ROWS = 256
"""Calibration rows that the best subsets of layers are fitted on, at most, to choose among them."""
CANDIDATES = 3


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
        compensate: Whether what remains is fitted to what was cut.
        calibration_rows: Rows to fit on, at most.
        round_to: FFN and hidden width are rounded to a multiple of this; None for 8, or 64 for
            models of over 100 M parameters.
        seed: Of the sample.
        precision: Of forward passes: ``fp32``, ``bf16`` or ``fp16``. Fits are in float64.

    Raises:
        RecipeError: If the architecture cannot be cut so, or a cut would have no effect.
    """
    anatomy = anatomy_of(model.config)
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
    source, what = model, Cut()
    if sizes.any:
        rows, held = sample_rows(model, texts, pairs, roles, calibration_rows, seed)
        calibrated = _Calibrated(model, anatomy, rows, held, precision, importance, loss)
        source, what = calibrated.prune(sizes, compensate, facts)
    smaller: PrunedVocabulary | None = None
    if vocabulary is not None:
        smaller = _vocabulary(model, before["vocabulary"], vocabulary_texts, texts, facts)
        what = dataclasses.replace(what, vocabulary=smaller.kept)
    if sizes.rounded:
        facts["rounded"] = sizes.rounded
    # heads, hidden channels and experts are gone from the source already
    last = Cut(layers=what.layers, channels=what.channels, vocabulary=what.vocabulary)
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


class _Calibrated:
    """A model with the rows that cuts of it are chosen, fitted and measured on."""

    def __init__(
        self,
        model: TextModel,
        anatomy: Anatomy,
        rows: list[Row],
        held: list[Row],
        precision: str,
        criterion: str | None,
        loss: Loss | None,
    ) -> None:
        self.criterion, self.loss = criterion, loss
        self.model, self.anatomy, self.precision = model, anatomy, precision
        self.rows = rows
        self.held_rows = len(held)
        self.held = batches_of(model, held)
        self.reference = signals(model, self.held, precision)
        self._runner: LayerRunner | None = None

    def prune(self, sizes: Sizes, compensate: bool, facts: dict[str, Any]) -> tuple[TextModel, Cut]:
        """Chooses and fits.

        Returns:
            A model from which heads, hidden channels and experts are gone, and layers and FFN
            channels are still to be cut; and all that is kept.
        """
        every = list(range(self.anatomy.size(self.model.config, "layers")))
        wanted, width = sizes.layers, sizes.intermediate_size
        kept = every if wanted is None else self.layers(wanted, compensate, facts)
        narrowed, plain, what = self.narrow(sizes, compensate)
        compensate = compensate and self.anatomy.stacks[0].ffn_out is not None
        source, channels = narrowed or self.model, None
        if compensate or width is not None:
            source, channels = fit(
                self.model,
                self.anatomy,
                self.runner(),
                kept,
                width,
                compensate=compensate,
                narrowed=narrowed,
                hidden=what.hidden,
                scores=None if width is None else self.scores("intermediate_size"),
            )
        fitted = compensate or narrowed is not plain
        unfit = source
        if fitted:
            unfit = unfitted(plain or self.model, self.anatomy, kept, channels)
        found: dict[str, Any] = {"measure": _MEASURES[self.model.signal]}
        found |= {"as_cut": self.distance(unfit, kept)}
        if fitted:
            found["fitted"] = self.distance(source, kept)
            found["fit_used"] = found["fitted"] < found["as_cut"]
            source = source if found["fit_used"] else unfit
        facts["distance"] = found
        facts["calibration"] = {
            "rows": len(self.rows),
            "tokens": sum(len(row["input_ids"]) for row in self.rows),
            "held_out_rows": self.held_rows,
            "precision": self.precision,
        }
        per_layer = {
            name: [lists[i] for i in kept]
            for name in ("heads", "kv_heads", "experts")
            if (lists := getattr(what, name)) is not None
        }
        return source, dataclasses.replace(
            what, layers=None if wanted is None else kept, channels=channels, **per_layer
        )

    def narrow(
        self, sizes: Sizes, compensate: bool
    ) -> tuple[TextModel | None, TextModel | None, Cut]:
        """Chooses and cuts heads, hidden channels and experts, in all layers.

        Returns:
            The cut model fitted (or as it is, if nothing is to be fitted), the cut model as it is,
            and what is kept; None, None and nothing where none of these axes is cut.
        """
        if not sizes.narrows:
            return None, None, Cut()
        layers = list(self.anatomy.layers_of(self.model.backbone))
        states = States(self.runner(), layers, self.anatomy)
        scores = self.all_scores(sizes)
        turn = self.criterion is None and can_rotate(self.model, self.anatomy)
        if sizes.hidden_size is not None and turn:
            basis = principal_basis(states.hidden)
            self.model = rotate(copy.deepcopy(self.model), self.anatomy, basis)
            self._runner = None
            what = choose(self.model, self.anatomy, states, sizes, scores)
            what = dataclasses.replace(what, hidden=list(range(sizes.hidden_size)))
        else:
            what = choose(self.model, self.anatomy, states, sizes, scores)
        plain = narrow(self.model, what)
        if not compensate:
            return plain, plain, what
        return narrow_and_fit(self.model, self.anatomy, what, self.runner()), plain, what

    def scores(self, axis: str, rows: int | None = None) -> list[Any] | None:
        """What the criterion says of an axis; None without one."""
        if self.criterion is None:
            return None
        batches = batches_of(self.model, self.rows[:rows])
        return axis_importance(
            self.model, axis, batches, self.criterion, loss=self.loss, precision=self.precision
        )

    def all_scores(self, sizes: Sizes) -> dict[str, list[Any]]:
        """What the criterion says of heads, hidden channels and experts that are cut."""
        if self.criterion is None:
            return {}
        axes = [a for a in ("attention_heads", "kv_heads", "experts") if getattr(sizes, a)]
        if sizes.hidden_size is not None:
            axes.append("hidden_size")
            tied = self.anatomy.attention.head_dim is None
            axes += ["attention_heads"] if tied else []
        return {axis: self.scores(axis) or [] for axis in axes}

    def layers(self, wanted: int | list[int], compensate: bool, facts: dict[str, Any]) -> list[int]:
        """The layers to keep: those named, or those nearest to the whole model once fitted."""
        batches = batches_of(self.model, self.rows[:LAYER_ROWS])
        said = self.scores("layers", LAYER_ROWS) if isinstance(wanted, int) else None
        if said is not None:
            facts["layers"] = {"importance": [float(score) for score in said[0]]}
            if self.anatomy.first_layer:
                said[0][0] = float("inf")  # it stays
            return choose_by_score(said[0], int(wanted))  # type: ignore[arg-type]
        scores = layer_importance(self.model, self.anatomy, batches, self.precision)
        facts["layers"] = {"importance": [scores[i] for i in sorted(scores)]}
        if not isinstance(wanted, int):
            return wanted
        ranked = rank_layers(self.model, self.anatomy, batches, self.precision, wanted)
        tried: list[dict[str, Any]] = [
            {"layers": list(kept), "as_cut": score} for score, kept in ranked[:CANDIDATES]
        ]
        facts["layers"]["tried"] = tried
        if not compensate or len(tried) == 1 or self.anatomy.stacks[0].ffn_out is None:
            return list(ranked[0][1])
        # What looks best as cut is not always what can be mended best.
        runner = self.runner_on(self.rows[:CANDIDATE_ROWS])
        for one in tried:
            source, _ = fit(
                self.model, self.anatomy, runner, one["layers"], None, compensate=compensate
            )
            one["fitted"] = self.distance(source, one["layers"])
        chosen: list[int] = min(tried, key=lambda one: one["fitted"])["layers"]
        return chosen

    def runner(self) -> LayerRunner:
        """The model's layers on the rows to fit on."""
        if self._runner is None:
            self._runner = self.runner_on(self.rows)
        return self._runner

    def runner_on(self, rows: list[Row]) -> LayerRunner:
        """The model's layers on some rows."""
        return LayerRunner(self.model, self.anatomy, batches_of(self.model, rows), self.precision)

    def distance(self, model: TextModel, kept: list[int]) -> float:
        """How far a model with some layers is from the original, on held-out rows."""
        with only_layers(model, self.anatomy, kept):
            found: Tensor = signals(model, self.held, self.precision)
        return distance(self.model.signal, self.reference, found)


_MEASURES = {"embedding": "1 - cosine", "class_logits": "KL divergence (nats)"}
