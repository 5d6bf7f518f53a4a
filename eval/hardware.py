"""What this machine is and can do: precision, processor, memory, versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from .energy import Counter, gpu_counters, rapl_counters
from .errors import RecipeError, nearest

PRECISIONS = ("fp32", "bf16", "fp16")
LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "peft",
    "datasets",
    "pyarrow",
    "evaluate",
    "optimum",
    "numpy",
    "scipy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "sentence-transformers",
)
"""Distributions whose version can change a result, in the order they are reported."""

SHAPE_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "16"}
"""What torch's CPU kernels may keep of the shapes they have met; each keeps 1,024 by default."""


class Precision(NamedTuple):
    """A precision, and one sentence on why it was taken.

    Attributes:
        name: ``fp32``, ``bf16`` or ``fp16``; the last two mean autocast over fp32 weights.
        reason: What decided it.
    """

    name: str
    reason: str


def resolve_precision(requested: str = "auto", device: str | None = None) -> Precision:
    """Turns ``auto`` into a precision by what the processor or GPU can do, never by timing.

    Args:
        requested: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: A torch device type (``cpu``, ``cuda``, …); the one training would use if None.

    Raises:
        RecipeError: If the word is not known, or is one the device cannot train in.

    Examples:
        >>> resolve_precision("fp32").name
        'fp32'
    """
    if requested not in ("auto", *PRECISIONS):
        raise RecipeError(
            f"Unknown precision '{requested}'.{nearest(requested, PRECISIONS)} "
            f"Expected auto, {', '.join(PRECISIONS)}."
        )
    device = (device or default_device()).split(":")[0]
    if requested == "fp16" and device == "cpu":
        raise RecipeError("Precision 'fp16' needs a GPU. On a CPU use bf16, fp32 or auto.")
    if requested != "auto":
        return Precision(requested, "named in the recipe")
    if device == "cuda":
        return _cuda_precision()
    if device == "cpu":
        return _cpu_precision(cpu_features())
    return Precision("fp32", f"mixed precision on '{device}' devices is left to the recipe")


def default_device() -> str:
    """The device type training would use: an accelerator if torch sees one, else ``cpu``."""
    import torch

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on"):
        return "cpu"
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type


def model_device(rank: int = 0) -> str:
    """Where a model answers outside of training: a process's own GPU, or ``cpu``.

    Args:
        rank: The process, of those on this machine.
    """
    import torch

    if default_device() != "cuda":
        return "cpu"
    return f"cuda:{rank % torch.cuda.device_count()}"


def _cuda_precision() -> Precision:
    import torch

    name = torch.cuda.get_device_name()
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("bf16", f"{name} computes in bfloat16")
    if torch.cuda.get_device_capability() >= (7, 0):
        return Precision("fp16", f"{name} has float16 but no bfloat16 units")
    return Precision("fp32", f"{name} has no 16-bit matrix units")


def _cpu_precision(features: frozenset[str]) -> Precision:
    for feature in ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16"):
        if feature in features:
            return Precision("bf16", f"the processor has {feature}")
    return Precision("fp32", "the processor has no bfloat16 instructions")


@lru_cache
def cpu_features() -> frozenset[str]:
    """Instruction sets of the processor that torch can see, in lower case."""
    import torch

    try:
        found: Mapping[str, Any] = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):  # older torch, or a platform it cannot ask
        return _proc_features()
    return frozenset(name for name, value in found.items() if value is True) | _proc_features()


def _proc_features() -> frozenset[str]:
    return frozenset(_cpuinfo("flags", "Features").lower().replace("svebf16", "sve_bf16").split())


def _cpuinfo(*keys: str) -> str:
    """The first value of one of these keys in Linux' processor description, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def processor() -> str:
    """The processor's model, as far as the system tells it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that can change a result, ours first."""
    versions = {}
    for name in ("paredown", *LIBRARIES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def cores_used() -> int:
    """Processor cores that this process computes on: the threads that torch uses."""
    import torch

    return torch.get_num_threads()


def run_counters(processes: int = 1) -> list[Counter]:
    """The energy counters of what a run computes on.

    None where there are GPUs whose energy cannot be read, since that would be most of it missing.
    Processors that cannot be read beside GPUs that can are left out, as on most rented machines.

    Args:
        processes: Of the launch. One on several machines has counters that cannot be read here.
    """
    import torch

    if int(os.environ.get("LOCAL_WORLD_SIZE", processes)) < processes:
        return []
    processors = rapl_counters()
    if not torch.cuda.is_available():
        return [*processors]
    boards = gpu_counters()
    return [*processors, *boards] if boards else []


def environment() -> dict[str, Any]:
    """Describes the machine and the software a result was made with.

    Nothing in it names the machine, its user or a folder, so that a report can be shared.

    Returns:
        ``python``, ``platform``, ``processor``, ``cores`` (physical), ``threads`` (that torch
        uses), ``memory_bytes``, ``devices`` (accelerators: name and memory) and ``libraries``.
    """
    import psutil
    import torch

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "devices": accelerators(),
        "libraries": library_versions(),
    }


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bound_shape_caches() -> None:
    """Bounds the memory of a training over rows of many lengths; call it before torch is imported.

    oneDNN and its wrapper keep a prepared kernel, with scratch memory, for every shape. The demo's
    training held 4.3 GB with their defaults, 1.8 GB with these, and was no slower. What the
    environment says already stays.
    """
    for name, value in SHAPE_CACHES.items():
        os.environ.setdefault(name, value)


def accelerators() -> list[dict[str, Any]]:
    """GPUs that torch sees: ``name`` and ``memory_bytes`` of each."""
    import torch

    if not torch.cuda.is_available():
        kind = default_device()
        return [] if kind == "cpu" else [{"name": kind, "memory_bytes": None}]
    cards = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [{"name": card.name, "memory_bytes": int(card.total_memory)} for card in cards]
