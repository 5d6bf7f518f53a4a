"""Keys, hashes and sizes of splits."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from paredown.eval.splits import (
    sorted_labels,
    stable_hash,
    stratified_sizes,
    text_key,
    validation_size,
)


def test_numbers_are_sorted_as_numbers_and_names_as_text() -> None:
    assert sorted_labels(["10", "9", "-1", "0"]) == ["-1", "0", "9", "10"]
    assert sorted_labels(["10", "9", "a"]) == ["10", "9", "a"]
    assert sorted_labels(["01", "1"]) == ["01", "1"]


@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1, max_size=8),
    st.floats(0.01, 0.99),
)
def test_stratified_sizes_follow_the_counts(counts: dict[str, int], share: float) -> None:
    total = validation_size(sum(counts.values()), share, 2000)
    sizes = stratified_sizes(counts, total)
    assert sum(sizes.values()) <= total
    for label, size in sizes.items():
        assert 0 <= size < counts[label]
        assert abs(size - total * counts[label] / sum(counts.values())) <= 1


def test_hashes_and_keys_are_the_same_everywhere() -> None:
    assert stable_hash("a", "b") != stable_hash("ab", "")
    assert stable_hash("café") == 4477062290793156179
    assert text_key("  Stra\u00dfe\n ") == text_key("STRASSE")
    assert text_key(unicodedata.normalize("NFD", "\u00c9t\u00e9")) == text_key("\u00e9t\u00e9")
