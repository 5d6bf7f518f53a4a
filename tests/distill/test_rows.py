"""The order of rows depends on seed and epoch alone, and batches have rows of like length."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paredown.distill.rows import LengthSampler

lengths = st.lists(st.integers(1, 200), min_size=1, max_size=300).map(np.asarray)


@given(lengths, st.integers(1, 32), st.integers(0, 99), st.integers(0, 9))
def test_every_row_once_an_epoch(sizes: np.ndarray, batch: int, seed: int, epoch: int) -> None:
    sampler = LengthSampler(sizes, batch, seed)
    sampler.set_epoch(epoch)
    assert sorted(sampler) == list(range(len(sizes)))
    assert list(sampler) == list(sampler)


def test_epochs_and_seeds_differ() -> None:
    sizes = np.arange(100)
    orders = set()
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = LengthSampler(sizes, 4, seed)
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 4


def test_batches_hold_rows_of_like_length() -> None:
    sizes = np.random.default_rng(0).integers(1, 200, 3200)
    order = np.asarray(list(LengthSampler(sizes, 16, seed=0))).reshape(-1, 16)
    padded = (sizes[order].max(axis=1) * 16).sum()
    assert padded <= 1.1 * sizes.sum()


@given(lengths, st.integers(1, 32), st.integers(0, 9))
def test_the_last_batch_is_filled_with_blank_rows_alone(
    sizes: np.ndarray, batch: int, epoch: int
) -> None:
    plain, filled = LengthSampler(sizes, batch, 0), LengthSampler(sizes, batch, 0, blank=-1)
    for sampler in (plain, filled):
        sampler.set_epoch(epoch)
    order = list(filled)
    assert len(order) == len(filled) and len(order) % batch == 0
    assert order[: len(sizes)] == list(plain)
    assert order[len(sizes) :] == [-1] * filled.missing and filled.missing < batch
