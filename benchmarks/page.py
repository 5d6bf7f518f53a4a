"""Writes docs/performance.md from benchmarks/results/*.json.

python benchmarks/page.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exports
import runs
from recording import RESULTS, figure, times

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
HEAD = """# Performance

Made by `python benchmarks/page.py` from the files under `benchmarks/results/`, which hold every
round, the command, the versions and the machine. Speeds are medians over rounds taken in turns in
one process; their ratio is the median of the ratios of the rounds. Machines are shared and noisy:
read the ratios. Shares kept come from one run, with the 95 % interval of the paired difference over
the test rows.
"""
NO_GPU = """
## gpu_distill

A 0.6 B student and a 1.7 B teacher of Qwen3's shape, bf16, rows of 2,048 tokens: tokens per second,
peak memory and model FLOPs utilisation beside TRL's GKD trainer. Not measured yet: where these
figures were made there was no GPU. `python benchmarks/gpu_distill.py` measures it on one.
"""


def section(result: dict[str, Any]) -> str:
    """One benchmark as Markdown."""
    machine = result["environment"]
    processor = (
        f"{result['gpu']}, {machine['processor']}" if "gpu" in result else machine["processor"]
    )
    lines = [
        f"\n## {result['name']}\n",
        f"`{result['command']}` at {result['commit']}, expected: {result['expected']}.",
        f"{processor}, {machine['cores']} cores, "
        f"torch {machine['libraries']['torch']}, "
        f"transformers {machine['libraries']['transformers']}.\n",
    ]
    lines += table_of(result["rows"])(result["rows"])
    remarks = RESULTS / f"{result['name']}.md"
    if remarks.exists():
        lines += ["", remarks.read_text("utf-8").strip()]
    return "\n".join(lines) + "\n"


def table_of(rows: list[dict[str, Any]]) -> Callable[[list[dict[str, Any]]], list[str]]:
    """The kind of table that rows need."""
    if any("flops" in row for row in rows):
        return competition
    if any("flip_rate" in row for row in rows):
        return deployed
    if any("compute" in row for row in rows):
        return finished
    return budgets if any("bound" in row for row in rows) else plain


def budgets(rows: list[dict[str, Any]]) -> list[str]:
    """A table of seconds and memory beside what they may be."""
    lines = [
        "| case | seconds | may be | peak GB | may be | tokens | 1 − cosine as cut | as fitted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bound, distance = row["bound"], row["distance"]
        gb = "" if bound["gb"] is None else bound["gb"]
        lines.append(
            f"| {row['case']} | {row['seconds']:.1f} | {bound['seconds']} | {row['gb']:.2f} | {gb} "
            f"| {row['calibration']['tokens']} | {distance['as_cut']:.4f} "
            f"| {distance['fitted']:.4f} |"
        )
    return lines


def deployed(rows: list[dict[str, Any]]) -> list[str]:
    """A table of exports: what each keeps, and what it costs on its own runtime."""
    lines = [
        "| task | format | quality | retention | flips, % | MB | ms, p50 | rows/s | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = " | ".join(exports.figures(row))
        lines.append(f"| {row['task']} ({row['metric']}) | {row['format']} | {cells} |")
    return lines


def finished(rows: list[dict[str, Any]]) -> list[str]:
    """A table of finished runs, and what else the same budget of rows gave."""
    lines = [f"| {' | '.join(runs.COLUMNS)} |", "|---" * len(runs.COLUMNS) + "|"]
    lines += [f"| {' | '.join(runs.cells(row))} |" for row in rows]
    for row in rows:
        beside = [f"{name} {kept:.4f}" for name, kept in row["baselines"].items() if kept]
        if beside:
            lines += ["", f"Beside it, of the teacher's, in {row['run']}: {'; '.join(beside)}."]
        if row["slices"] and row["metric"] == "exact_match":
            parts = [
                f"{name} ({part['rows']:,} rows) teacher {part['teacher']:.4f}, student "
                f"{part['student']:.4f}"
                for name, part in row["slices"].items()
            ]
            lines += ["", f"By kind of row: {'; '.join(parts)}."]
    return lines


def plain(rows: list[dict[str, Any]]) -> list[str]:
    """A table of figures and ratios."""
    lines = ["| case | paredown | peer | unit | ratio |", "|---|---|---|---|---|"]
    for row in rows:
        unit = row["unit"].replace("|", "\\|")  # or ½ Σ |q − p| is three cells
        lines.append(
            f"| {row['case']} | {figure(row['ours'])} | {figure(row['peer'])} | {unit} "
            f"| {times(row['ratio'])} |"
        )
        if "ours_distance" in row:
            lines.append(
                f"| … 1 − cosine to the teacher afterwards | {row['ours_distance']:.4f} "
                f"| {row['peer_distance']:.4f} | | |"
            )
    return lines


def competition(rows: list[dict[str, Any]]) -> list[str]:
    """A table of shares kept by two sides, and where ours is not ahead beyond the interval."""
    lines = [
        "Each side's share of the teacher's FLOPs stands beside what it keeps.\n",
        "| case | paredown | peer | unit | ratio | difference, 95 % |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, peer = row["flops"].values()
        theirs = f"{figure(row['peer'])} at {peer:.3f}"
        if row["peer"] is None:
            theirs = f"out of its reach: its smallest has {peer:.3f}"
        lines.append(
            f"| {row['case']} | {figure(row['ours'])} at {ours:.3f} | {theirs} | {row['unit']} "
            f"| {times(row['ratio'])} | {interval(row)} |"
        )
    lines.append("")
    compared = [row for row in rows if "difference" in row]
    behind = [row for row in compared if not row["ahead"]]
    lines.append(
        f"Ahead beyond the paired interval in {len(compared) - len(behind)} of {len(compared)} "
        f"comparisons; {len(rows) - len(compared)} are out of the peer's reach."
    )
    if behind:
        lines.append("Not ahead:\n")
    for row in behind:
        shapes = " beside ".join(row["shapes"].values())
        word = "behind" if row["difference"][1] < 0 else "cannot be told apart"
        lines.append(f"- {row['case']}: {word} ({interval(row)}; {shapes}).")
    return lines


def interval(row: dict[str, Any]) -> str:
    """The interval of the difference, in the unit of the row."""
    if "difference" not in row:
        return ""
    low, high = row["difference"]
    return f"{low:+.4f} to {high:+.4f}"


def main() -> None:
    """Writes the page."""
    results = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    sections = {result["name"]: section(result) for result in results}
    sections.setdefault("gpu_distill", NO_GPU)
    PAGE.write_text(HEAD + "".join(sections[name] for name in sorted(sections)), encoding="utf-8")


if __name__ == "__main__":
    main()
