"""What a recipe may say: one model per section, every field described, nothing else accepted.

A `Recipe` is what a recipe file becomes when all defaults are filled in. What can be told from
the recipe alone is checked here; what depends on tables that others can add to (losses, metrics,
export formats) is checked in `resolving`, which knows those tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..eval.errors import RecipeError
from ..eval.tasks import get_task
from .consistency import BOUNDS, contradictions

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Dtype = Literal["float32", "bfloat16", "float16"]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Optimizer = Literal["adamw", "muon"]

PRECISION = "Arithmetic: fp32, or bf16/fp16 autocast; auto takes what the processor or GPU has."
ARGUMENTS = "Any field of transformers.TrainingArguments, passed on as it is."
OPTIMIZER = "adamw; or muon, for the matrices of layers, with adamw for all other weights."
ATTENTION = "Attention implementation, as transformers names them."
REVISION = "Hub branch, tag or commit."


class Section(BaseModel):
    """A part of a recipe: no key beyond the declared ones, no silent conversion, no change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataFiles(Section):
    """Local files: CSV, TSV, JSONL or Parquet; paths start at the current folder.

    With a collection and queries, the three splits are BEIR relevance files (query-id,
    corpus-id, score).
    """

    train: str = Field(description="Training rows; a label may be missing.")
    validation: str | None = Field(None, description="Rows to choose checkpoints by.")
    test: str = Field(description="Rows of the last step, the evaluation.")
    collection: str | None = Field(None, description="BEIR's corpus.jsonl (retrieval).")
    queries: str | None = Field(None, description="BEIR's queries.jsonl (retrieval).")


class Data(Section):
    """The rows of the task: from the hub, from files, or built in."""

    source: str | None = Field(
        None,
        description="Name of a hub data set; built in: python_docs (retrieval), query_filters "
        "(generation).",
    )
    config: str | None = Field(None, description="Configuration of the hub data set.")
    revision: str | None = Field(None, description=REVISION)
    files: DataFiles | None = Field(None, description="Local files instead of a source.")
    columns: dict[str, str | Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="The task's column: the file's column, or several names to look for in turn.",
    )
    validation: float = Field(
        0.1, gt=0, lt=1, description="Share of training rows set aside if there is no validation."
    )
    max_validation: Count = Field(2000, description="At most so many rows are set aside.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0,
        description="Seed of the rows: which are set aside, or made. The recipe's own seed leaves "
        "them as they are, so that students of several seeds are compared on the same.",
    )


class Finetune(Section):
    """Training of the teacher on the task before anything is recorded."""

    epochs: Count = Field(5, description="Passes over the training rows.")
    batch_size: Count = Field(64, description="Rows a step, over all processes.")
    learning_rate: float = Field(5e-5, gt=0, description="Highest learning rate.")
    precision: Precision = Field("auto", description=PRECISION)
    optimizer: Optimizer = Field("adamw", description=OPTIMIZER)
    arguments: dict[str, Any] = Field(default_factory=dict, description=ARGUMENTS)


class NewModel(Section):
    """A teacher made from nothing: random weights, and a tokenizer trained on the training rows."""

    architecture: str = Field("llama", description="A decoder that transformers has.")
    vocabulary: Annotated[int, Field(ge=300)] = Field(
        1024, description="Tokens of its byte-level BPE tokenizer, at most."
    )
    words: str | None = Field(
        None,
        description="Regular expression of what stays together before bytes are merged; GPT-2's "
        "words if null.",
    )
    config: dict[str, Any] = Field(
        description="Fields of the architecture's config, such as hidden_size."
    )


