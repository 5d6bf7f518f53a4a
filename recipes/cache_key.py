"""A name for a kept store: what must be equal for its stages to be worth fetching.

A stage is used again where its fingerprint fits, whatever a cache calls the store; the name only
tells which of several kept stores to fetch. Versions and sources decide what fits. The machine is
named because no fingerprint holds it: another processor, or another number of threads, changes the
last digits of a training, and a latency is that of the machine it was measured on.
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..eval.hardware import library_versions, processor, usable_cores
from .sources import PACKAGES


def cache_key() -> str:
    """``paredown-<system>-<architecture>-<machine>-<software>``; the last two are hashes."""
    machine = {"processor": processor(), "cores": usable_cores()}
    software = {
        "python": platform.python_version_tuple()[:2],
        "versions": library_versions(),
        "sources": {package: _sources(package) for package in PACKAGES},
    }
    system, architecture = platform.system().lower(), platform.machine().lower()
    return f"paredown-{system}-{architecture}-{_digest(machine)[:8]}-{_digest(software)[:16]}"


def _sources(package: str) -> dict[str, str]:
    """A hash of every source file of one of our packages."""
    spec = find_spec(f"paredown.{package}")  # found without being imported, which takes seconds
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
