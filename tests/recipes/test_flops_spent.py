"""FLOPs of recording and training against torch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from paredown.distill.examples import Examples
from paredown.eval.dialogues import Example
from paredown.eval.models import TextModel, load_model
from paredown.eval.tasks import get_task
from paredown.recipes.flops_spent import (
    STEP,
    forward_flops,
    language_flops,
    pass_over,
    recording_flops,
    training_flops,
)

from . import generation_recipes

Make = Callable[..., TextModel]


def test_a_step_costs_three_forward_passes(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("classification"))
    model.backbone.set_attn_implementation("eager")  # whose products the counter knows
    batch = model.collate(model.tokenize(["how do I open a file?"] * 4))
    length = int(batch["attention_mask"][0].sum())
    with FlopCounterMode(display=False) as forward:
        values = model(**batch).values
    assert forward_flops(model, [length] * 4) == forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        values.sum().backward()
    # nothing asks for the gradient of one-hot tokens; all else goes back twice
    assert backward.get_total_flops() == pytest.approx(
        (STEP - 1) * forward.get_total_flops(), rel=0.02
    )


@pytest.mark.parametrize(
    ("rows", "steps", "batch", "arguments", "epochs"),
    [
        (64, 12, 16, {}, 3),
        (65, 10, 16, {}, 2),  # the last batch of an epoch is short
        (64, 4, 16, {"gradient_accumulation_steps": 2}, 2),
        (10, 3, 16, {}, 3),
    ],
)
def test_a_training_is_so_many_passes(
    rows: int, steps: int, batch: int, arguments: dict[str, Any], epochs: int
) -> None:
    assert training_flops(1e9, rows, steps, batch, arguments) == pytest.approx(STEP * epochs * 1e9)
    assert training_flops(None, rows, steps, batch, arguments) is None
    assert training_flops(1e9, 0, steps, batch, arguments) is None


def test_a_recording_is_one_pass_over_distinct_rows(tiny_model: Make) -> None:
    model = tiny_model("roberta", get_task("retrieval"))
    each = forward_flops(model, [12])
    assert each is not None
    assert recording_flops(model, 10, 120) == 10 * each
    assert recording_flops(model, 0, 0) == 0


def test_texts_that_answer_rows_are_passed_over_too(tiny_model: Make) -> None:
    model = tiny_model("distilbert", get_task("retrieval"))
    rows: Any = SimpleNamespace(lengths=np.asarray([5, 9]), documents=None)
    alone = pass_over(model, rows)
    rows.documents = SimpleNamespace(lengths=np.asarray([20, 3]))
    both = pass_over(model, rows)
    assert alone == forward_flops(model, [5, 9])
    assert both == forward_flops(model, [5, 9, 20, 3])


def test_of_a_language_model_the_head_is_on_what_is_learned(tmp_path: Path) -> None:
    path = Path(generation_recipes.model(tmp_path / "model"))
    model = load_model(path, get_task("generation"))
    model.backbone.set_attn_implementation("eager")
    rows = [
        Example(list(range(5, 15)), [0] * 4 + [1] * 6, False),
        Example([5, 6, 7], [0, 0, 1], False),
    ]
    found = language_flops(model, Examples(rows, tmp_path / "examples"))
    counted = 0
    with torch.no_grad():
        for row in rows:
            with FlopCounterMode(display=False) as counter:
                states = model.states(
                    torch.tensor([row.ids]), torch.ones(1, len(row.ids), dtype=torch.long)
                )
                model.head(states[0, np.flatnonzero(row.mask)])
            counted += counter.get_total_flops()
    # rotary angles are the counter's alone
    assert found == pytest.approx(counted, rel=0.01)


def test_an_architecture_without_formula_is_not_guessed() -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(model_type="modernbert"))
    assert forward_flops(model, [3]) is None
    assert recording_flops(model, 2, 6) is None
