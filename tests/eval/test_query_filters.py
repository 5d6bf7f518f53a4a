"""The built-in filters: training has nothing of what is held out, and only the seed decides."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.eval import filter_phrases, query_filters, typing_errors
from paredown.eval.errors import RecipeError
from paredown.eval.filter_values import GROUPS, KEYS, MATERIALS, NEGATABLE, NICKNAMES, VALUES
from paredown.eval.query_filters import (
    SEEN,
    UNSEEN_COMBINATION,
    UNSEEN_PHRASING,
    QueryFilters,
    Row,
    build,
    compact_json,
    pairs,
)
from paredown.eval.splits import text_key


@pytest.fixture(scope="module")
def made() -> QueryFilters:
    return build()


def of_slice(made: QueryFilters, name: str) -> list[Row]:
    return [row for row in made.split("test") if row.slice == name]


def parts(row: Row) -> list[str]:
    return row.phrasing.split(" | ")


def digest(made: QueryFilters) -> str:
    return hashlib.sha256(json.dumps([made.rows, made.info]).encode()).hexdigest()


def test_there_are_enough_rows_of_each_kind(made: QueryFilters) -> None:
    assert len(made.split("train")) == query_filters.TRAIN_ROWS
    assert len(made.split("validation")) == query_filters.VALIDATION_ROWS
    assert len(made.split("test")) >= 2000
    slices = Counter(row.slice for row in made.split("test"))
    assert set(slices) == {UNSEEN_PHRASING, UNSEEN_COMBINATION}
    assert min(slices.values()) >= 1000
    assert made.info["slices"] == slices
    assert {row.slice for row in made.rows if row.split != "test"} == {SEEN}


def test_training_has_no_phrasing_of_the_unseen_ones_and_none_of_their_templates(
    made: QueryFilters,
) -> None:
    learned = [row for row in made.rows if row.split != "test"]
    phrasings = {row.phrasing for row in learned}
    templates = {part for row in learned for part in parts(row)}
    for row in of_slice(made, UNSEEN_PHRASING):
        assert row.phrasing not in phrasings
        assert not templates & set(parts(row)), row


def test_training_has_no_combination_of_the_unseen_ones(made: QueryFilters) -> None:
    learned = [row for row in made.rows if row.split != "test"]
    combinations = {row.combination for row in learned}
    together = {pair for row in learned for pair in pairs(row.combination)}
    for row in of_slice(made, UNSEEN_COMBINATION):
        assert row.combination not in combinations
        assert set(pairs(row.combination)) - together, row


def test_each_kind_of_test_row_is_new_in_one_way_alone(made: QueryFilters) -> None:
    assert not any(
        query_filters.pair_held_out(pair)
        for row in of_slice(made, UNSEEN_PHRASING)
        for pair in pairs(row.combination)
    )
    for row in of_slice(made, UNSEEN_COMBINATION):
        for part in parts(row):
            kind, template = part.split(": ", 1)
            assert not filter_phrases.held_out(kind.split()[0], template)


def test_values_of_an_unseen_pair_are_each_seen_apart(made: QueryFilters) -> None:
    seen = {value for row in made.split("train") for value in row.combination.split()}
    assert {value for row in made.split("test") for value in row.combination.split()} <= seen


def test_combinations_are_those_of_the_completion(made: QueryFilters) -> None:
    for row in made.rows[::50]:
        assert row.combination == query_filters.combination_of(json.loads(row.completion))


def test_no_prompt_occurs_twice(made: QueryFilters) -> None:
    keys = [text_key(row.prompt) for row in made.rows]
    assert len(set(keys)) == len(keys)


def test_held_out_templates_are_made_of_words_that_training_has() -> None:
    for kind in filter_phrases.KINDS:
        seen = " ".join(filter_phrases.usable(kind, False)).split()
        unseen = filter_phrases.usable(kind, True)
        assert unseen
        assert set(" ".join(unseen).split()) <= set(seen), kind
    for size in range(filter_phrases.MAX_ATTRIBUTES + 1):
        for chosen in itertools.combinations(filter_phrases.ATTRIBUTES, size):
            assert filter_phrases.usable("head", True, frozenset(chosen)), chosen


def test_there_are_many_hundreds_of_templates_and_each_is_one_kinds(made: QueryFilters) -> None:
    assert sum(len(filter_phrases.templates(kind)) for kind in filter_phrases.KINDS) > 1000
    used = {part for row in made.rows for part in parts(row)}
    assert len(used) > 1500
    assert len({row.phrasing for row in made.split("train")}) > 0.8 * query_filters.TRAIN_ROWS


def test_values_are_of_closed_sets_and_stand_in_the_order_of_the_keys(made: QueryFilters) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for row in made.rows:
        filter_ = json.loads(row.completion)
        assert filter_
        assert list(filter_) == [key for key in KEYS if key in filter_]
        for key, value in filter_.items():
            named = value if key == "not" else {key: value}
            assert list(named) == sorted(named, key=(NEGATABLE if key == "not" else KEYS).index)
            for facet, one in named.items():
                assert one in VALUES[facet], row
                counts[key, one] += row.split == "train"
        assert not set(filter_.get("not", ())) & set(filter_)
    everything = {(facet, value) for facet, values in VALUES.items() for value in values}
    assert everything <= set(counts)
    assert min(counts[pair] for pair in everything) >= 100


def test_completions_are_canonical_and_round_trip(made: QueryFilters) -> None:
    for row in made.rows[::7]:
        assert " " not in row.completion
        assert compact_json(json.loads(row.completion)) == row.completion


@given(st.permutations(["not", "sort", "colour", "category"]), st.booleans())
def test_the_order_in_which_a_filter_was_filled_does_not_show(order: list[str], turn: bool) -> None:
    refused = {"brand": "norvel", "colour": "red"}
    values = {
        "category": "boots",
        "colour": "black",
        "sort": "newest",
        "not": dict(sorted(refused.items(), reverse=turn)),
    }
    assert compact_json({key: values[key] for key in order}) == (
        '{"category":"boots","colour":"black","sort":"newest",'
        '"not":{"colour":"red","brand":"norvel"}}'
    )


def test_a_key_that_is_none_of_a_filters_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"delivery.*got 'color'"):
        compact_json({"color": "red"})


def test_what_is_typed_means_one_value() -> None:
    for facet, values in VALUES.items():
        typed = [words for several in values.values() for words in several]
        assert len(set(typed)) == len(typed), facet
    assert not set(NICKNAMES) - set(VALUES["brand"])
    assert set(GROUPS) == set(MATERIALS)
    assert len(VALUES["category"]) >= 40


def words_for(facet: str, value: str) -> list[str]:
    words = list(VALUES[facet][value])
    return [*words, NICKNAMES[value]] if value in NICKNAMES else words


def test_the_prompt_names_every_value_of_its_filter() -> None:
    for row in build(train=3000, typo_share=0, train_typo_share=0).rows:
        filter_ = json.loads(row.completion)
        refused = filter_.pop("not", {})
        for facet, value in [*filter_.items(), *refused.items()]:
            words = words_for(facet, value)
            held = [re.search(rf"(?<!\w){re.escape(word)}(?!\w)", row.prompt) for word in words]
            assert any(held), (row, facet)


def test_the_stated_share_of_prompts_is_mistyped(made: QueryFilters) -> None:
    shares = {"train": query_filters.TRAIN_TYPO_SHARE}
    for split in ("train", "validation", "test"):
        rows = made.split(split)
        share = shares.get(split, query_filters.TYPO_SHARE)
        error = (share * (1 - share) / len(rows)) ** 0.5
        assert abs(np.mean([row.typos > 0 for row in rows]) - share) < 5 * error + 0.005
    assert not any(row.typos for row in build(train=500, typo_share=0, train_typo_share=0).rows)


def test_a_row_with_typing_errors_has_words_that_no_search_is_made_of(made: QueryFilters) -> None:
    known = typing_errors.known_words()
    for row in made.split("test"):
        strange = [word for word in re.findall(r"[a-z]{3,}", row.prompt) if word not in known]
        assert len(strange) == row.typos, row


@given(st.integers(0, 2**32), st.integers(1, 3))
def test_a_typing_error_is_one_slip_within_a_word(seed: int, words: int) -> None:
    text = "red running shoes under €80, size 42 by norvel"
    wrong, count = typing_errors.mistype(Random(seed), text, words)
    before, after = text.split(), wrong.split()
    assert count == words
    assert len(before) == len(after)
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == words
    for a, b in changed:
        assert a[0] == b[0]
        assert abs(len(a) - len(b)) <= 1
        assert a.isalpha() and len(a) >= typing_errors.LEAST_LETTERS


def test_text_without_a_long_word_stays_as_it_is() -> None:
    assert typing_errors.mistype(Random(0), "red mug xl 42", 2) == ("red mug xl 42", 0)


def test_the_rows_are_the_same_in_another_process_and_differ_by_seed() -> None:
    small = {"train": 300, "validation": 50, "test": 100}
    code = (
        "import hashlib, json; from paredown.eval.query_filters import build;"
        f"made = build(3, **{small});"
        "print(hashlib.sha256(json.dumps([made.rows, made.info]).encode()).hexdigest())"
    )
    for salt in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": salt},
        )
        assert ran.stdout.strip() == digest(build(3, **small))
    assert not {row.prompt for row in build(3, **small).rows} & {
        row.prompt for row in build(4, **small).rows
    }


def test_fewer_training_rows_are_the_first_of_more_and_leave_the_test_as_it_is() -> None:
    few, many = build(train=200, test=100), build(train=400, test=100)
    assert few.split("train") == many.split("train")[:200]
    assert few.split("test") == many.split("test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "train of at least 1, got 0"),
        ({"validation": -1}, "validation of at least 0, got -1"),
        ({"test": 1}, "test of at least 2, got 1"),
        ({"typo_share": 1.5}, "a typo_share between 0 and 1, got 1.5"),
        ({"train_typo_share": -0.1}, "a train_typo_share between 0 and 1, got -0.1"),
    ],
)
def test_what_cannot_be_generated_is_refused_by_name(
    arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        build(**arguments)  # type: ignore[arg-type]


def test_the_nearest_training_row_rarely_has_the_answer(made: QueryFilters) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    train, test = made.split("train"), made.split("test")[::2]  # half of them, for speed
    vectoriser = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), dtype=np.float32)
    known = vectoriser.fit_transform(row.prompt for row in train).T.tocsr()
    asked = vectoriser.transform(row.prompt for row in test)
    right: dict[str, list[bool]] = {UNSEEN_PHRASING: [], UNSEEN_COMBINATION: []}
    for start in range(0, len(test), 100):
        best = (asked[start : start + 100] @ known).toarray().argmax(axis=1)
        for row, at in zip(test[start : start + 100], best, strict=True):
            right[row.slice].append(train[int(at)].completion == row.completion)
    for hits in right.values():
        assert len(hits) == 600
        assert np.mean(hits) <= 0.30