class Endpoint(Section):
    """An OpenAI-compatible chat server, and how it is asked."""

    base_url: str = Field(description="What /chat/completions follows: http://127.0.0.1:8000/v1.")
    key_env: str | None = Field(
        None, description="Name of the environment variable that holds the key."
    )
    allow_plain_http: bool = Field(
        False, description="Send the key over http to another machine than this."
    )
    concurrency: Count = Field(8, description="Requests in flight at once.")
    timeout_s: Positive = Field(120.0, description="Seconds a request may take.")
    retries: Annotated[int, Field(ge=0)] = Field(
        6, description="Tries beyond the first, on 429, 5xx, timeouts and broken answers."
    )
    first_wait_s: Positive = Field(
        0.5, description="Seconds before a second try; they double, with jitter, up to a minute."
    )
    longest_wait_s: Positive = Field(
        600.0, description="A server that asks to wait longer ends the recording."
    )
    top_logprobs: Annotated[int, Field(ge=0)] = Field(
        0, description="Log-probabilities asked for at each token; 0 records texts alone."
    )
    temperature: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Sampling temperature; the server's own if null."
    )
    top_p: Share | None = Field(None, description="Nucleus sampling; the server's own if null.")
    max_tokens: Count | None = Field(
        None, description="Longest answer; generation.max_new_tokens if null."
    )
    seed: int | None = Field(None, description="The server's sampling seed.")
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of each request, passed on."
    )
    budget_requests: Count | None = Field(
        None, description="Requests at most, those asked again included."
    )
    budget_tokens: Count | None = Field(None, description="Tokens at most, both ways.")
    budget_usd: Positive | None = Field(None, description="Money at most, at the prices below.")
    usd_per_million_input: Positive | None = Field(None, description="Price of tokens sent.")
    usd_per_million_output: Positive | None = Field(None, description="Price of tokens answered.")


class TeacherFiles(Section):
    """Recorded outputs of a teacher that is not here to be asked, one file a split."""

    train: str = Field(description="Outputs for the training rows.")
    validation: str | None = Field(None, description="Outputs for the validation rows.")
    test: str | None = Field(None, description="Outputs for the test rows.")
    collection: str | None = Field(None, description="Outputs for the collection (retrieval).")


class Teacher(Section):
    """The model to imitate."""

    kind: Literal["checkpoint", "recorded", "endpoint"] = Field(
        "checkpoint", description="A model that is run, its outputs from files, or a server."
    )
    model: str | None = Field(
        None, description="Hub name or folder of the checkpoint; an endpoint's name for it."
    )
    new: NewModel | None = Field(
        None, description="A model made from nothing and trained by finetune (generation)."
    )
    endpoint: Endpoint | None = Field(None, description="The server of kind endpoint.")
    tokenizer: str | None = Field(
        None,
        description="Hub name or folder of the tokenizer that recorded or served log-probabilities "
        "are of.",
    )
    files: TeacherFiles | None = Field(None, description="Recorded outputs.")
    revision: str | None = Field(None, description=REVISION)
    dtype: Dtype = Field("float32", description="Type its weights are loaded in.")
    attn_implementation: str | None = Field(None, description=ATTENTION)
    max_length: Annotated[int, Field(ge=4)] | None = Field(
        None, description="Longest row in tokens; the checkpoint's own if null."
    )
    finetune: Finetune | None = Field(None, description="Training on the task first.")


class Capture(Section):
    """How the teacher's outputs are recorded."""

    precision: Precision = Field("auto", description=PRECISION)
    batch_tokens: Count = Field(8192, description="Tokens a batch, padding included.")
    shard_rows: Count = Field(4096, description="Rows a shard; capture resumes by shard.")
    encoding: Literal["full", "topk", "sampled", "text"] | None = Field(
        None, description="How token distributions are kept (generation; topk if null)."
    )
    k: Count | None = Field(None, description="Log-probabilities kept by topk; 32 if null.")
    draws: Count | None = Field(None, description="Draws kept by sampled; 50 if null.")
    hidden_rank: Count | None = Field(
        None,
        description="Components kept of each layer's token vectors, for hidden_mse (generation; "
        "if null a quarter of the width, at most 128, or more until 5 % of the variance are lost).",
    )
    over: Literal["references", "generations"] | None = Field(
        None,
        description="Whose completions are recorded: the data's, or the teacher's own "
        "(generation; references if null).",
    )


