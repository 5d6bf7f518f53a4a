"""Encodings of what a teacher says at each token: in full, its k largest, or unbiased draws.

One row of T tokens is one blob. An encoding is chosen by a specification:

    {"encoding": "full"}                     fp16 log-probabilities: 2 V bytes a token
    {"encoding": "topk", "k": 32}            k of them, and the probability of the rest
    {"encoding": "sampled", "draws": 50}     ids drawn from the teacher, and how often each was

At V = 151,936 these take about 304 kB, 123 and 24 bytes a token, `sampled` depending on how sure
the teacher is. What of the distribution is lost is measured in `token_divergence`.

Log-probabilities are fp16, not bf16: they lie between 0 and about −40, which is well within fp16,
and of the same 16 bits fp16 spends three more on precision: next to −16 it knows −15.99, bf16
−15.94. −∞ (a token that cannot be) is kept as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ..eval.errors import RecipeError, RunError, nearest
from .bit_packing import Reader, Sets, damaged, pack_counts, pack_sets, unpack_counts, unpack_sets
from .token_targets import Full, Sampled, Targets, TopK

CHUNK = 2**23
"""Numbers of a (tokens, V) block worked on at a time, so that a long row needs no memory more."""

LOWEST = -65504.0  # fp16's last finite number; below it lies −∞


class Encoding(Protocol):
    """One way to write what a teacher says of T tokens, and to read it again."""

    name: ClassVar[str]

    @property
    def vocabulary(self) -> int:
        """V, the width of the teacher's logits."""

    @property
    def spec(self) -> dict[str, Any]:
        """What `get_encoding` would make this of, every option written out."""

    def encode(self, logits: Tensor, key: str) -> bytes:
        """Writes a row.

        Args:
            logits: Logits or log-probabilities, (T, V), of any float type, on any device.
            key: Names the row; only `sampled` depends on it.

        Returns:
            The blob: a function of the arguments alone.

        Raises:
            RunError: If a logit is NaN or +∞, all of a token's are −∞, or V differs.
        """

    def decode(self, blob: bytes, tokens: int) -> Targets:
        """Reads a row.

        Args:
            blob: What `encode` gave.
            tokens: T.

        Returns:
            T positions, on the CPU.

        Raises:
            RunError: If these are not the bytes of such a row.
        """


def _checked(logits: Tensor, vocabulary: int) -> Tensor:
    """The logits, detached.

    Raises:
        RunError: If they are of another vocabulary.
    """
    if logits.ndim != 2 or logits.shape[1] != vocabulary:
        raise RunError(
            f"The teacher gave logits of shape {tuple(logits.shape)}; expected (tokens, "
            f"{vocabulary}). Record with the teacher's own vocabulary size."
        )
    return logits.detach()


def log_probs(logits: Tensor) -> Tensor:
    """Logits as log-probabilities in float32.

    Raises:
        RunError: If that is not possible.
    """
    found = logits.float().log_softmax(-1)
    # A NaN or +∞ anywhere, or −∞ everywhere, makes every number of its row NaN.
    if len(found) and found[:, 0].isnan().any():
        raise RunError(
            "The teacher gave logits that are not numbers; set capture.precision to fp32 or bf16."
        )
    return found


