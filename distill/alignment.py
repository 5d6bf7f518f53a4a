"""Teachers with another tokenizer: spans of the same bytes, and universal logit distillation.

Two tokenisations of one text are cut wherever both have a token's end. Within a span of several
tokens a side's distributions are merged by the chain rule: that of the last token, times the
probabilities that the side gave to the tokens of the span before it. That is the ``bayesian`` merge
of TRL's GOLD trainer (1.16); its default, ``observed``, takes the first token's distribution times
the probabilities of the later tokens, which the first does not condition on. Merged distributions
sum to the probability of the tokens before the last, not to 1; a span of one token is unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..eval.errors import RecipeError, RunError
from .chunked import chunk_size
from .divergences import DIVERGENCES
from .heads import Head, LiveTeacher
from .layer_terms import HIDDEN_MSE

ULD = "uld"
"""The loss that works across tokenizers, as ``distill.losses`` names it."""
Offsets = Sequence[tuple[int, int]]
"""First byte and the byte after the last, of each token of a text."""
PROBES = (
    "The red shoes, under $80 (size 42)?\n\tNot  the BLUE ones!",
    "naïve Straße, 12,345.678 — 東京 🙂 don't",
    '{"brand": ["a_b", null], "x": -1e-5}',
)
"""Texts on which tokenizers of equal vocabularies that split or normalise differently show it."""


class Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers."""

    def get_vocab(self) -> dict[str, int]:
        """The id of each token, added ones included."""

    def get_added_vocab(self) -> dict[str, int]:
        """The id of each added token."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Mapping[str, Any]:
        """The ids of a text, as ``input_ids``."""


@dataclass(frozen=True)
class VocabularyMatch:
    """How two tokenizers compare.

    Attributes:
        identical: Whether a text becomes the same ids: then all losses work, over ``shared`` ids.
        shared: Ids from 0 up to the last that both have; 0 where they are not identical. The
            logits of either model may be wider.
        reason: What differs first; empty where nothing does.
    """

    identical: bool
    shared: int
    reason: str = ""


@dataclass(frozen=True)
class Span:
    """The least run of tokens that covers the same bytes on both sides.

    Attributes:
        student: Positions of the student's tokens, one or more.
        teacher: Positions of the teacher's.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]


def match_vocabularies(student: Tokenizer, teacher: Tokenizer) -> VocabularyMatch:
    """Whether two tokenizers give the same ids, so that their distributions can be compared.

    Their own vocabularies must be equal, and the tokens added to either (chat markers, padding)
    have the same id where both have them; one may have more of those. They must also split the
    texts of `PROBES` alike, which the vocabulary alone does not say.

    Returns:
        The comparison.
    """
    s, t = student.get_vocab(), teacher.get_vocab()
    added_s, added_t = student.get_added_vocab(), teacher.get_added_vocab()
    for token in sorted(s.keys() | t.keys()):
        both = token in s and token in t
        if both and s[token] != t[token]:
            return _differ(
                f"'{token}' is {s[token]} for the student and {t[token]} for the teacher"
            )
        if not both and token not in added_s and token not in added_t:
            return _differ(f"only the {'student' if token in s else 'teacher'} has '{token}'")
    of_s, of_t = {i: token for token, i in s.items()}, {i: token for token, i in t.items()}
    common = of_s.keys() & of_t.keys()
    for i in sorted(common):
        if of_s[i] != of_t[i]:
            return _differ(f"{i} is '{of_s[i]}' for the student and '{of_t[i]}' for the teacher")
    for text in PROBES:
        ids = [list(x(text, add_special_tokens=False)["input_ids"]) for x in (student, teacher)]
        if ids[0] != ids[1]:
            return _differ(f"they split {text!r} differently")
    return VocabularyMatch(True, max(common, default=-1) + 1)


def _differ(reason: str) -> VocabularyMatch:
    return VocabularyMatch(False, 0, reason)


def check_losses(names: Sequence[str], match: VocabularyMatch) -> None:
    """Refuses losses that compare a token with itself where the tokenizers differ, and the reverse.

    Labels are the student's own, so `cross_entropy` always works.

    Args:
        names: Of the losses.
        match: From `match_vocabularies`.

    Raises:
        RecipeError: Naming the loss, the first difference, and what to do.
    """
    for name in names:
        entry = DIVERGENCES.get(name)
        if not match.identical and name == HIDDEN_MSE:
            raise RecipeError(
                f"The loss '{name}' compares the hidden states of teacher and student at the same "
                f"tokens, and their tokenizers differ: {match.reason}. Leave it out, or use a "
                "teacher with the student's tokenizer."
            )
        if not match.identical and entry is not None and not entry.needs_labels:
            raise RecipeError(
                f"The loss '{name}' compares teacher and student token by token, and their "
                f"tokenizers differ: {match.reason}. Use '{ULD}' or cross_entropy, or a teacher "
                f"with the student's tokenizer."
            )
        if match.identical and name == ULD:
            raise RecipeError(
                f"The loss '{ULD}' is for a teacher with another tokenizer, and this one has the "
                f"student's. Use forward_kl: it does not forget which token is which."
            )


