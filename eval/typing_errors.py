"""Typing errors as fingers make them: letters swapped, dropped, doubled, or a neighbouring key hit.

No word that a search is made of is turned into another one: ``boots`` may become ``bots`` or
``boosts``, but ``least`` never becomes ``last`` where that is a word too.
"""

from __future__ import annotations

import functools
import re
from random import Random

from . import filter_phrases
from .filter_values import ANYTHING, NICKNAMES, VALUES

LEAST_LETTERS = 5
"""Shorter words are typed right, and so is everything that is not letters alone."""

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    letter: (row[at - 1 : at] if at else "") + row[at + 1 : at + 2]
    for row in _ROWS
    for at, letter in enumerate(row)
}
_WORD = re.compile(rf"(?<![\w€])[a-z]{{{LEAST_LETTERS},}}(?!\w)")


@functools.cache
def known_words() -> frozenset[str]:
    """Every word of two letters or more that a search can be made of."""
    texts = [typed for facet in VALUES.values() for words in facet.values() for typed in words]
    texts += (*NICKNAMES.values(), *ANYTHING, *filter_phrases.heads(frozenset()))
    for kind in filter_phrases.KINDS:
        texts += filter_phrases.templates(kind)
    return frozenset(re.findall(r"[a-z]{2,}", " ".join(texts)))


def mistype(random: Random, text: str, words: int) -> tuple[str, int]:
    """Mistypes some words of a text, each once.

    Args:
        random: Where choices come from.
        text: What was meant; lower case.
        words: How many words to mistype.

    Returns:
        The text as typed and how many of its words are wrong: fewer than asked for where the text
        has fewer that can be.
    """
    found = list(_WORD.finditer(text))
    chosen = random.sample(found, min(words, len(found)))
    for match in sorted(chosen, key=lambda match: -match.start()):
        wrong = _slip(random, match[0])
        text = text[: match.start()] + wrong + text[match.end() :]
    return text, len(chosen)


def _slip(random: Random, word: str) -> str:
    while True:
        # the first letter is the one that people get right
        at = random.randrange(1, len(word))
        kind = random.choice(("swap", "drop", "double", "neighbour"))
        if kind == "swap":
            at = min(at, len(word) - 2)
            wrong = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        elif kind == "drop":
            wrong = word[:at] + word[at + 1 :]
        elif kind == "double":
            wrong = word[: at + 1] + word[at:]
        else:
            wrong = word[:at] + random.choice(_NEIGHBOURS[word[at]]) + word[at + 1 :]
        if wrong != word and wrong not in known_words():
            return wrong
