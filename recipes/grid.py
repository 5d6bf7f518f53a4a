"""The grid of a sweep: its axes, read and checked, and the points where they cross."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..eval.errors import RecipeError
from .loading import load_recipe
from .schema import Recipe
from .yaml_source import YamlSource

Axes = Mapping[str, Sequence[Any]]

LONGEST_NAME = 100
JUDGES = ("name", "target", "evaluate", "smoke")
"""Sections of a recipe that change no student."""


@dataclass(frozen=True)
class Point:
    """One combination of the axes' values.

    Attributes:
        name: The values in a few words; names its folder, and no other point's.
        values: Value by key.
        recipe: What it is a run of.
    """

    name: str
    values: dict[str, Any]
    recipe: Recipe


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Reads axes as they are typed: ``key=value,value``, each value as an override's.

    Raises:
        RecipeError: If one is not of that form, or a key comes twice; all of it in one message.

    Examples:
        >>> parse_grid(["prune.layers=1,2", "seed=0,1"])
        {'prune.layers': [1, 2], 'seed': [0, 1]}
        >>> parse_grid(["prune.layers=[0, 5],[0, 3]", "prune.vocabulary=task,null"])
        {'prune.layers': [[0, 5], [0, 3]], 'prune.vocabulary': ['task', None]}
    """
    found: dict[str, list[Any]] = {}
    problems = []
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(f"'{text}' is not of the form key=value,value, as in prune.layers=1,2.")
        elif key in found:
            problems.append(f"{key} is given twice; write all its values behind one '='.")
        else:
            found[key] = []
            try:
                found[key] = _values(values)
            except yaml.YAMLError:
                problems.append(
                    f"'{text}' holds what is not YAML. Each value stands between two commas; put "
                    "texts with signs in quotes."
                )
    _raise(problems)
    return found


def _values(text: str) -> list[Any]:
    """Values between commas: the inside of a YAML list, so that commas in a value stay there."""
    if text.rstrip().endswith(","):  # which YAML allows
        raise yaml.YAMLError("a comma at the end")
    found = YamlSource(f"[{text}]").value
    if not isinstance(found, list):
        raise yaml.YAMLError("no list of values")
    return found


def as_text(key: str, value: Any) -> str:
    """An override that sets a key to a value.

    Raises:
        RecipeError: If no recipe could hold the value.

    Examples:
        >>> as_text("prune.layers", [0, 5])
        'prune.layers=[0, 5]'
    """
    return f"{key}={_json(key, value)}"


def axis_text(key: str, values: Sequence[Any]) -> str:
    """An axis as it is typed."""
    return f"{key}={','.join(_json(key, value) for value in values)}"


def _json(key: str, value: Any) -> str:
    """A value in JSON, which is YAML."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        raise RecipeError(
            f"{key}: expected a value that a recipe can hold, got {type(value).__name__}."
        ) from None


def check_axes(axes: Axes, overrides: Sequence[str]) -> None:
    """Makes sure that every axis varies something, and nothing else sets what it varies.

    Raises:
        RecipeError: With everything that is wrong.
    """
    problems = [] if axes else ["a sweep needs an axis: give --grid prune.layers=1,2,3."]
    for key, values in axes.items():
        texts = [as_text(key, value) for value in values]
        twice = sorted({text for text in texts if texts.count(text) > 1})
        if twice:
            problems.append(f"{', '.join(twice)} stands there twice; keep one.")
        if len(values) < 2:
            problems.append(
                f"{key} has {len(values) or 'no'} value{'s' * (not values)}, and an axis needs two "
                "or more. What all points share is an override: write it before --grid."
            )
        problems += [
            f"{key} is a part of {other}, which is an axis too; vary one of them."
            for other in axes
            if other != key and _within(key, other)
        ]
        problems += [
            f"the override {text} has no effect: --grid {key} sets it at every point."
            for text in overrides
            if _within(text.partition("=")[0].strip(), key)
        ]
    _raise(problems)


def _within(key: str, other: str) -> bool:
    """Whether a key is another one, or stands inside of it."""
    return f"{key}.".startswith(f"{other}.")


def _raise(problems: Sequence[str]) -> None:
    if problems:
        raise RecipeError("\n".join(["--grid:", *(f"  {problem}" for problem in problems)]))


def grid_points(
    recipe: str | Path | Mapping[str, Any] | Recipe, axes: Axes, overrides: Sequence[str] = ()
) -> list[Point]:
    """The points of a grid in the order of its values, the last axis first.

    Args:
        recipe: As `load_recipe` takes it.
        axes: Checked.
        overrides: ``a.b=c`` texts that hold at every point.

    Raises:
        RecipeError: If a point is no recipe; what is wrong with all of them, each thing once.
    """
    points, wrong = [], []
    crossed = [dict(zip(axes, each, strict=True)) for each in itertools.product(*axes.values())]
    names = _names(crossed)
    for name, values in zip(names, crossed, strict=True):
        texts = [as_text(key, value) for key, value in values.items()]
        try:
            points.append(Point(name, values, load_recipe(recipe, [*overrides, *texts])))
        except RecipeError as error:
            wrong.append(str(error))
    if wrong:
        first, *rest = wrong[0].splitlines()
        if not rest:
            raise RecipeError(first)
        lines = dict.fromkeys(line for text in wrong for line in text.splitlines()[1:])
        head = f"{len(wrong)} of the grid's {len(crossed)} points are no recipes:"
        raise RecipeError("\n".join([head, *lines]))
    return points


def check_distinct(points: Sequence[Point]) -> None:
    """Makes sure that no two points are one student.

    Args:
        points: With resolved recipes.

    Raises:
        RecipeError: If two are; the axis then has no effect.
    """
    seen: dict[str, Point] = {}
    for point in points:
        values = point.recipe.model_dump(mode="json", exclude=set(JUDGES))
        other = seen.setdefault(json.dumps(values, sort_keys=True), point)
        if other is not point:
            keys = [key for key in point.values if point.values[key] != other.values[key]]
            raise RecipeError(
                f"--grid: {' and '.join(keys)} without effect: {other.name} and {point.name} are "
                "the same student, once every default is written out. Leave the axis out, or "
                "one of the values."
            )


def _names(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """A folder's name for each point, of letters that every file system has."""
    keys = list(points[0]) if points else []
    last = [key.rpartition(".")[2] for key in keys]
    labels = {
        key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)
    }
    plain = [
        re.sub(
            r"[^A-Za-z0-9._+-]+",
            "-",
            "_".join(f"{labels[key]}-{_short(value)}" for key, value in point.items()),
        )
        for point in points
    ]
    lower = [name.lower() for name in plain]  # to some systems, case makes no difference
    return [
        name if len(name) <= LONGEST_NAME and lower.count(name.lower()) == 1 else _marked(name, at)
        for name, at in zip(plain, points, strict=True)
    ]


def _marked(name: str, values: Mapping[str, Any]) -> str:
    content = json.dumps(values, sort_keys=True, ensure_ascii=False)
    mark = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9]}-{mark}"


def _short(value: Any) -> str:
    """A value in as few letters as tell it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "+".join(map(_short, value)) or "empty"
    return json.dumps(value) if isinstance(value, dict) else str(value)
