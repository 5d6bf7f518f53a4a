"""What the tests of data share: tables written to files, and folders made of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from paredown.eval.data import Data, DataSettings, prepare_data
from paredown.eval.tasks import get_task


@pytest.fixture(scope="session")
def write() -> Callable[..., dict[str, str]]:
    """Writes tables to JSONL files (text as it is, to CSV) and returns their paths."""

    def write(folder: Path, **tables: Sequence[dict[str, Any]] | str) -> dict[str, str]:
        paths = {}
        for name, rows in tables.items():
            is_text = isinstance(rows, str)
            path = folder / f"{name}.{'csv' if is_text else 'jsonl'}"
            text = rows if is_text else "".join(json.dumps(row) + "\n" for row in rows)
            path.write_text(str(text), encoding="utf-8")
            paths[name] = str(path)
        return paths

    return write


@pytest.fixture(scope="session")
def prepare() -> Callable[..., Data]:
    """Makes a data folder of files, and opens it."""

    def prepare(
        folder: Path,
        files: Mapping[str, str | None],
        task: str = "classification",
        seed: int = 0,
        **settings: Any,
    ) -> Data:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        info = prepare_data(DataSettings(files=files, **settings), get_task(task), out, seed=seed)
        data = Data.open(out)
        assert data.info == info
        return data

    return prepare
