"""How well texts that should be filters are: exact match, per-field F1, and invalid JSON counted.

Each is given as statistics of shape (rows, k) that add up over rows, and a reducer over weighted
sums of them, so that one bootstrap serves all (as in `metrics`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import DataError, RunError
from .ranking import Floats

Fields = frozenset[tuple[str, str]]
"""A filter as its ``key:value`` pairs: the dotted path of a key, and the JSON of its value."""


def parse_filter(text: str) -> Fields | None:
    """Reads a text as a filter; ``None`` where it is not one JSON object.

    Objects inside an object are walked: ``{"not":{"colour":"red"}}`` has the field
    ``not.colour``. Any other value, a list included, is one value, and so is an object without
    keys. Order of keys and white space do not matter; an object that has a key twice is invalid,
    as are ``NaN`` and ``Infinity``, which JSON does not have.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
        return frozenset(_fields(found, ())) if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no {constant}")


def _fields(value: Any, path: tuple[str, ...]) -> list[tuple[str, str]]:
    if isinstance(value, dict) and (value or not path):
        return [field for key, below in value.items() for field in _fields(below, (*path, key))]
    # a dot within a key must not look like a level, hence the escape
    name = ".".join(key.replace("\\", "\\\\").replace(".", "\\.") for key in path)
    return [(name, json.dumps(value, sort_keys=True))]


def exact_matches(predictions: Sequence[str], references: Sequence[str]) -> Floats:
    """1 where a text is the reference filter, equal as a JSON object, else 0: shape (n, 1).

    Raises:
        RunError: If there are not as many predictions as references.
        DataError: If there is no row, or a reference is no JSON object.
    """
    said, meant = _parsed(predictions, references)
    return np.array([[float(a == b)] for a, b in zip(said, meant, strict=True)])


def field_counts(predictions: Sequence[str], references: Sequence[str]) -> Floats:
    """True positives, false positives and false negatives of ``key:value`` pairs: shape (n, 3).

    A text that is not a JSON object says nothing: all fields of its reference are missed.

    Raises:
        RunError: If there are not as many predictions as references.
        DataError: If there is no row, or a reference is no JSON object.
    """
    said, meant = _parsed(predictions, references)
    nothing: Fields = frozenset()
    counts = []
    for a, b in zip(said, meant, strict=True):
        got = nothing if a is None else a
        counts.append([len(got & b), len(got - b), len(b - got)])
    return np.asarray(counts, dtype=np.float64)


def invalid_json(predictions: Sequence[str]) -> Floats:
    """1 where a text is not one JSON object, else 0: shape (n, 1). Smaller is better.

    Raises:
        DataError: If there is no row.
    """
    if not len(predictions):
        raise DataError("Expected at least one generated filter to judge, got none.")
    return np.array([[float(parse_filter(text) is None)] for text in predictions])


def field_f1(sums: Floats, counts: Floats) -> Floats:
    """Micro F1 over ``key:value`` pairs, 2 tp / (2 tp + fp + fn): sums (…, 3) -> (…,).

    1 where neither side names a field: nothing was asked, and nothing wrong was said.

    Args:
        sums: Weighted sums of `field_counts`.
        counts: Sums of the weights (…,), which do not enter.
    """
    hits = 2 * sums[..., 0]
    total = hits + sums[..., 1] + sums[..., 2]
    return np.asarray(np.divide(hits, total, out=np.ones_like(hits), where=total > 0))


def _parsed(
    predictions: Sequence[str], references: Sequence[str]
) -> tuple[list[Fields | None], list[Fields]]:
    if len(predictions) != len(references):
        raise RunError(
            f"Expected a generated filter for each of {len(references)} references, "
            f"got {len(predictions)}."
        )
    if not len(references):
        raise DataError("Expected at least one reference filter, got none.")
    meant = []
    for row, text in enumerate(references):
        fields = parse_filter(text)
        if fields is None:
            raise DataError(
                f"The completion of test row {row} is no JSON object: {text[:80]!r}. "
                "Metrics of filters need rows whose completion is one; choose `exact_match` "
                "for other texts."
            )
        meant.append(fields)
    return [parse_filter(text) for text in predictions], meant
