"""A byte-level BPE tokenizer trained on texts, the same in every process.

The trainers of `tokenizers` break ties by the order of a hash table, which differs from process to
process; here the pair that sorts first wins. Sennrich et al., arXiv 1508.07909.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from .errors import RecipeError

Pair = tuple[str, str]
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def learn_merges(words: Counter[str], count: int) -> list[Pair]:
    """The most frequent pairs of symbols, one after the other, each merged before the next.

    Args:
        words: How often each word comes, as a string of symbols.
        count: Merges at most; fewer where no pair comes twice.

    Examples:
        >>> learn_merges(Counter({"abab": 3, "cab": 1}), 2)
        [('a', 'b'), ('ab', 'ab')]
    """
    split = {word: list(word) for word in words}
    counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[str]] = defaultdict(set)
    for word, symbols in split.items():
        for pair in itertools.pairwise(symbols):
            counts[pair] += words[word]
            where[pair].add(word)
    merges: list[Pair] = []
    while len(merges) < count and counts:
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < 2:
            break
        merges.append(best)
        for word in where.pop(best):
            old = split[word]
            new = _merged(old, best)
            split[word] = new
            for symbols, sign in ((old, -1), (new, 1)):
                for pair in itertools.pairwise(symbols):
                    counts[pair] += sign * words[word]
            for pair in itertools.pairwise(new):
                where[pair].add(word)
        counts = +counts  # without those that are gone
    return merges


def _merged(symbols: list[str], pair: Pair) -> list[str]:
    found: list[str] = []
    at = 0
    while at < len(symbols):
        if tuple(symbols[at : at + 2]) == pair:
            found.append(symbols[at] + symbols[at + 1])
            at += 2
        else:
            found.append(symbols[at])
            at += 1
    return found


def train_byte_pairs(
    texts: Iterable[str], vocabulary: int, max_length: int, words: str | None = None
) -> Any:
    """Trains a tokenizer that can write any text.

    Args:
        texts: What it is trained on.
        vocabulary: Tokens at most: three specials, 256 bytes, and merges.
        max_length: The model's context, for the tokenizer's own limit.
        words: A regular expression of what stays together before bytes are merged; GPT-2's
            division into words if None. What it does not match is a word of its own.

    Returns:
        A fast tokenizer of transformers, with ``<s>`` in front of a text.

    Raises:
        RecipeError: If the vocabulary leaves no room for the bytes, or the expression is none.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = [*SPECIALS.values(), *alphabet]
    if vocabulary < len(base):
        raise RecipeError(
            f"A byte-level vocabulary has {len(base)} tokens before any merge; got {vocabulary}."
        )
    cut: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words is not None:
        try:
            split = pre_tokenizers.Split(Regex(words), "isolated")
        except Exception as error:  # the binding raises a bare Exception
            raise RecipeError(f"{words!r} is no regular expression: {error}") from error
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        cut = pre_tokenizers.Sequence([split, plain])
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in cut.pre_tokenize_str(text))
    merges = learn_merges(counts, vocabulary - len(base))
    ids = {token: i for i, token in enumerate(base)}
    for left, right in merges:
        ids.setdefault(left + right, len(ids))
    backend = Tokenizer(models.BPE(ids, merges))
    backend.pre_tokenizer = cut
    backend.decoder = decoders.ByteLevel()
    bos = SPECIALS["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, ids[bos])]
    )
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=max_length,
        **SPECIALS,
    )
