"""What lm_distill and gpu_distill share: one token distillation, by TRL's GKD trainer and by ours.

Both sides start from the same student, see the same batches in the same order, and use the same
Trainer arguments: AdamW at a constant rate, decay 0, gradients clipped at 1, nothing saved. The
objective is the same too: GKD's β is the teacher's share of the mixture, as ours is; its
temperature is that of sampling and does not reach the loss; both divide the sum over learned tokens
by their number. Off-policy (``lmbda`` 0, no ``seq_kd``), TRL generates nothing. Its default
gradient checkpointing is off, which ours does not do either, and its collator is ours.
"""

from __future__ import annotations

import copy
import gc
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from paredown.distill.arguments import training_arguments
from paredown.distill.chunked import TokenTerm
from paredown.distill.examples import Examples
from paredown.distill.language import LanguageDistiller
from paredown.distill.language_rows import LanguageRows
from paredown.distill.language_trainer import LanguageTrainer
from paredown.distill.rows import LengthSampler
from paredown.distill.token_capture import capture_tokens
from paredown.distill.token_outputs import TokenOutputs
from paredown.distill.trainer import run
from paredown.eval.dialogues import Example
from paredown.eval.encoding import Encoding
from paredown.eval.models import TextModel

SAME: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_strategy": "steps",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
END, PAD = 1, 0


@dataclass(frozen=True)
class Work:
    """The same work for both sides.

    Attributes:
        student: Copied by each side.
        teacher: Never changed.
        examples: The rows as tokens.
        batch: Rows a step.
        precision: ``fp32`` or ``bf16`` (autocast).
        beta: Of the generalised JSD; 0 is forward KL.
        learning_rate: Constant.
    """

    student: TextModel
    teacher: TextModel
    examples: Examples
    batch: int
    precision: str
    beta: float = 0.5
    learning_rate: float = 3e-3

    @property
    def tokens(self) -> int:
        """Tokens that are read, prompts included."""
        return int(self.examples.lengths.sum())


@dataclass(frozen=True)
class Done:
    """What a training took.

    Attributes:
        rate: Tokens per second, from the call of the training to its end.
        losses: Of each step, as the Trainer logs them.
        peak: Bytes allocated on the GPU at most; 0 without one.
        change: What the training added to the student's weights, flat.
    """

    rate: float
    losses: list[float]
    peak: int
    change: torch.Tensor


def tokenizer_of(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word for each id: nothing is tokenized here, but both sides ask for a tokenizer."""
    words = {f"w{i}": i for i in range(vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")),
        pad_token=f"w{PAD}",
        eos_token=f"w{END}",
        unk_token="w2",
        model_input_names=["input_ids", "attention_mask"],
    )


def model_of(
    kind: str,
    sizes: Mapping[str, Any],
    *,
    spread: float,
    length: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> TextModel:
    """A model with random weights whose logits have about this standard deviation.

    With weights this large the layers outweigh the embeddings, so a tied head does not just repeat
    the last token.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        initializer_range=spread / sizes["hidden_size"] ** 0.5,
        max_position_embeddings=length,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
        **sizes,
    )
    backbone = AutoModelForCausalLM.from_config(config, dtype=dtype)
    tokenizer = tokenizer_of(config.vocab_size)
    return TextModel(backbone, tokenizer, "token_distribution", Encoding(length)).eval()


def examples_of(
    rows: int, lengths: tuple[int, int], prompt: int, vocabulary: int, folder: Path
) -> Examples:
    """Rows of random ids whose lengths lie evenly between two; all behind the prompt is learned."""
    draw = np.random.default_rng(0)

    def example() -> Example:
        length = int(draw.integers(lengths[0], lengths[1] + 1))
        ids = draw.integers(3, vocabulary, length).tolist()
        return Example(ids, [0] * prompt + [1] * (length - prompt), False)

    return Examples((example() for _ in range(rows)), folder)


