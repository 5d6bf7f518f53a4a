"""Finds a recipe, reads it, applies overrides, and reports everything wrong with it at once."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..eval.errors import RecipeError, nearest
from .consistency import BOUNDS, SEARCHED
from .problem import Problem
from .schema import Recipe
from .yaml_source import YamlSource, dump_yaml, parse_value

SUFFIXES = (".yaml", ".yml")

REPLACED: dict[tuple[str, ...], tuple[str, ...]] = {
    ("data", "source"): ("config", "revision", "files"),
    ("data", "files"): ("config", "revision", "source"),
    ("teacher", "model"): ("revision",),
    ("student", "model"): ("revision",),
}
"""An override of the first key drops these neighbours of the file: they described what it names."""


@dataclass(frozen=True)
class Override:
    """One ``a.b=c``: its path, its value, and the text that a message quotes."""

    path: tuple[str, ...]
    value: Any
    text: str


@dataclass
class Draft:
    """A recipe's content before it is checked: where it came from and what stands in it."""

    label: str
    values: Any
    source: YamlSource | None = None
    overrides: list[Override] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def place(self, problem: Problem) -> str:
        """Where a person finds the problem: an override, or a line of the file."""
        for override in reversed(self.overrides):
            path, wrong = override.path, problem.path
            inside = wrong[: len(path)] == path
            around = bool(wrong) and path[: len(wrong)] == wrong and not self._in_file(wrong)
            if inside or around:
                return f"override {override.text}"
        if problem.line is None and self.source is None:
            return self.label
        line = problem.line or (self.source.line(problem.path) if self.source else 1)
        return f"line {line}"

    def _in_file(self, path: Sequence[str | int]) -> bool:
        inner = self.source.value if self.source else None
        for part in path:
            if not isinstance(inner, dict) or part not in inner:
                return False
            inner = inner[part]
        return True


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> Recipe:
    """Loads a recipe and checks all of it.

    Args:
        recipe: The name of a shipped recipe, a file, a mapping with a recipe's content, or a
            recipe. Relative paths in it start at the current folder, as those on the command
            line do.
        overrides: ``a.b=c`` texts whose values are read as YAML, or a mapping of ``a.b`` to
            values. Each sets one key, and drops what the file says about the thing it replaces:
            ``data.files`` replaces ``data.source`` and the other way round, and a model or
            source named anew leaves the old one's revision behind.

    Returns:
        The recipe with every default filled in.

    Raises:
        RecipeError: With every problem of the file and the overrides, each with its line.
    """
    draft = _draft(recipe)
    _override(draft, overrides)
    return _checked(draft)


def packaged_recipes() -> dict[str, str]:
    """The shipped recipes' texts by name."""
    folder = resources.files(__package__)
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in files
        if file.name.endswith(".yaml")
    }


def read_recipe_text(name: str | Path) -> tuple[str, str]:
    """Reads a shipped recipe by name, or any recipe by path.

    Returns:
        The text, and what to call it in a message.

    Raises:
        RecipeError: If there is neither, or it is not a UTF-8 text file.
    """
    path = Path(name)
    shipped = packaged_recipes()
    if str(name) in shipped:
        return shipped[str(name)], f"{name}.yaml (shipped)"
    if path.is_dir():
        raise RecipeError(f"'{path}' is a folder. Name the recipe file in it.")
    if not path.is_file():
        looks_like_a_file = path.suffix in SUFFIXES or len(path.parts) > 1
        if looks_like_a_file and path.stem not in shipped:
            raise RecipeError(f"There is no recipe file '{path}'.{_file_beside(path)}")
        raise RecipeError(
            f"Unknown recipe '{name}'.{nearest(path.stem, shipped)} "
            f"Shipped recipes: {', '.join(shipped)}. For a file of yours, give its path."
        )
    try:
        return path.read_bytes().decode("utf-8-sig"), str(path)
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"The recipe '{path}' is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from None
    except OSError as error:
        raise RecipeError(f"The recipe '{path}' cannot be read: {error.strerror}.") from None


