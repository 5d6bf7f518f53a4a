"""The grammar of what people type into a shop's search box, and which phrasings are held out.

A query is a *frame* around a *head* (the category with what stands before it) and *clauses*, one a
facet, put together by a *join*. Templates are products of small lists of words, so that a template
that training never saw is made of words that it did see. A stable hash of the template alone says
whether it is held out: no seed, size or process changes it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from random import Random
from typing import NamedTuple

from .splits import stable_hash

HELD_OUT_ONE_IN = 5
"""One template in so many is held out of training."""

ATTRIBUTES = ("condition", "brand", "audience", "colour", "material")
"""Facets that may stand before the category, as in ``used red running shoes``."""

MAX_ATTRIBUTES = 3

_DETERMINERS = (
    "", "some", "any", "good", "nice", "decent", "some good", "some nice", "any good", "any nice",
)  # fmt: skip
_PREFIXES = (
    "", "show me", "i want", "i need", "looking for", "find me", "search for", "do you have",
    "i am after", "can i get", "need", "where can i find", "hello , i need", "hi , looking for",
)  # fmt: skip
_ENDINGS = ("", "please", "thanks", "thank you", "cheers", "?", "please ?", "asap")
_SEPARATORS = (" ", ", ", " and ", " - ", "; ", " / ", " plus ", " also ")
_ENDS = ("", "only", "if possible", "ideally", "or nothing")
_AMOUNTS = ("{x}", "{x} euros", "{x} euro", "{x} eur", "€{x}", "€ {x}")
_PRICE_LEADS = ("", "for", "priced", "costing", "price", "that costs")

_CLAUSES: dict[str, tuple[Sequence[str], ...]] = {
    "audience": (("for", "to fit", "meant for", "made for", "suitable for"), ("{x}",), _ENDS),
    "colour": (
        ("in", "in the colour", "colour", "coloured", "it should be", "must be", "has to be"),
        ("{x}",),
        _ENDS,
    ),
    "size": (
        ("size", "in size", "in a size", "sized", "my size is", "i wear", "i take a"),
        ("{x}",),
        _ENDS,
    ),
    "material": (
        ("made of", "made from", "in", "out of", "material", "the material is", "must be"),
        ("{x}",),
        _ENDS,
    ),
    "brand": (
        ("by", "from", "made by", "brand", "the brand is", "from the brand", "sold by"),
        ("{x}",),
        _ENDS,
    ),
    "condition": (
        ("in", "condition", "must be", "has to be", "it should be", "state"),
        ("{x}", "{x} condition", "{x} state"),
        _ENDS,
    ),
    "cap": (
        _PRICE_LEADS,
        ("under", "below", "max", "up to", "at most", "less than", "cheaper than", "no more than"),
        _AMOUNTS,
    ),
    "floor": (
        _PRICE_LEADS,
        ("over", "above", "min", "from", "at least", "more than", "no less than", "starting at"),
        _AMOUNTS,
    ),
    "range": (
        _PRICE_LEADS,
        ("{low} to {high}", "between {low} and {high}", "from {low} to {high}", "{low} - {high}"),
        ("", "euros", "euro", "eur"),
    ),
    "delivery": (
        ("", "with", "needs", "must have", "i want", "only", "has to have"),
        ("{x} delivery", "{x} shipping", "{x} postage", "{x} dispatch"),
        ("", "if possible", "ideally", "or nothing"),
    ),
    "sort": (
        ("", "sort by", "sorted by", "order by", "ordered by", "show", "list", "with"),
        ("{x} first", "the {x} first", "{x} at the top", "{x} on top"),
    ),
    "not": (
        ("not", "no", "but not", "except", "without", "anything but", "nothing in", "avoid"),
        ("{x}",),
        ("", "at all", "ever", "whatever you have"),
    ),
}

KINDS = (*_CLAUSES, "frame", "join")
"""What templates are for, heads aside."""


class Clause(NamedTuple):
    """What one clause says: its kind, the facet it is about, and the words for its value."""

    kind: str
    facet: str
    words: dict[str, str]


class Phrased(NamedTuple):
    """A query and the templates it is made of."""

    text: str
    parts: tuple[str, ...]


def _joined(words: Iterable[str]) -> str:
    return " ".join(word for word in words if word)


@functools.cache
def templates(kind: str) -> tuple[str, ...]:
    """All templates of a kind of clause, or of ``frame`` and ``join``, each once.

    In a frame ``…`` stands for the rest; a join gives what separates clauses, then the last two.
    """
    if kind == "frame":
        return tuple(_joined([a, "…", b]) for a, b in itertools.product(_PREFIXES, _ENDINGS))
    if kind == "join":
        return tuple(f"…{a}…{b}…" for a, b in itertools.product(_SEPARATORS, _SEPARATORS))
    return tuple(dict.fromkeys(_joined(words) for words in itertools.product(*_CLAUSES[kind])))


@functools.cache
def heads(attributes: frozenset[str]) -> tuple[str, ...]:
    """All templates of a head with these facets before the category, in every order."""
    orders = itertools.permutations(sorted(attributes))
    return tuple(
        _joined([determiner, *(f"{{{name}}}" for name in order), "{category}"])
        for order, determiner in itertools.product(orders, _DETERMINERS)
    )


def held_out(kind: str, template: str) -> bool:
    """Whether training never uses a template."""
    return stable_hash("phrasing", kind, template) % HELD_OUT_ONE_IN == 0


@functools.cache
def usable(kind: str, unseen: bool, attributes: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The templates of a kind that are held out, or those that are not.

    Args:
        kind: A kind of clause, ``frame``, ``join`` or ``head``.
        unseen: Whether the held-out ones are asked for.
        attributes: For a head, the facets before the category.
    """
    every = heads(attributes) if kind == "head" else templates(kind)
    return tuple(template for template in every if held_out(kind, template) == unseen)


def _shorter(random: Random, choices: Sequence[str]) -> str:
    # who types is brief: all templates occur, short ones more often
    return min(random.choice(choices), random.choice(choices), key=len)


def phrase(
    random: Random, noun: str, attributes: dict[str, str], clauses: Sequence[Clause], unseen: bool
) -> Phrased:
    """Puts a query together, from held-out templates alone or from none of them.

    A query of one clause has nothing to join; every other part has held-out templates.

    Args:
        random: Where choices come from.
        noun: The words for the category.
        attributes: The words for each facet before the category.
        clauses: What is said beside it; they are put in random order.
        unseen: Whether all parts are held-out templates.
    """
    order = list(clauses)
    random.shuffle(order)
    frame = _shorter(random, usable("frame", unseen))
    if not unseen and random.random() < 0.4:
        frame = "…"
    head = _shorter(random, usable("head", unseen, frozenset(attributes)))
    parts, texts = [f"head: {head}"], [head.format(category=noun, **attributes)]
    for clause in order:
        template = _shorter(random, usable(clause.kind, unseen))
        kind = f"not {clause.facet}" if clause.kind == "not" else clause.kind
        parts.append(f"{kind}: {template}")
        texts.append(template.format(**clause.words))
    if len(texts) > 1 and random.random() < 0.15:
        texts[0], texts[1], parts[0], parts[1] = texts[1], texts[0], parts[1], parts[0]
    body = texts[0]
    if len(texts) > 2:
        join = random.choice(usable("join", unseen))
        parts.append(f"join: {join}")
        first, last = join.split("…")[1:3]
        body = first.join(texts[:-1]) + last + texts[-1]
    elif len(texts) == 2:
        body = f"{texts[0]} {texts[1]}"
    return Phrased(frame.replace("…", body), (f"frame: {frame}", *parts))
