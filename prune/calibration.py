"""Rows of the task to calibrate on, and what a model computes on them, layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..eval.batching import token_batches
from ..eval.errors import RecipeError
from ..eval.models import Row, TextModel, autocast
from ..eval.tasks import Signal
from .anatomy import Anatomy

BATCH_TOKENS = 4096
MAX_TOKENS = 131_072
"""Tokens of a calibration at most: the states of that many are held in memory, twice."""
KEPT = 1 << 28
"""Numbers of one layer's channels, over all tokens, that are kept instead of computed again."""
KNOWN = 1 << 30
"""Bytes of all layers' outputs, over all tokens, that are kept for a walk that comes again."""
HELD_OUT = 256
"""Rows kept aside to measure a cut on, at most; and at most a fifth of what there is."""


@dataclass(frozen=True)
class Sample:
    """Tokenised rows that were drawn.

    Attributes:
        fitting: To fit on; fewer than asked where there are no more distinct ones, or where they
            would have more than `MAX_TOKENS` tokens.
        held: To measure on.
        dropped: Distinct rows that were drawn to fit on and left out, for their tokens.
    """

    fitting: list[Row]
    held: list[Row]
    dropped: int


def sample_rows(
    model: TextModel,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    roles: str | Sequence[str] | None,
    count: int,
    seed: int,
) -> tuple[list[Row], list[Row]]:
    """Rows to fit on, and held-out rows; see `drawn_sample`."""
    found = drawn_sample(model, texts, pairs, roles, count, seed)
    return found.fitting, found.held