def byte_offsets(text: str, characters: Offsets) -> list[tuple[int, int]]:
    """Byte offsets (UTF-8) from the character offsets of a fast tokenizer.

    Tokens that are parts of one character all get that character's bytes.

    Args:
        text: The text.
        characters: As ``return_offsets_mapping`` gives them.

    Returns:
        For each token the first byte and the byte after the last.
    """
    starts = [0]
    for character in text:
        starts.append(starts[-1] + len(character.encode("utf-8", "surrogatepass")))
    return [(starts[a], starts[b]) for a, b in characters]


def align_spans(student: Offsets, teacher: Offsets) -> list[Span]:
    """The longest list of spans of the same bytes: both sides are cut wherever both can be.

    A side can be cut at the end of a token unless the next one begins before it (parts of one
    character). Bytes that a tokenizer leaves out (spaces, often) belong to the token after them.
    Tokens without bytes (special ones) belong to no span, and neither does what follows the last
    common end, where one side was truncated.

    Args:
        student: Byte offsets of the student's tokens, in order.
        teacher: Byte offsets of the teacher's.

    Returns:
        The spans, in order; no token is in two.

    Raises:
        RunError: For offsets that run backwards.
    """
    ends_s, ends_t = _ends(student, "student"), _ends(teacher, "teacher")
    spans, from_s, from_t = [], 0, 0
    for end in sorted(ends_s.keys() & ends_t.keys()):
        to_s, to_t = ends_s[end], ends_t[end]
        spans.append(Span(_covering(student, from_s, to_s), _covering(teacher, from_t, to_t)))
        from_s, from_t = to_s, to_t
    return spans


def _ends(offsets: Offsets, side: str) -> dict[int, int]:
    """For each byte where a side can be cut, how many of its tokens lie before."""
    ends: dict[int, int] = {}
    reached, start = 0, 0
    last = None
    for i, (a, b) in enumerate(offsets):
        if b <= a:
            continue
        if a < start or b < reached:
            raise RunError(
                f"The {side}'s token {i} covers bytes {a} to {b}, before those of the token ahead "
                f"of it: byte offsets must not run backwards. Give both sides in reading order."
            )
        if last is not None and a >= reached:
            ends[reached] = last + 1
        reached, start, last = b, a, i
    if last is not None:
        ends[reached] = last + 1
    return ends


def _covering(offsets: Offsets, start: int, stop: int) -> tuple[int, ...]:
    """The positions that have bytes."""
    return tuple(i for i in range(start, stop) if offsets[i][0] < offsets[i][1])


def merge_spans(logits: Tensor, ids: Tensor, spans: Sequence[tuple[int, ...]]) -> Tensor:
    """One distribution a span: p(last token | …) · Π p(token before | …), by the chain rule.

    Args:
        logits: Of each position, (N, V); row i is what predicts ids[i].
        ids: The tokens, (N,).
        spans: Positions of each span.

    Returns:
        Probabilities, (S, V) float32; a row sums to the probability of its tokens before the last.
    """
    log_p = logits.float().log_softmax(-1)
    taken = log_p.gather(-1, ids[:, None])[:, 0]  # (N,)
    last, earlier, owner = _places(spans, logits.device)
    before = taken.new_zeros(len(spans)).index_add(0, owner, taken[earlier])
    return (log_p[last] + before[:, None]).exp()


