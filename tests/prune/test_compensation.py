"""The fit of what remains: what is shared, and that what is kept in memory changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from paredown.eval.models import TextModel
from paredown.eval.tasks import get_task
from paredown.prune import calibration
from paredown.prune.anatomy import anatomy_of
from paredown.prune.calibration import LayerRunner, batches_of
from paredown.prune.compensation import fit

Make = Callable[..., TextModel]
WORDS = ["how", "do", "I", "open", "a", "file", "sort", "list", "of", "keys", "bank", "account"]
TEXTS = [f"{a} {b} {c}" for a in WORDS for b in WORDS[:4] for c in WORDS[5:8]]


def fitted(model: TextModel, layers: list[int], width: int | None, **options: Any) -> Any:
    anatomy = anatomy_of(model.config)
    rows = LayerRunner(model, anatomy, batches_of(model, model.tokenize(TEXTS)), "fp32")
    return fit(model, anatomy, rows, layers, width, **({"compensate": True} | options))


@pytest.mark.parametrize("layers", [[0, 1], [0], [1]])
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_what_is_computed_again_is_what_is_kept(
    kind: str, layers: list[int], tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(kind, get_task("retrieval"))
    kept, channels = fitted(model, layers, 24)
    monkeypatch.setattr(calibration, "KEPT", 0)
    again, same = fitted(model, layers, 24)
    assert channels == same
    for name, value in kept.state_dict().items():
        assert torch.allclose(value, again.state_dict()[name], atol=1e-5), name


def test_what_is_not_fitted_is_shared(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    work, _ = fitted(model, [0, 1], 24)
    before, after = dict(model.named_parameters()), dict(work.named_parameters())
    own = {name for name in before if before[name] is not after[name]}
    paths = ("output.dense", "output.LayerNorm")
    parts = [f"{path}.{part}" for path in paths for part in ("weight", "bias")]
    assert own == {f"backbone.encoder.layer.{i}.{part}" for i in (0, 1) for part in parts}


def test_layers_before_the_first_cut_stay_as_they_are(tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    work, channels = fitted(model, [0, 1], None)
    assert channels is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, work.state_dict()[name])


@pytest.mark.parametrize("compensate", [True, False])
def test_scores_choose_the_channels(compensate: bool, tiny_model: Make) -> None:
    model = tiny_model("bert", get_task("retrieval"))
    scores = [torch.arange(48.0).double().numpy(), -torch.arange(48.0).double().numpy()]
    _, channels = fitted(model, [0, 1], 8, compensate=compensate, scores=scores)
    assert channels == [list(range(40, 48)), list(range(8))]
