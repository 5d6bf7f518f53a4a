"""Turns pydantic's errors about a recipe into problems a person can act on, all at once."""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ..eval.errors import nearest
from .problem import Problem
from .resolving import unknown_names
from .schema import Recipe

Path = tuple[str | int, ...]

EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text (in quotes, if it looks like a number)",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "too_short": "at least one entry",
    "string_pattern_mismatch": "a name of letters, digits, '_', '-' and '.'",
}
"""What each of pydantic's error types asks for, in the words of a recipe."""


def validate(values: Any) -> tuple[Recipe | None, list[Problem]]:
    """Checks the content of a recipe.

    Where some keys are wrong, they are left out and the rest is checked again, so that what is
    wrong between sections, or with a name, is found in the same go.

    Returns:
        The recipe, or None and everything that is wrong with it.
    """
    if not isinstance(values, Mapping):
        return None, [Problem((), f"expected a mapping (key: value), got {_shown(values)}.")]
    recipe, problems = _attempt(values)
    if problems:
        rest, further = _attempt(_without(values, problems)) if recipe is None else (recipe, [])
        if rest is not None:
            further = [*further, *unknown_names(rest)]
        wrong = [problem.path for problem in problems]
        problems += [
            found for found in further if not any(_related(found.path, path) for path in wrong)
        ]
        return None, problems
    assert recipe is not None
    problems = unknown_names(recipe)
    return (None if problems else recipe), problems


def _attempt(values: Mapping[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """A recipe whose keys are fine one by one, and the problems there are all the same."""
    try:
        return Recipe.model_validate(values), []
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == "contradictions":  # found last, and only where all else is fine
                return detail["ctx"]["recipe"], detail["ctx"]["problems"]
        return None, _problems(error, values)


def _problems(error: ValidationError, values: Any) -> list[Problem]:
    by_path: dict[Path, list[Any]] = {}
    for detail in error.errors(include_url=False):
        exact = detail["type"] in ("missing", "extra_forbidden")
        by_path.setdefault(_path(detail["loc"], values, exact), []).append(detail)
    return [
        Problem(path, _message(path, details))
        for path, details in by_path.items()
        # one branch of a union may go deeper than the other: the deeper one says more
        if not any(other != path and other[: len(path)] == path for other in by_path)
    ]


def _path(location: Sequence[str | int], values: Any, exact: bool) -> Path:
    """Drops from pydantic's location what is no key of the recipe (the names of union branches)."""
    path: list[str | int] = []
    for i, part in enumerate(location):
        in_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if in_list or (isinstance(values, Mapping) and part in values):
            values = values[part]
        elif not (exact and i == len(location) - 1):
            continue
        path.append(part)
    return tuple(path)


def _message(path: Path, details: list[Any]) -> str:
    kinds = {detail["type"] for detail in details}
    if "extra_forbidden" in kinds:
        return f"unknown key.{_suggestion(path)}"
    if "missing" in kinds:
        return "this key is required."
    wishes = list(dict.fromkeys(_wish(detail) for detail in details))
    if all(wishes):
        got = details[0]["input"]
        return f"expected {' or '.join(wishes)}, got {_shown(got)}.{_word(details[0], got)}"
    return " ".join(str(detail["msg"]) for detail in details)


def _wish(detail: Any) -> str:
    if detail["type"] in EXPECTED:
        return EXPECTED[detail["type"]]
    message = str(detail["msg"])
    for opening in ("Input should be ", "expected "):
        if message.startswith(opening):
            wish = message.removeprefix(opening)
            return f"a value {wish}" if wish.startswith(("greater", "less")) else wish
    return ""


def _word(detail: Any, got: object) -> str:
    if detail["type"] != "literal_error" or not isinstance(got, str):
        return ""
    return nearest(
        got,
        [part for part in detail["ctx"]["expected"].split("'") if part.replace("_", "").isalnum()],
    )


def _shown(value: object) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}…"


def _suggestion(path: Path) -> str:
    """The nearest key of the same section, or where else a key of this very name stands."""
    section: type[BaseModel] | None = Recipe
    for part in path[:-1]:
        field = section.model_fields.get(str(part)) if section else None
        section = _model_in(field.annotation) if field else None
    known = section.model_fields if section else {}
    same = nearest(str(path[-1]), known)
    elsewhere = [] if same else [key for key in _keys() if key.split(".")[-1] == path[-1]]
    if elsewhere:
        return f" Did you mean '{elsewhere[0]}'?"
    return same or f" Known keys here: {', '.join(known)}."


def _keys() -> Iterator[str]:
    for name, field in Recipe.model_fields.items():
        model = _model_in(field.annotation)
        for inner in model.model_fields if model else ():
            yield f"{name}.{inner}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(filter(None, map(_model_in, typing.get_args(annotation))), None)
    return None


def _without(values: Mapping[str, Any], problems: Sequence[Problem]) -> dict[str, Any]:
    rest = copy.deepcopy(dict(values))
    for problem in problems:
        inner: Any = rest
        for i, part in enumerate(problem.path):
            child = inner.get(part)
            if i == len(problem.path) - 1 or not isinstance(child, dict):
                inner.pop(part, None)
                break
            inner = child
    rest.setdefault("name", "unnamed")
    return rest


def _related(a: Path, b: Path) -> bool:
    shorter = min(len(a), len(b))
    return bool(shorter) and a[:shorter] == b[:shorter]
