"""Precision follows the processor; the environment names no machine, user or folder."""

from __future__ import annotations

import getpass
import json
import os
import socket
from pathlib import Path

import pytest

from paredown.eval import hardware
from paredown.eval.engine_process import worker_environment
from paredown.eval.errors import RecipeError


@pytest.mark.parametrize("requested", ["fp32", "bf16"])
def test_a_named_precision_is_kept(requested: str) -> None:
    assert hardware.resolve_precision(requested, "cpu").name == requested


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2", "fma"}, "fp32"),
        ({"avx512f", "avx512_vnni"}, "fp32"),
        ({"avx512f", "avx512_bf16"}, "bf16"),
        ({"amx_bf16", "amx_tile"}, "bf16"),
        ({"asimd", "bf16"}, "bf16"),
        (set(), "fp32"),
    ],
)
def test_auto_on_a_cpu_follows_its_instructions(
    monkeypatch: pytest.MonkeyPatch, features: set[str], expected: str
) -> None:
    monkeypatch.setattr(hardware, "cpu_features", lambda: frozenset(features))
    name, reason = hardware.resolve_precision("auto", "cpu")
    assert name == expected
    assert "processor" in reason


@pytest.mark.parametrize(
    ("bf16", "capability", "expected"),
    [(True, (9, 0), "bf16"), (False, (7, 5), "fp16"), (False, (6, 1), "fp32")],
)
def test_auto_on_a_gpu_follows_its_units(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "A GPU")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    name, reason = hardware.resolve_precision("auto", "cuda:0")
    assert name == expected
    assert "A GPU" in reason


@pytest.mark.parametrize(
    ("device", "rank", "expected"),
    [("cpu", 1, "cpu"), ("mps", 0, "cpu"), ("cuda", 0, "cuda:0"), ("cuda", 3, "cuda:1")],
)
def test_each_process_has_models_answer_on_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, rank: int, expected: str
) -> None:
    monkeypatch.setattr(hardware, "default_device", lambda: device)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert hardware.model_device(rank) == expected


@pytest.mark.gpu
def test_auto_on_this_gpu_is_a_mixed_precision() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert hardware.resolve_precision("auto", "cuda").name in ("bf16", "fp16")


def test_an_unknown_precision_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'fp61'.*Did you mean 'fp16'"):
        hardware.resolve_precision("fp61")


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(RecipeError, match="needs a GPU"):
        hardware.resolve_precision("fp16", "cpu")


def test_accelerate_can_be_told_to_use_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert hardware.default_device() == "cpu"


def test_the_environment_is_json_and_names_nobody() -> None:
    facts = hardware.environment()
    text = json.dumps(facts)
    assert facts["cores"] >= 1
    assert facts["libraries"]["torch"]
    for private in (socket.gethostname(), str(Path.home()), str(Path.cwd())):
        assert len(private) < 4 or private not in text
    assert f'"{getpass.getuser()}"' not in text


def test_versions_start_with_our_own() -> None:
    assert next(iter(hardware.library_versions())) == "paredown"


def test_bounds_of_a_training_do_not_reach_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = hardware.SHAPE_CACHES
    monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(other, "500")
    hardware.bound_shape_caches()
    assert os.environ[one] == hardware.SHAPE_CACHES[one]
    assert os.environ[other] == "500"  # what a user sets stays, here and there
    assert one not in worker_environment(1)
    assert worker_environment(1)[other] == "500"
    monkeypatch.delenv(one)