def _parts(logits: Tensor) -> list[Tensor]:
    """The row in blocks of tokens that CHUNK allows."""
    step = max(1, CHUNK // logits.shape[1])
    return [logits[start : start + step] for start in range(0, len(logits), step)]


def _half(values: Tensor) -> bytes:
    """Log-probabilities in little-endian fp16."""
    low = values.isneginf()
    return values.clamp(min=LOWEST).masked_fill(low, -torch.inf).half().cpu().numpy().tobytes()


def _halves(reader: Reader, *shape: int) -> Tensor:
    """What `_half` wrote, in float32.

    Raises:
        RunError: If one is no log-probability.
    """
    count = int(np.prod(shape))
    values = reader.take(16 * count).view("<f2").astype(np.float32)
    # Not `max() <= 0`: a NaN has to fail too.
    if not (values <= 0).all():
        raise damaged("a number that is no log-probability")
    return torch.from_numpy(values).view(*shape)


@dataclass(frozen=True)
class FullEncoding:
    """Every log-probability in fp16: 2 V bytes a token.

    Attributes:
        vocabulary: V.
    """

    name: ClassVar[str] = "full"
    vocabulary: int

    @property
    def spec(self) -> dict[str, Any]:
        """See `Encoding`."""
        return {"encoding": self.name}

    def encode(self, logits: Tensor, key: str) -> bytes:
        """See `Encoding`."""
        del key
        parts = _parts(_checked(logits, self.vocabulary))
        return b"".join(_half(log_probs(part)) for part in parts)

    def decode(self, blob: bytes, tokens: int) -> Full:
        """See `Encoding`."""
        reader = Reader(blob)
        found = _halves(reader, tokens, self.vocabulary)
        reader.end()
        return Full(found)


@dataclass(frozen=True)
class TopKEncoding:
    """The k largest log-probabilities in fp16, their ids, and the log of the rest's probability.

    Ids ascend, which lets them be written as a set: 56 bytes for 32 of 151,936, where ids in the
    order of their probability take 72. What is read is normalised: fp16 changes a probability p by
    up to p·|log p| / 2,048, and a distribution has to sum to 1.

    Attributes:
        vocabulary: V.
        k: From 1 to V − 1.
    """

    name: ClassVar[str] = "topk"
    vocabulary: int
    k: int

    @property
    def spec(self) -> dict[str, Any]:
        """See `Encoding`."""
        return {"encoding": self.name, "k": self.k}

    def encode(self, logits: Tensor, key: str) -> bytes:
        """See `Encoding`."""
        del key
        values, ids = [], []
        for part in _parts(_checked(logits, self.vocabulary)):
            every = log_probs(part)
            top = every.topk(self.k, dim=-1, sorted=False).indices.sort(-1).values  # (t, K)
            # Of the others themselves: 1 − Σ would know nothing below 1e-7.
            rest = every.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
            values.append(torch.cat([every.gather(-1, top), rest.clamp(max=0)], -1))
            ids.append(top)
        return self._written(torch.cat(values), torch.cat(ids)) if values else b""

    def encode_listed(self, listed: TopK) -> bytes:
        """Writes what a server lists of each token: nothing is put in the place of the rest.

        Args:
            listed: Of T tokens, with K ≥ k places; where it has more than k, the least join the
                rest, and places of −∞, of which no reader takes notice, keep their distinct ids.

        Raises:
            RunError: If it has fewer places than k.
        """
        if listed.ids.shape[1] < self.k:
            raise RunError(
                f"The teacher lists {listed.ids.shape[1]} log-probabilities a token, and "
                f"{self.k} were to be recorded; set capture.k to at most what it lists."
            )
        if not len(listed):
            return b""
        best = listed.log_probs.topk(self.k, dim=-1, sorted=False).indices
        ids, order = listed.ids.gather(-1, best).sort(-1)
        values = listed.log_probs.gather(-1, best).gather(-1, order)
        lost = listed.log_probs.exp().sum(-1) - values.exp().sum(-1)
        rest = (listed.rest + lost.clamp(min=0)).clamp(max=1).log()[:, None]
        return self._written(torch.cat([values.clamp(max=0), rest], -1), ids)

    def _written(self, values: Tensor, ids: Tensor) -> bytes:
        """Log-probabilities and that of the rest, (T, k + 1), and the ids, (T, k), ascending."""
        flat = ids.cpu().numpy()
        sets = Sets(flat.reshape(-1), np.full(len(flat), self.k, dtype=np.int64))
        return _half(values) + pack_sets(sets, self.vocabulary, fixed_size=True)

    def decode(self, blob: bytes, tokens: int) -> TopK:
        """See `Encoding`; ids ascend."""
        reader = Reader(blob)
        found = _halves(reader, tokens, self.k + 1)
        ids = np.empty(0, dtype=np.int64)
        if tokens:
            ids = unpack_sets(reader, tokens, self.vocabulary, self.k).ids
        reader.end()
        every = found.log_softmax(-1)
        if every.isnan().any():
            raise damaged("a token without any probability")
        return TopK(torch.from_numpy(ids).view(tokens, self.k), every[:, :-1], every[:, -1].exp())


@dataclass(frozen=True)
class SampledEncoding:
    """Draws from the distribution: distinct ids and how often each was drawn (arXiv 2503.16870).

    A token's weight is its share of the draws. Its expectation over seeds is the token's
    probability, so that the gradient of a cross-entropy or a forward KL, which is linear in the
    weights, is that of the full distribution in expectation.

    The draws of a token are the inverse of its cumulative distribution at D points of [0, 1):
    `systematic` takes one uniform number u and the points (u + i) / D, `independent` takes D
    uniform numbers, as the paper does. Both are unbiased; systematic draws fall on a token ⌊D·p⌋
    or ⌈D·p⌉ times and never else, which leaves far less noise in as many bytes.

    The points depend on (seed, key, position) alone, so that what is recorded again after a kill
    has the same bytes.

    Attributes:
        vocabulary: V.
        draws: D, from 1 to 65,535.
        method: ``systematic`` or ``independent``.
        seed: Of the draws.
    """

    name: ClassVar[str] = "sampled"
    vocabulary: int
    draws: int
    method: str = "systematic"
    seed: int = 0

    @property
    def spec(self) -> dict[str, Any]:
        """See `Encoding`."""
        return {
            "encoding": self.name,
            "draws": self.draws,
            "method": self.method,
            "seed": self.seed,
        }

    def encode(self, logits: Tensor, key: str) -> bytes:
        """See `Encoding`."""
        logits = _checked(logits, self.vocabulary)
        points = torch.from_numpy(self._points(key, len(logits)))  # (T, D), ascending
        drawn, start = [], 0
        for part in _parts(logits):
            these = points[start : start + len(part)].to(part.device)
            drawn.append(_inverse(log_probs(part), these).cpu().numpy())
            start += len(part)
        if not drawn:
            return b""
        ids = np.concatenate(drawn)
        new = np.ones(ids.shape, dtype=bool)
        new[:, 1:] = ids[:, 1:] != ids[:, :-1]
        sizes = new.sum(1)
        at = np.flatnonzero(new)  # runs do not cross tokens: each starts with a new one
        counts = np.diff(at, append=new.size)
        # A token's last count follows from the others.
        kept = np.delete(counts, np.cumsum(sizes) - 1)
        sets = Sets(ids.reshape(-1)[at], sizes)
        return pack_sets(sets, self.vocabulary, fixed_size=False) + pack_counts(kept)

    def _points(self, key: str, tokens: int) -> Any:
        """Points of [0, 1) for each token, (T, D) float64, ascending."""
        name = f"{self.seed}:{key}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(name, digest_size=16).digest()
        draw = np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))
        if self.method == "independent":
            return np.sort(draw.random((tokens, self.draws)), axis=1)
        return (draw.random((tokens, 1)) + np.arange(self.draws)) / self.draws

    def decode(self, blob: bytes, tokens: int) -> Sampled:
        """See `Encoding`; ids ascend, and padding of weight 0 has id 0."""
        reader = Reader(blob)
        if not tokens:
            reader.end()
            return Sampled(torch.empty(0, 1, dtype=torch.long), torch.empty(0, 1))
        sets = unpack_sets(reader, tokens, self.vocabulary, None)
        sizes, last = sets.sizes, np.cumsum(sets.sizes) - 1
        known = unpack_counts(reader, len(sets.ids) - tokens)
        reader.end()
        counts = np.zeros(len(sets.ids), dtype=np.int64)
        others = np.ones(len(counts), dtype=bool)
        others[last] = False
        counts[others] = known
        if (counts > self.draws).any():
            raise damaged(f"more than {self.draws} draws of a token")
        counts[last] = self.draws - np.add.reduceat(counts, last - sizes + 1)
        if (counts < 1).any():
            raise damaged(f"more than {self.draws} draws at a token")
        token = np.repeat(np.arange(tokens), sizes)
        place = np.arange(len(token)) - np.repeat(last - sizes + 1, sizes)
        ids = np.zeros((tokens, int(sizes.max())), dtype=np.int64)
        weights = np.zeros(ids.shape, dtype=np.float32)
        ids[token, place] = sets.ids
        weights[token, place] = counts / self.draws
        return Sampled(torch.from_numpy(ids), torch.from_numpy(weights))


