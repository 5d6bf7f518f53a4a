"""Reading YAML so that each value's line is known and no key is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from .problem import Problem

_INT = r"[-+]?(?:0|[1-9][0-9_]*)"
_FLOAT = (
    r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_CORE = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", r"<<", "<"),
)


class RecipeLoader(yaml.SafeLoader):
    """A safe loader that reads plain words as YAML 1.2 does.

    ``3e-4`` is a number and ``no``, ``on``, ``010`` and ``2026-11-01`` are texts, unlike in
    PyYAML's YAML 1.1.
    """

    # its own table, without YAML 1.1's; noqa because the base class declares it like this
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class RecipeDumper(yaml.SafeDumper):
    """A dumper that quotes each text either YAML version would read as something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Writes Unicode's own line breaks as escapes: plain and single-quoted texts fold them."""
        style = '"' if any(letter in data for letter in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


RecipeDumper.add_representer(str, RecipeDumper.represent_str)


for _kind, _pattern, _first in _CORE:
    for _loader in (RecipeLoader, RecipeDumper):
        _loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}",
            re.compile(f"^(?:{_pattern})$"),
            ["" if letter == "\0" else letter for letter in _first],
        )


class YamlSource:
    """One YAML document: its value, and the line of each part of it.

    Attributes:
        value: What the document says, in plain Python.
        duplicates: A problem for each key that stands twice in one mapping.
    """

    def __init__(self, text: str) -> None:
        """Reads a document.

        Raises:
            yaml.YAMLError: If it is not one YAML document.
        """
        loader = RecipeLoader(text)
        try:
            self._node = loader.get_single_node()
            self.duplicates = list(_duplicates(self._node, (), set()))
            self.value: Any = None if self._node is None else loader.construct_document(self._node)
        finally:
            loader.dispose()

    def line(self, path: Sequence[str | int]) -> int:
        """The line, from 1, of a key, or of the innermost part on the way to it that exists."""
        node, line = self._node, 1
        for part in path:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return line


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        # from the end: a merged mapping's keys come first, and later keys win
        for key, value in reversed(node.value):
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        value = node.value[part]
        return value.start_mark.line + 1, value
    return None


def _duplicates(
    node: yaml.Node | None, path: tuple[str | int, ...], seen: set[int]
) -> Iterator[Problem]:
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first and name != "<<":
                message = f"this key already stands on line {first[name]}; keep one."
                yield Problem((*path, name), message, line)
            first.setdefault(name, line)
            yield from _duplicates(value, (*path, name), seen)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _duplicates(value, (*path, i), seen)


def parse_value(text: str) -> Any:
    """Reads the right side of ``a.b=c`` as YAML.

    Raises:
        yaml.YAMLError: If it is not YAML.

    Examples:
        >>> parse_value("3e-4"), parse_value("[1, 3]"), parse_value(""), parse_value("no")
        (0.0003, [1, 3], None, 'no')
    """
    return YamlSource(text).value


def dump_yaml(value: Any) -> str:
    """Writes plain values as YAML that `YamlSource` and other readers understand alike."""
    return yaml.dump(
        value, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, indent=2, width=100
    )