class Student(Section):
    """Another checkpoint as student, instead of the teacher itself."""

    model: str = Field(description="Hub name or folder of the checkpoint.")
    revision: str | None = Field(None, description=REVISION)
    dtype: Dtype = Field("float32", description="Type its weights are loaded in.")
    attn_implementation: str | None = Field(None, description=ATTENTION)


class Mask(Section):
    """Weights set to zero in a checkpoint that stays dense: for research, no saving."""

    method: Literal["magnitude", "wanda", "sparsegpt"] = Field(
        "sparsegpt", description="What chooses the weights: magnitude, wanda, sparsegpt."
    )
    pattern: float | str = Field(
        description="Share of zeros, such as 0.5; or N:M, N of each M neighbours kept, such as 2:4."
    )


class Prune(Section):
    """What is cut away from the student before it is trained."""

    layers: Count | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = (
        Field(None, description="Layers to keep: how many, or which (the first is 0).")
    )
    intermediate_size: Count | None = Field(None, description="Width of the feed-forward layers.")
    attention_heads: Count | None = Field(
        None, description="Query heads of a layer, where the architecture has them apart."
    )
    kv_heads: Count | None = Field(
        None, description="Key and value heads of a layer; their query heads go with them."
    )
    hidden_size: Count | None = Field(
        None, description="Width of the residual stream; heads go with it where they must."
    )
    experts: Count | None = Field(None, description="Experts of a layer (mixtures).")
    vocabulary: Literal["task"] | None = Field(
        None, description="task keeps the tokens that occur in the training texts."
    )
    importance: str | None = Field(
        None,
        description="Criterion that chooses what is kept: magnitude, activation, wanda, taylor, "
        "block_influence, ablation; null for what least squares can best make up for.",
    )
    compensate: bool = Field(
        True, description="Fit what remains to what was cut, on calibration rows."
    )
    calibration_rows: Count = Field(
        1024, description="Training rows that importance and compensation are measured on."
    )
    round_to: Count | None = Field(
        None,
        description="FFN and hidden width become multiples of this; 8 (64 above 100 M parameters) "
        "if null.",
    )

    mask: Mask | None = Field(None, description="Zeros in what is left, kept in training.")
    rounds: Count = Field(
        1, description="Rounds of cut and short training in which the sizes are reached."
    )
    healing: Share = Field(
        0.1, description="Share of the training's steps after each round but the last."
    )

    @property
    def sizes(self) -> dict[str, Any]:
        """The axes that are cut, vocabulary aside, each with its size."""
        axes = ("layers", "intermediate_size", "attention_heads", "kv_heads", "hidden_size")
        found = {axis: getattr(self, axis) for axis in (*axes, "experts")}
        return {axis: size for axis, size in found.items() if size is not None}


class Budget(Section):
    """What the student may cost, or what it must keep; the search finds its shape. One bound."""

    flops: Share | None = Field(None, description="Share of the teacher's FLOPs a row.")
    parameters: Share | None = Field(None, description="Share of the teacher's parameters.")
    bytes: Share | None = Field(None, description="Share of the bytes of the teacher's weights.")
    latency_ms: Positive | None = Field(
        None, description="Median milliseconds of one row on this machine, one thread."
    )
    usd_per_million: Positive | None = Field(
        None, description="Price of a million rows in batches, at evaluate.usd_per_hour a core."
    )
    retain: Share | None = Field(
        None, description="Share of the teacher's metric to keep; the smallest such shape is found."
    )
    runtime: Literal["pytorch", "onnx", "onnx-int8"] | None = Field(
        None, description="Where latency and price are measured; pytorch if null."
    )
    shapes: Annotated[int, Field(ge=2)] = Field(16, description="Shapes that are tried as cut.")
    processes: Count | None = Field(
        None, description="Trials made at the same time; as many as the machine bears if null."
    )

    @property
    def bound(self) -> tuple[str, float]:
        """What is bounded, and by how much."""
        return next((kind, getattr(self, kind)) for kind in BOUNDS if getattr(self, kind))

    @property
    def timed(self) -> bool:
        """Whether the bound is of what only a clock tells."""
        return self.bound[0] in ("latency_ms", "usd_per_million")


