"""Training beside sentence-transformers' own distillation of the same student on the same texts.

    python benchmarks/training.py

Needs the `demo` and `bench` extras. The student is the packaged MiniLM cut to 2 layers, width 512
and the texts' vocabulary; both sides start from the same folder, learn the same recorded teacher
embeddings by mean squared error for the same number of epochs, and are timed from the call of the
training to its end. Twice: both in bf16 with the same batch size, and each at its defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from datasets import Dataset
from recording import in_turns, record, row
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import MSELoss

from paredown.distill.arguments import training_arguments
from paredown.distill.capture import Stream, capture
from paredown.distill.outputs import TeacherOutputs
from paredown.distill.rows import DistillRows, TokenRows
from paredown.distill.terms import weigh
from paredown.distill.trainer import train
from paredown.eval.checkpoints import find_checkpoint, save_model
from paredown.eval.hardware import resolve_precision
from paredown.eval.models import load_model
from paredown.eval.python_docs import build
from paredown.eval.tasks import RETRIEVAL
from paredown.prune import prune_model

OFF = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
DEFAULTS = {"batch_size": 64, "learning_rate": 3e-4, "warmup": 0.1}  # those of a recipe


@dataclasses.dataclass(frozen=True)
class Work:
    """The same work for both sides: a student's folder, texts, and what the teacher said."""

    student: Path
    texts: list[str]
    outputs: TeacherOutputs
    epochs: int

    @property
    def targets(self) -> np.ndarray:
        """The teacher's embedding of each text, (n, D)."""
        return self.outputs.values(self.outputs.items("texts"))


def distance(work: Work, folder: Path) -> float:
    """1 − cosine to the teacher after training, on the texts trained on."""
    found = load_model(folder, RETRIEVAL).predict(work.texts[:1000])
    return float(1 - (found * work.targets[:1000]).sum(1).mean())


def ours(work: Work, precision: str, after: list[float]) -> float:
    """Texts per second of paredown's training."""
    scratch = Path(tempfile.mkdtemp())
    model = load_model(work.student, RETRIEVAL)
    started = time.perf_counter()
    tokens = TokenRows(model, [Stream("texts", work.texts)], scratch / "tokens")
    rows = DistillRows(tokens, model, items=work.outputs.items("texts"), outputs=work.outputs)
    arguments = training_arguments(
        scratch,
        epochs=work.epochs,
        precision=precision,
        seed=0,
        metric="none",
        extra=OFF,
        **DEFAULTS,
    )
    train(model, rows, weigh({"embedding_mse": 1.0}, "embedding"), arguments, validate=lambda m: {})
    seconds = time.perf_counter() - started
    save_model(model, scratch / "student")
    after.append(distance(work, scratch / "student"))
    shutil.rmtree(scratch)
    return len(work.texts) * work.epochs / seconds


def theirs(work: Work, after: list[float], **options: object) -> float:
    """Texts per second of sentence-transformers' trainer."""
    scratch = Path(tempfile.mkdtemp())
    model = SentenceTransformer(str(work.student), device="cpu")
    started = time.perf_counter()
    data = Dataset.from_dict({"sentence": work.texts, "label": list(work.targets)})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(scratch), num_train_epochs=work.epochs, save_strategy="no",
        report_to="none", disable_tqdm=True, use_cpu=True, seed=0, **options,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, loss=MSELoss(model)
    )
    trainer.train()
    seconds = time.perf_counter() - started
    model.save(str(scratch / "student"))
    after.append(distance(work, scratch / "student"))
    shutil.rmtree(scratch)
    return len(work.texts) * work.epochs / seconds


def main() -> None:
    """Runs both sides in turns, twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    precision = resolve_precision("auto").name
    teacher = load_model(find_checkpoint("sentence-transformers/all-MiniLM-L6-v2"), RETRIEVAL)
    texts = [part for r in build().rows if r.text for part in (r.query, r.text)][: options.texts]
    folder = Path(tempfile.mkdtemp())
    outputs = capture(
        teacher, [Stream("texts", texts)], folder / "outputs", identity={}, precision=precision
    )
    assert outputs is not None
    pruned = prune_model(
        teacher, texts[:1024], layers=2, intermediate_size=512, vocabulary="task",
        vocabulary_texts=texts, seed=0, precision=precision,
    )  # fmt: skip
    save_model(pruned.model, folder / "student")
    work = Work(folder / "student", texts, outputs, options.epochs)
    after: dict[str, list[float]] = {"ours": [], "bf16": [], "defaults": []}
    same = {"per_device_train_batch_size": 64, "bf16": True, "learning_rate": 3e-4}
    rows = []
    if precision == "bf16":
        found = in_turns(
            {
                "paredown": lambda: ours(work, "bf16", after["ours"]),
                "sentence-transformers": lambda: theirs(work, after["bf16"], **same),
            },
            options.rounds,
        )
        rows.append(
            row("both bf16, batch 64", *found.values(), "texts/s")
            | {"ours_distance": after["ours"][0], "peer_distance": after["bf16"][0]}
        )
    found = in_turns(
        {
            "paredown": lambda: ours(work, precision, after["ours"]),
            "sentence-transformers": lambda: theirs(work, after["defaults"]),
        },
        max(options.rounds - 1, 1),
    )
    rows.append(
        row("each at its defaults", *found.values(), "texts/s")
        | {"ours_distance": after["ours"][-1], "peer_distance": after["defaults"][0]}
    )
    expected = "at least 1.1 x in bf16, 2 x at the defaults"
    record("training", rows, texts=len(texts), epochs=options.epochs, expected=expected)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