def _inverse(every: Tensor, points: Tensor) -> Tensor:
    """For each point the first id whose cumulative probability lies above it, (t, D), ascending.

    Ids of probability 0 are never found.
    """
    # float64: in float32 the sum of 150,000 small numbers would be off by more than they are.
    cumulative = every.double().exp().cumsum(-1)
    total = cumulative[:, -1:]
    # A product may round up to the total itself, above which no id lies.
    below = torch.nextafter(total, torch.zeros_like(total))
    return torch.searchsorted(cumulative, torch.minimum(points * total, below), right=True)


METHODS = ("systematic", "independent")


def _whole(spec: Mapping[str, Any], option: str, low: int, high: int, why: str) -> int:
    """An option that is a whole number within bounds.

    Raises:
        RecipeError: If it is missing or is none.
    """
    value = spec.get(option)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        said = "is missing" if option not in spec else f"is {value!r}"
        raise RecipeError(
            f"The encoding '{spec['encoding']}': '{option}' {said}; expected a whole number from "
            f"{low} to {high:,}{why}."
        )
    return value


def _full(spec: Mapping[str, Any], vocabulary: int) -> Encoding:
    del spec
    return FullEncoding(vocabulary)


def _topk(spec: Mapping[str, Any], vocabulary: int) -> Encoding:
    k = _whole(spec, "k", 1, vocabulary - 1, f", below the vocabulary's {vocabulary:,}")
    return TopKEncoding(vocabulary, k)


