"""Writes ``report.html``: one page that needs no network and no other file.

What the sections say comes from `page_quality.py` and `page_cost.py`, the plots from `charts.py`
and those beside it; `page.py` makes a page of them that is safe with texts of strangers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..eval.tasks import TASKS
from . import figures, page_cost, page_quality, plot
from .answer_report import recorded_lines
from .charts import Chart, break_even_chart, reliability_chart, risk_chart
from .cost_rows import unit
from .front_chart import front_chart
from .page import render, unbroken, visible
from .report import MOST_DIFFERING, OUTCOMES, evidence, headline, mask_sentence, search_rows
from .statistics_report import slice_metric
from .trial_plot import trials_chart, trials_text
from .whole_files import write_whole

__all__ = ["MARKS", "flat", "machine", "page", "points", "visible", "write_html"]

_LONGEST_TEXT = 700
MARKS = {"pass": "✓", "fail": "✕", "undecided": "?"}

_EXPORT = ("bytes", "metric", "retention", "retention_ci95", "flip_rate", "latency_ms_p50")

RIGHT = {
    "teacher": "the teacher alone",
    "student": "the student alone",
    "both": "both",
    "neither": "neither",
}
"""Who is right about a row, in words."""


def write_html(
    report: Mapping[str, Any], differing: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Writes the page of a run, whole or not at all.

    Args:
        report: The content of ``report.json``; keys that a later paredown added may be missing.
        differing: Rows the two models decide differently (text, expected, teacher, student); the
            first `MOST_DIFFERING` are shown.
        path: The file to write.
    """
    write_whole(page(report, differing), path)


def page(report: Mapping[str, Any], differing: Sequence[Mapping[str, Any]]) -> str:
    """The page of a run as text; see `write_html`."""
    from markupsafe import Markup

    metric, of = figures.metric_name(report["quality"]["metric"]), unit(report["cost"])
    slices = page_quality.slice_rows(report["quality"])
    places = points(report)
    rows = [_difference(row) for row in list(differing)[:MOST_DIFFERING]]
    search, ledger = report.get("search"), report.get("ledger")
    text = render(
        "report.html",
        _charts(report, places, slices),
        report=report,
        signal=TASKS[report["task"]].signal if report["task"] in TASKS else None,
        metric=metric,
        unit=of,
        **_verdict(report),
        interval=Markup(_interval(report)),
        front=Markup(_front(report, places)),
        front_text=plot.front_text(places, *_target(report)),
        tiles=page_cost.tiles(report),
        recorded=[unbroken(line) for line in recorded_lines(report.get("recorded"))],
        metrics=page_quality.metric_rows(report["quality"]),
        right=page_quality.right_rows(report),
        p_text=figures.p_value((report.get("significance") or {}).get("p")),
        steps=page_quality.step_rows(report),
        slices=slices,
        sliced_by=_sliced_by(report),
        most_slices=page_quality.MOST_SLICES,
        calibration=page_quality.calibration_rows(report),
        bins=page_quality.bin_rows(report),
        risks=page_quality.risk_rows(report),
        aurc=page_quality.aurc_line(report),
        costs=page_cost.both_models(report["cost"]),
        mask=unbroken(mask_sentence(report) or ""),
        exports=[{**dict.fromkeys(_EXPORT), **export} for export in report["exports"]],
        search=search_rows(search) if search else None,
        trials_text=trials_text(search) if search else "",
        timings=page_cost.timings(report["measurements"], of),
        energy=page_cost.energy_line(report["measurements"]),
        ledger=page_cost.ledger_rows(ledger) if ledger else None,
        ledger_lines=page_cost.ledger_lines(ledger, of) if ledger else [],
        stages=page_cost.stage_rows(report["stages"]),
        splits=report["data"].get("rows") or {},
        dropped=_dropped(report["data"].get("dropped") or {}),
        source=flat(report["data"].get("source")),
        environment=flat(report["environment"]),
        machine=machine(report["environment"]),
        differing=rows,
        who=[(key, said, count) for key, said in RIGHT.items()
             if (count := Counter(row["right"] for row in rows)[key])],
        recipe=yaml.safe_dump(
            dict(report["recipe"]), sort_keys=False, allow_unicode=True, width=88
        ).rstrip(),
    )  # fmt: skip
    return text


