"""What a gate leaves for a CI system: a JUnit report, and a summary in Markdown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..eval.errors import RecipeError, RunError
from .gate import Criterion
from .whole_files import write_whole

SUMMARY = "GITHUB_STEP_SUMMARY"
"""The environment variable that names the file of a step's summary."""

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKS = {"met": "✅", "not met": "❌", "undecided": "❔"}


def junit(criteria: Sequence[Criterion], report: Mapping[str, Any]) -> str:
    """A gate as a JUnit report: a test case a criterion, which fails where it is not met.

    Args:
        criteria: As `gate` gives them.
        report: Of the run.
    """
    failures = str(sum(not criterion.met for criterion in criteria))
    count = {"tests": str(len(criteria)), "failures": failures, "errors": "0", "time": "0"}
    name = _xml(f"paredown gate {report.get('name', '')}".strip())
    suites = ElementTree.Element("testsuites", {"name": name, **count})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": name, "skipped": "0", **count})
    for criterion in criteria:
        case = ElementTree.SubElement(
            suite, "testcase", name=_xml(criterion.name), classname="paredown.gate", time="0"
        )
        line = _xml(criterion.text)
        if criterion.met:
            ElementTree.SubElement(case, "system-out").text = line
        else:
            failure = ElementTree.SubElement(
                case, "failure", message=line, type=criterion.outcome.replace(" ", "_")
            )
            failure.text = line
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _xml(text: str) -> str:
    """Without the characters that no XML document may hold, not even escaped."""
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def markdown(criteria: Sequence[Criterion], report: Mapping[str, Any]) -> str:
    """A gate as a heading and a table in Markdown.

    Args:
        criteria: As `gate` gives them.
        report: Of the run.
    """
    met = sum(criterion.met for criterion in criteria)
    head = "met" if met == len(criteria) else f"{len(criteria) - met} of {len(criteria)} not met"
    smoke = ", of a smoke run" if report.get("smoke") else ""
    lines = [
        f"### paredown gate: {_cell(str(report.get('name', '')))}, {head}{smoke}",
        "",
        "| | criterion | |",
        "|---|---|---|",
        *(f"| {_MARKS[one.outcome]} | {_cell(one.name)} | {_cell(one.text)} |" for one in criteria),
        "",
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A text as Markdown and HTML show it, on one line: each sign that means something escaped."""
    flat = " ".join(_xml(text).split())
    return re.sub(r"([\\`*_{}\[\]()#!|~])", r"\\\1", escape(flat, quote=False))


def summary_file(asked: Path | None) -> Path:
    """The file that a summary is added to: the one asked for, or GitHub's of this step.

    Raises:
        RecipeError: If none was asked for, and this is no step of a GitHub workflow.
    """
    if asked is not None:
        return asked
    named = os.environ.get(SUMMARY)
    if not named:
        raise RecipeError(
            f"--summary adds to the file that {SUMMARY} names, and it is not set here. Outside of "
            "GitHub's workflows, name a file: --summary-file gate.md."
        )
    return Path(named)


def check_place(path: Path, option: str) -> None:
    """Makes sure, before anything is measured, that a file can be made there.

    Raises:
        RecipeError: If its folder is not there, or it is a folder itself.
    """
    if path.is_dir():
        raise RecipeError(f"{option} '{path}' is a folder; name a file.")
    if not path.parent.is_dir():
        raise RecipeError(f"{option} '{path}': there is no folder '{path.parent}'.")


def write_junit(text: str, path: Path) -> None:
    """Writes a JUnit report, whole or not at all.

    Raises:
        RunError: If it cannot be written.
    """
    try:
        write_whole(text, path, errors="replace")
    except OSError as error:
        raise RunError(f"Cannot write '{path}': {error.strerror or error}.") from error


def add_summary(text: str, path: Path) -> None:
    """Adds a summary to the end of a file, as steps of a workflow do.

    Raises:
        RunError: If it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError as error:
        raise RunError(f"Cannot write '{path}': {error.strerror or error}.") from error
