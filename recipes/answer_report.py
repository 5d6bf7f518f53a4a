"""What the report says of answers in text alone: what was recorded, what was cut short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import figures

if TYPE_CHECKING:
    from .report_schema import Recorded
    from .schema import Recipe
    from .store import Folder

TRAININGS = ("teacher", "capture", "distill", "distill-labels")
"""Stages that read completions, each of which may have cut some."""
ENDPOINTS = ("capture", "evaluate-teacher")
COUNTED = {
    "truncated": "ended at the length limit",
    "filtered": "stopped by a content filter",
    "refused": "refused",
    "empty": "empty",
}


def recorded(recipe: Recipe, folders: Mapping[str, Folder]) -> Recorded:
    """What the teacher was recorded to say, and every completion that was cut on the way."""
    capture, facts = recipe.capture, folders["capture"].record
    cut = {}
    for name in TRAININGS:
        rows = folders[name].record.get("truncated") if name in folders else None
        if rows is not None:
            cut[name] = rows
    asked = {}
    for name in ENDPOINTS:
        summary = folders[name].record.get("endpoint") if name in folders else None
        if summary is not None:
            asked[name] = summary
    return {
        "kind": recipe.teacher.kind,
        "encoding": str(capture.encoding),
        "k": facts.get("k", capture.k),
        "draws": capture.draws,
        "over": capture.over,
        "items": facts["items"],
        "bytes_per_token": facts.get("bytes_per_token"),
        "divergence": facts.get("divergence") or None,
        "hidden": facts.get("hidden") or {},
        "unfinished": facts.get("unfinished"),
        "unmapped_mass": facts.get("unmapped_mass"),
        "refused": {**(facts.get("refused") or {}), **_uncut(folders)},
        "truncated": cut,
        "endpoint": asked,
    }


def _uncut(folders: Mapping[str, Folder]) -> dict[str, int]:
    """Answers that a student of a cut vocabulary cannot spell."""
    rows = folders["distill"].record.get("not_in_vocabulary") if "distill" in folders else None
    return {"a token that prune.vocabulary cut": rows} if rows else {}


def recorded_lines(told: Mapping[str, Any] | None) -> list[str]:
    """What was recorded, in sentences; none where nothing was told."""
    if not told:
        return []
    lines = [_what(told), *_divergence(told), *_hidden(told), *_mapping(told)]
    if told["unfinished"]:
        lines.append(
            f"{figures.whole(told['unfinished'])} of the teacher's own completions ended at "
            "generation.max_new_tokens, without an end of their own."
        )
    lines.append(_cut(told["truncated"]))
    for stage, summary in told["endpoint"].items():
        lines.append(_asked(stage, summary))
    return [line for line in lines if line]


def _what(told: Mapping[str, Any]) -> str:
    count = figures.whole(told["items"])
    whose = "the reference completions" if told["over"] == "references" else "its own completions"
    if told["encoding"] == "text":
        return f"The teacher's texts alone: {count} distinct rows, without distributions."
    kept = {"topk": f"the {told['k']} largest", "sampled": f"{told['draws']} draws"}
    how = kept.get(told["encoding"], "in full")
    size = figures.digits(told["bytes_per_token"])
    return (
        f"The teacher's token distributions over {whose}: {count} distinct rows, {how} of each "
        f"token ({told['encoding']}), {size} bytes a token."
    )


def _divergence(told: Mapping[str, Any]) -> list[str]:
    found = told["divergence"]
    if not found:
        return []
    tokens = f"Measured on {figures.whole(found['tokens'])} tokens: "
    if "kl_of_draws" in found:
        bias, error = found["bias_squared"], found.get("bias_squared_error", 0.0)
        return [
            f"{tokens}one reading of the draws differs from the full distribution by a total "
            f"variation of {figures.digits(found['total_variation'])}, which training averages "
            f"out; the squared bias, which it would not, is {bias:.1e} ± {error:.1e}."
        ]
    if "kl_bucketed" in found:
        return [
            f"{tokens}{figures.share(found['rest'])} of the probability lies outside the largest; "
            f"over them and their rest the record differs by a KL of {found['kl_bucketed']:.1e} "
            f"nats, and by {found['kl']:.1e} with the rest spread evenly."
        ]
    return [f"{tokens}the record differs from the full distribution by {found['kl']:.1e} nats."]


def _hidden(told: Mapping[str, Any]) -> list[str]:
    return [
        f"Token vectors of layer {layer}: {found['rank']:,} components, "
        f"{figures.digits(found['bytes_per_token'])} bytes a token, reconstruction error "
        f"{figures.digits(found['error'])}."
        for layer, found in (told.get("hidden") or {}).items()
    ]


def _mapping(told: Mapping[str, Any]) -> list[str]:
    lines = []
    if told["unmapped_mass"] is not None:
        lines.append(
            f"{figures.share(told['unmapped_mass'], 2)} of the probability that was listed has no "
            "id in teacher.tokenizer."
        )
    if told["refused"]:
        count = figures.whole(sum(told["refused"].values()))
        why = ", ".join(f"{reason}: {rows:,}" for reason, rows in told["refused"].items())
        lines.append(f"{count} answers are not learned from ({why}).")
    return lines


def _cut(rows: Mapping[str, int]) -> str:
    some = [f"{count:,} in the stage {stage}" for stage, count in rows.items() if count]
    if some:
        return f"Completions cut to the maximum length: {', '.join(some)}."
    return "No completion was cut to the maximum length." if rows else ""


def _asked(stage: str, summary: Mapping[str, Any]) -> str:
    tokens = summary["prompt_tokens"] + summary["completion_tokens"]
    text = (
        f"The endpoint gave {summary['recorded']:,} answers for the stage {stage}: "
        f"{summary['requests']:,} requests, {summary['retries']:,} of them tried again, "
        f"{tokens:,} tokens, {summary['usd']:.2f} USD"
    )
    rest = [f"{summary[name]:,} {said}" for name, said in COUNTED.items() if summary.get(name)]
    if rest and stage == "evaluate-teacher":
        rest[-1] += " (without a text, an answer counts as wrong)"
    return f"{text}; {', '.join(rest)}." if rest else f"{text}."
