"""Small recipes that run in seconds, in this process or as a person starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

# What makes a smoke run of a shipped recipe short: no exports to wait for.
SHORT = ("export=[]", "evaluate.resamples=100")


@pytest.fixture
def paredown(tmp_path: Path) -> Command:
    """Runs ``paredown …`` in a folder of its own and gives what came out."""

    def run(
        *arguments: str, launcher: Sequence[str] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [*launcher, "-m", "paredown", *arguments]
        if not launcher:
            command.insert(0, sys.executable)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
        return subprocess.run(
            command,
            cwd=tmp_path,
            env={**clean, "HF_HUB_OFFLINE": "1", **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run
