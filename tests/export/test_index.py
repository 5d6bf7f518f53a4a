"""An index that is damaged, or no index at all, is refused with one message before any answer."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.export.predict import Index, PredictError


def saved(array: Any) -> bytes:
    """An array as the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive() -> bytes:
    """Two arrays as the bytes of a .npz file."""
    file = io.BytesIO()
    np.savez(file, a=np.zeros((2, 3)), b=np.zeros(2))
    return file.getvalue()


def other_zip() -> bytes:
    """An archive of no arrays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("a.txt", "text")
    return file.getvalue()


WHOLE = saved(np.zeros((4, 3), np.float32))


def shaped(shape: str) -> bytes:
    """An index whose header says another shape, in as many characters."""
    assert len(shape) <= 40
    return WHOLE.replace(b"(4, 3), }" + b" " * 40, f"({shape}), }}".encode().ljust(49))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04 and no archive", "cannot be read"),
        (WHOLE[:-5], "cannot be read"),
        (WHOLE[:20], "cannot be read"),
        (archive(), "is an archive; save one array"),
        (other_zip(), "is an archive; save one array"),
        (shaped("9223372036854775807, 3"), "cannot be read"),
        (shaped("99999999999999999999999999, 3"), "cannot be read"),
        (shaped("-4, 3"), "index.npy'"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': [[[[[[", "cannot be read"),
        (b"\x93NUMPY\x09\x00" + WHOLE[8:], "cannot be read"),
    ],
)
def test_a_damaged_file_is_one_message(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "index.npy").write_bytes(content)
    with pytest.raises(PredictError, match=said) as caught:
        Index(tmp_path / "index.npy", None, 3)
    assert str(tmp_path / "index.npy") in str(caught.value)


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_no_query_can_be_compared_with_are_refused(
    kind: str, bad: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paredown.export.predict.BLOCK_NUMBERS", 6)
    vectors = np.ones((7, 3), kind)
    vectors[5, 1] = vectors[6, 0] = bad
    np.save(tmp_path / "index.npy", vectors)
    with pytest.raises(PredictError, match=r"Row 5 of the index .* holds NaN or infinity"):
        Index(tmp_path / "index.npy", None, 3)


def test_numbers_that_no_float32_holds_are_infinite(tmp_path: Path) -> None:
    np.save(tmp_path / "index.npy", np.full((2, 3), 1e300))
    with pytest.raises(PredictError, match="Row 0 of the index"):
        Index(tmp_path / "index.npy", None, 3)
