"""What every benchmark shares: turns, a table, and a file that says how its figures were made."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from paredown.eval.hardware import environment

RESULTS = Path(__file__).parent / "results"


def in_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs the sides one after another, several times, and gives each one's figures.

    The order turns round every time, so that neither always follows the other.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        names = list(sides)[:: 1 if turn % 2 == 0 else -1]
        for name in names:
            found[name].append(sides[name]())
            print(f"  round {turn + 1} of {rounds}, {name}: {found[name][-1]:,.1f}", flush=True)
    return found


def row(case: str, ours: Sequence[float], peer: Sequence[float], unit: str) -> dict[str, Any]:
    """One line of a result: medians, and the median of the ratios round by round."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    return {
        "case": case,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "unit": unit,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def record(name: str, rows: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Prints the table and writes ``benchmarks/results/<name>.json``."""
    write(name, rows, **facts)
    show(name, rows)


def write(name: str, rows: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Writes ``benchmarks/results/<name>.json``."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    RESULTS.mkdir(exist_ok=True)
    content = {
        "name": name,
        "command": f"python {' '.join([f'benchmarks/{name}.py', *sys.argv[1:]])}",
        "commit": commit.stdout.strip(),
        "rows": list(rows),
        **facts,
        "environment": environment(),
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def show(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the table."""
    table = Table(title=name)
    for column in ("case", "ours", "peer", "unit", "ratio"):
        table.add_column(column, justify="left" if column in ("case", "unit") else "right")
    for line in rows:
        table.add_row(
            line["case"], figure(line["ours"]), figure(line["peer"]), line["unit"],
            times(line["ratio"]),
        )  # fmt: skip
    Console().print(table)


def figure(value: float | None) -> str:
    """A figure for people: shares with four digits behind the point, the rest with one."""
    if value is None:
        return "out of its reach"
    return f"{value:,.4f}" if abs(value) < 10 else f"{value:,.1f}"


def times(ratio: float | None) -> str:
    """A ratio for people."""
    if ratio is None:
        return ""
    return f"{ratio:.2f} ×" if abs(ratio) >= 0.1 else f"{ratio:.2g} ×"
