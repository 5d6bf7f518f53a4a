"""The keys of ``report.json``, as types.

Other programs read the file, so its keys are stable: a change that could break a reader raises
`SCHEMA`. A figure that was not measured is null, never 0.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

SCHEMA = 1
"""Version of the keys of ``report.json``."""


class Target(TypedDict):
    """What was asked for: at least ``retain`` of the teacher's ``metric`` at most ``compute``."""

    metric: str
    retain: float
    compute: float


class Pair(TypedDict):
    """One metric of both models; ``higher_is_better`` is false for a count of errors."""

    teacher: float | None
    student: float | None
    higher_is_better: NotRequired[bool]


class Slice(TypedDict):
    """The target's metric on the test rows of one kind, which the data name (generation)."""

    name: str
    rows: int
    teacher: float | None
    student: float | None


class Baseline(TypedDict):
    """Another way to the same size; ``value`` is the target's metric."""

    name: str
    value: float | None
    retention: float | None
    retention_ci95: list[float] | None
    flops_ratio: float | None


class SeedResult(TypedDict):
    """The student of one training seed; ``student`` is its value of the target's metric."""

    seed: int
    student: float | None
    retention: float | None


class Quality(TypedDict):
    """How well both models do on the test rows.

    ``retention`` is student / teacher, the mean over seeds if there are several, and
    ``retention_ci95`` its interval over the rows; ``retention_std_seeds`` is the standard deviation
    over seeds. ``agreement`` is the share of rows on which both decide alike.
    """

    metric: str
    teacher: float | None
    student: float | None
    retention: float | None
    retention_ci95: list[float] | None
    retention_std_seeds: float | None
    examples: int
    agreement: float | None
    metrics: dict[str, Pair]
    baselines: list[Baseline]
    seeds: list[SeedResult]
    slices: list[Slice]


class Answer(TypedDict):
    """What an answer costs on average over the test rows: the prompt's FLOPs and the answer's.

    ``new_tokens`` counts the one that ends an answer; ``unfinished`` answers reached the longest
    that the recipe allows; ``kv_cache_bytes`` are of keys and values in fp32 at the answer's end.
    """

    prefill_flops: float
    decode_flops: float
    new_tokens: float
    unfinished: int
    kv_cache_bytes: float


class Side(TypedDict):
    """What one model costs: in PyTorch, fp32, one thread, one row at a time.

    ``usd_per_million`` is of rows in batches, at the recipe's price of a core; null without one.
    ``answer``, ``tokens_per_s`` and ``ttft_ms_p50`` (time to first token) are of generation, and
    ``flops_per_example`` there is of prefill and decode together.
    """

    parameters: int | None
    bytes: int | None
    flops_per_example: float | None
    latency_ms_p50: float | None
    latency_ms_p95: float | None
    examples_per_s: float | None
    peak_memory_bytes: int | None
    usd_per_million: float | None
    answer: Answer | None
    tokens_per_s: float | None
    ttft_ms_p50: float | None


class Ratio(TypedDict):
    """Student over teacher; below 1 is saved."""

    flops: float | None
    parameters: float | None
    bytes: float | None
    latency: float | None


class Cost(TypedDict):
    """What both models cost, and the ratios."""

    teacher: Side
    student: Side
    ratio: Ratio


class Measurement(TypedDict, total=False):
    """One timing. Times are milliseconds from text to decision; ``model_p50`` is the model alone.

    ``scenario`` is ``single_stream`` (one row after the other) or ``offline`` (batches). Of answers
    in text there is ``tokens_per_s`` too, and, of single ones, ``ttft``: the time to the first
    token.
    """

    side: str
    runtime: str
    precision: str
    threads: int
    batch: int
    scenario: str
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    model_p50: float | None
    examples_per_s: float | None
    tokens_per_s: float | None
    ttft: dict[str, float]
    usd_per_million: float | None
    peak_memory_bytes: int | None
    cold_start_s: float | None


