"""Bytes and divergence of recorded token distributions, beside full bf16 and DistillKit's formula.

    python benchmarks/outputs.py

Needs no extra and no model: the distributions are drawn, p ∝ rank^−s with s from 1.5 to 3 and noise
on the logits, over 151,936 ids in random order. Random order is the hardest for ids; they take a
third less where frequent tokens have small ids, as in most tokenizers.

DistillKit's side is its documented formula (README and `compression/config.py` of
github.com/arcee-ai/DistillKit), written anew here: the k largest log-probabilities in descending
order, the first of them in bf16, the others as a polynomial of their place fitted by least squares,
coefficients in float32, ids of ⌈log₂ V⌉ bits. Two things here can only help it: the fit is in
float64, and where the approximate probabilities leave nothing for the rest, a millionth is left, so
that its divergence is finite.

What is compared: KL(p ‖ q) with all that was not recorded spread evenly over the other ids, on both
sides; the same over buckets, where what was not recorded is one, as a loss compares that lets the
student spread it; and ½ Σ |q − p|. Draws are noise that training averages out, so theirs is given
for the mean of many readings too.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from recording import record
from torch import Tensor

from paredown.distill.bit_packing import id_width
from paredown.distill.token_divergence import Divergence, buckets, dense, kl_divergence
from paredown.distill.token_encoding import get_encoding
from paredown.distill.token_targets import Full, Targets, TopK

VOCABULARY = 151_936
READINGS = 64
LEAST_REST = 1e-6
CASES: dict[str, dict[str, Any]] = {
    "full": {"encoding": "full"},
    "topk 32": {"encoding": "topk", "k": 32},
    "topk 33": {"encoding": "topk", "k": 33},
    "topk 95": {"encoding": "topk", "k": 95},
    "sampled 12": {"encoding": "sampled", "draws": 12},
    "sampled 25": {"encoding": "sampled", "draws": 25},
    "sampled 50": {"encoding": "sampled", "draws": 50},
    "sampled 50, independent": {"encoding": "sampled", "draws": 50, "method": "independent"},
}
EXPECTED = (
    "topk 32 at most 140 bytes a token, sampled 50 at most 30, sampled 12 at most 13; "
    "no bias in the draws"
)
MEASURES = ("kl", "kl_bucketed", "total_variation")


@dataclass(frozen=True)
class Polynomial:
    """DistillKit's formula at one setting.

    Attributes:
        k: Log-probabilities in all.
        exact: How many of them are kept in bf16.
        powers: Of the place t = 0, 1, … among the others; ½ is the square root.
    """

    k: int
    exact: int
    powers: tuple[float, ...]

    def bytes_per_token(self) -> int:
        """bf16 numbers, float32 coefficients, and ids in whole bytes."""
        ids = (self.k * id_width(VOCABULARY) + 7) // 8
        return 2 * self.exact + 4 * len(self.powers) + ids

    def read(self, logits: Tensor) -> TopK:
        """What is read of some tokens."""
        values, ids = logits.double().log_softmax(-1).topk(self.k, dim=-1)
        exact = values[:, : self.exact].bfloat16().double()
        places = torch.arange(self.k - self.exact, dtype=torch.float64)
        terms = torch.stack([places**power for power in self.powers], -1)
        found = torch.linalg.lstsq(terms, values[:, self.exact :].T).solution
        others = (terms @ found.float().double()).T
        every = torch.cat([exact, others], -1)
        # Approximate probabilities may sum to more than 1; then the rest gets the least allowed.
        kept = every.exp().sum(-1)
        rest = (1 - kept).clamp(min=LEAST_REST)
        total = kept + rest
        return TopK(ids, every - total.log()[:, None], rest / total)


class Bfloat16:
    """Full bf16 log-probabilities."""

    def bytes_per_token(self) -> int:
        """Two a token of the vocabulary."""
        return 2 * VOCABULARY

    def read(self, logits: Tensor) -> Full:
        """What is read of some tokens."""
        return Full(logits.log_softmax(-1).bfloat16().float())


PEERS: dict[str, Polynomial | Bfloat16] = {
    "full bf16": Bfloat16(),
    "DistillKit recommended": Polynomial(128, 16, (0, 1, 2, 3, 4, 0.5)),
    "DistillKit budget": Polynomial(50, 1, (0, 1, 0.5)),
}


def distributions(tokens: int, seed: int = 0) -> Tensor:
    """Logits, (tokens, V)."""
    draw = torch.Generator().manual_seed(seed)
    steep = torch.rand(tokens, 1, generator=draw) * 1.5 + 1.5
    ranked = -steep * torch.arange(1, VOCABULARY + 1).log()
    ranked += 0.3 * torch.randn(tokens, VOCABULARY, generator=draw)
    for line in ranked:
        line.copy_(line[torch.randperm(VOCABULARY, generator=draw)])
    return ranked


def figures(targets: Targets, p: Tensor) -> dict[str, float]:
    """The three figures of some tokens, summed over them."""
    q = dense(targets, VOCABULARY)
    kl = kl_divergence(p, q)
    pair = buckets(targets, p) if isinstance(targets, TopK) else (p, q)
    each = (kl, kl_divergence(*pair), (q - p).abs().sum(-1) / 2)
    return {name: float(value.sum()) for name, value in zip(MEASURES, each, strict=True)}


def peer_figures(peer: Polynomial | Bfloat16, logits: Tensor) -> dict[str, float]:
    """A peer's bytes, and the means of its figures."""
    total = dict.fromkeys(MEASURES, 0.0)
    for part in logits.split(32):
        found = figures(peer.read(part), part.double().softmax(-1))
        total = {name: total[name] + found[name] for name in MEASURES}
    means = {name: value / len(logits) for name, value in total.items()}
    return {"bytes_per_token": float(peer.bytes_per_token()), **means}


