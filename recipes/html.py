"""Writes ``report.html``: one page that needs no network, no script and no other file.

Texts of the data are a stranger's: everything is escaped by the template engine, characters that
cannot be seen are made visible, and the page's policy forbids scripts, images and requests.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..eval.tasks import TASKS
from . import figures, plot
from .answer_report import recorded_lines
from .cost_rows import cost_rows, unit
from .report import OUTCOMES, headline, kept_share, mask_sentence, search_rows
from .trial_plot import bound, cost_kind, trial_points

_LONGEST_TEXT = 700

_MARKS = {"pass": "✓", "fail": "✕", "undecided": "?"}

_EXPORT = ("bytes", "metric", "retention", "flip_rate", "latency_ms_p50")

_SCENARIOS = {"single_stream": "one by one", "offline": "in batches"}

_RUNTIMES = {
    "pytorch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "executorch": "ExecuTorch",
}


def write_html(
    report: Mapping[str, Any], differing: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Writes the page of a run, whole or not at all.

    Args:
        report: The content of ``report.json``.
        differing: Rows the two models decide differently (text, expected, teacher, student); the
            first twenty are shown.
        path: The file to write.
    """
    beside = path.with_name(path.name + ".part")
    beside.write_text(page(report, differing), encoding="utf-8")
    os.replace(beside, path)


