"""Training a language model: token losses inside the forward pass, recorded or live teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..eval.errors import RecipeError
from ..eval.models import TextModel
from ..eval.next_token import layer_states
from .chunked import TokenTerm, chunked_terms
from .cross_tokenizer import UldTerm, recorded_uld
from .divergences import IGNORED
from .heads import Head, LiveTeacher
from .language_rows import join_spans, join_targets
from .layer_terms import HiddenTerm, recorded_mse, recorded_states

Term = TokenTerm | UldTerm | HiddenTerm
"""A term of a language model's loss."""


def head_of(model: TextModel) -> Head:
    """A model's output head, with what its class does to the logits behind it."""
    config, linear = model.config, model.head
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    divided = getattr(config, "logits_scaling", None)
    return Head(
        linear.weight,
        linear.bias,
        scale=scale / float(divided) if divided else scale,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def before_labels(states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The states that predict the learned tokens, and these tokens, row by row.

    Args:
        states: (B, T, H).
        labels: Each token's own id, (B, T); −100 where it is not learned.

    Returns:
        (N, H) and (N,).
    """
    counts = labels[:, 1:] != IGNORED
    return states[:, :-1][counts], labels[:, 1:][counts]


class LanguageDistiller(nn.Module):
    """The student, and a forward pass that ends in the loss.

    The loss is computed inside, so that whoever wraps the model (DDP, FSDP) sees one forward pass
    that uses every parameter.
    """

    accepts_loss_kwargs = True  # the Trainer counts the learned tokens of all processes

    def __init__(
        self,
        student: TextModel,
        terms: Sequence[Term],
        teacher: TextModel | None = None,
        shared: int | None = None,
        layers: Mapping[int, int] | None = None,
        teacher_hidden: int = 0,
    ) -> None:
        """Takes the student and what it is trained by.

        Args:
            student: Is changed.
            terms: The loss.
            teacher: One that is asked itself.
            shared: How many ids, from 0, both share.
            layers: For `hidden_mse`: student layer → teacher layer.
            teacher_hidden: For `hidden_mse`: the width of the teacher's token vectors.
        """
        super().__init__()
        self.student = student
        self.layers = dict(layers or {})
        hidden = int(student.config.hidden_size) if self.layers else 0
        # As in `trainer.Distiller`: one learned map a layer to the teacher's width.
        self.projections = nn.ModuleDict(
            {str(s): nn.Linear(hidden, teacher_hidden) for s in self.layers}
        )
        self.terms = list(terms)
        self.shared = shared
        # In a list: a submodule would be trained, sharded and saved.
        self._teacher = [teacher.eval().requires_grad_(False)] if teacher is not None else []
        tied = _shared_names(self)
        self._keys_to_ignore_on_save = tied or None
        # What accelerate shards by itself (TRANSFORMER_BASED_WRAP). There are no get_…_embeddings
        # here: it would shard the head as a module that is called, and the losses read its weight.
        self._no_split_modules = getattr(student.backbone, "_no_split_modules", None)

    def tie_weights(self) -> None:
        """Called where a checkpoint lacks what is tied, and after accelerate's move to ``meta``."""
        backbone: Any = self.student.backbone
        backbone.tie_weights()

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """What the Trainer calls where ``gradient_checkpointing`` is asked for."""
        backbone: Any = self.student.backbone
        backbone.gradient_checkpointing_enable(**options)

    @property
    def teacher(self) -> TextModel | None:
        """The live teacher, on the student's device."""
        if not self._teacher:
            return None
        return self._teacher[0].to(self.student.backbone.device)

    def forward(self, divisor: Tensor | float | None = None, **batch: Any) -> tuple[Tensor, Tensor]:
        """The loss, and each term's value.

        Args:
            divisor: Learned tokens that the sums are divided by; the batch's own if None.
            **batch: Of `LanguageRows.collate`; ``written_…`` are rows that the student completed,
                which a live teacher scores.

        Returns:
            A scalar, and (terms,) without gradients.
        """
        live = {k[8:]: batch.pop(k) for k in list(batch) if k.startswith("written_")}
        total = each = None
        if len(batch["input_ids"]):
            total, each = self._part(batch, divisor, self.terms)
        if live:
            scored = [term for term in self.terms if not term.needs_labels]
            more, parts = self._part(live, divisor, scored)
            found = more.new_zeros(len(self.terms))
            found[[i for i, term in enumerate(self.terms) if not term.needs_labels]] = parts
            total = more if total is None else total + more
            each = found if each is None else each + found
        assert total is not None and each is not None
        return total, each

    def _part(
        self, batch: dict[str, Any], divisor: Tensor | float | None, terms: Sequence[Term]
    ) -> tuple[Tensor, Tensor]:
        targets, spans = join_targets(batch), join_spans(batch)
        mask = batch["attention_mask"]
        every: tuple[Tensor, ...] = ()
        if self.layers:
            states, every = layer_states(self.student.backbone, batch["input_ids"], mask)
        else:
            states = self.student.states(batch["input_ids"], mask)
        hidden, labels = before_labels(states, batch["labels"])
        total, found = hidden.new_zeros((), dtype=torch.float32), {}
        for term in terms:
            if isinstance(term, TokenTerm):
                continue
            if isinstance(term, HiddenTerm):
                value = self._layers_apart(batch, every, divisor)
            elif targets is None or spans is None:
                raise RecipeError(
                    f"distill.losses.{term.name} compares with recorded distributions over "
                    "another tokenizer, and none are there."
                )
            else:
                value = recorded_uld(
                    hidden,
                    head_of(self.student),
                    labels,
                    targets,
                    spans,
                    temperature=term.temperature,
                    divisor=divisor,
                )
            total, found[term.name] = total + term.weight * value, value.detach()
        by_token = [term for term in terms if isinstance(term, TokenTerm)]
        if by_token:
            # What is said over another tokenizer has other positions.
            known = None if spans is not None else targets
            value, each = self._tokens(batch, hidden, labels, by_token, known, divisor)
            total = total + value
            found |= {t.name: v for t, v in zip(by_token, each, strict=True)}
        return total, torch.stack([found[term.name] for term in terms])

    def _layers_apart(
        self, batch: dict[str, Any], every: Sequence[Tensor], divisor: Tensor | float | None
    ) -> Tensor:
        """How far the token vectors of mapped layers are from the recorded ones."""
        teacher = recorded_states(batch, self.layers)
        student = {
            s: self.projections[str(s)](before_labels(every[s], batch["labels"])[0])
            for s in self.layers
        }
        return recorded_mse(student, teacher, self.layers, divisor)

    def _tokens(
        self,
        batch: Mapping[str, Tensor],
        hidden: Tensor,
        labels: Tensor,
        terms: Sequence[TokenTerm],
        targets: Any,
        divisor: Tensor | float | None,
    ) -> tuple[Tensor, Tensor]:
        """The terms that compare token by token, or read labels."""
        mask = batch["attention_mask"]
        if targets is None and any(not term.needs_labels for term in terms):
            teacher = self.teacher
            if teacher is None:
                raise RecipeError(
                    "distill.losses compare with a teacher, and neither recorded outputs nor a "
                    "live teacher are there."
                )
            with torch.no_grad():
                known = before_labels(teacher.states(batch["input_ids"], mask), batch["labels"])[0]
            targets = LiveTeacher(known, head_of(teacher))
        return chunked_terms(
            hidden,
            head_of(self.student),
            terms,
            targets,
            labels=labels,
            divisor=divisor,
            shared=self.shared,
        )


def _shared_names(module: nn.Module) -> list[str]:
    """Names of the state's entries that are the same tensor as an earlier one."""
    seen: set[tuple[int, Any]] = set()
    found = []
    for name, value in module.state_dict(keep_vars=True).items():
        key = (value.data_ptr(), value.shape)
        if key in seen and value.numel():
            found.append(name)
        seen.add(key)
    return found


def token_terms(losses: Mapping[str, Any]) -> list[Term]:
    """Turns ``{name: weight}`` or ``{name: {weight: …, option: …}}`` into terms.

    Raises:
        RecipeError: For an unknown loss or option, a weight that is not above 0, or no loss.
    """
    terms: list[Term] = []
    for name, given in losses.items():
        options = dict(given) if isinstance(given, Mapping) else {"weight": given}
        weight = float(options.pop("weight", 1.0))
        if name == HiddenTerm.name:
            options.pop("layers", None)  # the layers themselves are the distiller's
            known: set[str] = set()
        else:
            known = {"temperature"} if name == UldTerm.name else set(options)
        if unknown := sorted(options.keys() - known):
            raise RecipeError(f"The loss '{name}' has no option '{unknown[0]}'.")
        if name == HiddenTerm.name:
            terms.append(HiddenTerm(weight))
        elif name == UldTerm.name:
            terms.append(UldTerm(weight, **options))
        else:
            terms.append(TokenTerm(name, weight, options))
    if not terms:
        raise RecipeError("distill.losses is empty: name at least one loss.")
    return terms
