"""Small recipes that run in seconds, in this process or as a person starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


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


@pytest.fixture
def make_report() -> Callable[..., dict[str, Any]]:
    """Makes a full report; keywords replace arguments of `build_report`."""
    from paredown.recipes.report import build_report

    parts = Path(__file__).with_name("report_parts.json").read_text(encoding="utf-8")

    def make(**changes: Any) -> dict[str, Any]:
        return dict(build_report(**{**json.loads(parts), **changes}))

    return make


@pytest.fixture
def bare_report(make_report: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A smoke run's report in which nothing was measured."""
    full = make_report()
    unknown = dict.fromkeys(("teacher", "student", "retention", "retention_ci95", "agreement"))
    pairs = {"mrr@10": {"teacher": None, "student": None}}
    return make_report(
        smoke=True,
        quality={**full["quality"], **unknown, "metrics": pairs, "baselines": [], "seeds": []},
        teacher=dict.fromkeys(full["cost"]["teacher"]),
        student=dict.fromkeys(full["cost"]["student"]),
        **{key: [] for key in ("measurements", "exports", "stages", "differing", "notes")},
        data={},
        environment={},
        vocabulary=None,
    )
