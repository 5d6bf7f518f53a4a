"""The README names every file, and what it tells people to type is understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from paredown.recipes.api import check
from paredown.recipes.loading import packaged_recipes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = ("paredown", "eval", "distill", "prune", "export", "recipes", "benchmarks")


def test_every_file_has_its_line_in_the_tree() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    for folder in CODE:
        part = re.search(rf"^{folder}/.*\n((?:  .*\n)*)", tree, re.MULTILINE)
        assert part, folder
        named = {line.split()[0] for line in part[1].splitlines()}
        found = {
            path.name
            for path in (ROOT / folder).glob("*")
            if path.suffix in (".py", ".yaml", ".html") and not path.name.startswith("__")
        }
        assert named == found, folder


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    typed = [line.split("  #")[0].strip() for line in lines]
    return sorted({line for line in typed if line.startswith("paredown run")})


@pytest.mark.parametrize("command", commands())
def test_every_run_in_the_readme_is_a_recipe_that_checks(command: str) -> None:
    words = shlex.split(command)[2:]
    name, rest = words[0], [word for word in words[1:] if not word.startswith("--")]
    if name in packaged_recipes():
        check(name, rest)


def test_the_recipe_in_the_readme_is_a_recipe(tmp_path: Path) -> None:
    text = README.split("```yaml")[1].split("```")[0]
    path = tmp_path / "search_query.yaml"
    path.write_text(text, encoding="utf-8")
    assert check(str(path)).task == "retrieval"
