"""Scores and choices, against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from paredown.eval.models import TextModel
from paredown.eval.tasks import get_task
from paredown.prune import importance
from paredown.prune.anatomy import anatomy_of
from paredown.prune.calibration import batches_of, distance, only_layers, signals
from paredown.prune.importance import (
    channel_importance,
    choose_by_score,
    choose_channels,
    layer_importance,
    rank_layers,
)

Make = Callable[..., TextModel]
TEXTS = [f"how do I {verb} a {thing}?" for verb in ("open", "sort", "x") for thing in ("file", "b")]


@pytest.fixture
def deep(tiny_model: Make) -> TextModel:
    """Six layers."""
    base = tiny_model("bert", get_task("retrieval"))
    config = AutoConfig.for_model(
        "bert",
        vocab_size=base.config.vocab_size,
        hidden_size=16,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=24,
        initializer_range=0.25,
    )
    backbone = AutoModel.from_config(config)
    return TextModel(backbone, base.tokenizer, base.signal, base.encoding).eval()


def by_hand(model: TextModel, kept: tuple[int, ...]) -> float:
    expected = model.predict(TEXTS)
    with only_layers(model, anatomy_of(model.config), kept):
        found = model.predict(TEXTS)
    return distance("embedding", torch.from_numpy(expected), torch.from_numpy(found))


def test_the_least_important_layer_is_the_best_single_removal(deep: TextModel) -> None:
    anatomy, batches = anatomy_of(deep.config), batches_of(deep, deep.tokenize(TEXTS))
    scores = layer_importance(deep, anatomy, batches, "fp32")
    removed = {i: by_hand(deep, tuple(j for j in range(6) if j != i)) for i in range(6)}
    assert scores == pytest.approx(removed, abs=1e-5)
    (best, kept), *_ = rank_layers(deep, anatomy, batches, "fp32", 5)
    assert set(range(6)) - set(kept) == {min(removed, key=lambda i: removed[i])}
    assert best == pytest.approx(min(removed.values()), abs=1e-5)


def test_few_subsets_are_all_tried(deep: TextModel) -> None:
    anatomy, batches = anatomy_of(deep.config), batches_of(deep, deep.tokenize(TEXTS))
    ranked = rank_layers(deep, anatomy, batches, "fp32", 2)
    assert len(ranked) == 15 and ranked == sorted(ranked)
    best = min(itertools.combinations(range(6), 2), key=lambda kept: by_hand(deep, kept))
    assert ranked[0][1] == best


def test_many_subsets_are_first_made_fewer(
    deep: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "SUBSETS", 3)
    anatomy, batches = anatomy_of(deep.config), batches_of(deep, deep.tokenize(TEXTS))
    ranked = rank_layers(deep, anatomy, batches, "fp32", 2)
    assert len(ranked) == 3
    kept = list(range(6))
    for _ in range(3):
        kept.remove(min(kept, key=lambda i: by_hand(deep, tuple(j for j in kept if j != i))))
    assert {i for _, subset in ranked for i in subset} == set(kept)


def test_the_model_is_whole_again(deep: TextModel) -> None:
    anatomy, batches = anatomy_of(deep.config), batches_of(deep, deep.tokenize(TEXTS))
    before = signals(deep, batches, "fp32")
    layers = anatomy.layers_of(deep.backbone)
    with pytest.raises(KeyError), only_layers(deep, anatomy, [0]):
        raise KeyError
    layer_importance(deep, anatomy, batches, "fp32")
    assert anatomy.layers_of(deep.backbone) is layers
    assert torch.equal(signals(deep, batches, "fp32"), before)


@pytest.mark.parametrize("signal", ["embedding", "class_logits"])
def test_a_distance_is_0_at_equality_and_above_it_elsewhere(signal: str) -> None:
    values, other = torch.randn(5, 7), torch.randn(5, 7)
    assert distance(signal, values, values) == pytest.approx(0, abs=1e-12)  # type: ignore[arg-type]
    assert distance(signal, values, other) > 0.1  # type: ignore[arg-type]


def test_the_kl_distance_is_its_formula() -> None:
    teacher, student = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    p, q = teacher.softmax(-1).numpy(), student.softmax(-1).numpy()
    expected = (p * np.log(p / q)).sum(-1).mean()
    assert distance("class_logits", teacher, student) == pytest.approx(expected)


def test_a_channels_contribution_is_its_formula() -> None:
    generator = np.random.default_rng(0)
    hidden, weight = generator.normal(size=(50, 6)), generator.normal(size=(4, 6))
    scores = channel_importance((hidden**2).mean(0), weight)
    for j in range(6):
        expected = np.mean(np.sum(np.outer(hidden[:, j], weight[:, j]) ** 2, 1))
        assert scores[j] == pytest.approx(expected)


def test_equal_scores_keep_the_lower_index() -> None:
    assert choose_by_score(np.array([1.0, 2.0, 1.0, 2.0, 1.0]), 3) == [0, 1, 3]


def residual(covariance: np.ndarray, cross: np.ndarray, keep: list[int]) -> float:
    part = covariance[np.ix_(keep, keep)]
    return -float((cross[keep] * np.linalg.solve(part, cross[keep])).sum())


@pytest.mark.parametrize("seed", range(4))
def test_channels_are_chosen_for_the_fit(seed: int) -> None:
    """Better than by contribution, and among the best of all choices."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(10, 10)) * np.linspace(1, 0.1, 10)
    hidden = generator.normal(size=(500, 10)) @ mixing.T
    weight = generator.normal(size=(3, 10))
    covariance = np.cov(hidden.T)
    cross = covariance @ weight.T
    found = choose_channels(covariance, cross, 4, ridge=1e-9)
    plain = choose_by_score(channel_importance(np.diag(covariance), weight), 4)
    every = [list(c) for c in itertools.combinations(range(10), 4)]
    all_scores = sorted(residual(covariance, cross, keep) for keep in every)
    mine = residual(covariance, cross, found)
    assert mine <= residual(covariance, cross, plain) + 1e-9
    assert mine <= all_scores[len(all_scores) // 5]
    assert found == sorted(set(found)) and len(found) == 4


def test_channels_that_never_fire_go_first() -> None:
    covariance = np.diag([1.0, 0.0, 2.0, 0.0])
    assert choose_channels(covariance, np.ones((4, 2)) * np.diag(covariance)[:, None], 2) == [0, 2]
    assert len(choose_channels(np.zeros((4, 4)), np.zeros((4, 2)), 3)) == 3