def page(report: Mapping[str, Any], differing: Sequence[Mapping[str, Any]]) -> str:
    """The page of a run as text; see `write_html`."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    source = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style is not None, "report.html has a style block"
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=figures.count,
        size=figures.size,
        share=figures.share,
        span=figures.span,
        points=figures.points,
        whole=figures.whole,
        digits=figures.digits,
        quality=figures.quality,
        seconds=figures.seconds,
        metric_name=figures.metric_name,
        visible=visible,
        bar=lambda value: Markup(plot.share_bar(value)),
    )
    text = environment.from_string(source).render(
        report=report,
        signal=TASKS[report["task"]].signal if report["task"] in TASKS else None,
        style_hash=digest,
        outcome="smoke" if report["smoke"] else report["verdict"],
        word="Smoke run, not judged" if report["smoke"] else OUTCOMES[report["verdict"]],
        mark="·" if report["smoke"] else _MARKS[report["verdict"]],
        headline=_unbroken(headline(report)),
        reasons=[_unbroken(reason) for reason in report["reasons"]],
        interval=Markup(_interval(report)),
        plot=Markup(_plot(report)),
        tiles=_tiles(report),
        unit=unit(report["cost"]),
        recorded=[_unbroken(line) for line in recorded_lines(report.get("recorded"))],
        metrics=_metrics(report["quality"]),
        slices=[{**p, "kept": kept_share(p)} for p in report["quality"].get("slices") or ()],
        costs=_costs(report["cost"]),
        mask=_unbroken(mask_sentence(report) or ""),
        exports=[{**dict.fromkeys(_EXPORT), **export} for export in report["exports"]],
        search=search_rows(report["search"]) if report.get("search") else None,
        trials=_trials(report["search"]) if report.get("search") else None,
        measurements=_measurements(report["measurements"]),
        stages=_stages(report["stages"]),
        splits=report["data"].get("rows") or {},
        dropped=_dropped(report["data"].get("dropped") or {}),
        source=_flat(report["data"].get("source")),
        environment=_flat(report["environment"]),
        machine=machine(report["environment"]),
        differing=[_difference(row) for row in list(differing)[:20]],
        recipe=yaml.safe_dump(
            dict(report["recipe"]), sort_keys=False, allow_unicode=True, width=88
        ).rstrip(),
    )
    return text


def _unbroken(text: str) -> str:
    """Keeps numbers and their units on one line, and sets typographic apostrophes."""
    apostrophes = text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")
    return re.sub(r"(?<=\d) (?=[%kMGTms])", "\N{NO-BREAK SPACE}", apostrophes)


def visible(text: Any) -> str:
    """Makes control, formatting and unassigned characters visible, so that none rearranges text."""
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Cn", "Co")
        else "\N{REPLACEMENT CHARACTER}"
        for char in str(text)
    )


def machine(environment: Mapping[str, Any]) -> str:
    """Processor and threads in a few words, as far as they are known."""
    cores, threads = environment.get("cores"), environment.get("threads")
    parts = [
        environment.get("processor"),
        f"{cores} cores" if cores else None,
        f"{threads} threads" if threads else None,
    ]
    return ", ".join(str(part) for part in parts if part) or "a machine that was not recorded"


def _interval(report: Mapping[str, Any]) -> str:
    quality = report["quality"]
    value, ends = figures.number(quality["retention"]), quality["retention_ci95"]
    if value is None or not ends or None in [figures.number(end) for end in ends]:
        return ""
    return plot.interval_bar(value, ends[0], ends[1], report["target"]["retain"])


def _plot(report: Mapping[str, Any]) -> str:
    target = report["target"]
    points = _points(report)
    if len(points) < 2:
        return ""
    return plot.quality_plot(points, target["retain"], target["compute"])


def _trials(search: Mapping[str, Any]) -> dict[str, Any] | None:
    """The plot of a search and the name of its axis; None where no cost was measured."""
    from markupsafe import Markup

    points = [replace(p, said=visible(p.said)) for p in trial_points(search)]
    if not points:
        return None
    kind, most = cost_kind(search), bound(search)
    drawn = plot.trials_plot(points, most, kind.tick)
    return {"plot": Markup(drawn), "axis": kind.axis, "bound": most is not None}


def _points(report: Mapping[str, Any]) -> list[plot.Point]:
    """Every model whose quality and compute are known; an export computes what its student does."""
    quality, compute = report["quality"], figures.number(report["cost"]["ratio"]["flops"])
    points = [plot.Point("teacher", "teacher", 1.0, 1.0)]

    def add(name: str, kind: plot.Kind, spent: Any, kept: Any, ends: Any) -> None:
        share, ratio = figures.number(kept), figures.number(spent)
        if share is not None and ratio is not None and ratio > 0:
            low, high = ends if ends else (None, None)
            point = plot.Point(
                visible(name), kind, ratio, share, figures.number(low), figures.number(high)
            )
            points.append(point)

    add("student", "student", compute, quality["retention"], quality["retention_ci95"])
    for name, kept in _together(report["exports"]):
        add(name, "export", compute, kept, None)
    for baseline in quality["baselines"]:
        spent = baseline.get("flops_ratio")
        add(baseline["name"], "baseline", spent, baseline["retention"], None)
    return points


def _together(exports: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Names of exports that keep the same, to a tenth of a percent, and what they keep."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for export in exports:
        groups.setdefault(figures.share(export.get("retention")), []).append(export)
    return [
        (", ".join(str(export["format"]) for export in group), group[0].get("retention"))
        for group in groups.values()
    ]


def _tiles(report: Mapping[str, Any]) -> list[dict[str, str]]:
    quality, cost = report["quality"], report["cost"]
    teacher, student, ratio = cost["teacher"], cost["student"], cost["ratio"]
    metric, of = figures.metric_name(quality["metric"]), unit(cost)
    each = "an answer" if of == "answer" else "a row"

    def tile(name: str, value: str, note: str, missing: bool) -> dict[str, str]:
        if missing:
            return {"name": name, "value": figures.NOT_MEASURED, "note": ""}
        return {"name": name, "value": _unbroken(value), "note": _unbroken(note)}

    def change(key: str, shown: Any) -> str:
        return f"{shown(student[key])}, teacher {shown(teacher[key])}"

    def ms(value: Any) -> str:
        return figures.digits(value, " ms")

    return [
        tile(
            "Quality kept",
            figures.share(quality["retention"]),
            f"{metric} {figures.quality(quality['student'])}, "
            f"teacher {figures.quality(quality['teacher'])}",
            quality["retention"] is None,
        ),
        tile(
            "Compute",
            figures.times(ratio["flops"], "more", "less"),
            change("flops_per_example", figures.flops) + f" {each}",
            ratio["flops"] is None,
        ),
        tile(
            "Speed",
            figures.times(ratio["latency"], "slower", "faster"),
            change("latency_ms_p50", ms) + f" {each}",
            ratio["latency"] is None,
        ),
        tile(
            "Size",
            figures.times(ratio["bytes"], "larger", "smaller"),
            change("bytes", figures.size),
            ratio["bytes"] is None,
        ),
    ]


def _metrics(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, pair in quality["metrics"].items():
        rows.append(
            {
                "name": figures.metric_name(name),
                "teacher": pair["teacher"],
                "student": pair["student"],
                "kept": kept_share(pair),
                "judged": name == quality["metric"],
            }
        )
    return rows


def _costs(cost: Mapping[str, Any]) -> list[list[str]]:
    words = {"latency": ("slower", "faster"), "bytes": ("larger", "smaller")}
    rows = []
    for label, teacher, student, of in cost_rows(cost):
        row = [label, teacher, student]
        ratio = cost["ratio"].get(of) if of else None
        if of:
            row += [figures.share(ratio), figures.times(ratio, *words.get(of, ("more", "less")))]
        rows.append(row if of else [*row, "", ""])
    return rows


def _measurements(measurements: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    keys = ("p50", "p90", "p95", "p99", "model_p50", "examples_per_s", "tokens_per_s")
    rows = []
    for found in measurements:
        scenario = str(found.get("scenario", ""))
        row: dict[str, Any] = {key: found.get(key) for key in keys}
        row |= {key: found.get(key, "") for key in ("side", "runtime", "precision")}
        row |= {key: found.get(key, "") for key in ("threads", "batch")}
        row["runtime"] = _RUNTIMES.get(row["runtime"], row["runtime"])
        row["peak"] = found.get("peak_memory_bytes")
        row["ttft"] = (found.get("ttft") or {}).get("p50")
        rows.append(row | {"scenario": _SCENARIOS.get(scenario, scenario)})
    return rows


def _stages(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    longest = max([figures.number(stage.get("seconds")) or 0.0 for stage in stages], default=0.0)
    rows = []
    for stage in stages:
        taken = figures.number(stage.get("seconds"))
        rows.append(
            {
                "name": stage["name"],
                "seconds": taken,
                "share": taken / longest if taken is not None and longest else 0.0,
                "cached": bool(stage.get("cached")),
                "peak": stage.get("peak_memory_bytes"),
                "processes": stage.get("world_size"),
                "fingerprint": str(stage.get("fingerprint", ""))[:12],
            }
        )
    return rows


def _dropped(dropped: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    return [
        (split, reason.replace("_", " "), rows)
        for split, reasons in dropped.items()
        for reason, rows in reasons.items()
    ]


def _difference(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: _shorten(visible(row[key])) for key in ("text", "expected", "teacher", "student")}
    right = {f"{side}_right": row[f"{side}_right"] for side in ("teacher", "student")}
    return {**shown, **right}


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT].rstrip() + " …"


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of name and value; names of levels are joined by a middle dot."""
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            pairs += _flat(item, f"{name} · {key}" if name else str(key))
        return pairs
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return [pair for i, item in enumerate(value, 1) for pair in _flat(item, f"{name} {i}")]
    if isinstance(value, list | tuple):
        value = ", ".join(str(item) for item in value)
    if value is None or value == "":
        return []
    name = name.replace("_", " ")
    if name.endswith(" bytes") and figures.number(value) is not None:
        return [(name.removesuffix(" bytes"), figures.size(value))]
    return [(name or "source", visible(value))]
