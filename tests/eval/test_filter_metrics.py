"""Filters judged: equal as objects, field by field, and never by luck of their spelling."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.eval.errors import DataError, RunError
from paredown.eval.filter_metrics import (
    exact_matches,
    field_counts,
    field_f1,
    invalid_json,
    parse_filter,
)
from paredown.eval.metrics import mean

MEANT = '{"category":"boots","colour":"red","not":{"brand":"norvel"}}'
leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
filters = st.dictionaries(
    st.text(max_size=4), leaves | st.dictionaries(st.text(max_size=4), leaves, min_size=1)
)


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        (MEANT, (3, 0, 0)),
        ('{"not": {"brand": "norvel"}, "colour": "red", "category": "boots"}', (3, 0, 0)),
        ('{"category":"boots","colour":"blue","not":{"brand":"norvel"}}', (2, 1, 1)),
        ('{"category":"boots","colour":"red"}', (2, 0, 1)),
        ('{"category":"boots","colour":"red","brand":"norvel"}', (2, 1, 1)),
        ("{}", (0, 0, 3)),
        (MEANT[:-1], (0, 0, 3)),
        ("", (0, 0, 3)),
    ],
)
def test_fields_are_counted_as_pairs_of_key_and_value(
    said: str, counts: tuple[int, int, int]
) -> None:
    assert field_counts([said], [MEANT]).tolist() == [list(counts)]
    assert exact_matches([said], [MEANT]).tolist() == [[float(counts == (3, 0, 0))]]


@pytest.mark.parametrize(
    "text",
    [
        "", "red boots", "[]", '"a"', "1", "null", '{"a":1', '{"a":1}}', '{"a":1} {"a":1}',
        "{'a':1}", '{"a":NaN}', '{"a":-Infinity}', '{"a":1,"a":1}', "[" * 100_000,
        '{"a":' * 100_000, '{"a":' + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_what_is_not_one_json_object_is_invalid(text: str) -> None:
    assert parse_filter(text) is None
    assert invalid_json([text, "{}"]).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1}', '{"a":true}'),
        ('{"a":1}', '{"a":"1"}'),
        ('{"a":{"b":1}}', '{"a.b":1}'),
        ('{"a":{}}', "{}"),
        ('{"a":null}', "{}"),
        ('{"a":[1,2]}', '{"a":[2,1]}'),
    ],
)
def test_what_differs_as_an_object_does_not_match(one: str, other: str) -> None:
    assert exact_matches([one], [other]).tolist() == [[0.0]]


@given(filters)
def test_a_filter_equals_itself_however_it_is_written(filter_: dict[str, object]) -> None:
    turned = json.dumps(dict(reversed(filter_.items())), indent=2)
    said, meant = [turned], [json.dumps(filter_)]
    assert exact_matches(said, meant).tolist() == [[1.0]]
    assert field_f1(field_counts(said, meant).sum(axis=0), np.array(1.0)) == 1.0


@given(st.lists(st.tuples(filters, filters), min_size=1, max_size=6))
def test_f1_equals_a_plain_count(rows: list[tuple[dict[str, object], dict[str, object]]]) -> None:
    def flat(filter_: dict[str, object]) -> set[str]:
        pairs = []
        for key, value in filter_.items():
            below = value if isinstance(value, dict) else {None: value}
            pairs += [repr((key, inner, one)) for inner, one in below.items()]
        return set(pairs)

    right = sum(len(flat(a) & flat(b)) for a, b in rows)
    said, meant = (sum(len(flat(row[side])) for row in rows) for side in (0, 1))
    expected = 2 * right / (said + meant) if said + meant else 1.0
    counts = field_counts([json.dumps(a) for a, _ in rows], [json.dumps(b) for _, b in rows])
    found = field_f1(counts.sum(axis=0), np.array(float(len(rows))))
    assert found == pytest.approx(expected, abs=1e-12)


def test_resampled_sums_are_reduced_at_once() -> None:
    said, meant = ["{}", MEANT, "no"], [MEANT, MEANT, MEANT]
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 3.0, 0.0], [3.0, 0.0, 0.0]])
    f1 = field_f1(weights @ field_counts(said, meant), weights.sum(axis=1))
    assert f1 == pytest.approx([2 * 3 / (2 * 3 + 6), 1.0, 0.0])
    exact = mean(weights @ exact_matches(said, meant), weights.sum(axis=1))
    assert exact == pytest.approx([1 / 3, 1.0, 0.0])


def test_rows_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(RunError, match="each of 2 references, got 1"):
        exact_matches(["{}"], ["{}", "{}"])
    with pytest.raises(DataError, match=r"row 1 is no JSON object: 'red boots'"):
        field_counts(["{}", "{}"], ["{}", "red boots"])
    with pytest.raises(DataError, match="at least one"):
        field_counts([], [])
    with pytest.raises(DataError, match="at least one"):
        invalid_json([])
