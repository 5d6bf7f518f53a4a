"""A model on its calibration rows: what is kept is chosen, fitted, and measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..eval.models import Row, TextModel
from .anatomy import Anatomy
from .calibration import LayerRunner, batches_of, distance, only_layers, signals
from .choices import States, choose
from .compensation import fit, too_many, unfitted
from .criteria import CRITERIA, axis_importance
from .importance import choose_by_score, layer_importance, rank_layers
from .narrowing import fit_narrowed, narrow
from .plan import Cut
from .rotation import Turn, can_rotate, principal_basis
from .scores import Loss
from .sizes import Sizes

if TYPE_CHECKING:
    from torch import Tensor

LAYER_ROWS, CANDIDATE_ROWS = 128, 256
"""Calibration rows that subsets of layers are compared on, and that the best of them are fitted on
to choose among them, at most."""
LAYER_WORK, LEAST_TOKENS = 600_000_000_000, 512
"""Parameters × tokens of one such comparison, at most, but so many tokens; twice that for a fit."""
CANDIDATES = 3


@dataclass(frozen=True)
class _Narrowed:
    """A model with fewer heads, hidden channels or experts; the original where none are cut.

    Attributes:
        plain: As it was cut.
        fitted: The same fitted, if it is to be.
        what: Is kept.
        kept: What is left of the original's residual stream; None for all of it.
    """

    plain: TextModel
    fitted: TextModel
    what: Cut
    kept: Callable[[Tensor], Tensor] | None


class _HeldOut:
    """Rows that nothing is fitted on, and what the original says of them."""

    def __init__(self, model: TextModel, rows: list[Row], precision: str) -> None:
        self.signal, self.precision = model.signal, precision
        self.batches = batches_of(model, rows)
        self.reference = signals(model, self.batches, precision)

    def distance(self, model: TextModel, anatomy: Anatomy, kept: list[int]) -> float:
        """How far a model with some of its layers is from the original."""
        with only_layers(model, anatomy, kept):
            found: Tensor = signals(model, self.batches, self.precision)
        return distance(self.signal, self.reference, found)


class Calibrated:
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
        self.held_rows, self.held = held, _HeldOut(model, held, precision)
        self._runner: LayerRunner | None = None

    def prune(
        self, sizes: Sizes, compensate: bool, facts: dict[str, Any]
    ) -> tuple[TextModel, Cut, Cut]:
        """Chooses and fits.

        Returns:
            A model from which heads, hidden channels and experts are gone; all that is kept of the
            original; and what is still to be cut, layers and FFN channels.
        """
        every = list(range(self.anatomy.size(self.model.config, "layers")))
        wanted = sizes.layers
        if sizes.narrows and compensate:  # then several walks go through the original
            self.runner().remember()
        kept = every if wanted is None else self.layers(wanted, compensate, facts)
        narrowed = self.narrow(sizes, kept, compensate)
        what, source, channels = narrowed.what, narrowed.fitted, None
        width = sizes.intermediate_size if what.channels is None else None
        compensate = compensate and self.anatomy.stacks[0].ffn_out is not None
        done = what.hidden is not None  # each module has been fitted
        if (compensate and not done) or width is not None:
            source, channels = fit(
                self.model,
                self.anatomy,
                self.runner(),
                kept,
                width,
                compensate=compensate,
                narrowed=narrowed.fitted if sizes.narrows else None,
                kept=narrowed.kept,
                bridged=done,
                scores=None if width is None else self.scores("intermediate_size"),
            )
        if self._runner is not None:
            self._runner.known = None
        unfit = unfitted(narrowed.plain, self.anatomy, kept, channels)
        found: dict[str, Any] = {"measure": _MEASURES[self.model.signal]}
        found |= {"as_cut": self.held.distance(unfit, self.anatomy, kept), "fit_used": False}
        if compensate or narrowed.fitted is not narrowed.plain:
            found["fitted"] = self.held.distance(source, self.anatomy, kept)
            found["fit_used"] = found["fitted"] < found["as_cut"]
            source = source if found["fit_used"] else unfit
        facts["distance"] = found
        facts["calibration"] = {
            "rows": len(self.rows),
            "tokens": sum(len(row["input_ids"]) for row in self.rows),
            "held_out_rows": len(self.held_rows),
            "precision": self.precision,
        }
        per_layer = {
            name: [lists[i] for i in kept]
            for name in ("heads", "kv_heads", "experts", "channels")
            if (lists := getattr(what, name)) is not None
        }
        last = Cut(layers=None if wanted is None else kept, channels=channels)
        what = dataclasses.replace(what, layers=last.layers, channels=channels)
        return source, dataclasses.replace(what, **per_layer), last

    def narrow(self, sizes: Sizes, layers: list[int], compensate: bool) -> _Narrowed:
        """Chooses and cuts heads, hidden channels and experts, in all layers.

        FFN channels whose choice does not wait for the fit are cut with them.
        """
        if not sizes.narrows:
            return _Narrowed(self.model, self.model, Cut(), None)
        scores = self.all_scores(sizes)
        turns = (
            sizes.hidden_size is not None
            and self.criterion is None
            and can_rotate(self.model, self.anatomy)
        )
        states = self.states(sizes, scores)
        if states is not None and states.channels:
            scores["intermediate_size"] = states.channels
        what = choose(self.model, self.anatomy, states, sizes, scores, turned=turns)
        turn: Turn | None = None
        kept_of: Callable[[Tensor], Tensor] | None = None
        if turns:
            assert states is not None
            basis = principal_basis(states.hidden)[:, : sizes.hidden_size]
            turn = Turn(self.model, self.anatomy, basis)
            kept_of = turn.states
        elif what.hidden is not None:
            kept_of = _channels(what.hidden)
        plain = narrow(self.model, what, turn)
        fitted = plain
        if compensate:
            fitted = fit_narrowed(
                self.model, plain, self.anatomy, what, self.runner(), layers, turn
            )
        return _Narrowed(plain, fitted, what, kept_of)

    def states(self, sizes: Sizes, scores: Mapping[str, Any]) -> States | None:
        """What the choice of the axes without scores hangs on; None where all have some."""
        tied = self.anatomy.attention.head_dim is None
        wanted = {"hidden"} if sizes.hidden_size and "hidden_size" not in scores else set()
        if sizes.kv_heads and "kv_heads" not in scores:
            wanted.add("heads")
        if sizes.attention_heads or (sizes.hidden_size and tied):
            wanted |= set() if "attention_heads" in scores else {"heads"}
        if sizes.experts and "experts" not in scores:
            wanted.add("experts")
        if sizes.intermediate_size and "intermediate_size" not in scores:
            width = self.anatomy.size(self.model.config, "intermediate_size")
            wanted |= {"channels"} if too_many(width, self.runner().tokens) else set()
        if not wanted:
            return None
        layers = self.runner().layers
        return States(self.runner(), layers, self.anatomy, wanted)

    def scores(self, axis: str, rows: list[Row] | None = None) -> list[Any] | None:
        """What the criterion says of an axis, on all rows or some; None without one."""
        if self.criterion is None:
            return None
        batches = batches_of(self.model, self.rows if rows is None else rows)
        return axis_importance(
            self.model, axis, batches, self.criterion, loss=self.loss, precision=self.precision
        )

    def all_scores(self, sizes: Sizes) -> dict[str, list[Any]]:
        """What the criterion says of all axes that are cut but layers."""
        if self.criterion is None:
            return {}
        names = ("attention_heads", "kv_heads", "experts", "intermediate_size")
        axes = [axis for axis in names if getattr(sizes, axis)]
        if sizes.hidden_size is not None:
            axes.append("hidden_size")
            # Heads that go with it are chosen by least squares where the criterion cannot.
            tied = self.anatomy.attention.head_dim is None
            entry = CRITERIA.get(self.criterion)
            axes += (
                ["attention_heads"] if tied and entry and "attention_heads" in entry.axes else []
            )
        return {axis: self.scores(axis) or [] for axis in axes}

    def layers(self, wanted: int | list[int], compensate: bool, facts: dict[str, Any]) -> list[int]:
        """The layers to keep: those named, or those nearest to the whole model once fitted."""
        if not isinstance(wanted, int):
            return wanted
        size = sum(p.numel() for p in self.model.parameters())
        tokens = max(LEAST_TOKENS, LAYER_WORK // size)
        few = _first(self.rows, LAYER_ROWS, tokens)
        batches = batches_of(self.model, few)
        said = self.scores("layers", few)
        if said is not None:
            facts["layers"] = {"importance": [float(score) for score in said[0]]}
            if self.anatomy.first_layer:
                said[0][0] = float("inf")  # it stays
            return choose_by_score(said[0], wanted)
        scores = layer_importance(self.model, self.anatomy, batches, self.precision)
        facts["layers"] = {"importance": [scores[i] for i in sorted(scores)]}
        ranked = rank_layers(self.model, self.anatomy, batches, self.precision, wanted, scores)
        tried: list[dict[str, Any]] = [
            {"layers": list(kept), "as_cut": score} for score, kept in ranked[:CANDIDATES]
        ]
        facts["layers"]["tried"] = tried
        if not compensate or len(tried) == 1 or self.anatomy.stacks[0].ffn_out is None:
            return list(ranked[0][1])
        # What looks best as cut is not always what can be mended best.
        runner = self.runner_on(_first(self.rows, CANDIDATE_ROWS, 2 * tokens))
        runner.known = {}
        held = _HeldOut(self.model, _first(self.held_rows, CANDIDATE_ROWS, tokens), self.precision)
        for one in tried:
            source, _ = fit(
                self.model, self.anatomy, runner, one["layers"], None, compensate=compensate
            )
            one["fitted"] = held.distance(source, self.anatomy, one["layers"])
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


def _first(rows: list[Row], count: int, tokens: int) -> list[Row]:
    """The first rows, at least one, that together have no more tokens than these."""
    total = np.cumsum([len(row["input_ids"]) for row in rows[:count]])
    return rows[: max(1, int(np.searchsorted(total, tokens, "right")))]


def _channels(hidden: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Takes some channels of states."""
    index = torch.tensor(list(hidden))
    return lambda states: states.index_select(-1, index.to(states.device))


_MEASURES = {
    "embedding": "1 - cosine",
    "class_logits": "KL divergence (nats)",
    "token_distribution": "KL divergence of the next token (nats)",
}
