"""Bit packing: everything comes back, in as many bits as stated, and damage is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.distill.bit_packing import (
    Reader,
    Sets,
    id_width,
    pack,
    pack_counts,
    pack_sets,
    unpack,
    unpack_counts,
    unpack_sets,
)
from paredown.eval.errors import RunError


@given(st.integers(0, 48), st.data())
@settings(deadline=None)
def test_integers_of_any_width_come_back(width: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=50))
    packed = pack(np.array(values, dtype=np.int64), width)
    assert len(packed) == math.ceil(len(values) * width / 8)
    reader = Reader(packed)
    assert unpack(reader, width, len(values)).tolist() == values
    reader.end()


@given(st.lists(st.integers(1, 2**40), max_size=60))
@settings(deadline=None)
def test_counts_come_back_in_the_bits_of_elias_gamma(counts: list[int]) -> None:
    packed = pack_counts(np.array(counts, dtype=np.int64))
    bits = sum(2 * (c.bit_length() - 1) + 1 for c in counts)
    assert len(packed) <= bits / 8 + 2
    reader = Reader(packed)
    assert unpack_counts(reader, len(counts)).tolist() == counts
    reader.end()


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    vocabulary = draw(st.sampled_from([1, 2, 7, 256, 32_000, 151_936]))
    largest = draw(st.sampled_from([vocabulary - 1, min(vocabulary - 1, 20)]))
    one = st.sets(st.integers(0, largest), min_size=1, max_size=12)
    return [sorted(found) for found in draw(st.lists(one, max_size=20))], vocabulary


def as_sets(row: list[list[int]]) -> Sets:
    flat = np.array([i for ids in row for i in ids], dtype=np.int64)
    return Sets(flat, np.array([len(ids) for ids in row], dtype=np.int64))


@given(rows())
@settings(deadline=None)
def test_sets_of_ids_come_back(case: tuple[list[list[int]], int]) -> None:
    row, vocabulary = case
    sets = as_sets(row)
    reader = Reader(pack_sets(sets, vocabulary, fixed_size=False))
    found = unpack_sets(reader, len(row), vocabulary, None)
    reader.end()
    assert found.ids.tolist() == sets.ids.tolist() and found.sizes.tolist() == sets.sizes.tolist()


@given(st.integers(0, 2**32), st.integers(1, 30), st.booleans())
@settings(deadline=None)
def test_sets_of_one_size_come_back(seed: int, size: int, skewed: bool) -> None:
    draw = np.random.default_rng(seed)
    top = 40 if skewed else 151_936
    ids = np.stack([np.sort(draw.choice(top, size, replace=False)) for _ in range(9)])
    sets = Sets(ids.reshape(-1), np.full(9, size))
    reader = Reader(pack_sets(sets, 151_936, fixed_size=True))
    assert unpack_sets(reader, 9, 151_936, size).ids.tolist() == sets.ids.tolist()
    reader.end()


def test_sets_take_less_than_ids_of_fixed_width_and_less_still_where_ids_are_small() -> None:
    draw = np.random.default_rng(0)
    spread = np.stack([np.sort(draw.choice(151_936, 32, replace=False)) for _ in range(200)])
    logs = [np.unique(np.exp(draw.uniform(0, math.log(151_935), 90)).astype(int)) for _ in spread]
    small = np.stack([np.sort(draw.choice(ids, 32, replace=False)) for ids in logs])
    sizes = [
        len(pack_sets(Sets(ids.reshape(-1), np.full(200, 32)), 151_936, fixed_size=True))
        for ids in (spread, small)
    ]
    plain = 200 * 32 * id_width(151_936) / 8
    bound = 200 * (math.lgamma(151_937) - math.lgamma(33) - math.lgamma(151_905)) / math.log(256)
    assert bound < sizes[0] < 1.06 * bound  # nearly as few bits as any code of such sets can do
    assert sizes[0] < 0.8 * plain and sizes[1] < 0.85 * sizes[0]


def test_what_does_not_fit_is_refused_when_written() -> None:
    with pytest.raises(ValueError, match="3 bits"):
        pack(np.array([8]), 3)
    with pytest.raises(ValueError, match="at least 1"):
        pack_counts(np.array([0]))
    for ids in ([3, 3], [5, 2], [7, 10], [-1, 2]):
        with pytest.raises(ValueError, match="ascending ids"):
            pack_sets(as_sets([ids]), 10, fixed_size=False)
    with pytest.raises(ValueError, match="ascending ids"):
        pack_sets(Sets(np.array([1]), np.array([1, 0])), 10, fixed_size=False)


@given(rows(), st.data())
@settings(deadline=None, max_examples=200)
def test_truncated_sets_are_told(case: tuple[list[list[int]], int], data: st.DataObject) -> None:
    row, vocabulary = case
    packed = pack_sets(as_sets(row), vocabulary, fixed_size=False)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(RunError, match="damaged"):
        reader = Reader(packed[:cut])
        unpack_sets(reader, len(row), vocabulary, None)
        reader.end()


@given(st.binary(max_size=60), st.integers(0, 40), st.sampled_from([None, 1, 3, 32]))
@settings(deadline=None, max_examples=400)
def test_any_bytes_are_sets_of_the_vocabulary_or_refused(
    data: bytes, tokens: int, size: int | None
) -> None:
    try:
        sets = unpack_sets(Reader(data), tokens, 500, size)
    except RunError as error:
        assert "damaged" in str(error)
        return
    assert len(sets.sizes) == tokens and sets.sizes.sum() == len(sets.ids)
    assert all(0 <= i < 500 for i in sets.ids)
    parts = np.split(sets.ids, np.cumsum(sets.sizes)[:-1]) if tokens else []
    assert all(len(part) and (np.diff(part) > 0).all() for part in parts)


def test_a_few_bytes_that_claim_many_ids_are_refused_at_once() -> None:
    for form in (0, 1, 0x80, 0x85):
        with pytest.raises(RunError, match="damaged"):
            unpack_sets(Reader(bytes([form]) + b"\xff" * 8), 1, 151_936, None)
        with pytest.raises(RunError, match="damaged"):
            unpack_sets(Reader(bytes([form]) + b"\xff" * 8), 10**7, 151_936, 32)


@given(st.binary(max_size=30), st.integers(0, 10**12))
@settings(deadline=None)
def test_any_bytes_are_counts_or_refused(data: bytes, count: int) -> None:
    try:
        found = unpack_counts(Reader(data), count)
    except RunError as error:
        assert "damaged" in str(error)
        return
    assert len(found) == count and (found >= 1).all()