class Loss(BaseModel):
    """A term of the training loss. Further keys are the loss's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    weight: float = Field(gt=0, description="Factor of the term in the sum.")

    @property
    def options(self) -> dict[str, Any]:
        """The loss's own options, such as a temperature."""
        return dict(self.model_extra or {})


def _loss(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"weight": value}
    if not isinstance(value, Mapping | Loss):
        raise PydanticCustomError("loss", "expected a weight, or a mapping with weight and options")
    return value


WeightOrLoss = Annotated[Loss, BeforeValidator(_loss, json_schema_input_type=float | Loss)]


class Lora(Section):
    """Low-rank adapters instead of all weights; merged when the student is saved."""

    r: Count = Field(16, description="Rank.")
    alpha: Positive = Field(32.0, description="Scale of the adapters, divided by the rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Of their inputs.")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Linear maps that get one, as peft names them."
    )


class Distill(Section):
    """How the student learns from the teacher's outputs."""

    epochs: Count = Field(5, description="Passes over the training rows.")
    batch_size: Count = Field(64, description="Rows a step, over all processes.")
    learning_rate: float = Field(3e-4, gt=0, description="Highest learning rate.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps it rises over.")
    precision: Precision = Field("auto", description=PRECISION)
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Dropout while training; the checkpoint's own if null."
    )
    losses: dict[str, WeightOrLoss] = Field(
        min_length=1, description="Each loss by name: its weight, or weight and options."
    )
    texts: list[Literal["queries", "collection"]] | None = Field(
        None, min_length=1, description="Texts the student is trained on (retrieval; both if null)."
    )
    max_length: Annotated[int, Field(ge=4)] | None = Field(
        None, description="Longest training row in tokens; the model's own if null."
    )
    optimizer: Optimizer = Field("adamw", description=OPTIMIZER)
    on_policy: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Share of the rows that the student completes and a live teacher scores "
        "(generation).",
    )
    lora: Lora | None = Field(None, description="Adapters instead of all weights (generation).")
    arguments: dict[str, Any] = Field(default_factory=dict, description=ARGUMENTS)


class Generation(Section):
    """How prompts are written and answers made (generation)."""

    max_new_tokens: Count = Field(128, description="Longest answer in tokens.")
    train_on: Literal["completion", "all"] = Field(
        "completion", description="What is learned of messages: the last turn, or all answers."
    )
    template: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the tokenizer's chat template."
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of transformers.GenerationConfig; greedy if empty.",
    )


class Target(Section):
    """What the student must reach."""

    metric: str | None = Field(None, description="Metric judged; the task's own if null.")
    retain: Share = Field(
        0.95,
        description="Share of the teacher's metric to keep, at the lower end of the 95 % interval.",
    )
    compute: Share = Field(0.70, description="Highest share of the teacher's FLOPs to spend.")