def many_readings(spec: dict[str, Any], logits: Tensor) -> float:
    """½ Σ |q − p| of the mean of many independent sets of draws."""
    encoding, p = get_encoding(spec, VOCABULARY), logits.double().softmax(-1)
    mean = torch.zeros_like(p)
    for key in range(READINGS):
        blob = encoding.encode(logits, f"reading {key}")
        mean += dense(encoding.decode(blob, len(logits)), VOCABULARY) / READINGS
    return float((mean - p).abs().sum(-1).mean() / 2)


def compared(case: str, ours: float, peer: float, unit: str) -> dict[str, Any]:
    """A line of the table."""
    return {"case": case, "ours": ours, "peer": peer, "unit": unit, "ratio": ours / peer}


PAIRS = {
    "full": ("full bf16",),
    "topk 32": ("full bf16", "DistillKit budget"),
    "topk 33": ("DistillKit budget",),
    "topk 95": ("DistillKit recommended",),
    "sampled 12": ("DistillKit budget",),
    "sampled 25": ("DistillKit budget",),
    "sampled 50": ("full bf16", "DistillKit budget", "DistillKit recommended"),
    "sampled 50, independent": ("DistillKit budget",),
}
UNITS = {
    "kl": ("KL, 1e-6 nats", 1e6),
    "kl_bucketed": ("KL of buckets, 1e-6 nats", 1e6),
    "total_variation": ("½ Σ |q − p|", 1),
}


def lines(ours: dict[str, dict[str, float]], peers: dict[str, dict[str, float]]) -> list[Any]:
    """Each encoding beside a peer that it can stand for: bytes, and the figures that both have."""
    rows = []
    for case, names in PAIRS.items():
        mine = ours[case]
        for name in names:
            its, both = peers[name], f"{case} / {name}"
            size = mine["bytes_per_token"], its["bytes_per_token"]
            rows.append(compared(both, *size, "bytes/token"))
            if name == "full bf16" and case != "full":
                continue  # what is left out cannot be compared with what is all there
            if "total_variation_of_mean" in mine:
                many = mine["total_variation_of_mean"]
                what = f"½ Σ |q − p|, ours of {READINGS} readings"
                rows.append(compared(both, mine["total_variation"], its["total_variation"],
                                     "½ Σ |q − p|, of one reading"))  # fmt: skip
                rows.append(compared(both, many, its["total_variation"], what))
                continue
            for figure in (figure for figure in MEASURES if figure in mine):
                unit, factor = UNITS[figure]
                rows.append(compared(both, mine[figure] * factor, its[figure] * factor, unit))
    return rows


def main() -> None:
    """Encodes the same tokens in every way, and measures what each is from the whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    logits = distributions(options.tokens)
    entropy = float(torch.distributions.Categorical(logits=logits).entropy().mean())
    ours: dict[str, dict[str, float]] = {}
    for case, spec in CASES.items():
        measured = Divergence(get_encoding(spec, VOCABULARY))
        # A bias is small beside the noise of draws: it takes several readings to see one.
        for key in ("row", "row 1", "row 2") if spec["encoding"] == "sampled" else ("row",):
            measured.add(logits, key)
        ours[case] = dict(measured.summary())
        if spec["encoding"] == "sampled":
            ours[case]["total_variation_of_mean"] = many_readings(spec, logits[:32])
        print(f"  {case}: {ours[case]}", flush=True)
    peers = {name: peer_figures(peer, logits) for name, peer in PEERS.items()}
    record(
        "outputs", lines(ours, peers), encodings=ours, peers=peers, tokens=options.tokens,
        vocabulary=VOCABULARY, entropy_nats=entropy, expected=EXPECTED,
    )  # fmt: skip


if __name__ == "__main__":
    main()
