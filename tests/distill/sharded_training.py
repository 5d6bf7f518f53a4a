"""Twenty steps of a language model's training, alone or sharded over the processes of a launch.

python -m torch.distributed.run --nproc_per_node 2 -m tests.distill.sharded_training FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from paredown.distill.language import LanguageDistiller
from paredown.distill.language_rows import LanguageRows
from paredown.distill.optimizers import MuonWithAdamW
from paredown.distill.sharding import is_sharded, unsharded, whole_model
from paredown.eval.checkpoints import save_model
from paredown.eval.errors import RecipeError
from paredown.eval.generating import generate
from paredown.eval.models import TextModel

from ..eval.generation_models import language_model
from .language_parts import make_examples, terms_of

STEPS, ROWS = 20, 4
LOSSES = {"forward_kl": 1.0, "cross_entropy": 0.5}


def student_of(kind: str) -> TextModel:
    """Llama with a head of its own, Qwen3 with one that is its embeddings."""
    return language_model(kind, seed=1, tie_word_embeddings=kind == "qwen3")


def train(kind: str, folder: Path, rank: int = 0, size: int = 1) -> dict[str, Any]:
    """Trains, answers in between, and saves one checkpoint.

    Returns:
        The loss of each step over all processes, the tokens of each process, and the answers.
    """
    teacher, student = language_model(seed=0), student_of(kind)
    rows = LanguageRows(make_examples(teacher, folder / f"{kind}-tokens-{rank}", 40), 0)
    distiller = LanguageDistiller(student, terms_of(LOSSES), teacher).train()
    if size > 1:
        shard(distiller, size)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=2e-3)
    losses, tokens, answers = [], [], []
    for step in range(STEPS):
        numbers = [(step * ROWS + i) % len(rows) for i in range(ROWS)]
        every = rows.collate(numbers)
        divisor = int((every["labels"] != -100).sum())
        batch = rows.collate(numbers[rank::size])
        tokens.append(int((batch["labels"] != -100).sum()))
        batch.pop("rows")
        loss, _ = distiller(divisor=divisor, **batch)
        (loss * size).backward()  # gradients are averaged over the processes
        optimizer.step()
        optimizer.zero_grad()
        losses.append(summed(loss.detach(), size))
        if step == STEPS // 2:
            prompts = [rows.examples[row][0][:4].tolist() for row in range(3)]
            with unsharded(distiller):
                answers = [a.ids for a in generate(student, prompts, max_new_tokens=6)]
    whole = whole_model(student, rank == 0)
    if rank == 0:
        assert not is_sharded(whole)
        save_model(whole, folder / kind)
    return {"losses": losses, "tokens": tokens, "answers": answers}


def shard(distiller: LanguageDistiller, size: int) -> None:
    """FSDP2 as accelerate does it: each layer, the last norm, then all that is left."""
    mesh = init_device_mesh("cpu", (size,))
    backbone: Any = distiller.student.backbone
    for layer in backbone.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard([backbone.model.norm], mesh=mesh, reshard_after_forward=False)
    fully_shard(distiller, mesh=mesh)
    parameters = list(distiller.parameters())
    assert parameters and all(isinstance(p, DTensor) for p in parameters)
    assert all(p.to_local().numel() < p.numel() for p in parameters if isinstance(p, DTensor))
    try:
        MuonWithAdamW(distiller, 1e-3, 0.0, [{"params": parameters}])
    except RecipeError as error:
        assert "this launch shards them; say adamw" in str(error)
    else:
        raise AssertionError("Muon took a sharded matrix.")


def summed(loss: Tensor, size: int) -> float:
    """The loss of all processes."""
    if size > 1:
        distributed.all_reduce(loss)
    return loss.item()


def main(folder: Path) -> None:
    """Trains both kinds in the processes of a launch."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    found = {kind: train(kind, folder, rank, size) for kind in ("llama", "qwen3")}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()
    # All is on disk; a thread of gloo that is still there when the interpreter ends aborts it.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