def _verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    smoke = report["smoke"]
    return {
        "outcome": "smoke" if smoke else report["verdict"],
        "word": "Smoke run, not judged" if smoke else OUTCOMES[report["verdict"]],
        "mark": "·" if smoke else MARKS[report["verdict"]],
        "headline": unbroken(headline(report)),
        "evidence": unbroken(evidence(report)),
        "reasons": [unbroken(reason) for reason in report["reasons"]],
    }


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


def _target(report: Mapping[str, Any]) -> tuple[float, float]:
    return report["target"]["retain"], report["target"]["compute"]


def _front(report: Mapping[str, Any], places: Sequence[plot.Point]) -> str:
    return plot.quality_plot(places, *_target(report)) if len(places) > 1 else ""


def _sliced_by(report: Mapping[str, Any]) -> str:
    return figures.metric_name(slice_metric(report["quality"]["metric"]))


def _charts(
    report: Mapping[str, Any],
    places: Sequence[plot.Point],
    slices: Sequence[Mapping[str, Any]],
) -> dict[str, Chart]:
    """The page's plots by name; those without a figure to show are left out."""
    metric = figures.metric_name(report["quality"]["metric"])
    risks, search = report.get("risk_coverage") or (), report.get("search")
    of = unit(report["cost"])
    found = {
        "front": front_chart(places, *_target(report), unit=of) if len(places) > 1 else None,
        "steps": page_quality.steps_chart(report, metric),
        "slices": page_quality.slices_chart(slices, _sliced_by(report)),
        "reliability": reliability_chart(report.get("calibration") or ()),
        "risk": risk_chart(risks),
        "outside": risk_chart(risks, "out_of_scope"),
        "break-even": break_even_chart(report.get("ledger") or {}),
        "trials": trials_chart(search) if search else None,
    }
    return {name: drawn for name, drawn in found.items() if drawn is not None}


def points(report: Mapping[str, Any]) -> list[plot.Point]:
    """Every model whose quality and compute are known; an export computes what its student does."""
    quality, compute = report["quality"], figures.number(report["cost"]["ratio"]["flops"])
    found = [plot.Point("teacher", "teacher", 1.0, 1.0)]

    def add(name: str, kind: plot.Kind, spent: Any, kept: Any, ends: Any) -> None:
        share, ratio = figures.number(kept), figures.number(spent)
        if share is not None and ratio is not None and ratio > 0:
            low, high = ends if ends else (None, None)
            point = plot.Point(
                visible(name), kind, ratio, share, figures.number(low), figures.number(high)
            )
            found.append(point)

    add("student", "student", compute, quality["retention"], quality["retention_ci95"])
    for name, kept, ends in _together(report["exports"]):
        add(name, "export", compute, kept, ends)
    for row in quality["baselines"]:
        add(row["name"], "baseline", row.get("flops_ratio"), row["retention"],
            row.get("retention_ci95"))  # fmt: skip
    return found


def _together(exports: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any, Any]]:
    """Names of exports that keep the same to a tenth of a percent, what that is, its interval."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for export in exports:
        groups.setdefault(figures.share(export.get("retention")), []).append(export)
    return [
        (
            ", ".join(str(export["format"]) for export in group),
            group[0].get("retention"),
            group[0].get("retention_ci95"),
        )
        for group in groups.values()
    ]


def _dropped(dropped: Mapping[str, Any]) -> list[list[str]]:
    return [
        [reason.replace("_", " "), split, figures.whole(rows)]
        for split, reasons in dropped.items()
        for reason, rows in reasons.items()
    ]


def _difference(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: _shorten(visible(row[key])) for key in ("text", "expected", "teacher", "student")}
    teacher, student = bool(row["teacher_right"]), bool(row["student_right"])
    right = "both" if teacher and student else "teacher" if teacher else "student"
    return {
        **shown,
        "teacher_right": teacher,
        "student_right": student,
        "right": right if teacher or student else "neither",
    }


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT].rstrip() + " …"


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of name and value; names of levels are joined by a middle dot."""
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            pairs += flat(item, f"{name} · {key}" if name else str(key))
        return pairs
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return [pair for i, item in enumerate(value, 1) for pair in flat(item, f"{name} {i}")]
    if isinstance(value, list | tuple):
        value = ", ".join(str(item) for item in value)
    if value is None or value == "":
        return []
    name = name.replace("_", " ")
    if name.endswith(" bytes") and figures.number(value) is not None:
        return [(name.removesuffix(" bytes"), figures.size(value))]
    return [(name or "source", visible(value))]
