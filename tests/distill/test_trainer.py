"""What the trainer refuses, and what it changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paredown.distill.arguments import training_arguments
from paredown.distill.terms import layer_map, weigh
from paredown.distill.trainer import last_checkpoint, set_dropout
from paredown.eval.errors import RecipeError
from paredown.eval.models import TextModel
from paredown.eval.tasks import RETRIEVAL

SETTINGS: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup": 0.1,
    "precision": "fp32",
    "seed": 0,
    "metric": "accuracy",
}


def test_every_training_argument_can_be_reached(tmp_path: Path) -> None:
    extra = {"weight_decay": 0.3, "max_grad_norm": 0.5, "lr_scheduler_type": "linear"}
    arguments = training_arguments(tmp_path, **SETTINGS, extra=extra)
    assert (arguments.weight_decay, arguments.max_grad_norm) == (0.3, 0.5)
    assert arguments.lr_scheduler_type == "linear"


def test_arguments_set_elsewhere_or_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="bf16 is set by precision"):
        training_arguments(tmp_path, **SETTINGS, extra={"bf16": True})
    with pytest.raises(RecipeError, match="Did you mean 'weight_decay'"):
        training_arguments(tmp_path, **SETTINGS, extra={"weigth_decay": 0.1})


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="3 processes cannot share it evenly"):
        training_arguments(tmp_path, **SETTINGS, world_size=3)


def test_losses_are_weighed_with_their_options() -> None:
    terms = weigh({"embedding_cosine": 2, "similarity_kl": {"temperature": 0.1}}, "embedding")
    assert [(t.loss.name, t.weight) for t in terms] == [
        ("embedding_cosine", 2.0),
        ("similarity_kl", 1.0),
    ]
    assert terms[1].options == {"temperature": 0.1, "anchors": "batch"}


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"kl": 0}, "weight 0.0: leave it out"),
        ({"kl": {"temprature": 2}}, "Did you mean 'temperature'"),
        ({"kl": {"temperature": 0}}, "must be > 0"),
        ({}, "name at least one loss"),
    ],
)
def test_losses_that_cannot_be_are_refused(losses: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        weigh(losses, "class_logits")


def test_an_option_that_is_a_word_must_be_a_known_one() -> None:
    with pytest.raises(RecipeError, match=r"anchors is one of batch, collection, not 'texts'"):
        weigh({"similarity_kl": {"anchors": "texts"}}, "embedding")


def test_layers_are_mapped_evenly_and_the_last_to_the_last() -> None:
    assert layer_map(2, 6, "uniform") == {1: 3, 2: 6}
    assert layer_map(2, 6, "last") == {2: 6}
    assert layer_map(2, 6, {0: 0, 2: 5}) == {0: 0, 2: 5}
    with pytest.raises(RecipeError, match="there are 2 and 6"):
        layer_map(2, 6, {3: 6})


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_without_dropout_training_mode_repeats_itself(
    kind: str, tiny_model: Callable[..., TextModel]
) -> None:
    model = tiny_model(kind, RETRIEVAL).train()
    batch = model.collate(model.tokenize(["open the file for reading and writing"] * 4))
    assert not torch.equal(model(**batch).values, model(**batch).values)
    set_dropout(model, 0.0)
    assert torch.equal(model(**batch).values, model(**batch).values)


def test_half_written_checkpoints_are_passed_over(tmp_path: Path) -> None:
    for step, state in ((10, "{}"), (20, '{"half'), (30, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "rng_state.pth").touch()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path, 1) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-20").exists()
    assert last_checkpoint(tmp_path / "none", 1) is None
