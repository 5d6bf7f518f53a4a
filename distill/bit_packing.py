"""Integers in few bits: fixed widths, small counts, and sets of token ids.

Everything is vectorised over a whole row of tokens. What makes that possible for codes of varying
length is that the lengths stand apart from the rest: all lengths first, in unary or in a fixed
width, then all the bits they speak of, whose places follow from a cumulative sum.

- `pack` and `unpack`: n integers of w bits.
- `pack_counts` and `unpack_counts`: Elias-gamma, 2⌊log₂ c⌋ + 1 bits for c ≥ 1. The counts of draws
  are mostly 1, which takes a single bit.
- `pack_sets` and `unpack_sets`: a set of token ids for each token, in one of two forms, whichever
  is smaller for the row. `spread` (Elias-Fano) takes about 2 + log₂(V/k) bits an id, wherever the
  ids lie, and says by itself how many ids each token has. `skewed` writes the gaps between sorted
  ids with their bit lengths, and wins where most ids are small, as the frequent tokens of a
  tokenizer made by merges are.

What is read is taken for hostile: lengths are checked before anything is allocated or read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..eval.errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

WIDEST = 48  # bits of one integer; a window of 64 bits holds it at any offset
_SKEWED = 0x80  # in the first byte of a block of sets; the other bits are the form's parameter


def damaged(why: str) -> RunError:
    """The error for bytes that are not what was written."""
    return RunError(
        f"Recorded token data are damaged: {why}. Delete the folder they are in and record again."
    )


def id_width(vocabulary: int) -> int:
    """Bits of a token id, ⌈log₂ V⌉, and at least 1."""
    return max(1, (vocabulary - 1).bit_length())


class Reader:
    """Reads sections of whole bytes one after the other, and never past the end."""

    def __init__(self, data: bytes | memoryview) -> None:
        """Starts at the first byte."""
        self._data = np.frombuffer(data, dtype=np.uint8)
        self._at = 0

    def take(self, bits: int) -> NDArray[np.uint8]:
        """The bytes that hold so many bits.

        Raises:
            RunError: If fewer are left.
        """
        size = (bits + 7) // 8
        if size > len(self._data) - self._at:
            left = len(self._data) - self._at
            raise damaged(f"{size} more bytes expected, {left} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> NDArray[np.uint8]:
        """What has not been read yet; nothing is taken."""
        return self._data[self._at :]

    def end(self) -> None:
        """Makes sure that nothing is left.

        Raises:
            RunError: If something is.
        """
        if self._at != len(self._data):
            raise damaged(f"{len(self._data) - self._at} bytes too many")


def _write(values: Integers, widths: Integers) -> bytes:
    """The low bits of each value, as many as its width says, highest first."""
    ends = np.cumsum(widths)
    places = np.arange(int(ends[-1]) if len(ends) else 0)
    shifts = np.repeat(ends, widths) - 1 - places
    return np.packbits((np.repeat(values, widths) >> shifts & 1).astype(np.uint8)).tobytes()


def _read(section: NDArray[np.uint8], starts: Integers, widths: Integers | int) -> Integers:
    """Fields of at most WIDEST bits at any bit offsets of a section that holds them all."""
    padded = np.zeros(len(section) + 8, dtype=np.uint8)
    padded[: len(section)] = section
    windows = np.ndarray((len(section) + 1,), dtype=">u8", buffer=padded, strides=(1,))
    window = windows[starts >> 3].astype(np.uint64) << (starts & 7).astype(np.uint64)
    # Two shifts, because a shift by all 64 bits, for a width of 0, is not defined.
    shift = np.asarray(63 - np.asarray(widths), dtype=np.uint64)
    fields: Integers = (window >> np.uint64(1) >> shift).astype(np.int64)
    return fields


def _write_unary(values: Integers) -> bytes:
    """Each value as so many zeros and a one."""
    ones = np.cumsum(values + 1) - 1
    bits = np.zeros(int(ones[-1]) + 1 if len(ones) else 0, dtype=np.uint8)
    bits[ones] = 1
    return np.packbits(bits).tobytes()


def _read_unary(reader: Reader, count: int) -> Integers:
    """The running sums of `count` values in unary."""
    left = reader.rest()
    if count > 8 * len(left):
        raise damaged(f"{count} values expected in {len(left)} bytes")
    ones = np.flatnonzero(np.unpackbits(left))[:count]
    if len(ones) < count:
        raise damaged(f"{count} values expected, {len(ones)} found")
    reader.take(int(ones[-1]) + 1 if count else 0)
    return ones - np.arange(count)


def pack(values: Integers, width: int) -> bytes:
    """Integers in a fixed width.

    Args:
        values: Integers from 0 to 2^width − 1, (n,).
        width: Bits of each, 0 to 48.

    Returns:
        ⌈n · width / 8⌉ bytes.

    Raises:
        ValueError: If a value does not fit.
    """
    values = np.asarray(values, dtype=np.int64)
    if not 0 <= width <= WIDEST or (len(values) and (values.min() < 0 or values.max() >> width)):
        raise ValueError(f"expected integers of {width} bits")
    shifts = np.arange(width - 1, -1, -1)
    return np.packbits((values[:, None] >> shifts & 1).astype(np.uint8)).tobytes()


def unpack(reader: Reader, width: int, count: int) -> Integers:
    """What `pack` wrote, (count,).

    Raises:
        RunError: If the data are too short, or the width is none.
    """
    if not 0 <= width <= WIDEST:
        raise damaged(f"a width of {width} bits")
    section = reader.take(width * count)
    return _read(section, np.arange(count) * width, width)


def _lengths(values: Integers) -> Integers:
    """The bit length of each value; exact, for values below 2^53."""
    lengths: Integers = np.frexp(values.astype(np.float64))[1].astype(np.int64)
    return lengths


def pack_counts(counts: Integers) -> bytes:
    """Counts in Elias-gamma code: their bit lengths in unary, then their lower bits.

    Args:
        counts: Integers ≥ 1, (n,).

    Returns:
        About Σ (2⌊log₂ c⌋ + 1) bits.

    Raises:
        ValueError: If a count is below 1.
    """
    counts = np.asarray(counts, dtype=np.int64)
    if len(counts) and (counts.min() < 1 or int(counts.max()) >> WIDEST):
        raise ValueError("expected counts of at least 1")
    lower = _lengths(counts) - 1
    return _write_unary(lower) + _write(counts, lower)


def unpack_counts(reader: Reader, count: int) -> Integers:
    """What `pack_counts` wrote, (count,).

    Raises:
        RunError: If the data are too short or no such code.
    """
    sums = _read_unary(reader, count)
    lower = np.diff(sums, prepend=0)
    if count and lower.max() > WIDEST:
        raise damaged(f"a count of {lower.max()} bits")
    total = int(sums[-1]) if count else 0
    section = reader.take(total)
    return (np.int64(1) << lower) | _read(section, sums - lower, lower)


@dataclass(frozen=True)
class Sets:
    """A set of token ids for each token of a row.

    Attributes:
        ids: The ids of all tokens after each other, ascending within each, (n,).
        sizes: How many each token has, (T,).
    """

    ids: Integers
    sizes: Integers


def pack_sets(sets: Sets, vocabulary: int, fixed_size: bool) -> bytes:
    """A set of ids for each token, in the smaller of two forms.

    Args:
        sets: Ids from 0 to V − 1, ascending within each token, each token having at least one.
        vocabulary: V.
        fixed_size: Every token has the same number, and the reader will know it.

    Returns:
        A byte that says the form, and the form's content.

    Raises:
        ValueError: If the ids are not such sets.
    """
    token = np.repeat(np.arange(len(sets.sizes)), sets.sizes)
    values = token * vocabulary + sets.ids
    outside = len(sets.ids) and (sets.ids.min() < 0 or sets.ids.max() >= vocabulary)
    if outside or (np.diff(values) <= 0).any() or (len(sets.sizes) and sets.sizes.min() < 1):
        raise ValueError("expected ascending ids below the vocabulary's size for each token")
    forms = (
        _spread(values, len(sets.sizes) * vocabulary, fixed_size),
        _skewed(sets, token, fixed_size),
    )
    return min(forms, key=len)


def _spread(values: Integers, universe: int, fixed_size: bool) -> bytes:
    """Elias-Fano: the low bits of each value as they are, the growth of the others in unary."""
    n = len(values)
    # n·l + n + (universe >> l) bits: the best l is near log₂(universe / n).
    low = max(0, (universe // max(n, 1)).bit_length() - 1)
    low = min((low, max(0, low - 1)), key=lambda bits: n * bits + (universe >> bits))
    head = bytes([low]) + (b"" if fixed_size else n.to_bytes(4, "little"))
    high = values >> low
    return head + pack(values & ((1 << low) - 1), low) + _write_unary(np.diff(high, prepend=0))


def _skewed(sets: Sets, token: Integers, fixed_size: bool) -> bytes:
    """Gaps between the ids of a token: bit lengths in a fixed width, then the lower bits."""
    before = np.concatenate([[-1], sets.ids[:-1]]) if len(sets.ids) else sets.ids
    first = np.diff(token, prepend=-1) != 0
    gaps = sets.ids - np.where(first, -1, before)
    lengths = _lengths(gaps)
    width = int(lengths.max()).bit_length() if len(gaps) else 0
    head = bytes([_SKEWED | width])
    if not fixed_size:
        wide = int(sets.sizes.max()).bit_length() if len(sets.sizes) else 0
        head += bytes([wide]) + pack(sets.sizes, wide)
    return head + pack(lengths, width) + _write(gaps, lengths - 1)


def unpack_sets(reader: Reader, tokens: int, vocabulary: int, size: int | None) -> Sets:
    """What `pack_sets` wrote.

    Args:
        reader: Where it stands.
        tokens: T.
        vocabulary: V.
        size: The ids of each token where that was fixed, else None.

    Raises:
        RunError: If the data are too short, or are not sets of ids of this vocabulary.
    """
    form = int(reader.take(8)[0])
    read = _read_skewed if form & _SKEWED else _read_spread
    sets = read(reader, form & ~_SKEWED, tokens, vocabulary, size)
    if tokens and (sets.sizes.min() < 1 or (size is not None and (sets.sizes != size).any())):
        raise damaged("a token without its ids")
    return sets


def _read_spread(reader: Reader, low: int, tokens: int, vocabulary: int, size: int | None) -> Sets:
    universe = tokens * vocabulary
    n = int.from_bytes(reader.take(32).tobytes(), "little") if size is None else tokens * size
    if low > universe.bit_length():
        raise damaged(f"ids of {low} low bits")
    if n > 8 * len(reader.rest()):  # each takes one bit at least
        raise damaged(f"{n} ids expected in {len(reader.rest())} bytes")
    lower = unpack(reader, low, n)
    high = _read_unary(reader, n)
    if n and high[-1] > universe >> low:
        raise damaged("an id outside the vocabulary")
    values = (high << low) | lower
    if n and (values[-1] >= universe or (np.diff(values) <= 0).any()):
        raise damaged("ids that do not ascend within the vocabulary")
    token = values // vocabulary
    return Sets(values - token * vocabulary, np.bincount(token, minlength=tokens))


def _read_skewed(
    reader: Reader, width: int, tokens: int, vocabulary: int, size: int | None
) -> Sets:
    if size is None:
        wide = int(reader.take(8)[0])
        if wide > 32:
            raise damaged(f"sizes of {wide} bits")
        sizes = unpack(reader, wide, tokens)
    else:
        sizes = np.full(tokens, size, dtype=np.int64)
    if tokens and sizes.min() < 1:
        raise damaged("a token without its ids")
    n = int(sizes.sum())
    # A width of 0 would let a few bytes claim any number of ids.
    if n and not 0 < width <= 6:
        raise damaged(f"bit lengths of {width} bits")
    lengths = unpack(reader, width, n)
    if n and not (lengths.min() >= 1 and lengths.max() <= vocabulary.bit_length()):
        raise damaged("an id outside the vocabulary")
    ends = np.cumsum(lengths - 1)
    section = reader.take(int(ends[-1]) if n else 0)
    gaps = (np.int64(1) << (lengths - 1)) | _read(section, ends - (lengths - 1), lengths - 1)
    sums = np.concatenate([[0], np.cumsum(gaps)])
    base = sums[np.cumsum(sizes) - sizes] if tokens else sums[:0]
    ids = sums[1:] - np.repeat(base, sizes) - 1
    if n and ids.max() >= vocabulary:
        raise damaged("an id outside the vocabulary")
    return Sets(ids, sizes)
