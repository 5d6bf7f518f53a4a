"""Training a student: a small override of ``transformers.Trainer``.

Mixed precision, DDP, FSDP, DeepSpeed, checkpoints and logging are the Trainer's own. Ours are the
loss (a weighted sum over recorded teacher outputs, each term logged by name), the order of the
rows (`LengthSampler`), and the validation (the task's metric).
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..eval.errors import RecipeError, RunError
from ..eval.models import ModelOutput, TextModel
from .optimizers import MuonWithAdamW
from .rows import DistillRows, LengthSampler, Rows
from .sharding import unsharded
from .terms import WeightedLoss

EAGER_TOKENS = 512


class Distiller(nn.Module):
    """The student and, where a loss compares hidden states, a learned projection a layer."""

    def __init__(self, student: TextModel, layers: Mapping[int, int], teacher_hidden: int) -> None:
        super().__init__()
        self.student = student
        self.layers = dict(layers)
        hidden = int(student.config.hidden_size)
        self.projections = nn.ModuleDict(
            {str(s): nn.Linear(hidden, teacher_hidden) for s in self.layers}
        )
        if student.signal == "embedding":
            # The stock class has a pooler that an embedding does not use.
            for name, parameter in student.backbone.named_parameters():
                parameter.requires_grad_(not name.startswith("pooler."))

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """What the Trainer calls where ``gradient_checkpointing`` is asked for."""
        backbone: Any = self.student.backbone
        backbone.gradient_checkpointing_enable(**options)

    def forward(self, **batch: Tensor) -> tuple[ModelOutput, dict[int, Tensor], Tensor | None]:
        """Gives the signal, the projected hidden states by student layer, and the documents'."""
        names = self.student.inputs
        output = self.student(
            **{n: batch[n] for n in names}, output_hidden_states=bool(self.layers)
        )
        hidden = {}
        if output.hidden_states is not None:
            hidden = {s: self.projections[str(s)](output.hidden_states[s]) for s in self.layers}
        documents = None
        if "document_input_ids" in batch:
            documents = self.student(**{n: batch[f"document_{n}"] for n in names}).values
        return output, hidden, documents


