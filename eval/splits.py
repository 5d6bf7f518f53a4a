"""Keys and stable hashes: what counts as the same text, and which split a row falls in."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping


def text_key(text: str) -> str:
    """Returns what two texts share when they count as the same: NFC, case-folded, one space."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def stable_hash(*parts: str) -> int:
    """Returns 64 bits that depend on the parts alone: not on the process, machine or locale."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little")


def validation_size(rows: int, share: float, most: int) -> int:
    """Returns how many of so many rows are set aside: at least one, never all."""
    return min(max(1, round(rows * share)), most, rows - 1) if rows > 1 else 0


def stratified_sizes(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Divides a number of rows between labels in proportion to their counts.

    Largest remainders get what rounding leaves over (of equal ones, the label that sorts first),
    and every label keeps at least one row that is not set aside.

    Args:
        counts: Rows of each label.
        total: Rows to set aside; fewer are given where labels have too few.
    """
    rows = sum(counts.values())
    if rows == 0:
        return {}
    sizes = {label: total * count // rows for label, count in counts.items()}
    by_remainder = sorted(counts, key=lambda label: (-(total * counts[label] % rows), label))
    for label in by_remainder[: total - sum(sizes.values())]:
        sizes[label] += 1
    return {label: min(size, counts[label] - 1) for label, size in sizes.items()}


def sorted_labels(names: Iterable[str]) -> list[str]:
    """Returns label names in the order of their ids: as numbers if all are, else as text."""
    distinct = set(names)
    if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", name) for name in distinct):
        return sorted(distinct, key=int)
    return sorted(distinct)
