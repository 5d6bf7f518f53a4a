"""Byte pairs are learned as the paper says, the same each time, and write any text."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.eval.byte_pairs import SPECIALS, learn_merges, train_byte_pairs
from paredown.eval.errors import RecipeError

TEXTS = ["red shoes under 80", "blue shoes, size 42", "red and blue: größer 你好 🙂"] * 3
BASE = 256 + len(SPECIALS)


def merges_by_counting(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """The paper's loop: counts every pair anew for each merge."""
    split = {word: list(word) for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        counts: Counter[tuple[str, str]] = Counter()
        for word, symbols in split.items():
            for pair in itertools.pairwise(symbols):
                counts[pair] += words[word]
        if not counts or max(counts.values()) < 2:
            break
        best = sorted(counts, key=lambda pair: (-counts[pair], pair))[0]
        merges.append(best)
        for word, symbols in split.items():
            new: list[str] = []
            while symbols:
                size = 2 if tuple(symbols[:2]) == best else 1
                new.append("".join(symbols[:size]))
                symbols = symbols[size:]
            split[word] = new
    return merges


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=8), st.integers(1, 5), max_size=8),
    st.integers(0, 12),
)
def test_merges_are_those_of_the_plain_loop(words: dict[str, int], count: int) -> None:
    assert learn_merges(Counter(words), count) == merges_by_counting(Counter(words), count)


def test_any_text_is_written_and_read_again() -> None:
    tokenizer = train_byte_pairs(TEXTS, 300, 64)
    assert BASE < len(tokenizer) <= 300
    assert tokenizer.model_max_length == 64
    for text in [*TEXTS, "  öß\n\t  ", "日本語 \x00", ""]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    plain = train_byte_pairs(TEXTS, BASE, 64)
    assert len(tokenizer(TEXTS[0])["input_ids"]) < len(plain(TEXTS[0])["input_ids"])


def test_special_tokens_differ_and_are_in_the_vocabulary() -> None:
    tokenizer = train_byte_pairs(TEXTS, 300, 64)
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert len(set(ids)) == 3 and all(0 <= i < len(tokenizer) for i in ids)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(RecipeError, match=f"has {BASE} tokens before any merge; got 200"):
        train_byte_pairs(TEXTS, 200, 64)


def test_every_process_learns_the_same() -> None:
    code = (
        "from collections import Counter; from paredown.eval.byte_pairs import learn_merges;"
        "import hashlib; w = Counter({f'{a}{b}{a}{c}': 2 for a in 'abcd' for b in 'abcd' "
        "for c in 'abcd'}); print(hashlib.sha256(repr(learn_merges(w, 40)).encode()).hexdigest())"
    )
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        out = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(out.stdout.strip())
    assert len(found) == 1 and len(found.pop()) == len(hashlib.sha256().hexdigest())
