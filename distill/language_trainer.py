"""The trainer of language models: what a step is divided by, and rows the student completes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from ..eval.errors import RecipeError
from ..eval.generating import generate
from ..eval.models import TextModel
from .divergences import IGNORED
from .language import LanguageDistiller
from .language_rows import BLANK, LanguageRows, batch_of
from .trainer import TaskTrainer


@dataclasses.dataclass(frozen=True)
class OnPolicy:
    """Rows that the student completes itself (GKD, arXiv 2306.13649).

    Attributes:
        share: Of the rows of each batch, drawn anew each step.
        max_new_tokens: Longest completion.
        eos: The id that ends one.
        temperature: Of the student's draws.
    """

    share: float
    max_new_tokens: int
    eos: int
    temperature: float = 1.0


class LanguageTrainer(TaskTrainer):
    """Token losses, normalised by the learned tokens of all processes and accumulated batches."""

    blank = BLANK

    def __init__(
        self,
        model: LanguageDistiller,
        arguments: TrainingArguments,
        rows: LanguageRows,
        validate: Callable[[TextModel], dict[str, float]],
        optimizer: str = "adamw",
        on_policy: OnPolicy | None = None,
    ) -> None:
        self.on_policy = on_policy
        self.pad = rows.pad
        super().__init__(model, arguments, rows, validate, optimizer)
        self.check_launch()

    def check_launch(self) -> None:
        """Refuses what cannot be done where a launch shards the weights.

        Raises:
            RecipeError: Naming the key and the way out.
        """
        from transformers.integrations import deepspeed

        zero3: Any = deepspeed.is_deepspeed_zero3_enabled
        if self.on_policy is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise RecipeError(
                "distill.on_policy: the student writes while it is trained, which a launch that "
                "shards it cannot do here; launch with DDP, or leave it out."
            )
        if self.is_deepspeed_enabled and zero3():
            raise RecipeError(
                "DeepSpeed's ZeRO stage 3 hides the weights that the loss and the validation read; "
                "launch with stage 1 or 2, or with FSDP2."
            )
        if self.optimizer_name == "muon" and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise RecipeError(
                "optimizer: muon needs whole matrices, and this launch shards them or their "
                "gradients; say adamw, or launch with DDP."
            )
        student: nn.Module = self.accelerator.unwrap_model(self.model).student
        if self.is_fsdp_enabled and not all(p.requires_grad for p in student.parameters()):
            raise RecipeError(
                "distill.lora: adapters are merged when the student is saved, which a launch that "
                "shards it cannot do here; launch with DDP, or leave it out."
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a batch as its part of the step's."""
        inputs = {name: value for name, value in inputs.items() if name != "rows"}
        loss, each = model(**inputs, divisor=num_items_in_batch)
        # DDP averages the gradients of parts that were divided by the tokens of all.
        processes = self.accelerator.num_processes if num_items_in_batch is not None else 1
        terms = self.accelerator.unwrap_model(self.model).terms
        values = (each * processes).tolist()
        share = 1.0
        if num_items_in_batch is not None:
            share = 1 / self.current_gradient_accumulation_steps
        self.remember({t.name: v for t, v in zip(terms, values, strict=True)}, share)
        return (loss * processes, None) if return_outputs else loss * processes

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Lets the student complete its share of the rows before the tokens are counted."""
        batches, counted = super().get_batch_samples(*args, **kwargs)
        if self.on_policy is None:
            return batches, counted
        written = [self._write(batch, number) for number, batch in enumerate(batches)]
        counted = self._get_num_items_in_batch(written, self.args.device)
        return written, counted

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Learned tokens; those of rows that the student completed count too."""
        both = []
        for batch in batch_samples:
            both.append(batch)
            if "written_labels" in batch:
                both.append({"labels": batch["written_labels"]})
        return super()._get_num_items_in_batch(both, device)

    def _write(self, batch: dict[str, Any], number: int) -> dict[str, Any]:
        """Takes a share of a batch's rows out and puts them back as the student completes them."""
        policy = self.on_policy
        assert policy is not None
        place = [self.args.seed, self.state.global_step, number, self.args.process_index]
        draw = np.random.default_rng(place)
        mine = draw.random(len(batch["input_ids"])) < policy.share
        mine &= batch["rows"].cpu().numpy() != BLANK
        if not mine.any():
            return batch
        labels, ids = batch["labels"].cpu(), batch["input_ids"].cpu()
        lengths = batch["attention_mask"].cpu().sum(1)
        prompts = [
            ids[row, : last_start(labels[row, : lengths[row]])].tolist()
            for row in np.flatnonzero(mine)
        ]
        model: LanguageDistiller = self.accelerator.unwrap_model(self.model)
        training = model.student.training
        model.student.eval()
        answers = generate(
            model.student,
            prompts,
            max_new_tokens=policy.max_new_tokens,
            precision="bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32",
            settings={"do_sample": True, "temperature": policy.temperature, "top_k": 0},
            seed=int(draw.integers(2**31)),
        )
        model.student.train(training)
        written, learned = [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            new = [*answer.ids, policy.eos] if answer.finished else list(answer.ids)
            written.append(np.asarray([*prompt, *new], dtype=np.int64))
            learned.append(np.arange(len(prompt) + len(new)) >= len(prompt))
        more = batch_of(written, learned, self.pad)
        kept = _without(batch, torch.from_numpy(mine))
        return kept | {f"written_{name}": value for name, value in more.items()}

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Saves each tensor once: a tied head is the embeddings."""
        if state_dict is None:
            state_dict = cast(nn.Module, self.model).state_dict()
        ignored = self.accelerator.unwrap_model(self.model)._keys_to_ignore_on_save or ()
        kept = {name: value for name, value in state_dict.items() if name not in ignored}
        super()._save(output_dir, kept)


def last_start(labels: Tensor) -> int:
    """Where the last run of learned tokens begins, (T,) labels; T where there is none."""
    learned = (labels != IGNORED).tolist()
    at = len(learned)
    while at > 0 and not learned[at - 1]:
        at -= 1
    while at > 0 and learned[at - 1]:
        at -= 1
    return at


def _without(batch: dict[str, Any], gone: Tensor) -> dict[str, Any]:
    """A batch without some of its rows, and without the teacher's targets of these."""
    counts = (batch["labels"][:, 1:] != IGNORED).sum(1).cpu()
    stays = (~gone).repeat_interleave(counts)
    kept = {}
    for name, value in batch.items():
        chosen = stays if name.startswith("teacher_") else ~gone
        kept[name] = value[chosen.to(value.device)]
    return kept
