"""What matters least, one interface: an axis and a criterion in, a score for each index out.

====================  ============================================  ========================
criterion             score of an index                             source
====================  ============================================  ========================
``magnitude``         ‖w‖₂ of all weights that go with it           Han et al., 1506.02626
``activation``        E|a|, the mean of what it carries             Minitron, 2407.14679
``wanda``             Σ |w| ‖x‖₂ over the weights that read it      Sun et al., 2306.11695
``taylor``            |Σ w ∂L/∂w|, a first-order guess of the loss  Molchanov et al., 1906.10771
``block_influence``   1 − E cos(input, output) of a layer           ShortGPT, 2403.03853
``ablation``          the loss without it, less the loss with it    –
====================  ============================================  ========================

All go over calibration batches one by one: memory is that of one batch (with its gradients, for
``taylor``), of the scores and, for ``ablation``, of all rows' answers. What `prune_model` fits
beside them holds the states of all calibration tokens, of `calibration.MAX_TOKENS` at most.

``taylor`` asks a loss that is handed in; ``ablation``'s is the distance to the whole model's
answers, unless one is handed in. Without a criterion, `prune_model` chooses by how well least
squares can make up for what goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..eval.errors import RecipeError, nearest
from ..eval.models import TextModel
from . import scores
from .anatomy import anatomy_of
from .scores import Batches, Loss, Scores, Subject


@dataclass(frozen=True)
class Criterion:
    """An entry of the table.

    Attributes:
        name: As `prune.importance` in a recipe names it.
        score: Computes the scores.
        axes: What it can score.
        needs_loss: Whether a loss must be handed in.
    """

    name: str
    score: Callable[[Subject], Scores]
    axes: tuple[str, ...]
    needs_loss: bool = False


CRITERIA: dict[str, Criterion] = {}
"""Name → criterion."""


def register_criterion(entry: Criterion) -> Criterion:
    """Adds a criterion to the table; a name that is taken is refused.

    Raises:
        RecipeError: If another criterion has the name.
    """
    if CRITERIA.get(entry.name, entry) != entry:
        raise RecipeError(f"A criterion named '{entry.name}' exists already; choose another name.")
    CRITERIA[entry.name] = entry
    return entry


def axis_importance(
    model: TextModel,
    axis: str,
    batches: Batches,
    criterion: str,
    *,
    loss: Loss | None = None,
    precision: str = "fp32",
) -> Scores:
    """Scores every index of an axis; the least important has the lowest.

    Args:
        model: Is not changed.
        axis: ``layers``, ``intermediate_size``, ``attention_heads``, ``kv_heads``,
            ``hidden_size`` or ``experts``.
        batches: Calibration rows as `calibration.batches_of` gives them.
        criterion: A name in `CRITERIA`.
        loss: Of a model on a batch, a scalar; for ``taylor`` it must have a gradient. For
            ``ablation`` the distance to the whole model's answers if None.
        precision: Of forward passes without gradients.

    Returns:
        For ``layers`` [(L,)], for ``hidden_size`` [(H,)], else an array for each layer; layers
        without experts have an empty one.

    Raises:
        RecipeError: If the criterion is unknown, cannot score the axis or lacks a loss.
    """
    if criterion not in CRITERIA:
        raise RecipeError(
            f"Unknown criterion '{criterion}'.{nearest(criterion, CRITERIA)} Known criteria: "
            f"{', '.join(CRITERIA)}."
        )
    entry, anatomy = CRITERIA[criterion], anatomy_of(model.config)
    if not (axis == "attention_heads" and anatomy.attention.head_dim is None):
        anatomy.field(axis)
    if axis not in entry.axes:
        fitting = [name for name, other in CRITERIA.items() if axis in other.axes]
        raise RecipeError(f"'{criterion}' does not score {axis}; {', '.join(fitting)} can.")
    if entry.needs_loss and loss is None:
        raise RecipeError(f"'{criterion}' asks a loss: hand one in.")
    return entry.score(Subject(model, anatomy, axis, batches, precision, loss))


_HEADS = ("attention_heads", "kv_heads")
_WIDTHS = ("intermediate_size", *_HEADS, "hidden_size")
for _entry in (
    Criterion("magnitude", scores.magnitude, ("layers", *_WIDTHS, "experts")),
    Criterion("activation", scores.activation, (*_WIDTHS, "experts")),
    Criterion("wanda", scores.wanda, _WIDTHS),
    Criterion("taylor", scores.taylor, ("layers", *_WIDTHS, "experts"), needs_loss=True),
    Criterion("block_influence", scores.block_influence, ("layers",)),
    Criterion("ablation", scores.ablation, ("layers", "intermediate_size", *_HEADS)),
):
    register_criterion(_entry)