def record_teacher(work: Work, folder: Path, k: int) -> tuple[TokenOutputs, float]:
    """The teacher's k largest log-probabilities of each token on disk, and the seconds it took."""
    started = time.perf_counter()
    outputs = capture_tokens(
        work.teacher,
        work.examples,
        {"train": range(len(work.examples))},
        folder,
        identity={},
        encoding={"encoding": "topk", "k": k},
        precision=work.precision,
    )
    assert outputs is not None
    return outputs, time.perf_counter() - started


def ours(work: Work, outputs: TokenOutputs | None = None) -> Done:
    """Trains a copy of the student; the teacher is live where there are no outputs."""
    scratch, student = Path(tempfile.mkdtemp()), copy.deepcopy(work.student)
    items = None if outputs is None else outputs.rows("train")
    rows = LanguageRows(work.examples, PAD, items, outputs)
    arguments = training_arguments(
        scratch, epochs=1, batch_size=work.batch, learning_rate=work.learning_rate, warmup=0,
        precision=work.precision, seed=0, metric="none",
        extra=SAME | {"load_best_model_at_end": False},
    )  # fmt: skip
    term = TokenTerm("jsd", 1.0, {"beta": work.beta})
    distiller = LanguageDistiller(student, [term], work.teacher if outputs is None else None)
    trainer = LanguageTrainer(distiller, arguments, rows, validate=lambda model: {})
    return timed(work, trainer, student, lambda: run(trainer, student), scratch)


def theirs(work: Work) -> Done:
    """Trains a copy of the student with TRL's GKD trainer."""
    try:
        from trl.experimental.gkd import GKDConfig, GKDTrainer
    except ImportError as error:
        sys.exit(f"This side needs TRL 1.16: pip install -e '.[bench]' ({error})")
    from datasets import Dataset

    scratch, student = Path(tempfile.mkdtemp()), copy.deepcopy(work.student)
    order = list(LengthSampler(work.examples.lengths, work.batch, 0))
    rows = LanguageRows(work.examples, PAD)

    def collate(features: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        batch = rows.collate([feature["row"] for feature in features])
        return {name: value for name, value in batch.items() if name != "rows"}

    arguments = GKDConfig(
        output_dir=str(scratch), num_train_epochs=1, per_device_train_batch_size=work.batch,
        learning_rate=work.learning_rate, bf16=work.precision == "bf16", seed=0,
        use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False, max_length=None,
        train_sampling_strategy="sequential", lmbda=0.0, beta=work.beta, seq_kd=False,
        **SAME,
    )  # fmt: skip
    trainer = GKDTrainer(
        model=student.backbone,
        teacher_model=work.teacher.backbone,
        args=arguments,
        data_collator=collate,
        train_dataset=Dataset.from_dict({"row": order}),
        processing_class=work.student.tokenizer,
    )
    return timed(work, trainer, student, trainer.train, scratch)


def timed(work: Work, trainer: Any, student: TextModel, function: Any, scratch: Path) -> Done:
    """Runs a training and says what it took."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    on_gpu = torch.cuda.is_available()
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    shutil.rmtree(scratch, ignore_errors=True)
    return Done(work.tokens / seconds, losses, peak, weights(student) - weights(work.student))


def weights(model: TextModel) -> torch.Tensor:
    """All parameters, one after the other, on the CPU."""
    return torch.cat([p.detach().float().cpu().flatten() for p in model.parameters()])


def apart(a: Done, b: Done) -> dict[str, Any]:
    """How far two trainings went different ways.

    Losses: the largest relative difference, step by step. Weights: |Δ − Δ₀| / |Δ₀| of what the
    trainings added to them, the sharper test, since each step's gradient is in it.
    """
    losses = [abs(x - y) / abs(y) for x, y in zip(a.losses, b.losses, strict=True)]
    weights = (a.change - b.change).norm() / b.change.norm()
    return {"losses_apart": max(losses), "changes_apart": float(weights)}


def silence() -> None:
    """Keeps libraries from talking between the figures."""
    logging.disable(logging.WARNING)
