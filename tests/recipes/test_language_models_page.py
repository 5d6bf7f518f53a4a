"""The example of docs/language-models.md runs, and what the page says of losses is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from paredown.distill.divergences import DIVERGENCES
from paredown.distill.losses import LOSSES
from paredown.eval.metrics import METRICS
from paredown.recipes import cli
from paredown.recipes.gate import read_report

PAGE = (Path(__file__).parents[2] / "docs" / "language-models.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's rows and recipe in the current folder."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], check=True)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "dates.yaml").write_text(recipe, encoding="utf-8")
    for split, count in (("train", 160), ("test", 40)):  # a test has seconds, not minutes
        path = tmp_path / f"{split}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:count]), encoding="utf-8")
    return tmp_path


def test_the_example_runs_from_end_to_end(example: Path) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    check, run = (line.split()[1:] for line in block.splitlines())
    assert cli.main(check) == 0
    short = ["teacher.finetune.epochs=1", "distill.epochs=1", "evaluate.latency_rows=0"]
    assert cli.main([*run, *short, "evaluate.resamples=100"]) == 0
    report = read_report(example / "runs" / "dates")
    assert report["quality"]["examples"] == 40 and report["cost"]["ratio"]["flops"] < 0.7
    assert [s["name"] for s in report["quality"]["slices"]] == ["one digit", "two digits"]
    assert report["recorded"]["encoding"] == "topk" and report["recorded"]["k"] == 16
    same = str(example / "runs" / "dates")  # its answers are kept, so it can be compared
    assert cli.main(["gate", same, "--against", same, "--margin", "0"]) == 0


def test_the_table_of_losses_is_the_programs() -> None:
    part = PAGE.split("## Losses")[1].split("##")[0]
    said: dict[str, list[str]] = {}
    for line in part.splitlines():
        if line.startswith("| `"):
            names, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            said |= {name: cells for name in re.findall(r"`(\w+)`", names)} if cells else {}
    said.pop("distill", None)
    for name, entry in DIVERGENCES.items():
        assert name in said, name
        if not entry.needs_labels:
            full, topk, sampled, options = said[name]
            cells = {"full": full, "topk": topk, "sampled": sampled}
            reads = {kind for kind, cell in cells.items() if cell.startswith("yes")}
            assert reads == set(entry.reads)
            assert set(re.findall(r"`(\w+)`", options)) == set(entry.options)
    fitting = {name for name, loss in LOSSES.items() if "token_distribution" in loss.signals}
    assert fitting <= set(said) and set(said) - {"losses"} <= fitting


def test_every_metric_of_texts_is_named() -> None:
    for name, metric in METRICS.items():
        if metric.signal == "token_distribution":
            assert f"`{name}`" in PAGE
