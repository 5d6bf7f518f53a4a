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
    """The target's metric on some of the test rows: those of one value of a column.

    ``by`` is the column (``label``, a column that `Evaluate.slices` names, or ``slice``, which the
    data give). ``difference`` is student less teacher, with its paired 95 % interval; ``p`` is of
    McNemar's test where rows are right or wrong, adjusted by Holm over all slices of a report.
    """

    by: NotRequired[str]
    name: str
    rows: int
    teacher: float | None
    student: float | None
    difference: NotRequired[float | None]
    difference_ci95: NotRequired[list[float] | None]
    p: NotRequired[float | None]


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

    Of several seeds the student's figures, of every metric, are means; ``seeds`` has each.
    ``retention`` is student / teacher, and ``retention_ci95`` its interval over the rows;
    ``retention_std_seeds`` is the standard deviation over seeds. ``agreement`` is the share of rows
    on which the teacher and the first seed's student decide alike.
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

    ``scenario`` is ``single_stream`` (one row after the other), ``offline`` (batches) or ``server``
    (rows arrive at random, ``rate_per_s`` being the highest rate at which p99 stays within
    ``bound_ms``), as MLPerf Inference names them. Of answers in text there is ``tokens_per_s`` too,
    and, of single ones, ``ttft``: the time to the first token. ``energy_joules`` are a row's, from
    the counters that ``energy_source`` names; null where the machine has none. ``busy_before`` is
    the share of the processors in use just before, ``busy_during`` what others used meanwhile.
    """

    side: str
    runtime: str
    precision: str
    threads: int
    batch: int
    scenario: str
    runs: int
    rounds: int
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    model_p50: float | None
    examples_per_s: float | None
    tokens_per_s: float | None
    ttft: dict[str, float]
    usd_per_million: float | None
    bytes: int | None
    peak_memory_bytes: int | None
    cold_start_s: float | None
    rate_per_s: float | None
    bound_ms: float | None
    energy_joules: float | None
    energy_source: str | None
    load_average: float
    busy_before: float
    busy_during: float | None


class Export(TypedDict, total=False):
    """One exported student on its own runtime; ``metric`` is its value of the target's metric."""

    format: str
    bytes: int | None
    metric: float | None
    retention: float | None
    retention_ci95: list[float] | None
    flip_rate: float | None
    latency_ms_p50: float | None


class Step(TypedDict):
    """One stage of the way from the teacher to what is deployed, scored from its own folder.

    ``difference`` is the target's metric less that of ``before`` (the step it is compared with; its
    name), on the same rows, with the paired 95 % interval. ``p`` is of McNemar's exact test of the
    decisions that are right, adjusted by Holm over all steps; null for metrics of degrees.
    ``retention`` is over the teacher. Costs are of the step's own artefact; ``latency_ms_p50`` of
    the runtime that it is made for, one thread, batch 1.
    """

    name: str
    stage: str
    before: str | None
    value: float | None
    difference: float | None
    difference_ci95: list[float] | None
    p: float | None
    retention: float | None
    retention_ci95: list[float] | None
    flops_per_example: float | None
    bytes: int | None
    latency_ms_p50: float | None


class Significance(TypedDict):
    """Rows that teacher and student get right, by who does, and McNemar's exact test of them."""

    both: int
    teacher_alone: int
    student_alone: int
    neither: int
    p: float


class Bin(TypedDict):
    """Rows whose highest probability lies in [low, high), and how many of them are right."""

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


class Calibration(TypedDict):
    """Expected calibration error of a classifier, and its reliability diagram.

    ``side`` is ``teacher``, ``student`` or an export's format; ``shift``, of an export, is its
    mean probability of its own winning class less the student's.
    """

    side: str
    ece: float
    bins: list[Bin]
    shift: float | None


class RiskCoverage(TypedDict):
    """What answering only above a confidence gives: ``risk`` is the share of wrong answers.

    The three lists go together, from all rows answered to few. ``aurc`` is the mean risk over
    coverage; ``out_of_scope`` the share of rows outside the task that are still answered at each
    threshold, where the recipe names such rows.
    """

    side: str
    threshold: list[float]
    coverage: list[float]
    risk: list[float]
    aurc: float
    out_of_scope: list[float] | None


class Spent(TypedDict):
    """What a stage of this run took when it was made; null where it was not measured."""

    name: str
    seconds: float | None
    flops: float | None
    energy_joules: float | None
    usd: float | None


class Ledger(TypedDict):
    """What the run itself cost, and when the student has paid for it.

    ``usd`` of a stage is its time on all cores it computed on, at `Evaluate.usd_per_hour` a core,
    endpoint charges added. The total is null where a part is, but for ``flops``: they are of
    recording and training alone. ``teacher`` and ``student`` are the price of one query on the
    cheapest measured runtime of each, or what an endpoint charged for one; ``break_even`` the
    queries after which the difference has paid the total; null, with the ``reason`` in words, where
    no price is given or the student saves nothing. ``energy_source`` names the counters.
    """

    stages: list[Spent]
    total: Spent
    energy_source: str | None
    endpoint_usd: float | None
    teacher: float | None
    student: float | None
    break_even: int | None
    reason: str


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
    (`distill/token_divergence.py` names its figures). ``hidden`` are the components kept of each
    recorded layer's token vectors, their bytes and what they lose. ``unfinished`` are the teacher's
    own completions that reached the longest allowed; ``truncated`` says how many completions each
    stage cut to the maximum length. ``unmapped_mass`` and ``refused`` are of log-probabilities that
    came as text, and ``endpoint`` is what was asked and used, by stage.
    """

    kind: str
    encoding: str
    k: int | None
    draws: int | None
    over: str | None
    items: int
    bytes_per_token: float | None
    divergence: dict[str, float] | None
    hidden: dict[str, dict[str, float]]
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
    attribution: list[Step]
    significance: Significance | None
    calibration: list[Calibration]
    risk_coverage: list[RiskCoverage]
    ledger: Ledger | None