def drawn_sample(
    model: TextModel,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    roles: str | Sequence[str] | None,
    count: int,
    seed: int,
) -> Sample:
    """Draws rows to fit on and other rows to measure on, tokenised.

    Args:
        model: Whose tokenizer is used.
        texts: May be memory-mapped; only the drawn ones are read.
        pairs: The second text of each row, or None.
        roles: One role for all texts or one for each; None for ``text``.
        count: Rows to fit on.
        seed: Of the draw.

    Raises:
        RecipeError: If there are fewer than two distinct rows.
    """
    draw = np.random.default_rng(seed)
    drawn = draw.permutation(len(texts))[: count + HELD_OUT].tolist()
    found: dict[tuple[tuple[int, ...], ...], Row] = {}
    for i in drawn:
        role = roles if isinstance(roles, str) else roles[i] if roles is not None else "text"
        pair = None if pairs is None else [pairs[i]]
        (row,) = model.tokenize([texts[i]], pair, role)
        found.setdefault(tuple(map(tuple, row.values())), row)
    rows = list(found.values())
    if len(rows) < 2:
        raise RecipeError(
            f"Calibration needs at least 2 different texts and got {len(rows)}; give the cut the "
            "task's training texts, a few hundred or more."
        )
    held = rows[: max(1, min(HELD_OUT, len(rows) // 5))]
    wanted = rows[len(held) :][:count]
    tokens = np.cumsum([len(row["input_ids"]) for row in wanted])
    fitting = wanted[: max(1, int(np.searchsorted(tokens, MAX_TOKENS, "right")))]
    return Sample(fitting, held, len(wanted) - len(fitting))


def batches_of(model: TextModel, rows: Sequence[Row]) -> list[dict[str, Tensor]]:
    """Rows as padded batches of at most `BATCH_TOKENS` tokens, on the model's device."""
    lengths = [len(row["input_ids"]) for row in rows]
    device = model.backbone.device
    return [
        {k: v.to(device) for k, v in model.collate([rows[i] for i in index]).items()}
        for index in token_batches(lengths, BATCH_TOKENS)
    ]


@torch.no_grad()
def signals(model: TextModel, batches: Sequence[dict[str, Tensor]], precision: str) -> Tensor:
    """A model's signal on batches, (n, W) float32, in the batches' order."""
    found = []
    for batch in batches:
        with autocast(model.backbone.device, precision), without_cache(model):
            found.append(model(**batch).values.float())
    return torch.cat(found)


def distance(signal: Signal, teacher: Tensor, student: Tensor) -> float:
    """How far a signal is from the teacher's, 0 at equality, mean over rows.

    1 − cosine for embeddings, KL(teacher ‖ student) in nats for the logits of classes or of the
    next token.

    Args:
        signal: ``embedding``, ``class_logits`` or ``token_distribution``.
        teacher: (n, W).
        student: (n, W).
    """
    teacher, student = teacher.double(), student.double()
    if signal == "embedding":
        if teacher.shape != student.shape:
            raise RecipeError(f"Embeddings of {teacher.shape[1]} and {student.shape[1]} numbers.")
        cosine = nn.functional.cosine_similarity(teacher, student, dim=-1)
        return max(0.0, float((1 - cosine).mean()))
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return max(0.0, float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))


@contextlib.contextmanager
def only_layers(model: TextModel, anatomy: Anatomy, keep: Sequence[int]) -> Iterator[None]:
    """Runs a block with the other layers of a model skipped."""
    layers = anatomy.layers_of(model.backbone)
    path, _, name = anatomy.layers.rpartition(".")
    parent: nn.Module = model.backbone.base_model.get_submodule(path)
    config: Any = model.config
    types = getattr(config, "layer_types", None)
    setattr(parent, name, nn.ModuleList([layers[i] for i in keep]))
    if types:  # decoders look up the kind of the i-th layer there
        config.layer_types = [types[i] for i in keep]
    try:
        yield
    finally:
        setattr(parent, name, layers)
        if types:
            config.layer_types = types


@contextlib.contextmanager
def without_cache(model: TextModel) -> Iterator[None]:
    """Runs a block without the cache of keys and values that decoders fill by default."""
    config: Any = model.config
    before = getattr(config, "use_cache", None)
    if before is not None:
        config.use_cache = False
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before


class LayerRunner:
    """Runs single layers on calibration batches, with the arguments that the model gives them.

    The arguments are learnt from a pass in which the layers compute nothing.

    Attributes:
        masks: Which positions are tokens, one (B, T) for each batch.
        tokens: How many there are.
        inputs: The input of the first layer, one (B, T, H) for each batch.
        known: What the layers in their places gave, by layer and batch, for who walks through them
            more than once; None to remember nothing.
    """

    def __init__(
        self,
        model: TextModel,
        anatomy: Anatomy,
        batches: Sequence[dict[str, Tensor]],
        precision: str,
    ) -> None:
        self.model, self.precision = model, precision
        self.anatomy, self.batches = anatomy, batches
        self.layers = list(anatomy.layers_of(model.backbone))
        self.masks = [batch["attention_mask"].bool() for batch in batches]
        self.tokens = sum(int(mask.sum()) for mask in self.masks)
        self.inputs: list[Tensor] = []
        self.known: dict[tuple[int, int], tuple[Tensor, Tensor]] | None = None
        self._extras: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        for batch in range(len(batches)):
            self._extras.append([])
            self.finish(batch, None)

    def may_keep(self, width: int) -> bool:
        """Whether so many numbers of each token may be kept in memory."""
        return sum(mask.numel() for mask in self.masks) * width <= KEPT

    def remember(self) -> None:
        """Keeps what the layers in their places give from now on, if that is not too much."""
        if sum(given.nbytes for given in self.inputs) * len(self.layers) <= KNOWN:
            self.known = {}

    def learn(self, number: int, batch: int, out: Tensor) -> None:
        """Notes what a layer gives of the states that come before it, where it ends in a sum."""
        if self.known is not None and self.anatomy.ffn_norm is None:
            self.known[number, batch] = out, out

    def of(self, model: TextModel) -> LayerRunner:
        """The same for another model on the same batches."""
        return LayerRunner(model, self.anatomy, self.batches, self.precision)

    def run(self, layer: nn.Module, number: int, batch: int, states: Tensor) -> Tensor:
        """The output of a layer, (B, T, H).

        Args:
            layer: A layer of the model, or a changed copy of one.
            number: Its place in the model.
            batch: Which batch the states belong to.
            states: The layer's input, (B, T, H).
        """
        args, kwargs = self._extras[batch][number]
        with self.computing():
            out = layer(states, *args, **kwargs)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found.to(states.dtype)

    def finish(self, batch: int, states: Tensor | None) -> Tensor:
        """The signal of a batch, (B, W), where the last layer gives these states (B, T, H).

        Layers compute nothing, so all before the first of them may be watched as well.
        """
        with contextlib.ExitStack() as stack, self.computing(), without_cache(self.model):
            for number, layer in enumerate(self.layers):
                last = number == len(self.layers) - 1
                forward = self._idle(batch, states if last else None)
                stack.enter_context(another_forward(layer, forward))
            values: Tensor = self.model(**self.batches[batch]).values
        return values

    def _idle(self, batch: int, states: Tensor | None) -> Callable[..., Tensor]:
        """A layer's forward that notes what it is given, if that is not known yet."""

        def forward(given: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if len(self.inputs) == batch:
                self.inputs.append(given)
            if len(self._extras[batch]) < len(self.layers):
                self._extras[batch].append((args, kwargs))
            return given if states is None else states

        return forward

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Runs a block without gradients, in the precision of forward passes."""
        with torch.no_grad(), autocast(self.model.backbone.device, self.precision):
            yield


@contextlib.contextmanager
def another_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Runs a block in which a module computes something else."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