class TaskTrainer(Trainer):
    """`transformers.Trainer` with our order of rows, the task's own validation, and named terms.

    What is trained has a ``student``; its ``forward`` and `compute_loss` are the subclasses'.

    Attributes:
        blank: What fills the last batch of an epoch where several processes share it. Where it is
            None, they get some of the epoch's first rows once more.
    """

    blank: int | None = None

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        rows: Rows,
        validate: Callable[[TextModel], dict[str, float]],
        optimizer: str = "adamw",
    ) -> None:
        self.rows = rows
        self.validate = validate
        self.optimizer_name = optimizer
        self.sampler: LengthSampler | None = None
        self._sums: dict[str, float] = {}
        self._counted = 0.0
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows,  # asked for by the Trainer; `evaluate` below uses `validate`
            data_collator=rows.collate,
        )
        self.add_callback(_SetEpoch(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        batch = self.args.train_batch_size * self.args.world_size
        shared = self.args.world_size > 1 and not self.args.dataloader_drop_last
        blank = self.blank if shared else None
        self.sampler = LengthSampler(self.rows.lengths, batch, self.args.seed, blank)
        return self.sampler

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The Trainer's own, or Muon beside AdamW."""
        made: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self.optimizer_name == "muon" and not isinstance(made, MuonWithAdamW):
            # Before anything is stepped the Trainer's own only says how the parameters are grouped.
            kept = ("params", "weight_decay", "betas", "eps")
            if any(name not in group for group in made.param_groups for name in kept):
                raise RecipeError(
                    f"optimizer: muon is set, and arguments.optim asks for {self.args.optim} too; "
                    "leave one out."
                )
            groups = [{name: group[name] for name in kept} for group in made.param_groups]
            decay = self.args.weight_decay
            made = MuonWithAdamW(
                cast(nn.Module, self.model), self.args.learning_rate, decay, groups
            )
            self.optimizer = made
        return made

    def remember(self, values: Mapping[str, float], share: float = 1.0) -> None:
        """Adds the terms of a step, or of a share of one, to what is logged next."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise RunError(
                    "The training loss is no longer a finite number; lower distill.learning_rate, "
                    "or set distill.precision to fp32."
                )
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._counted += share

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each term since the last log, over all processes, to a training line."""
        if "loss" in logs and self._counted:
            means = [value / self._counted for value in self._sums.values()]
            if self.accelerator.num_processes > 1:
                mine = torch.tensor(means, device=self.args.device)
                means = self.accelerator.reduce(mine, "mean").tolist()
            for name, value in zip(self._sums, means, strict=True):
                logs[f"loss_{name}"] = value
            self._sums, self._counted = {}, 0.0
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validates with the task's metric; every process comes to the same figures."""
        model = self.accelerator.unwrap_model(self.model)
        with unsharded(model):
            found = self.validate(model.student)
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


class DistillTrainer(TaskTrainer):
    """A loss over recorded signals of rows: classes or embeddings."""

    def __init__(
        self,
        model: Distiller,
        arguments: TrainingArguments,
        terms: Sequence[WeightedLoss],
        rows: DistillRows,
        validate: Callable[[TextModel], dict[str, float]],
        optimizer: str = "adamw",
    ) -> None:
        self.terms = terms
        super().__init__(model, arguments, rows, validate, optimizer)
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The weighted sum of the terms, each remembered by its name for the log."""
        output, hidden, documents = model(
            **{k: v for k, v in inputs.items() if not k.startswith("teacher_") and k != "labels"}
        )
        total, values = torch.zeros((), device=output.values.device), {}
        for term in self.terms:
            value = self._term(term, output, hidden, documents, inputs)
            total = total + term.weight * value
            values[term.loss.name] = value.item()
        self.remember(values)
        return (total, output) if return_outputs else total

    def _term(
        self,
        term: WeightedLoss,
        output: ModelOutput,
        hidden: dict[int, Tensor],
        documents: Tensor | None,
        inputs: dict[str, Tensor],
    ) -> Tensor:
        loss, options = term.loss, term.options
        if loss.uses == "labels":
            return loss.function(output.values, inputs["labels"], **options)
        if loss.uses == "documents":
            return loss.function(output.values, documents, **options)
        if loss.uses == "values":
            if "anchors" in options:
                options = {**options, "anchors": inputs.get(f"teacher_{options['anchors']}")}
            return loss.function(output.values, inputs["teacher_values"], **options)
        layers = self.accelerator.unwrap_model(self.model).layers
        values = [
            loss.function(states, inputs[f"teacher_hidden_{layers[s]}"], inputs["attention_mask"])
            for s, states in hidden.items()
        ]
        return torch.stack(values).mean()


class _SetEpoch(TrainerCallback):
    """Tells the sampler its epoch: accelerate reaches it only through two of three wrappers."""

    def __init__(self, trainer: TaskTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(int(state.epoch or 0))


class _Report(TrainerCallback):
    """Hands steps done and steps in all to whoever shows the progress."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps)


class _AfterStep(TrainerCallback):
    """Calls what must hold again once the optimizer has changed the weights."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.function()


def set_dropout(model: nn.Module, probability: float) -> None:
    """Gives every dropout of a model this probability; the config that is saved keeps its own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("dropout_prob", "attention_dropout", "dropout_p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


@contextlib.contextmanager
def attention_for_training(model: TextModel, on_cpu: bool) -> Iterator[None]:
    """Trains with eager attention on a CPU, where torch's fused attention is slow backwards.

    Measured on 2 cores with avx512_bf16, torch 2.13, a 2-layer student, 64 rows of 18 tokens: the
    backward pass takes 41 ms instead of 88. Long rows stay with the fused one, whose memory does
    not grow with the square of their length.
    """
    backbone = model.backbone
    found = getattr(backbone.config, "_attn_implementation", None)
    if not (on_cpu and found == "sdpa" and model.encoding.max_length <= EAGER_TOKENS):
        yield
        return
    backbone.set_attn_implementation("eager")
    try:
        yield
    finally:
        backbone.set_attn_implementation(found)


def last_checkpoint(folder: Path, world_size: int) -> Path | None:
    """The newest checkpoint that was written whole; newer ones that were not are removed.

    The Trainer writes ``trainer_state.json`` last, so one that can be read ends a checkpoint.
    """
    found = sorted(
        (p for p in folder.glob("checkpoint-*") if p.name.split("-")[1].isdigit()),
        key=lambda p: int(p.name.split("-")[1]),
        reverse=True,
    )
    states = ["rng_state.pth"] if world_size == 1 else []
    states += [f"rng_state_{i}.pth" for i in range(world_size) if world_size > 1]
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            if all((path / name).exists() for name in states):
                return path
        except (OSError, json.JSONDecodeError):
            pass
        shutil.rmtree(path, ignore_errors=True)
    return None


@dataclass(frozen=True)
class Trained:
    """What a training did.

    Attributes:
        steps: Optimizer steps.
        best_metric: The best validation figure.
        history: The Trainer's log, one entry a line.
        resumed_from: The step it went on from, or None.
    """

    steps: int
    best_metric: float | None
    history: list[dict[str, Any]]
    resumed_from: int | None


def train(
    student: TextModel,
    rows: DistillRows,
    terms: Sequence[WeightedLoss],
    arguments: TrainingArguments,
    *,
    validate: Callable[[TextModel], dict[str, float]],
    layers: Mapping[int, int] | None = None,
    teacher_hidden: int = 0,
    barrier: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] | None = None,
    after_step: Callable[[], None] | None = None,
    optimizer: str = "adamw",
) -> Trained:
    """Trains a student on recorded signals, in place; see `run`.

    Args:
        student: Is changed.
        rows: What it is trained on.
        terms: The loss.
        arguments: Of `distill.arguments.training_arguments`.
        validate: Gives the validation figures of a student, by name.
        layers: For ``hidden_mse``: student layer → teacher layer.
        teacher_hidden: For ``hidden_mse``: the width of the teacher's token vectors.
        barrier: Waits for all processes.
        progress: Called with steps done and steps in all.
        after_step: Called after each step of the optimizer, before anything is saved or judged:
            puts back what must not change, such as weights that stay zero.
        optimizer: ``adamw`` or ``muon``.

    Raises:
        RunError: If the loss stops being a finite number.
    """
    torch.manual_seed(arguments.seed)  # the projections' weights
    distiller = Distiller(student, layers or {}, teacher_hidden)
    trainer = DistillTrainer(distiller, arguments, terms, rows, validate, optimizer)
    return run(trainer, student, barrier, progress, after_step)


def run(
    trainer: TaskTrainer,
    student: TextModel,
    barrier: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Trained:
    """Runs a trainer to its end, and leaves the best checkpoint's weights in the student.

    Killed at any moment, the same call goes on from the last whole checkpoint and ends with the
    same weights.
    """
    arguments = trainer.args
    folder = Path(str(arguments.output_dir))
    if progress is not None:
        trainer.add_callback(_Report(progress))
    if after_step is not None:
        trainer.add_callback(_AfterStep(after_step))
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    found = last_checkpoint(folder, arguments.world_size) if arguments.process_index == 0 else None
    barrier()
    if arguments.process_index != 0:
        found = last_checkpoint(folder, arguments.world_size)
    with attention_for_training(student, bool(arguments.use_cpu)):
        trainer.train(resume_from_checkpoint=str(found) if found else None)
    state = trainer.state
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    student.eval()
    return Trained(
        steps=int(state.global_step),
        best_metric=state.best_metric,
        history=list(state.log_history),
        resumed_from=int(found.name.split("-")[1]) if found else None,
    )
