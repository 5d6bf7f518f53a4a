"""How far a recorded token distribution is from the full one, by estimators that are defined.

For each token, with p the teacher's distribution and V the vocabulary:

| encoding | figure | what it is |
|---|---|---|
| all | `total_variation` | half the sum of the differences from what one reading gives, q |
| full, topk | `kl` | KL(p ‖ q) in nats |
| topk | `kl_bucketed` | KL over k + 1 buckets, the rest being one of them |
| topk | `rest` | the probability outside the k |
| sampled | `kl_of_draws` | KL(q ‖ p); KL(p ‖ q) is infinite, since most tokens are never drawn |
| sampled | `bias_squared` | an unbiased estimate of ‖E q − p‖² |

For topk, q spreads the rest evenly over the other tokens: the most that a reader can say who knows
nothing but the record. A loss that lets the student spread the rest by its own tail compares the
buckets alone, and what it loses is `kl_bucketed`: the rounding of fp16 and nothing else.

For sampled, one reading is mostly noise, which training averages out; what would stay is a bias.
`bias_squared` is ⟨q₁ − p, q₂ − p⟩ over two independent sets of draws: the noise of the two has
nothing in common, so that its expectation is the square of the bias, and 0 if there is none. It
comes with the standard error of its mean over the tokens, `bias_squared_error`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .token_encoding import CHUNK, Encoding, log_probs
from .token_targets import Full, Sampled, Targets, TopK


def dense(targets: Targets, vocabulary: int) -> Tensor:
    """The distribution that a reading stands for, (T, V) float64; topk's rest spread evenly."""
    if isinstance(targets, Full):
        return targets.logits.double().softmax(-1)
    shape = (len(targets), vocabulary)
    if isinstance(targets, Sampled):
        # Added, not set: padding has the id 0, which may also have been drawn.
        empty = torch.zeros(shape, dtype=torch.float64)
        return empty.scatter_add_(-1, targets.ids, targets.weights.double())
    others = vocabulary - targets.ids.shape[1]
    spread = (targets.rest.double() / others)[:, None].expand(shape).clone()
    return spread.scatter_(-1, targets.ids, targets.log_probs.double().exp())


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Σ p (log p − log q) of each row, in nats; 0 · log 0 is 0.

    Args:
        p: Probabilities, (T, V).
        q: Probabilities, (T, V).

    Returns:
        (T,), ∞ where q has no probability for what p has.
    """
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def buckets(targets: TopK, p: Tensor) -> tuple[Tensor, Tensor]:
    """The k + 1 buckets of p and of what was recorded of it, (T, k + 1) each."""
    inside = p.gather(-1, targets.ids)
    outside = p.scatter(-1, targets.ids, 0.0).sum(-1, keepdim=True)
    recorded = torch.cat([targets.log_probs.double().exp(), targets.rest.double()[:, None]], -1)
    return torch.cat([inside, outside], -1), recorded / recorded.sum(-1, keepdim=True)


class Divergence:
    """Means over the tokens of a sample of rows, added row by row."""

    def __init__(self, encoding: Encoding) -> None:
        """Starts with no row."""
        self._encoding = encoding
        self._vocabulary = encoding.vocabulary
        self._sums: dict[str, float] = {}
        self._tokens = 0
        self._bytes = 0

    def add(self, logits: Tensor, key: str) -> None:
        """Encodes a row, reads it again, and adds up how far that is from the row.

        Args:
            logits: Logits or log-probabilities, (T, V).
            key: The row's key.

        Raises:
            RunError: As `Encoding.encode`.
        """
        tokens = len(logits)
        blob = self._encoding.encode(logits, key)
        readings = [self._encoding.decode(blob, tokens)]
        if isinstance(readings[0], Sampled):
            other = self._encoding.encode(logits, f"{key}#other draws")
            readings.append(self._encoding.decode(other, tokens))
        step = max(1, CHUNK // self._vocabulary)
        for start in range(0, tokens, step):
            part = slice(start, start + step)
            p = log_probs(logits[part].detach().cpu()).double().softmax(-1)
            for name, each in self._figures(p, [reading[part] for reading in readings]).items():
                self._sums[name] = self._sums.get(name, 0.0) + float(each.sum())
        self._tokens += tokens
        self._bytes += len(blob)

    def _figures(self, p: Tensor, readings: list[Targets]) -> dict[str, Tensor]:
        """The figures of some tokens, (T,) each."""
        first = readings[0]
        q = dense(first, self._vocabulary)
        found = {"total_variation": (q - p).abs().sum(-1) / 2}
        if isinstance(first, Sampled):
            found["kl_of_draws"] = kl_divergence(q, p)
            both = ((q - p) * (dense(readings[1], self._vocabulary) - p)).sum(-1)
            found |= {"bias_squared": both, "_square": both.square()}
            return found
        found["kl"] = kl_divergence(p, q)
        if isinstance(first, TopK):
            true, recorded = buckets(first, p)
            found |= {"kl_bucketed": kl_divergence(true, recorded), "rest": true[:, -1]}
        return found

    def summary(self) -> dict[str, float | int]:
        """The means over all tokens so far, their number, and the bytes that each took.

        Empty where no token was added.
        """
        if not self._tokens:
            return {}
        found: dict[str, float | int] = {
            name: total / self._tokens for name, total in self._sums.items() if name[0] != "_"
        }
        if "_square" in self._sums:
            spread = self._sums["_square"] / self._tokens - float(found["bias_squared"]) ** 2
            found["bias_squared_error"] = math.sqrt(max(spread, 0.0) / self._tokens)
        return {"tokens": self._tokens, "bytes_per_token": self._bytes / self._tokens, **found}
