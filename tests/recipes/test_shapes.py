"""Shapes within a budget: their predicted cost is the saved model's, and none is above."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paredown.eval.cost import row_flops
from paredown.eval.errors import RecipeError
from paredown.eval.models import TextModel
from paredown.eval.tasks import get_task
from paredown.prune import Cut, anatomy_of, prune_model
from paredown.prune.surgery import cut
from paredown.recipes.shapes import Costs, at, grid, proposals

Make = Callable[..., TextModel]
LENGTHS = np.asarray([5, 9, 14])
CURVES = {
    "layers": [(1, 0.4), (2, 0.0)],
    "intermediate_size": [(8, 0.3), (24, 0.1), (48, 0.0)],
    "hidden_size": [(8, 0.6), (16, 0.3), (32, 0.0)],
}


@pytest.fixture(params=["bert", "roberta", "distilbert"])
def model(request: pytest.FixtureRequest, tiny_model: Make) -> TextModel:
    return tiny_model(request.param, get_task("retrieval"))


def sizes_of(model: TextModel, **fixed: int) -> dict[str, list[int]]:
    return grid(anatomy_of(model.config), model.config, fixed, 8)


def test_the_grid_ends_with_the_whole_sizes(model: TextModel) -> None:
    found = sizes_of(model)
    assert found["layers"] == [1, 2]
    assert found["intermediate_size"] == [8, 16, 24, 32, 40, 48]
    assert found["hidden_size"] == [8, 16, 24, 32]  # multiples of a head's width
    assert sizes_of(model, layers=1)["layers"] == [1]


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"layers": 1},
        {"intermediate_size": 24},
        {"hidden_size": 16},
        {"layers": 1, "intermediate_size": 16, "hidden_size": 24},
    ],
)
def test_the_predicted_cost_is_the_cut_models(model: TextModel, sizes: dict[str, int]) -> None:
    texts = [f"{a} {b} {c}" for a in ("open", "sort") for b in ("a", "the") for c in ("file", "x")]
    small = prune_model(model, texts, compensate=False, **sizes).model if sizes else model  # type: ignore[arg-type]
    predicted = Costs(model, LENGTHS).of(sizes)
    assert predicted.parameters == sum(p.numel() for p in small.parameters())
    assert predicted.flops == pytest.approx(row_flops(small, LENGTHS).mean())
    assert predicted.bytes == 4 * predicted.parameters


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0.12, 0.95), kind=st.sampled_from(["flops", "parameters", "bytes"]))
def test_no_proposal_is_above_the_budget(model: TextModel, share: float, kind: str) -> None:
    costs = Costs(model, LENGTHS)
    whole = costs.of({})
    try:
        found = proposals(costs, sizes_of(model), CURVES, (kind, share), whole, 16)
    except RecipeError as error:
        assert "no shape is that small" in str(error)
        return
    assert all(getattr(shape.cost.over(whole), kind) <= share for shape in found)
    assert len({shape.name for shape in found}) == len(found) <= 16
    assert all(shape.sizes for shape in found)
    assert [s.distance for s in found[:2]] == sorted(s.distance for s in found[:2])


def test_what_is_fixed_stays(model: TextModel) -> None:
    costs = Costs(model, LENGTHS)
    sizes = sizes_of(model, layers=1, hidden_size=24)
    found = proposals(costs, sizes, CURVES, ("flops", 0.3), costs.of({}), 16)
    assert {(s.sizes["layers"], s.sizes["hidden_size"]) for s in found} == {(1, 24)}


def test_a_budget_that_nothing_meets_names_the_nearest(model: TextModel) -> None:
    costs = Costs(model, LENGTHS)
    with pytest.raises(RecipeError, match=r"budget.flops 0.001.*nearest is 1 layer, FFN 8, hid"):
        proposals(costs, sizes_of(model), CURVES, ("flops", 0.001), costs.of({}), 16)


def test_curves_are_straight_between_their_points() -> None:
    assert at(CURVES["intermediate_size"], 16) == pytest.approx(0.2)
    assert at((), 5) == 0.0


def test_other_architectures_are_predicted_too(tiny_model: Make) -> None:
    from transformers import LlamaConfig, LlamaModel

    from paredown.eval.encoding import Encoding

    tokenizer = tiny_model("roberta", get_task("retrieval")).tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, head_dim=8,
    )  # fmt: skip
    encoding = Encoding(24, "mean", True, {})
    model = TextModel(LlamaModel(config), tokenizer, "embedding", encoding).eval()
    what: Any = Cut(layers=[0], channels=[list(range(16))])
    small, _ = cut(model, what)
    predicted = Costs(model, LENGTHS).of({"layers": 1, "intermediate_size": 16})
    assert predicted.parameters == sum(p.numel() for p in small.parameters())
    assert predicted.flops == pytest.approx(row_flops(small, LENGTHS).mean())
