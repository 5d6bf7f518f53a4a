"""Writes a student's model card: ``README.md`` in the model hub's format.

`card_metadata.py` has what the hub files it under, `card_limits.py` limits and licences.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..eval.tasks import get_task
from . import figures
from .answer_report import recorded_lines
from .card_limits import MOST_SLICES, licence_lines, limit_lines
from .card_limits import quoted as _code
from .card_metadata import base_model, card_metadata
from .card_origins import Origins
from .page_quality import slice_rows
from .statistics_report import slice_metric, slice_name

__all__ = ["card_metadata", "model_card", "write_model_card"]


def write_model_card(
    folder: Path, report: Mapping[str, Any], origins: Origins | None = None
) -> Path:
    """Writes ``README.md`` into a student's folder, whole or not at all.

    Args:
        folder: The student's checkpoint.
        report: The content of ``report.json``.
        origins: What the cards of teacher and data say; nothing is known without.

    Returns:
        The file's path.
    """
    path = folder / "README.md"
    beside = folder / "README.md.part"
    beside.write_text(model_card(report, origins), encoding="utf-8")
    os.replace(beside, path)
    return path


def model_card(report: Mapping[str, Any], origins: Origins | None = None) -> str:
    """The model card as text; see `write_model_card`."""
    header = yaml.safe_dump(card_metadata(report, origins), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{header}---",
        f"# {report['name']}",
        _summary(report),
        "## Intended use",
        _use(report),
        "## Limits",
        _limits(report),
        "## How well it does",
        _quality(report),
        "## What it costs",
        _cost(report),
        "## How it was made",
        _made(report),
        "## Licences",
        "\n".join(licence_lines(origins or Origins())),
    ]
    return "\n\n".join(parts) + "\n"


def _teacher(recipe: Mapping[str, Any]) -> str:
    """The teacher in a few words."""
    teacher = recipe.get("teacher") or {}
    if teacher.get("new"):
        return "a teacher made and trained in the same run"
    if not teacher.get("model"):
        return "a recorded teacher"
    return _code(teacher["model"]) + " behind an endpoint" * (teacher.get("kind") == "endpoint")


def _summary(report: Mapping[str, Any]) -> str:
    quality, ratio = report["quality"], report["cost"]["ratio"]
    if report["smoke"]:
        return (
            "**A smoke run's model: tiny, random, and of no use but to test that a recipe runs.**"
        )
    recipe = report["recipe"]
    own = (recipe.get("teacher") or {}).get("kind", "checkpoint") == "checkpoint"
    return (
        f"A small model for one task ({report['task']}), "
        f"{'pared down' if own else 'learned'} from {_teacher(recipe)}. It keeps "
        f"**{figures.share(quality['retention'])}** of the teacher's "
        f"{figures.metric_name(quality['metric'])} (95 % interval "
        f"{figures.span(quality['retention_ci95'])}, {figures.whole(quality['examples'])} test "
        f"rows) at **{figures.share(ratio['flops'])}** of its compute."
    )


def _use(report: Mapping[str, Any]) -> str:
    signal = get_task(report["task"]).signal
    made = "trained" if report["recipe"].get("distill") else "fitted"
    scope = (
        f"For this one task: {report['task']}, as in the recipe {_code(report['name'])}, of texts "
        f"like the ones it was {made} on."
    )
    if signal == "token_distribution":
        return f"{scope}\n\n{_asking(report['recipe'])}"
    if signal == "class_logits":
        return (
            f"{scope}\n\n```python\nfrom transformers import pipeline\n\n"
            'classify = pipeline("text-classification", model="path/to/this/folder")\n'
            'classify("a text")\n```'
        )
    if report["recipe"].get("symmetric"):
        space = "It embeds queries and texts alike; index texts with this model."
    else:
        space = (
            "It embeds queries into the teacher's space: an index of texts that the teacher "
            "embedded stays as it is, and new texts are embedded by the teacher."
        )
    return (
        f"{scope}\n\n{space}\n\n"
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("path/to/this/folder")\n'
        'model.encode(["a query"])\n```'
    )


def _limits(report: Mapping[str, Any]) -> str:
    lines = [
        "What the teacher can do beyond this task was given up and not measured; so were other "
        "languages and domains. Measure again on your own rows before relying on it.",
        *limit_lines(report),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _asking(recipe: Mapping[str, Any]) -> str:
    """How the model is asked, as it was in the run."""
    said = recipe.get("generation") or {}
    longest = said.get("max_new_tokens")
    lines = ["from transformers import pipeline", ""]
    lines += ['generate = pipeline("text-generation", model="path/to/this/folder")']
    rest = f"max_new_tokens={longest}, do_sample=False, return_full_text=False"
    lines += [f'generate("a prompt", {rest})']
    text = (
        "It was measured on prompts written as in training; a model of prompts and completions "
        "takes them as they are, with the separator at the end, and one of messages takes a list "
        "of turns instead of a text."
    )
    if said.get("template"):
        text += f" The chat template was given {_code(said['template'])}."
    if said.get("settings"):
        text += f" Answers were made with {_code(said['settings'])} instead of greedily."
    return f"{text}\n\n```python\n" + "\n".join(lines) + "\n```"


def _quality(report: Mapping[str, Any]) -> str:
    lines = ["| metric | teacher | student |", "|---|---|---|"]
    for name, pair in report["quality"]["metrics"].items():
        values = (figures.quality(pair["teacher"]), figures.quality(pair["student"]))
        lines.append(f"| {figures.metric_name(name)} | {' | '.join(values)} |")
    for part in slice_rows(report["quality"])[:MOST_SLICES]:  # those that lose most
        values = (figures.quality(part["teacher"]), figures.quality(part["student"]))
        by = slice_metric(report["quality"]["metric"])
        name = f"{by} of {slice_name(part)} ({part['rows']:,} rows)"
        lines.append(f"| {_code(name.replace('|', '/'))} | {' | '.join(values)} |")
    seeds = report["quality"]["seeds"]
    if len(seeds) > 1:
        lines += [
            "",
            f"The student's figures are means over {len(seeds)} training seeds. This checkpoint is "
            f"of seed {seeds[0]['seed']}, which keeps {figures.share(seeds[0]['retention'])}.",
        ]
    agreement = report["quality"]["agreement"]
    verb = "answer" if get_task(report["task"]).signal == "token_distribution" else "decide"
    if agreement is not None:
        lines += ["", f"Student and teacher {verb} {figures.share(agreement)} of the rows alike."]
    verdict = report["verdict"]
    if not report["smoke"]:
        target = report["target"]
        lines += [
            "",
            f"Target: keep at least {figures.share(target['retain'])} of "
            f"{figures.metric_name(target['metric'])} at no more than "
            f"{figures.share(target['compute'])} of the compute. Verdict: **{verdict}**.",
        ]
    return "\n".join(lines)


def _cost(report: Mapping[str, Any]) -> str:
    from .cost_rows import cost_rows, unit
    from .report import mask_sentence

    cost = report["cost"]
    lines = [f"| per {unit(cost)} | teacher | student |", "|---|---|---|"]
    lines += [f"| {row.label} | {row.teacher} | {row.student} |" for row in cost_rows(cost)]
    where = report["environment"].get("processor")
    lines += [
        "",
        "PyTorch, fp32, one thread, one row at a time" + (f", {where}." if where else "."),
    ]
    if (said := mask_sentence(report)) is not None:
        lines += ["", said]
    return "\n".join(lines)


def _cut_steps(recipe: Mapping[str, Any], prune: Mapping[str, Any]) -> list[str]:
    teacher = recipe.get("teacher") or {}
    tuned = teacher.get("finetune") if not recipe.get("student") else None
    base = base_model(recipe)
    origin = f", {_code(base)}" if base else ""
    steps = []
    if teacher.get("finetune"):
        new, epochs = teacher.get("new"), teacher["finetune"].get("epochs")
        name = _code(str(teacher.get("model")))
        if new:
            name = f"a {_code(new.get('architecture'))} of random weights, its tokenizer made of "
            name += "the training rows"
        answers = get_task(str(recipe["task"])).signal == "token_distribution"
        of = "completions" if answers else "labels"
        steps.append(f"The teacher: {name}, trained on the task's {of} for {epochs} epochs.")
    names = {
        "intermediate_size": "feed-forward width",
        "hidden_size": "hidden size",
        "attention_heads": "attention heads",
        "kv_heads": "key and value heads",
        "experts": "experts a layer",
    }
    cuts = [f"{words} cut to {prune[axis]}" for axis, words in names.items() if prune.get(axis)]
    fitted = {*names, "layers"} - {"experts"}  # experts that are gone are made up for by nothing
    refitted = prune.get("compensate", True) and any(prune.get(axis) for axis in fitted)
    end = "; what remains was re-fitted by least squares" if refitted else ""
    end += " where that came nearer to what was cut." if refitted else "."
    layers = prune.get("layers")
    if layers is not None:
        kept = (
            f"{layers} layer{'s' * (layers != 1)}"
            if isinstance(layers, int)
            else f"layers {layers}"
        )
        source = "that teacher" if tuned else f"the model it started from{origin}"
        steps.append(f"Cut to {kept} of {source}{'.' if cuts else end}")
    if cuts:
        steps.append(f"{cuts[0].capitalize()}{''.join(f', {cut}' for cut in cuts[1:])}{end}")
    return steps


def _of_labels(distill: Mapping[str, Any]) -> str:
    from ..distill.losses import LOSSES

    names = [n for n in distill.get("losses") or {} if n in LOSSES and LOSSES[n].uses == "labels"]
    return f" ({', '.join(map(_code, names))}: of the labels)" if names else ""


def _made(report: Mapping[str, Any]) -> str:
    recipe = report["recipe"]
    prune, distill = recipe.get("prune") or {}, recipe.get("distill") or {}
    steps = _cut_steps(recipe, prune)
    if prune.get("vocabulary"):
        words = report["vocabulary"] or {}
        size = f" ({figures.whole(words['kept'])} tokens)" if words.get("kept") else ""
        steps.append(f"Vocabulary cut to the tokens of the training texts{size}.")
    mask = prune.get("mask")
    if mask:
        kept = ", and kept there in training" if distill else ""
        steps.append(f"Weights set to zero by {mask['method']}, {mask['pattern']}{kept}.")
    if distill:
        losses = ", ".join(_code(name) for name in distill.get("losses") or {})
        counts = report["data"].get("rows") or {}
        texts = distill.get("texts") or ["queries"]
        rows = [f"{figures.whole(counts.get('train'))} training rows"] * ("queries" in texts)
        if "collection" in texts:
            rows.append(f"the {figures.whole(counts.get('collection'))} texts of the collection")
        steps.append(
            f"Trained for {distill.get('epochs')} epochs on {' and '.join(rows)}, to give what the "
            f"teacher was recorded to give; losses: {losses}{_of_labels(distill)}."
        )
        if distill.get("lora"):
            steps[-1] += " Low-rank adapters were trained, and merged."
        if distill.get("on_policy"):
            share = figures.share(distill["on_policy"], 0)
            steps[-1] += f" For {share} of the rows the student wrote and the teacher scored that."
        steps[-1] += "".join(f" {line}" for line in recorded_lines(report.get("recorded")))
    elif steps:
        steps.append("Not trained after that.")
    lines = [f"{place}. {step}" for place, step in enumerate(steps, 1)]
    version = (report["environment"].get("libraries") or {}).get("paredown")
    lines += ["", f"Made by paredown{f' {version}' if version else ''}: {_code(report['command'])}"]
    return "\n".join(lines).strip()
