"""What a teacher says of the next token, as a loss reads it: in full, its largest, or draws.

All are of N positions. Positions that the loss does not count are not among them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Full:
    """The whole distribution.

    Attributes:
        logits: Logits or log-probabilities, (N, V): a softmax makes the distribution of them.
    """

    logits: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, part: slice) -> Full:
        return Full(self.logits[part])


@dataclass(frozen=True)
class TopK:
    """The k largest log-probabilities of each position, and the mass of the rest.

    Attributes:
        ids: Token ids, (N, K) int64, distinct in a row.
        log_probs: Their log-probabilities, (N, K); −inf where there are fewer than K.
        rest: The probability of all other tokens together, (N,).
    """

    ids: Tensor
    log_probs: Tensor
    rest: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> TopK:
        return TopK(self.ids[part], self.log_probs[part], self.rest[part])


@dataclass(frozen=True)
class Sampled:
    """Draws from the distribution, an unbiased estimate of it (arXiv 2503.16870).

    Attributes:
        ids: Token ids drawn, (N, K) int64, distinct in a row where the weight is above 0.
        weights: The share of the draws that fell on each, (N, K); they sum to 1; 0 is padding.
    """

    ids: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Sampled:
        return Sampled(self.ids[part], self.weights[part])


Targets = Full | TopK | Sampled
