"""A student sharded over two processes learns what one process does, and leaves one checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paredown.distill.sharding import is_sharded, unsharded, whole_model
from paredown.eval.models import load_model
from paredown.eval.tasks import get_task

from ..eval.generation_models import language_model
from .sharded_training import STEPS, train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc_per_node", "2", "-m", "tests.distill.sharded_training", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_every_step_has_the_loss_of_one_process(kind: str, sharded: Path, tmp_path: Path) -> None:
    alone = train(kind, tmp_path)
    ranks = [json.loads((sharded / f"rank-{i}.json").read_text())[kind] for i in range(2)]
    # A mean of the processes' means would be another number: their tokens differ.
    assert sum(a != b for a, b in zip(*(r["tokens"] for r in ranks), strict=True)) > STEPS / 2
    assert len(alone["losses"]) == STEPS
    assert alone["losses"][-1] < 0.8 * alone["losses"][0]
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        assert rank["answers"] == alone["answers"]

    task = get_task("generation")
    one, two = (load_model(folder / kind, task) for folder in (tmp_path, sharded))
    assert type(two.backbone) is type(one.backbone)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, atol=1e-4, rtol=1e-3)
    assert (two.head.weight is two.backbone.get_input_embeddings().weight) == (kind == "qwen3")


def test_a_model_that_is_not_sharded_stays_as_it_is() -> None:
    model = language_model()
    assert not is_sharded(model)
    assert whole_model(model, keep=True) is model
    with unsharded(model):
        assert model.head.weight.shape[0] == model.width
