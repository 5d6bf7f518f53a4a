"""Writes docs/performance.md from benchmarks/results/*.json.

python benchmarks/page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recording import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
HEAD = """# Performance

Made by `python benchmarks/page.py` from the files under `benchmarks/results/`, which hold every
round, the command, the versions and the machine. Figures are medians over rounds taken in turns in
one process; the ratio is the median of the ratios of the rounds. Machines are shared and noisy:
read the ratios.
"""


def section(result: dict[str, Any]) -> str:
    """One benchmark as Markdown."""
    machine = result["environment"]
    lines = [
        f"\n## {result['name']}\n",
        f"`{result['command']}` at {result['commit']}, expected: {result['expected']}.",
        f"{machine['processor']}, {machine['cores']} cores, "
        f"torch {machine['libraries']['torch']}, "
        f"transformers {machine['libraries']['transformers']}.\n",
        "| case | paredown | peer | unit | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['case']} | {row['ours']:,.1f} | {row['peer']:,.1f} | {row['unit']} "
            f"| {row['ratio']:.2f} × |"
        )
        if "ours_distance" in row:
            lines.append(
                f"| … 1 − cosine to the teacher afterwards | {row['ours_distance']:.4f} "
                f"| {row['peer_distance']:.4f} | | |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the page."""
    results = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    PAGE.write_text(HEAD + "".join(section(result) for result in results), encoding="utf-8")


if __name__ == "__main__":
    main()