def dump_recipe(recipe: Recipe) -> str:
    """Writes a recipe as YAML with every default; reading it again gives an equal recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))


def _file_beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder '{path.parent}' either."
    names = [file.name for file in path.parent.iterdir() if file.suffix in SUFFIXES]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean '{path.parent / close[0]}'?" if close else ""


def _draft(recipe: str | Path | Mapping[str, Any] | Recipe) -> Draft:
    if isinstance(recipe, Recipe):
        return Draft("the recipe", recipe.model_dump(mode="json"))
    if isinstance(recipe, Mapping):
        return Draft("the recipe", copy.deepcopy(dict(recipe)))
    text, label = read_recipe_text(recipe)
    try:
        source = YamlSource(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{label} is not YAML: {_yaml_message(error)}") from None
    if source.value is None:
        raise RecipeError(f"{label} is empty. A recipe needs name, task, data and teacher.")
    values = copy.deepcopy(source.value)
    return Draft(label, values, source, problems=list(source.duplicates))


def _yaml_message(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark = error.problem_mark or error.context_mark
    what = error.problem or error.context or "it cannot be read"
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}." if mark else f"{what}."


def _override(draft: Draft, overrides: Sequence[str] | Mapping[str, Any]) -> None:
    if isinstance(overrides, str):
        overrides = [overrides]
    if isinstance(overrides, Mapping):
        items = overrides.items()
        draft.overrides = [Override(tuple(k.split(".")), v, f"{k}={v}") for k, v in items]
        usable = draft.overrides
    else:
        usable = [found for text in overrides if (found := _parse(text, draft)) is not None]
    if isinstance(draft.values, dict):
        _drop_replaced(draft.values, usable)
        for override in usable:
            _set(draft, override)


def _parse(text: str, draft: Draft) -> Override | None:
    key, equals, value = text.partition("=")
    override = Override(tuple(part.strip() for part in key.split(".")), None, text)
    draft.overrides.append(override)
    if not equals or not all(override.path):
        message = "this is not of the form key=value, as in prune.layers=2."
    else:
        try:
            return replace(override, value=parse_value(value))
        except yaml.YAMLError as error:
            message = f"the value is not YAML ({_yaml_message(error)}) Put special texts in quotes."
    draft.problems.append(Problem(override.path, message))
    return None


def _drop_replaced(values: dict[str, Any], overrides: Sequence[Override]) -> None:
    for override in overrides:
        section = values.get(override.path[0])
        replaced = REPLACED.get(override.path[:2])
        if replaced and override.value is not None and isinstance(section, dict):
            for name in replaced:
                section.pop(name, None)

    bounds = [o.path[1] for o in overrides if o.path[0] == "budget" and o.path[1:2]]
    budget, prune = values.get("budget"), values.get("prune")
    if isinstance(budget, dict) and set(bounds) & set(BOUNDS):
        for name in BOUNDS:  # one bound in the place of another
            budget.pop(name, None)
    elif not budget and isinstance(prune, dict) and any(o.path[0] == "budget" for o in overrides):
        for axis in SEARCHED:
            prune.pop(axis, None)


def _set(draft: Draft, override: Override) -> None:
    inner = draft.values
    for depth, part in enumerate(override.path[:-1], start=1):
        if inner.get(part) is None:
            inner[part] = {}
        inner = inner[part]
        if not isinstance(inner, dict):
            held = ".".join(override.path[:depth])
            draft.problems.append(
                Problem(override.path, f"'{held}' holds {inner!r}; override it as a whole.")
            )
            return
    inner[override.path[-1]] = override.value


def _checked(draft: Draft) -> Recipe:
    from .validation import validate

    recipe, found = validate(draft.values)
    problems = [*draft.problems, *found]
    if problems or recipe is None:
        lines = sorted({f"  {draft.place(problem)}: {problem}" for problem in problems}, key=_order)
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise RecipeError("\n".join([f"{draft.label} has {count}:", *lines]))
    return recipe


def _order(line: str) -> tuple[int, str]:
    words = line.split(maxsplit=2)
    number = words[1].rstrip(":") if words[0] == "line" else ""
    return (int(number) if number.isdigit() else 10**9, line)
