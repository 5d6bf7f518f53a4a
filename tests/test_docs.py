"""Every page is in the site, what pages tell people to type is understood, and examples run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml

from paredown.distill.losses import LOSSES
from paredown.eval.metrics import METRICS, Decided, get_metric
from paredown.eval.tasks import TASKS
from paredown.export.formats import FORMATS
from paredown.recipes import cli
from paredown.recipes.api import check
from paredown.recipes.extensions import import_extensions
from paredown.recipes.gate import read_report
from paredown.recipes.loading import packaged_recipes

ROOT = Path(__file__).parents[1]
DOCS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = {"README.md": (ROOT / "README.md").read_text(encoding="utf-8"), **DOCS}
TESTED_ELSEWHERE = {"add-a-criterion.md", "language-models.md"}
FRAGMENTS = {"endpoint-teachers.md", "exports.md"}  # need a server, or a run's folders
EXAMPLES = {
    "add-a-task.md": "my_task",
    "add-a-loss.md": "my_loss",
    "add-a-format.md": "my_format",
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    """Every `paredown …` line of every page."""
    found = set()
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                typed = re.split(r"\s#\s|\s\s#", line)[0].strip()
                if typed.startswith("paredown "):
                    found.add((page, typed))
    return sorted(found)


def listed(part: Any) -> Iterator[str]:
    """The files of the site's navigation."""
    if isinstance(part, str):
        yield part
    else:
        for item in part.values() if isinstance(part, dict) else part:
            yield from listed(item)


def test_every_page_is_in_the_navigation_once() -> None:
    files = list(listed(SITE["nav"]))
    assert sorted(files) == sorted(DOCS)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_between_pages_lead_somewhere(page: str) -> None:
    home = ROOT if page == "README.md" else ROOT / "docs"
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" not in target and not target.startswith("#"):
            assert (home / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_of_the_pages_is_understood(page: str, command: str) -> None:
    words = shlex.split(command)[1:]
    group: Any = typer.main.get_command(cli.app)
    context = typer.Context(group, info_name="paredown")
    while hasattr(group, "commands"):
        name, group, words = group.resolve_command(context, words)
    parsed = group.make_context(name, list(words))  # refuses an unknown option or argument
    recipe = parsed.params.get("recipe")
    plain = name in ("run", "check", "sweep") and not parsed.params.get("imports")
    if plain and recipe in packaged_recipes():
        check(recipe, parsed.params.get("overrides") or ())


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The pages' examples as files of the current folder, as a reader saves them."""
    tables: list[dict[str, Any]] = [TASKS, METRICS, LOSSES, FORMATS]
    before = [dict(table) for table in tables]
    for page, module in EXAMPLES.items():
        (code,) = blocks(page, "python")
        (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
    (recipe,) = blocks("add-a-task.md", "yaml")
    (tmp_path / "same.yaml").write_text(recipe, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for module in EXAMPLES.values():
        sys.modules.pop(module, None)
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def test_each_page_with_code_has_its_test() -> None:
    with_code = {page for page in PAGES if blocks(page, "python")}
    assert with_code == {"quickstart.md", *EXAMPLES, *FRAGMENTS, *TESTED_ELSEWHERE}


@pytest.mark.parametrize("page", sorted(FRAGMENTS))
def test_what_fragments_import_is_there(page: str) -> None:
    for code in blocks(page, "python"):
        compile(code, page, "exec")
        lines = [line for line in code.splitlines() if line.startswith(("from ", "import "))]
        exec("\n".join(lines), {})


def test_the_quickstart_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    for code in blocks("quickstart.md", "python"):
        exec(compile(code, "quickstart.md", "exec"), {})
    assert capsys.readouterr().out == "3 1\n"


def test_a_loss_of_ones_own(examples: Path) -> None:
    import_extensions(["my_loss"])
    relational = LOSSES["relational"].function
    torch.manual_seed(0)
    student, teacher = torch.randn(7, 5, requires_grad=True), torch.randn(7, 5)
    turn = torch.linalg.qr(torch.randn(5, 5)).Q
    assert relational(teacher @ turn * 3, teacher).item() == pytest.approx(0, abs=1e-9)
    value = relational(student, teacher)
    value.backward()
    assert value.item() > 0 and student.grad is not None and student.grad.abs().max() > 0
    assert relational(student[:1], teacher[:1]).item() == 0
    words = ["check", "search_query", "distill.losses.relational.weight=0.5"]
    assert cli.main([*words, "distill.losses.relational.delta=2.0", "--import", "my_loss"]) == 0
    assert cli.main([*words, "distill.losses.relational.beta=2.0", "--import", "my_loss"]) == 2


def test_a_metric_of_ones_own_is_the_correlation(examples: Path) -> None:
    import_extensions(["my_task"])
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200)
    decisions = np.where(generator.random(200) < 0.8, labels, 1 - labels)
    metric = get_metric("matthews", "class_logits")
    value = metric.value(metric.rows(Decided(decisions, labels, 2)))
    assert value == pytest.approx(np.corrcoef(decisions, labels)[0, 1])


def test_a_task_and_a_format_of_ones_own_in_one_run(examples: Path) -> None:
    assert cli.main(["check", "same.yaml", "--import", "my_task"]) == 0
    words = ["run", "same.yaml", "--smoke", "export=[half]"]
    assert cli.main([*words, "--import", "my_task", "--import", "my_format"]) == 0
    report = read_report(examples / "runs" / "same-smoke")
    assert report["quality"]["metric"] == "matthews"
    (half,) = report["exports"]
    assert half["format"] == "half" and half["flip_rate"] <= 0.005
    assert half["bytes"] < 0.6 * report["cost"]["student"]["bytes"]
