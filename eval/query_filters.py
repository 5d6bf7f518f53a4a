"""The built-in task `query_filters`: what people type into a shop's search box, and its filter.

A row's *prompt* is a search as typed, its *completion* the structured filter behind it as compact
JSON with a fixed order of keys. Rows are generated from a seed, so that no file need be shipped::

    running shoes in red under 80 euros, size 42, not the blue brand
    {"category":"running_shoes","colour":"red","size":"42-43","price_max":"80","not":{"brand":"azurra"}}

Two kinds of test rows ask what training did not. All templates of an ``unseen_phrasing`` row are
held out of training (`filter_phrases.held_out`), its values are combined as training's are. An
``unseen_combination`` row has at least one pair of values that no training row has together
(`pair_held_out`), in templates of training.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from .errors import RecipeError
from .filter_phrases import ATTRIBUTES, MAX_ATTRIBUTES, Clause, phrase
from .filter_values import (
    ANYTHING,
    CAPS,
    FLOORS,
    GROUPS,
    KEYS,
    LETTER_SIZES,
    MATERIALS,
    NEGATABLE,
    NICKNAMES,
    PAIRED,
    RANGES,
    SHOE_SIZES,
    VALUES,
)
from .splits import stable_hash, text_key
from .typing_errors import mistype

TRAIN_ROWS = 60_000
VALIDATION_ROWS = 1_000
TEST_ROWS = 2_400
TYPO_SHARE = 0.15
"""Share of the validation and test prompts in which one or two words are mistyped."""

TRAIN_TYPO_SHARE = 0.30
"""The same of training prompts: more of the ways in which a word can be wrong are met there."""

PAIR_HELD_OUT_ONE_IN = 16
"""One pair of values in so many is held out of training."""

SEEN, UNSEEN_PHRASING, UNSEEN_COMBINATION = "seen", "unseen_phrasing", "unseen_combination"

_PRICES = ("price_min", "price_max")
_FACETS = (*(key for key in KEYS if key not in ("category", *_PRICES)), "price")
_HOW_MANY = {1: 6, 2: 20, 3: 30, 4: 26, 5: 13, 6: 5}
"""Weights of how many facets a search names beside its category."""

_BEFORE = {"condition": 0.5, "brand": 0.4, "audience": 0.3, "colour": 0.65, "material": 0.6}
"""How often a facet stands before the category rather than in a clause of its own."""

_NO_CATEGORY = 0.08


class Row(NamedTuple):
    """One search and its filter.

    Attributes:
        prompt: What is typed.
        completion: The filter as compact JSON.
        split: ``train``, ``validation`` or ``test``.
        slice: ``seen``, or for test rows ``unseen_phrasing`` or ``unseen_combination``.
        phrasing: The templates the prompt is made of, joined by `` | ``.
        combination: The values that `filter_values.PAIRED` facets have, as ``facet=value`` words.
        typos: How many words are mistyped.
    """

    prompt: str
    completion: str
    split: str
    slice: str
    phrasing: str
    combination: str
    typos: int


@dataclass(frozen=True)
class QueryFilters:
    """The rows of the task and how they were made.

    Attributes:
        rows: Training, validation and test rows, in this order.
        info: The settings, and the number of rows by split and slice.
    """

    rows: tuple[Row, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> list[Row]:
        """The rows of one split."""
        return [row for row in self.rows if row.split == name]


def compact_json(filter_: Mapping[str, Any]) -> str:
    """Writes a filter the one way it is written: keys in the order of `KEYS`, no spaces.

    Raises:
        RecipeError: If a key is none of a filter's.
    """
    unknown = [key for key in filter_ if key not in KEYS]
    if unknown:
        raise RecipeError(
            f"A filter has the keys {', '.join(KEYS)}, got {', '.join(map(repr, unknown))}."
        )
    ordered = {key: filter_[key] for key in KEYS if key in filter_}
    if "not" in ordered:
        ordered["not"] = {key: ordered["not"][key] for key in NEGATABLE if key in ordered["not"]}
    return json.dumps(ordered, separators=(",", ":"))


def combination_of(filter_: Mapping[str, Any]) -> str:
    """Names the values that are combined: ``category=boots colour=red price_max=80``."""
    return " ".join(f"{key}={filter_[key]}" for key in PAIRED if key in filter_)


def pairs(combination: str) -> list[tuple[str, str]]:
    """Returns every two ``facet=value`` of a combination, in the order of the facets."""
    return list(itertools.combinations(combination.split(), 2))


def pair_held_out(pair: tuple[str, str]) -> bool:
    """Whether no training row has these two values together."""
    return stable_hash("combination", *pair) % PAIR_HELD_OUT_ONE_IN == 0


def build(
    seed: int = 0,
    *,
    train: int = TRAIN_ROWS,
    validation: int = VALIDATION_ROWS,
    test: int = TEST_ROWS,
    typo_share: float = TYPO_SHARE,
    train_typo_share: float = TRAIN_TYPO_SHARE,
) -> QueryFilters:
    """Generates the rows: the same for the same arguments, in any process on any machine.

    Half of the test rows are of each kind. No prompt occurs twice, within a split or between them.
    Test rows depend on seed, their number and the share of typing errors alone; fewer training
    rows are the first of more.

    Args:
        seed: Of the values, phrasings and typing errors. What is held out does not depend on it.
        train: Training rows.
        validation: Validation rows: what training rows are, with typing errors as in test rows.
        test: Test rows of both kinds together.
        typo_share: Share of the validation and test prompts with typing errors.
        train_typo_share: The same of the training prompts.

    Raises:
        RecipeError: If a number is below its least or a share is not between 0 and 1.
    """
    for name, rows, least in (
        ("train", train, 1),
        ("validation", validation, 0),
        ("test", test, 2),
    ):
        if rows < least:
            raise RecipeError(f"query_filters: expected {name} of at least {least}, got {rows}.")
    shares = {"typo_share": typo_share, "train_typo_share": train_typo_share}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise RecipeError(f"query_filters: expected a {name} between 0 and 1, got {share}.")
    wanted = (
        ("test", UNSEEN_PHRASING, test - test // 2),
        ("test", UNSEEN_COMBINATION, test // 2),
        ("validation", SEEN, validation),
        ("train", SEEN, train),
    )
    taken: set[str] = set()
    made: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for split, slice_, count in wanted:
        random = Random(stable_hash("query_filters", str(seed), split, slice_))
        share = train_typo_share if split == "train" else typo_share
        made[split] += itertools.islice(_rows(random, split, slice_, share, taken), count)
    info = {
        "seed": seed,
        **shares,
        "rows": {name: len(rows) for name, rows in made.items()},
        "slices": {slice_: count for split, slice_, count in wanted if split == "test"},
    }
    return QueryFilters((*made["train"], *made["validation"], *made["test"]), info)


def _rows(
    random: Random, split: str, slice_: str, typo_share: float, taken: set[str]
) -> Iterator[Row]:
    while True:
        filter_, group = _filter(random)
        combination = combination_of(filter_)
        unseen = any(pair_held_out(pair) for pair in pairs(combination))
        if unseen != (slice_ == UNSEEN_COMBINATION):
            continue
        attributes, clauses = _clauses(random, filter_, group)
        noun = random.choice(
            VALUES["category"][filter_["category"]] if "category" in filter_ else ANYTHING
        )
        phrased = phrase(random, noun, attributes, clauses, slice_ == UNSEEN_PHRASING)
        prompt, typos = phrased.text, 0
        if random.random() < typo_share:
            prompt, typos = mistype(random, prompt, 1 if random.random() < 0.75 else 2)
        key = text_key(prompt)
        if key in taken:
            continue
        taken.add(key)
        yield Row(
            prompt,
            compact_json(filter_),
            split,
            slice_,
            " | ".join(phrased.parts),
            combination,
            typos,
        )


def _filter(random: Random) -> tuple[dict[str, Any], str]:
    group = random.choices(list(GROUPS), [len(names) for names in GROUPS.values()])[0]
    filter_: dict[str, Any] = {}
    if random.random() >= _NO_CATEGORY:
        filter_["category"] = random.choice(list(GROUPS[group]))
    sized = {"footwear": SHOE_SIZES, "clothing": LETTER_SIZES}.get(group)
    possible = [facet for facet in _FACETS if facet != "size" or sized]
    count = random.choices(list(_HOW_MANY), list(_HOW_MANY.values()))[0]
    chosen = random.sample(possible, count)
    for facet in chosen:
        if facet == "size" and sized:
            filter_[facet] = random.choice(list(sized))
        elif facet == "price":
            filter_ |= _price(random)
        elif facet != "not":
            filter_[facet] = _value(random, facet, group)
    if "not" in chosen:
        free = [facet for facet in NEGATABLE if facet not in filter_]
        named = random.sample(free, min(len(free), 1 if random.random() < 0.85 else 2))
        if named:
            filter_["not"] = {facet: _value(random, facet, group) for facet in named}
    return filter_, group


def _value(random: Random, facet: str, group: str) -> str:
    return random.choice(list(MATERIALS[group] if facet == "material" else VALUES[facet]))


def _price(random: Random) -> dict[str, str]:
    kind = random.choices(("cap", "floor", "range"), (50, 25, 25))[0]
    if kind == "cap":
        return {"price_max": str(random.choice(CAPS))}
    if kind == "floor":
        return {"price_min": str(random.choice(FLOORS))}
    return dict(zip(_PRICES, map(str, random.choice(RANGES)), strict=True))


def _clauses(
    random: Random, filter_: Mapping[str, Any], group: str
) -> tuple[dict[str, str], list[Clause]]:
    attributes: dict[str, str] = {}
    clauses: list[Clause] = []
    low, high = (filter_.get(bound) for bound in _PRICES)
    if low and high:
        clauses.append(Clause("range", "price", {"low": low, "high": high}))
    elif low or high:
        clauses.append(Clause("floor" if low else "cap", "price", {"x": low or high or ""}))
    for facet, value in filter_.items():
        if facet in ("category", *_PRICES):
            continue
        if facet == "not":
            clauses += (_negation(random, name, refused) for name, refused in value.items())
            continue
        typed = VALUES[facet][value]
        if (
            facet in ATTRIBUTES
            and len(attributes) < MAX_ATTRIBUTES
            and random.random() < _BEFORE[facet]
        ):
            attributes[facet] = random.choice(typed)
        else:
            clauses.append(Clause(facet, facet, {"x": random.choice(typed)}))
    return attributes, clauses


def _negation(random: Random, facet: str, value: str) -> Clause:
    typed = VALUES[facet][value]
    if facet == "brand" and value in NICKNAMES:
        typed = (*typed, NICKNAMES[value])
    return Clause("not", facet, {"x": random.choice(typed)})
