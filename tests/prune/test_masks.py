"""Masks set weights to zero where they say, and SparseGPT makes up for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from paredown.eval.checkpoints import save_model
from paredown.eval.errors import RecipeError
from paredown.eval.models import TextModel, load_model
from paredown.eval.tasks import get_task
from paredown.prune import masks
from paredown.prune.anatomy import anatomy_of
from paredown.prune.calibration import LayerRunner, batches_of, distance, signals
from paredown.prune.masks import Pattern, _kept, _sparsegpt, mask_model, pattern_of, zeros_of

Make = Callable[..., TextModel]
TEXTS = [
    f"{a} {b} {c}" for a in ("open", "sort", "how do I") for b in ("a", "the") for c in "abxyz"
]
METHODS = ["magnitude", "wanda", "sparsegpt"]


def maps(model: TextModel) -> list[nn.Linear]:
    layers = anatomy_of(model.config).layers_of(model.backbone)
    return [m for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", [0.5, "2:4", "1:4"])
def test_as_many_weights_go_as_the_pattern_says(method: Any, text: Any, tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pattern = pattern_of(text)
    masked, facts = mask_model(model, model.tokenize(TEXTS), method, pattern)
    assert facts["zeros"] == pytest.approx(pattern.share, abs=0.01)
    for module in maps(masked):
        if pattern.group:
            kept = (module.weight != 0).reshape(len(module.weight), -1, pattern.group).sum(-1)
            assert (kept <= round((1 - pattern.share) * pattern.group)).all()
        assert (module.weight == 0).double().mean() == pytest.approx(pattern.share, abs=0.02)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(p.numel() for p in masked.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_masked_checkpoint_is_dense_and_keeps_its_zeros(tiny_model: Make, tmp_path: Any) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    masked, _ = mask_model(model, model.tokenize(TEXTS), "wanda", Pattern(0.5))
    save_model(masked, tmp_path / "masked")
    save_model(model, tmp_path / "whole")
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("masked", "whole")]
    assert sizes[0] == sizes[1]
    again = load_model(tmp_path / "masked", get_task("retrieval"))
    assert zeros_of(again) == zeros_of(masked) > 0.2


def test_the_smallest_weights_of_a_row_go() -> None:
    score = torch.tensor([[3.0, 1.0, 2.0, 4.0], [0.1, 0.4, 0.3, 0.2]])
    assert _kept(score, Pattern(0.5)).tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]
    assert _kept(score, Pattern(0.5, 2)).tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]
    assert _kept(score, Pattern(0.75, 4)).tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize("group", [0, 4])
def test_sparsegpt_leaves_less_error_than_removing_alone(
    group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "BLOCK", 8)  # as many blocks as a wide layer has
    draw = torch.Generator().manual_seed(0)
    read = torch.randn(600, 32, generator=draw, dtype=torch.float64)
    read = read @ torch.randn(32, 32, generator=draw, dtype=torch.float64)
    weight = torch.randn(16, 32, generator=draw, dtype=torch.float64)
    gram = read.T @ read
    found = _sparsegpt(weight, gram, Pattern(0.5, group))
    plain = weight * _kept(weight.abs() * gram.diagonal().sqrt(), Pattern(0.5, group))

    def error(new: torch.Tensor) -> float:
        return float(((read @ (weight - new).T) ** 2).sum())

    assert (found == 0).double().mean() == pytest.approx(0.5, abs=0.01)
    assert error(found) < 0.7 * error(plain)


@pytest.mark.parametrize(
    ("text", "width"), [("1:3", 192), ("2:6", 258), ("3:5", 160), ("60:130", 260), ("64:128", 256)]
)
def test_groups_of_any_size_go_with_maps_of_any_width(text: str, width: int) -> None:
    draw = torch.Generator().manual_seed(0)
    read = torch.randn(600, width, generator=draw, dtype=torch.float64)
    read[:, 1:] += 0.8 * read[:, :-1]
    weight = torch.randn(4, width, generator=draw, dtype=torch.float64)
    kept, group = map(int, text.split(":"))
    pattern, gram = pattern_of(text), read.T @ read
    found = _sparsegpt(weight, gram, pattern)
    assert ((found.reshape(4, -1, group) != 0).sum(-1) == kept).all()
    plain = weight * _kept(weight.abs() * gram.diagonal().sqrt(), pattern)
    left, more = (float(((read @ (weight - new).T) ** 2).sum()) for new in (found, plain))
    assert left < 0.9 * more


def test_one_weight_removed_is_the_optimal_brain_surgeons() -> None:
    """Of the last two columns, removing the first: the other takes over what least squares says."""
    draw = torch.Generator().manual_seed(1)
    read = torch.randn(500, 2, generator=draw, dtype=torch.float64)
    read[:, 1] += 0.8 * read[:, 0]
    weight = torch.tensor([[0.1, 2.0]], dtype=torch.float64)
    found = _sparsegpt(weight, read.T @ read, Pattern(0.5, 2))
    assert found[0, 0] == 0
    best = torch.linalg.lstsq(read[:, 1:], read @ weight.T).solution
    assert float(found[0, 1]) == pytest.approx(float(best), rel=0.02)  # the damping's share


def test_sparsegpt_is_nearest_on_a_model(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    rows = model.tokenize(TEXTS)
    batches = batches_of(model, rows)
    whole = signals(model, batches, "fp32")
    found = {}
    for method in METHODS:
        masked, _ = mask_model(model, rows, method, Pattern(0.5))  # type: ignore[arg-type]
        found[method] = distance("embedding", whole, signals(masked, batches, "fp32"))
    assert found["sparsegpt"] < found["magnitude"]


def test_what_calibrates_is_summed_in_full_precision(tiny_model: Make) -> None:
    """Forward passes may be in bf16; sums of products rounded so are those of no data."""
    model = tiny_model("bert", get_task("retrieval"))
    anatomy = anatomy_of(model.config)
    runner = LayerRunner(model, anatomy, batches_of(model, model.tokenize(TEXTS)), "bf16")
    layer = anatomy.layers_of(model.backbone)[0]
    for gram in masks._grams(layer, masks._linears(layer), runner, 0).values():
        values = torch.linalg.eigvalsh(gram)
        assert float(values[0]) > -1e-5 * float(values[-1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", [0.5, "2:4"])
def test_masks_are_chosen_in_bf16_as_well(method: Any, text: Any, tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    masked, facts = mask_model(model, model.tokenize(TEXTS), method, pattern_of(text), "bf16")
    assert facts["zeros"] == pytest.approx(0.5, abs=0.01)
    assert all(torch.isfinite(p).all() for p in masked.parameters())


@pytest.mark.parametrize("text", [0, 1, 1.5, "4:4", "5:4", "half", "2:4:8", True])
def test_other_patterns_are_refused(text: Any) -> None:
    with pytest.raises(RecipeError, match="A mask is a share of zeros"):
        pattern_of(text)


def test_a_group_that_does_not_fit_is_refused(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    with pytest.raises(RecipeError, match="no multiple of 5"):
        mask_model(model, model.tokenize(TEXTS), "magnitude", pattern_of("2:5"))
    with pytest.raises(RecipeError, match="takes no weight"):
        mask_model(model, [], "magnitude", Pattern(0.001))
    with pytest.raises(RecipeError, match="Unknown mask"):
        mask_model(model, model.tokenize(TEXTS), "random", Pattern(0.5))  # type: ignore[arg-type]
