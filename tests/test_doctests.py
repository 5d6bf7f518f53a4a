"""Examples in docstrings are right."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import paredown


def modules() -> list[str]:
    packages = [f"paredown.{name}" for name in ("eval", "distill", "prune", "export", "recipes")]
    found = ["paredown"]
    for package in packages:
        paths = importlib.import_module(package).__path__
        found += [f"{package}.{module.name}" for module in pkgutil.iter_modules(paths)]
    return [name for name in found if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    result = doctest.testmod(
        importlib.import_module(name),
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert result.failed == 0


def test_the_modules_are_found() -> None:
    assert "paredown.recipes.yaml_source" in modules()
    assert paredown.__doc__