def _sampled(spec: Mapping[str, Any], vocabulary: int) -> Encoding:
    method = spec.get("method", METHODS[0])
    if method not in METHODS:
        raise RecipeError(
            f"The encoding 'sampled': 'method' is {method!r}; expected {' or '.join(METHODS)}."
            f"{nearest(str(method), METHODS)}"
        )
    draws = _whole(spec, "draws", 1, 65_535, "")
    seed = _whole({"seed": 0, **spec}, "seed", 0, 2**63 - 1, "")
    return SampledEncoding(vocabulary, draws, method, seed)


ENCODINGS: dict[str, tuple[Callable[[Mapping[str, Any], int], Encoding], tuple[str, ...]]] = {
    "full": (_full, ()),
    "topk": (_topk, ("k",)),
    "sampled": (_sampled, ("draws", "method", "seed")),
}
"""Each encoding's name, what makes it, and its options."""


def get_encoding(spec: Mapping[str, Any], vocabulary: int) -> Encoding:
    """Makes an encoding.

    Args:
        spec: ``encoding`` and its options, as above.
        vocabulary: V, the width of the teacher's logits.

    Raises:
        RecipeError: If there is no such encoding or option, or an option is out of its bounds.
    """
    name = spec.get("encoding")
    if name not in ENCODINGS:
        raise RecipeError(
            f"Unknown encoding {name!r}.{nearest(str(name), ENCODINGS)} "
            f"Choose from {', '.join(ENCODINGS)}."
        )
    make, options = ENCODINGS[name]
    for option in spec:
        if option not in ("encoding", *options):
            known = f"it has {', '.join(options)}" if options else "it has none"
            raise RecipeError(
                f"The encoding '{name}' has no option '{option}'; {known}."
                f"{nearest(option, options)}"
            )
    return make(spec, vocabulary)
