"""The README names every file, and its recipe is one; what it tells people to type: `test_docs`."""

from __future__ import annotations

import re
from pathlib import Path

from paredown.recipes.api import check

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


def test_the_recipe_in_the_readme_is_a_recipe(tmp_path: Path) -> None:
    text = README.split("```yaml")[1].split("```")[0]
    path = tmp_path / "search_query.yaml"
    path.write_text(text, encoding="utf-8")
    assert check(str(path)).task == "retrieval"