class Evaluate(Section):
    """What is measured beyond the task's own metrics."""

    metrics: list[str] = Field(
        default_factory=list, description="More metrics: ours, or the hub's evaluate modules."
    )
    baselines: list[Literal["labels", "teacher_int8", "tfidf", "bm25", "token_embeddings"]] = Field(
        default_factory=list,
        description="Other models on the same rows. labels: the same student trained on the labels "
        "without the teacher; teacher_int8: the teacher as it is, in int8; tfidf: TF-IDF and "
        "logistic regression (classification); bm25, token_embeddings: no model at all, and the "
        "teacher's token embeddings averaged (retrieval).",
    )
    resamples: Annotated[int, Field(ge=100)] = Field(
        10_000, description="Bootstrap resamples of an interval."
    )
    latency_rows: Annotated[int, Field(ge=0)] = Field(
        200, description="Test rows that are timed one by one; 0 measures no latency."
    )
    flip_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        0.005, description="Highest share of decisions an fp32 export may change."
    )
    usd_per_hour: Positive | None = Field(
        None, description="Price of an hour of one core, which timings and stages run on."
    )
    server_ms: Positive | None = Field(
        None,
        description="Milliseconds that 99 % of rows which arrive at random may take; the highest "
        "such rate is found. Not measured if null.",
    )
    slices: list[str] = Field(
        default_factory=list,
        description="Columns of the test rows; the rows of each value are judged apart. Classes "
        "always are.",
    )
    out_of_scope: str | None = Field(
        None,
        description="File of texts that belong to no class, to see which are answered all the same "
        "(classification).",
    )


class Smoke(Section):
    """What `--smoke` puts in the place of the real model."""

    architecture: Literal["bert", "roberta", "distilbert", "llama", "qwen3"] = Field(
        description="Architecture of the tiny randomly initialised teacher."
    )


def _format(value: object) -> object:
    options = next(iter(value.values())) if isinstance(value, Mapping) and len(value) == 1 else None
    if not isinstance(value, str) and not isinstance(options, Mapping):
        raise PydanticCustomError(
            "format",
            "expected a format's name, or one with its options (onnx-int8: {calibration: static})",
        )
    return value


FormatOrOptions = Annotated[str | dict[str, dict[str, Any]], BeforeValidator(_format)]


class Recipe(Section):
    """One task, one teacher, one student: everything a run needs to know."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Names the run and its folder."
    )
    task: str = Field(description="classification, retrieval, generation, or a registered task.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of every step.")
    seeds: Count = Field(1, description="Students trained: with seed, seed + 1, …")
    symmetric: bool = Field(
        False, description="The student embeds the collection too, not only queries (retrieval)."
    )
    data: Data
    teacher: Teacher
    capture: Capture = Field(default_factory=Capture)
    student: Student | None = Field(None, description="Another checkpoint than the teacher.")
    prune: Prune | None = Field(None, description="Cuts; nothing is cut if null.")
    distill: Distill | None = Field(None, description="Training; none if null.")
    budget: Budget | None = Field(None, description="Finds the sizes that prune leaves open.")
    target: Target = Field(default_factory=Target)
    export: list[FormatOrOptions] = Field(
        default_factory=list,
        description="Formats to deploy: onnx, onnx-int8, openvino, …; a format with options is a "
        "mapping, as in onnx-int8: {calibration: static}.",
    )
    evaluate: Evaluate = Field(default_factory=Evaluate)
    generation: Generation | None = Field(
        None, description="Prompts and answers of the task generation; defaults if null."
    )
    smoke: Smoke | None = Field(None, description="The stand-in of `--smoke` for hub models.")

    @property
    def formats(self) -> list[tuple[str, dict[str, Any]]]:
        """Each format to export to, in order, with the options that are given for it."""
        pairs: list[dict[str, dict[str, Any]]] = [
            {one: {}} if isinstance(one, str) else one for one in self.export
        ]
        return [(name, dict(options)) for one in pairs for name, options in one.items()]

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str) -> str:
        try:
            get_task(name)
        except RecipeError as error:
            raise PydanticCustomError(
                "unknown_task", "{message}", {"message": str(error)}
            ) from None
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        problems = contradictions(self)
        if problems:
            raise PydanticCustomError(
                "contradictions",
                "{text}",
                {"text": "; ".join(map(str, problems)), "problems": problems, "recipe": self},
            )
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file, every key described."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
        "title": "paredown recipe",
    }