def _places(
    spans: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The last position of each span, the earlier ones, and the span each earlier one is in."""
    last = [span[-1] for span in spans]
    earlier = [(i, number) for number, span in enumerate(spans) for i in span[:-1]]
    pairs = torch.tensor(earlier, dtype=torch.long, device=device).reshape(-1, 2)
    return torch.tensor(last, dtype=torch.long, device=device), pairs[:, 0], pairs[:, 1]


def sorted_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ_i |p_(i) − q_(i)| over probabilities sorted downwards, the shorter side padded with 0.

    Universal logit distillation, Boizard et al. (arXiv 2402.12030): the cost of moving one
    distribution to the other where every token is as far from every other.

    Args:
        student: Probabilities, (S, V).
        teacher: Probabilities, (S, V').

    Returns:
        (S,), from 0 to 2.
    """
    s = student.sort(-1, descending=True).values
    t = teacher.sort(-1, descending=True).values
    width = max(s.shape[-1], t.shape[-1])
    s = functional.pad(s, (0, width - s.shape[-1]))
    t = functional.pad(t, (0, width - t.shape[-1]))
    return (s - t).abs().sum(-1)


def uld(
    student: Tensor,
    student_ids: Tensor,
    teacher: Tensor,
    teacher_ids: Tensor,
    spans: Sequence[Span],
    temperature: float = 1.0,
) -> Tensor:
    """Universal logit distillation (arXiv 2402.12030) of each span: `sorted_l1` of the merged.

    Args:
        student: Logits, (N, V); row i predicts student_ids[i].
        student_ids: Tokens, (N,).
        teacher: Logits, (M, V').
        teacher_ids: Tokens, (M,).
        spans: From `align_spans`.
        temperature: T > 0; both are softmax(·/T), and the value is not multiplied by T², since
            an L1 distance of probabilities is not the square of anything.

    Returns:
        (S,), from 0 to 2; 0 where the tokens are the same and the distributions equal.
    """
    ours = merge_spans(student.float() / temperature, student_ids, [s.student for s in spans])
    theirs = merge_spans(teacher.float() / temperature, teacher_ids, [s.teacher for s in spans])
    return sorted_l1(ours, theirs)


def chunked_uld(
    hidden: Tensor,
    head: Head,
    student_ids: Tensor,
    teacher: LiveTeacher,
    teacher_ids: Tensor,
    spans: Sequence[Span],
    *,
    temperature: float = 1.0,
    divisor: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The mean of `uld` over spans, some spans' logits at a time, which are made anew backwards.

    Sorting has no gradient in closed form worth its own code, so it is recomputed. Each chunk adds
    its gradient to the head's in the head's dtype.

    Args:
        hidden: The student's last hidden states, (N, H); row i predicts student_ids[i].
        head: Its output head.
        student_ids: Tokens, (N,).
        teacher: The teacher's hidden states, (M, H_t), and its head.
        teacher_ids: Tokens, (M,).
        spans: From `align_spans`.
        temperature: T > 0.
        divisor: What the sum is divided by instead of the number of spans.
        chunk: Tokens of either side at a time, about; chosen by the vocabularies where None.

    Returns:
        A float32 scalar; 0 without spans.

    Raises:
        RecipeError: For a temperature that is not above 0.
    """
    if not temperature > 0:
        raise RecipeError(f"distill.losses.{ULD}.temperature must be above 0, not {temperature}.")
    size = chunk or chunk_size(max(len(head.weight), len(teacher.head.weight)))

    def part(rows_s: Tensor, rows_t: Tensor, s: Tensor, t: Tensor, of: list[Span]) -> Tensor:
        ours, theirs = head.logits(rows_s), teacher.head.logits(rows_t)
        return uld(ours, s, theirs.detach(), t, of, temperature).sum()

    total = hidden.float().sum() * 0.0
    for group in _groups(spans, size):
        at_s, of_s = _renumber([span.student for span in group])
        at_t, of_t = _renumber([span.teacher for span in group])
        moved = [Span(a, b) for a, b in zip(of_s, of_t, strict=True)]
        given = hidden[at_s], teacher.hidden[at_t].detach(), student_ids[at_s], teacher_ids[at_t]
        total = total + checkpoint(part, *given, moved, use_reentrant=False)
    return total / (divisor or max(len(spans), 1))


def _groups(spans: Sequence[Span], size: int) -> list[list[Span]]:
    """Spans in groups of at most so many tokens on either side, or of one span."""
    groups: list[list[Span]] = []
    room = 0
    for span in spans:
        need = max(len(span.student), len(span.teacher))
        if not groups or need > room:
            groups.append([])
            room = size
        groups[-1].append(span)
        room -= need
    return groups


def _renumber(spans: list[tuple[int, ...]]) -> tuple[list[int], list[tuple[int, ...]]]:
    """The positions of some spans in a row, and the spans with positions in that row."""
    positions = [i for span in spans for i in span]
    starts = [0]
    for span in spans:
        starts.append(starts[-1] + len(span))
    return positions, [tuple(range(a, b)) for a, b in pairwise(starts)]
