"""Compressed hidden states: exact where nothing is left out, small elsewhere, and no odd cases."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.distill.hidden_encoding import HiddenEncoding, Moments, fit, load, save
from paredown.eval.errors import RecipeError, RunError


def states(tokens: int, width: int, seed: int = 0, decay: float = 0.0) -> torch.Tensor:
    """Vectors whose component i has the standard deviation (i + 1)^−decay, rotated and shifted."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(tokens, width, generator=draw)
    values = values * torch.arange(1, width + 1).float() ** -decay
    rotation = torch.linalg.qr(torch.randn(width, width, generator=draw)).Q
    return values @ rotation + torch.randn(width, generator=draw) * 5


def moments(*samples: torch.Tensor) -> Moments:
    found = Moments(samples[0].shape[1])
    for one in samples:
        found.add(one)
    return found


@given(st.integers(1, 20), st.integers(1, 60), st.integers(0, 10**6))
@settings(deadline=None)
def test_all_components_without_rounding_are_exact(width: int, tokens: int, seed: int) -> None:
    sample = states(tokens, width, seed)
    encoding = fit(moments(sample), width, quantized=False)
    found = encoding.decode(encoding.encode(sample), tokens)
    assert (found - sample).abs().max() <= 1e-5 * sample.abs().max()


@given(st.integers(0, 10**6), st.booleans())
@settings(deadline=None, max_examples=30)
def test_the_error_falls_with_the_rank(seed: int, quantized: bool) -> None:
    sample = states(200, 12, seed, decay=1.0)
    found = [fit(moments(sample), r, quantized=quantized).error([sample]) for r in range(1, 13)]
    assert all(b < a for a, b in pairwise(found))
    assert found[0] < 1 and found[-1] < 1e-3


def test_the_error_is_the_variance_of_what_is_left_out() -> None:
    sample = states(500, 16, decay=1.0)
    encoding = fit(moments(sample), 5, quantized=False)
    centred = sample.double() - sample.double().mean(0)
    singular = torch.linalg.svdvals(centred).square()
    assert encoding.error([sample]) == pytest.approx(
        float(singular[5:].sum() / singular.sum()), rel=1e-4
    )


def test_int8_takes_a_byte_a_component_and_adds_little_error() -> None:
    sample = states(400, 64, decay=0.5)
    plain, small = (fit(moments(sample), 32, quantized=q) for q in (False, True))
    assert small.bytes_per_token == 34 and len(small.encode(sample)) == 400 * 34
    assert plain.bytes_per_token == 128 and len(plain.encode(sample)) == 400 * 128
    assert small.error([sample]) - plain.error([sample]) < 2e-4


def test_moments_added_in_parts_are_those_of_the_whole_even_far_from_zero() -> None:
    sample = states(300, 8) + 1000
    parts = moments(*sample.split(37), sample[:0])
    mean, covariance = parts.mean_and_covariance()
    assert parts.count == 300
    assert torch.allclose(mean, sample.double().mean(0), rtol=1e-12)
    expected = torch.cov(sample.double().T, correction=0)
    assert torch.allclose(covariance, expected, atol=1e-10)


def test_one_token_far_out_does_not_spoil_the_others_and_is_kept_itself() -> None:
    sample = states(200, 32, decay=0.5)
    encoding = fit(moments(sample), 32)
    outlier = torch.cat([sample[:1] * 500, sample[1:]])
    found = encoding.decode(encoding.encode(outlier), 200)
    assert torch.equal(found[1:], encoding.decode(encoding.encode(sample), 200)[1:])
    assert float((found[0] - outlier[0]).norm() / outlier[0].norm()) < 0.02


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("tokens", [1, 7])
def test_states_without_variance_are_their_mean(tokens: int, quantized: bool) -> None:
    sample = torch.full((tokens, 6), 3.25)
    encoding = fit(moments(sample), 4, quantized=quantized)
    assert torch.allclose(encoding.decode(encoding.encode(sample), tokens), sample)
    assert encoding.error([sample]) == 0
    other = encoding.decode(encoding.encode(sample + 1), tokens)
    assert other.isfinite().all()


def test_a_channel_without_variance_in_the_sample_takes_no_steps_from_the_others() -> None:
    sample = states(200, 8)
    sample[:, 3] = 1.0
    encoding = fit(moments(sample), 8)
    assert encoding.error([sample]) < 1e-4
    noisy = sample.clone()
    noisy[:, 3] += 1e-7  # as another batch's rounding may have it
    assert encoding.error([noisy]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_states_of_any_precision_are_read_in_float32(dtype: torch.dtype) -> None:
    sample = states(50, 8).to(dtype)
    encoding = fit(moments(sample), 8)
    found = encoding.decode(encoding.encode(sample), 50)
    assert found.dtype == torch.float32
    assert float((found - sample.float()).norm() / sample.float().norm()) < 0.01


def test_no_tokens_are_no_bytes() -> None:
    encoding = fit(moments(states(9, 4)), 2)
    assert encoding.encode(torch.empty(0, 4)) == b""
    assert encoding.decode(b"", 0).shape == (0, 4)
    assert encoding.error([]) == 0


def test_saved_encodings_are_the_same(tmp_path: Path) -> None:
    sample = states(50, 8)
    made = {0: fit(moments(sample), 3), 2: fit(moments(sample), 8, quantized=False)}
    save(made, tmp_path / "hidden.safetensors")
    read = load(tmp_path / "hidden.safetensors")
    save(dict(reversed(made.items())), tmp_path / "again.safetensors")
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("hidden", "again")]
    assert files[0] == files[1] and list(read) == [0, 2]
    for layer, encoding in made.items():
        assert read[layer].encode(sample) == encoding.encode(sample)
        assert read[layer].quantized == encoding.quantized


def test_bad_input_is_told(tmp_path: Path) -> None:
    sample = states(9, 4)
    encoding = fit(moments(sample), 2)
    with pytest.raises(RecipeError, match=r"hidden_rank is 5; expected 1 to 4"):
        fit(moments(sample), 5)
    with pytest.raises(RunError, match="no tokens"):
        fit(Moments(4), 2)
    with pytest.raises(RunError, match=r"\(tokens, 4\), got \(2, 5\)"):
        encoding.encode(torch.zeros(2, 5))
    with pytest.raises(RunError, match="finite numbers"):
        moments(torch.full((1, 4), torch.nan))
    blob = encoding.encode(sample)
    for wrong in (blob[:-1], blob + b"\0", b""):
        with pytest.raises(RunError, match="damaged"):
            encoding.decode(wrong, 9)
    with pytest.raises(RunError, match="cannot be read"):
        load(tmp_path / "gone.safetensors")
    save({1: HiddenEncoding(torch.zeros(4), torch.zeros(4, 3), torch.ones(2))}, tmp_path / "x")
    with pytest.raises(RunError, match=r"layer 1 .* does not fit together"):
        load(tmp_path / "x")
