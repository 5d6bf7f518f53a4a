"""Encodings of token distributions: as small as stated, what they say they are, and refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.distill.token_collation import collate
from paredown.distill.token_divergence import Divergence, dense, kl_divergence
from paredown.distill.token_encoding import METHODS, TopKEncoding, get_encoding
from paredown.distill.token_targets import Full, Sampled, TopK
from paredown.eval.errors import RecipeError, RunError

LARGE = 151_936
SPECS: list[dict[str, Any]] = [
    {"encoding": "full"},
    {"encoding": "topk", "k": 5},
    {"encoding": "sampled", "draws": 20},
    {"encoding": "sampled", "draws": 20, "method": "independent", "seed": 3},
]


def logits(tokens: int, vocabulary: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, vocabulary, generator=draw) * scale


@pytest.fixture(scope="module")
def zipf() -> torch.Tensor:
    """200 tokens over a large vocabulary, p ∝ rank^−s with s from 1.5 to 3, ids in random order.

    1.5 nats of entropy in the mean, as a language model has on text; ids in random order are the
    hardest for a code that looks for small ones.
    """
    draw = torch.Generator().manual_seed(0)
    steep = torch.rand(200, 1, generator=draw) * 1.5 + 1.5
    ranked = -steep * torch.arange(1, LARGE + 1).log()
    order = torch.stack([torch.randperm(LARGE, generator=draw) for _ in range(200)])
    return ranked.gather(-1, order)


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        ({"encoding": "topk", "k": 32}, 140),
        ({"encoding": "sampled", "draws": 50}, 30),
        ({"encoding": "sampled", "draws": 12}, 13),
        ({"encoding": "sampled", "draws": 50, "method": "independent"}, 30),
        ({"encoding": "sampled", "draws": 12, "method": "independent"}, 13),
    ],
)
def test_bytes_per_token_at_a_large_vocabulary(
    zipf: torch.Tensor, spec: dict[str, Any], most: float
) -> None:
    entropy = float(torch.distributions.Categorical(logits=zipf).entropy().mean())
    assert 1.4 < entropy < 2.0
    encoding = get_encoding(spec, LARGE)
    assert len(encoding.encode(zipf, "row")) / len(zipf) <= most
    # A row as short as an answer of twenty tokens pays little more for its few bytes of head.
    assert len(encoding.encode(zipf[:20], "row")) / 20 <= most + 2


def test_top_k_and_draws_over_a_large_vocabulary_are_the_tokens_own(zipf: torch.Tensor) -> None:
    part = zipf[:20].double().log_softmax(-1)
    encoding = get_encoding({"encoding": "topk", "k": 32}, LARGE)
    found = encoding.decode(encoding.encode(zipf[:20], "row"), 20)
    assert isinstance(found, TopK)
    values, ids = part.topk(32)
    assert torch.equal(found.ids, ids.sort(-1).values)
    order = ids.sort(-1).indices
    assert (found.log_probs - values.gather(-1, order)).abs().max() < 0.01
    assert torch.allclose(found.rest.double(), 1 - values.exp().sum(-1), rtol=2e-3)
    encoding = get_encoding({"encoding": "sampled", "draws": 50}, LARGE)
    drawn = encoding.decode(encoding.encode(zipf[:20], "row"), 20)
    share = dense(drawn, LARGE) * 50
    assert ((share - part.exp() * 50).abs() < 1 + 1e-4).all()  # systematic: ⌊D·p⌋ or ⌈D·p⌉


@given(st.integers(1, 9), st.integers(2, 60), st.integers(0, 10**6), st.sampled_from(SPECS))
@settings(deadline=None)
def test_every_reading_is_a_distribution_over_the_vocabulary(
    tokens: int, vocabulary: int, seed: int, spec: dict[str, Any]
) -> None:
    spec = {**spec, **({"k": min(5, vocabulary - 1)} if "k" in spec else {})}
    encoding = get_encoding(spec, vocabulary)
    found = encoding.decode(encoding.encode(logits(tokens, vocabulary, seed), "x"), tokens)
    assert len(found) == tokens
    q = dense(found, vocabulary)
    assert torch.allclose(q.sum(-1), torch.ones(tokens, dtype=torch.float64), atol=1e-5)
    assert (q >= 0).all()
    if not isinstance(found, Full):
        distinct = [ids[w > 0] for ids, w in zip(found.ids, _weights(found), strict=True)]
        assert all(len(ids.unique()) == len(ids) for ids in distinct)


@given(st.integers(0, 6), st.integers(1, 8), st.integers(0, 4), st.integers(0, 10**6))
@settings(deadline=None)
def test_what_a_server_lists_reads_like_the_largest_of_the_whole(
    tokens: int, k: int, more: int, seed: int
) -> None:
    rows = logits(tokens, 20, seed)
    encoding = TopKEncoding(20, k)
    values, ids = rows.log_softmax(-1).topk(k + more, dim=-1)
    listed = TopK(ids, values, 1 - values.exp().sum(-1))
    found = encoding.decode(encoding.encode_listed(listed), tokens)
    whole = encoding.decode(encoding.encode(rows, ""), tokens)
    assert torch.equal(found.ids, whole.ids)
    torch.testing.assert_close(found.log_probs, whole.log_probs, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.rest, whole.rest, atol=1e-3, rtol=1e-3)


def test_places_that_nothing_is_listed_in_stay_unused() -> None:
    listed = TopK(
        torch.tensor([[5, 0, 1]]), torch.tensor([[-0.5, -1.5, -math.inf]]), torch.zeros(1)
    )
    found = TopKEncoding(9, 3).decode(TopKEncoding(9, 3).encode_listed(listed), 1)
    assert found.ids.tolist() == [[0, 1, 5]]
    assert found.log_probs.isneginf().tolist() == [[False, True, False]]
    with pytest.raises(RunError, match=r"lists 3 .* and 4 were to be recorded; set capture\.k"):
        TopKEncoding(9, 4).encode_listed(listed)


def _weights(found: TopK | Sampled) -> torch.Tensor:
    return found.weights if isinstance(found, Sampled) else torch.ones_like(found.log_probs)


def test_full_is_the_distribution_to_the_precision_of_fp16_which_beats_bf16() -> None:
    rows = logits(12, 500, scale=6.0)
    true = rows.double().log_softmax(-1)
    encoding = get_encoding({"encoding": "full"}, 500)
    blob = encoding.encode(rows, "x")
    assert len(blob) == 12 * 500 * 2
    found = encoding.decode(blob, 12)
    assert isinstance(found, Full)
    error = (found.logits - true).abs()
    assert (error <= true.abs() / 2047 + 1e-6).all()
    assert error.mean() < 0.2 * (true.float().bfloat16() - true).abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("spec", SPECS)
def test_logits_and_their_log_probabilities_are_the_same_to_any_encoding(
    spec: dict[str, Any], dtype: torch.dtype
) -> None:
    rows = logits(4, 50).to(dtype)
    encoding = get_encoding(spec, 50)
    one = dense(encoding.decode(encoding.encode(rows, "x"), 4), 50)
    two = dense(encoding.decode(encoding.encode(rows.double().log_softmax(-1) + 5, "x"), 4), 50)
    assert torch.allclose(one, two, atol=2e-3)


@pytest.mark.parametrize("spec", SPECS)
def test_tokens_that_cannot_be_stay_impossible(spec: dict[str, Any]) -> None:
    rows = torch.full((3, 40), -torch.inf)
    rows[0, 7] = 2.0
    rows[1, [3, 4]] = torch.tensor([0.0, 1.0])
    rows[2] = logits(1, 40)[0]
    encoding = get_encoding(spec, 40)
    q = dense(encoding.decode(encoding.encode(rows, "x"), 3), 40)
    assert q[0, 7] == 1 and q[0].sum() == 1
    assert q[1, 3] + q[1, 4] == pytest.approx(1, abs=1e-6)


def test_the_rest_is_known_far_below_the_precision_of_one() -> None:
    rows = torch.full((1, 1000), -30.0)
    rows[0, 5] = 0.0
    encoding = get_encoding({"encoding": "topk", "k": 1}, 1000)
    found = encoding.decode(encoding.encode(rows, "x"), 1)
    assert isinstance(found, TopK)
    assert float(found.rest[0]) == pytest.approx(999 * math.exp(-30), rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_many_draws_is_the_full_distribution(method: str) -> None:
    rows, repeats, draws = logits(6, 30, scale=1.0), 2000, 7
    p = rows.double().softmax(-1)
    total = torch.zeros_like(p)
    for seed in range(repeats // 100):
        spec = {"encoding": "sampled", "draws": draws, "method": method, "seed": seed}
        encoding = get_encoding(spec, 30)
        for key in range(100):
            total += dense(encoding.decode(encoding.encode(rows, str(key)), 6), 30)
    # Of D draws, ⌊D·p⌋ or one more where they are systematic; binomial where independent.
    part = (draws * p) % 1
    variance = part * (1 - part) if method == "systematic" else draws * p * (1 - p)
    error = (variance / repeats).sqrt() / draws
    deviation = (total / repeats - p) / error
    # 180 comparisons: none beyond 5 standard errors, and as wide as noise is.
    assert deviation.abs().max() < 5
    assert float(deviation.square().mean()) == pytest.approx(1, abs=0.4)


def test_the_mean_of_readings_of_top_k_is_not_the_full_distribution() -> None:
    rows = logits(6, 30, scale=2.0)
    encoding = get_encoding({"encoding": "topk", "k": 5}, 30)
    q = dense(encoding.decode(encoding.encode(rows, "x"), 6), 30)
    assert float((q - rows.double().softmax(-1)).abs().sum(-1).min()) > 0.01


def test_systematic_draws_are_far_less_noisy_than_independent_ones() -> None:
    rows = logits(50, 400)
    found = {}
    for method in METHODS:
        spec = {"encoding": "sampled", "draws": 50, "method": method}
        measured = Divergence(get_encoding(spec, 400))
        measured.add(rows, "x")
        found[method] = measured.summary()["total_variation"]
    assert found["systematic"] < 0.7 * found["independent"]


def test_draws_depend_on_seed_and_key_alone() -> None:
    rows = logits(10, 200)

    def blob(key: str, seed: int, tokens: int = 10) -> bytes:
        encoding = get_encoding({"encoding": "sampled", "draws": 9, "seed": seed}, 200)
        return encoding.encode(rows[:tokens], key)

    torch.manual_seed(1)
    np.random.seed(1)
    first = blob("a", 0)
    torch.manual_seed(2)
    np.random.seed(2)
    assert blob("a", 0) == first
    assert blob("b", 0) != first and blob("a", 1) != first
    encoding = get_encoding({"encoding": "sampled", "draws": 9}, 200)
    short, long = encoding.decode(blob("a", 0, 4), 4), encoding.decode(first, 10)
    assert torch.equal(dense(short, 200), dense(long, 200)[:4])  # a position's draws are its own


@pytest.mark.parametrize("spec", SPECS)
def test_a_row_worked_on_in_blocks_is_the_same_row(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = get_encoding(spec, 60)
    whole = encoding.encode(logits(17, 60), "x")
    monkeypatch.setattr("paredown.distill.token_encoding.CHUNK", 60 * 4)
    assert encoding.encode(logits(17, 60), "x") == whole


@pytest.mark.parametrize("spec", SPECS)
def test_no_tokens_are_no_bytes(spec: dict[str, Any]) -> None:
    encoding = get_encoding(spec, 60)
    blob = encoding.encode(torch.empty(0, 60), "x")
    assert blob == b"" and len(encoding.decode(blob, 0)) == 0


@given(st.sampled_from(SPECS), st.data())
@settings(deadline=None, max_examples=150)
def test_truncated_and_prolonged_blobs_are_refused(
    spec: dict[str, Any], data: st.DataObject
) -> None:
    encoding = get_encoding(spec, 60)
    blob = encoding.encode(logits(5, 60), "x")
    cut = data.draw(st.integers(0, len(blob) - 1))
    for wrong in (blob[:cut], blob + b"\0"):
        with pytest.raises(RunError, match="damaged"):
            encoding.decode(wrong, 5)
    with pytest.raises(RunError, match="damaged"):
        encoding.decode(blob, 500)


@given(st.sampled_from(SPECS), st.integers(0, 400), st.integers(0, 255))
@settings(deadline=None, max_examples=200)
def test_a_changed_byte_gives_a_distribution_or_is_refused(
    spec: dict[str, Any], place: int, value: int
) -> None:
    encoding = get_encoding(spec, 60)
    blob = bytearray(encoding.encode(logits(5, 60), "x"))
    blob[place % len(blob)] = value
    try:
        found = encoding.decode(bytes(blob), 5)
    except RunError as error:
        assert "damaged" in str(error)
        return
    if not isinstance(found, Full):
        assert (found.ids >= 0).all() and (found.ids < 60).all()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(spec: dict[str, Any], value: float) -> None:
    rows = logits(3, 60)
    rows[1, 30] = value
    encoding = get_encoding(spec, 60)
    with pytest.raises(RunError, match=r"not numbers; set capture.precision"):
        encoding.encode(rows, "x")
    with pytest.raises(RunError, match="not numbers"):
        encoding.encode(torch.full((2, 60), -torch.inf), "x")
    with pytest.raises(RunError, match=r"shape \(3, 50\); expected \(tokens, 60\)"):
        encoding.encode(logits(3, 50), "x")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"encoding": "topq", "k": 3}, "Unknown encoding 'topq'. Did you mean 'topk'"),
        ({}, "Unknown encoding None"),
        ({"encoding": "topk", "K": 3}, "no option 'K'; it has k"),
        ({"encoding": "full", "k": 3}, "no option 'k'; it has none"),
        ({"encoding": "topk"}, "'k' is missing"),
        ({"encoding": "topk", "k": 0}, "'k' is 0"),
        ({"encoding": "topk", "k": 60}, "'k' is 60; .* below the vocabulary's 60"),
        ({"encoding": "topk", "k": True}, "'k' is True"),
        ({"encoding": "sampled", "draws": 0}, "'draws' is 0"),
        ({"encoding": "sampled", "draws": 2.5}, "'draws' is 2.5"),
        ({"encoding": "sampled", "draws": 2, "seed": -1}, "'seed' is -1"),
        ({"encoding": "sampled", "draws": 2, "method": "systemic"}, "Did you mean 'systematic'"),
    ],
)
def test_wrong_specifications_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_encoding(spec, 60)


@pytest.mark.parametrize("spec", SPECS)
def test_a_specification_with_its_defaults_makes_the_same_encoding(spec: dict[str, Any]) -> None:
    encoding = get_encoding(spec, 60)
    assert spec.items() <= encoding.spec.items()
    assert get_encoding(encoding.spec, 60) == encoding


@pytest.mark.parametrize("spec", SPECS)
def test_collated_rows_are_their_positions_after_each_other(spec: dict[str, Any]) -> None:
    encoding = get_encoding(spec, 60)
    parts = [logits(n, 60, seed=n, scale=n) for n in (3, 1, 6)]
    read = [encoding.decode(encoding.encode(p, str(i)), len(p)) for i, p in enumerate(parts)]
    joined = collate(read)
    assert len(joined) == 10
    assert torch.equal(dense(joined, 60), torch.cat([dense(one, 60) for one in read]))


def test_rows_of_different_encodings_cannot_be_collated() -> None:
    ids, values = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2)
    with pytest.raises(RunError, match="one kind, found Full, Sampled"):
        collate([Full(values), Sampled(ids, values)])
    with pytest.raises(RunError, match="found none"):
        collate([])
    with pytest.raises(RunError, match=r"different widths: \[2, 3\]"):
        collate([Full(values), Full(torch.zeros(1, 3))])


def measured(spec: dict[str, Any], rows: torch.Tensor) -> dict[str, float | int]:
    found = Divergence(get_encoding(spec, rows.shape[1]))
    found.add(rows[:3], "a")
    found.add(rows[3:], "b")
    return found.summary()


def test_divergences_equal_formulas_written_independently() -> None:
    rows = logits(8, 40)
    p = torch.softmax(rows.double(), -1).numpy()
    encoding = get_encoding({"encoding": "topk", "k": 6}, 40)
    read = encoding.decode(encoding.encode(rows, "a"), 8)
    assert isinstance(read, TopK)
    kl, bucketed = [], []
    for one, ids, log, rest in zip(
        p, read.ids.numpy(), read.log_probs.double().numpy(), read.rest.numpy(), strict=True
    ):
        q = np.full(40, rest / 34)
        q[ids] = np.exp(log)
        kl.append(sum(a * math.log(a / b) for a, b in zip(one, q, strict=True)))
        left, known = 1 - one[ids].sum(), 1 - np.exp(log).sum()
        inside = sum(one[i] * (math.log(one[i]) - v) for i, v in zip(ids, log, strict=True))
        bucketed.append(inside + left * math.log(left / known))
    found = measured({"encoding": "topk", "k": 6}, rows)
    assert found["kl"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert found["kl_bucketed"] == pytest.approx(np.mean(bucketed), abs=1e-7)
    assert 0 <= found["kl_bucketed"] < 1e-6 < 0.01 < found["kl"]


def test_kl_is_zero_at_equality_and_never_negative() -> None:
    p = logits(5, 40).double().softmax(-1)
    q = logits(5, 40, seed=1).double().softmax(-1)
    assert torch.equal(kl_divergence(p, p), torch.zeros(5, dtype=torch.float64))
    assert (kl_divergence(p, q) > 0).all()
    assert kl_divergence(p, torch.zeros_like(p)).isinf().all()


def test_full_loses_next_to_nothing_and_draws_have_noise_but_no_bias() -> None:
    rows = logits(300, 40)
    full = measured({"encoding": "full"}, rows)
    assert 0 <= full["kl"] < 1e-6 and full["tokens"] == 300 and full["bytes_per_token"] == 80
    for method in METHODS:
        drawn = measured({"encoding": "sampled", "draws": 10, "method": method}, rows)
        assert drawn["total_variation"] > 0.05 and 0 < drawn["kl_of_draws"] < 3
        assert abs(drawn["bias_squared"]) < 5 * drawn["bias_squared_error"] < 0.02


def test_a_biased_encoding_is_found_out() -> None:
    class Careless:
        """Draws from another distribution than the teacher's."""

        vocabulary = 40

        def __init__(self) -> None:
            self.inner = get_encoding({"encoding": "sampled", "draws": 10}, 40)
            self.decode = self.inner.decode

        def encode(self, rows: torch.Tensor, key: str) -> bytes:
            return self.inner.encode(rows * 0.7, key)

    found = Divergence(Careless())  # type: ignore[arg-type]
    found.add(logits(300, 40), "a")
    summary = found.summary()
    assert summary["bias_squared"] > 5 * summary["bias_squared_error"]


def test_nothing_measured_is_an_empty_summary() -> None:
    assert Divergence(get_encoding({"encoding": "full"}, 4)).summary() == {}