class Export(TypedDict, total=False):
    """One exported student on its own runtime; ``metric`` is its value of the target's metric."""

    format: str
    bytes: int | None
    metric: float | None
    retention: float | None
    retention_ci95: list[float] | None
    flip_rate: float | None
    latency_ms_p50: float | None


class Stage(TypedDict, total=False):
    """One stage: what it took, or whether it was taken from an earlier run."""

    name: str
    seconds: float | None
    cached: bool
    peak_memory_bytes: int | None
    fingerprint: str
    world_size: int


class Vocabulary(TypedDict, total=False):
    """What cutting the vocabulary changed; shares are of texts tokenised identically."""

    kept: int
    of: int
    training_identical: bool
    test_identical_share: float | None
    tokens_per_text_before: float | None
    tokens_per_text_after: float | None


class Mask(TypedDict):
    """Weights set to zero in a dense checkpoint, and what both models cost all the same.

    ``zeros`` is their share of the weights of ``maps`` linear maps. ``cut`` says whether the
    student was made smaller otherwise too.
    """

    method: str
    pattern: float | str
    zeros: float
    maps: int
    cut: bool
    bytes: Pair
    latency_ms_p50: Pair


class Recorded(TypedDict):
    """What a language model teacher was recorded to say.

    ``divergence`` is of the record from the full distribution, on a sample of tokens
    (`distill/token_divergence.py` names its figures). ``unfinished`` are the teacher's own
    completions that reached the longest allowed; ``truncated`` says how many completions each stage
    cut to the maximum length. ``unmapped_mass`` and ``refused`` are of log-probabilities that came
    as text, and ``endpoint`` is what was asked and used, by stage.
    """

    kind: str
    encoding: str
    k: int | None
    draws: int | None
    over: str | None
    items: int
    bytes_per_token: float | None
    divergence: dict[str, float] | None
    unfinished: int | None
    unmapped_mass: float | None
    refused: dict[str, int]
    truncated: dict[str, int]
    endpoint: dict[str, Any]


class Data(TypedDict, total=False):
    """Rows by split, rows dropped by split and reason, and where they come from."""

    rows: dict[str, int]
    dropped: dict[str, dict[str, int]]
    source: Any


class Difference(TypedDict):
    """A test row that the two models decide differently."""

    text: str
    expected: str
    teacher: str
    student: str
    teacher_right: bool
    student_right: bool


class Trial(TypedDict):
    """A shape that a search tried: shares of the teacher's cost, as predicted and as saved.

    ``latency_ms`` and ``usd_per_million`` are no shares, and there where the budget bounds them.
    ``agreement``, ``metric`` and ``retention`` (on validation rows) have one entry for each round
    it was in: as cut, then after each healing; ``interval`` is of the last retention. ``out`` says
    why it was dropped.
    """

    name: str
    sizes: dict[str, int]
    predicted: dict[str, float]
    measured: dict[str, float]
    agreement: list[float]
    metric: list[float]
    retention: list[float | None]
    interval: list[float] | None
    chosen: bool
    out: str | None


class Search(TypedDict):
    """How the student's shape was found; ``healed`` is each round's share of the training."""

    budget: dict[str, float]
    healed: list[float]
    chosen: str
    rows: int
    trials: list[Trial]


class Report(TypedDict):
    """The content of ``report.json``."""

    schema: int
    name: str
    command: str
    smoke: bool
    recipe: dict[str, Any]
    task: str
    target: Target
    verdict: Literal["pass", "fail", "undecided"]
    reasons: list[str]
    rows_needed: int | None
    quality: Quality
    cost: Cost
    quality_to_compute: float | None
    measurements: list[Measurement]
    exports: list[Export]
    stages: list[Stage]
    vocabulary: Vocabulary | None
    mask: Mask | None
    data: Data
    environment: dict[str, Any]
    differing: list[Difference]
    notes: list[str]
    search: Search | None
    recorded: Recorded | None
