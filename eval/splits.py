"""Keys and stable hashes: what counts as the same text, and which split a row falls in."""

from __future__ import annotations

import hashlib
import unicodedata


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
