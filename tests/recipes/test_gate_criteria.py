"""A gate's further criteria: time, size, flips, a smoke run by leave, and files for a CI system."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.eval.errors import RecipeError, RunError
from paredown.recipes import cli
from paredown.recipes.gate import SMOKE, Criterion, gate
from paredown.recipes.gate_files import SUMMARY, junit, markdown
from paredown.recipes.report_schema import SCHEMA

EXPORTS: list[dict[str, Any]] = [
    {"format": "onnx", "bytes": 40_000_000, "flip_rate": 0.001, "latency_ms_p50": 4.0},
    {"format": "onnx-int8", "bytes": 10_000_000, "flip_rate": 0.02, "latency_ms_p50": 1.5},
    {"format": "sentence-transformers", "bytes": 41e6, "flip_rate": 0.0, "latency_ms_p50": None},
]
REPORT: dict[str, Any] = {
    "schema": SCHEMA,
    "name": "small",
    "smoke": False,
    "quality": {"retention": 0.97, "retention_ci95": [0.955, 0.985], "examples": 2000},
    "cost": {"ratio": {"flops": 0.19}, "student": {"bytes": 42_000_000, "latency_ms_p50": 8.0}},
    "exports": EXPORTS,
}
Write = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Write:
    def write(**changes: Any) -> Path:
        (tmp_path / "report.json").write_text(json.dumps({**REPORT, **changes}), encoding="utf-8")
        return tmp_path

    return write


def test_time_and_size_are_of_the_fastest_export_that_was_timed(run: Write) -> None:
    latency, size = gate(run(), latency_ms=2, size_mb=9.5)
    assert (latency.value, latency.met) == (1.5, True)
    assert (size.value, size.met) == (10.0, False)
    assert latency.text == (
        "latency <= 2 ms: met, 1.5000 ms at the median of one row (onnx-int8, one thread)"
    )
    assert size.text == "size    <= 9.5 MB: not met, 10.0000 MB of weights (onnx-int8)"


def test_a_runtime_can_be_named(run: Write) -> None:
    latency, size = gate(run(), latency_ms=5, size_mb=41, runtime="pytorch")
    assert (latency.value, latency.met) == (8.0, False)
    assert (size.value, size.met) == (42.0, False)
    assert gate(run(), latency_ms=5, runtime="onnx")[0].value == 4.0
    with pytest.raises(RecipeError, match=r"the run has pytorch, onnx, onnx-int8, sentence"):
        gate(run(), latency_ms=5, runtime="onxx")
    with pytest.raises(RunError, match="no time of sentence-transformers"):
        gate(run(), latency_ms=5, runtime="sentence-transformers")


def test_without_exports_the_checkpoint_is_what_is_deployed(run: Write) -> None:
    folder = run(exports=[])
    assert gate(folder, latency_ms=8)[0].met
    with pytest.raises(RunError, match=r"no export, so --flip-rate .* export: \[onnx\]"):
        gate(folder, flip_rate=0.1)


def test_the_worst_export_decides_on_flips(run: Write) -> None:
    (found,) = gate(run(), flip_rate=0.01)
    assert not found.met and "0.0200 of the decisions" in found.text and "onnx-int8" in found.text
    assert gate(run(), flip_rate=0.02)[0].met
    unknown = [*EXPORTS, {"format": "openvino", "flip_rate": None}]
    with pytest.raises(RunError, match=r"no figure 'exports\.3\.flip_rate'"):
        gate(run(exports=unknown), flip_rate=0.5)


@settings(deadline=None)
@given(st.floats(1e-3, 1e4), st.floats(-1e-3, 1e-3) | st.floats(-1e3, 1e3))
def test_a_figure_is_met_exactly_up_to_its_limit(limit: float, more: float) -> None:
    from paredown.recipes.gate import _at_most

    value = max(limit + more, 0.0)
    found = _at_most("latency-ms", "latency", limit, value, " ms", "")
    assert found.met == (value <= limit)
    shown = float(found.text.split(", ")[1].split()[0])
    assert math.isclose(shown, value, abs_tol=1e-4)


@pytest.mark.parametrize(
    ("criteria", "said"),
    [
        ({}, "needs a criterion"),
        ({"latency_ms": 0}, "--latency-ms is a number above 0"),
        ({"size_mb": float("inf")}, "--size-mb is a number above 0"),
        ({"latency_ms": float("nan")}, "--latency-ms is a number above 0"),
        ({"flip_rate": 1.01}, "--flip-rate is a share from 0 to 1"),
        ({"flip_rate": float("nan")}, "--flip-rate is a share from 0 to 1"),
        ({"retain": 0.9, "margin": 0.01}, "--margin is for --against"),
        ({"against": "x", "margin": -0.01}, "--margin is a number from 0"),
        ({"compute": 0.9, "runtime": "onnx"}, "--runtime says what"),
    ],
)
def test_criteria_that_cannot_be_are_refused(
    run: Write, criteria: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        gate(run(), **criteria)


def test_a_smoke_run_is_compared_by_leave_and_every_line_says_so(run: Write) -> None:
    folder = run(smoke=True)
    with pytest.raises(RecipeError, match=r"is a smoke run.*--allow-smoke"):
        gate(folder, compute=0.5)
    found = gate(folder, retain=0.5, compute=0.1, flip_rate=0.5, allow_smoke=True)
    assert [criterion.met for criterion in found] == [True, False, True]
    assert all(criterion.text.endswith(SMOKE) for criterion in found)
    assert not any(SMOKE in one.text for one in gate(run(), compute=0.5, allow_smoke=True))


# Files


TEXT = st.text(st.characters(codec="utf-16", exclude_categories=()), max_size=40) | st.text()
OUTCOMES = st.sampled_from(["met", "not met", "undecided"])
CRITERIA = st.lists(
    st.builds(Criterion, TEXT, st.just(1.0), st.just(1.0), OUTCOMES, TEXT), min_size=1, max_size=5
)
# attributes and children that the schemas of JUnit's readers (Jenkins, GitLab, GitHub) allow
ALLOWED = {
    "testsuites": ({"name", "tests", "failures", "errors", "time"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time"},
        {"testcase"},
    ),
    "testcase": ({"name", "classname", "time"}, {"failure", "system-out"}),
    "failure": ({"message", "type"}, set()),
    "system-out": (set(), set()),
}


@settings(max_examples=50, deadline=None)
@given(CRITERIA, TEXT)
def test_a_junit_report_is_valid_whatever_the_texts_are(
    criteria: list[Criterion], name: str
) -> None:
    text = junit(criteria, {"name": name})
    root = ElementTree.fromstring(text.encode("utf-8"))
    for element in root.iter():
        attributes, children = ALLOWED[element.tag]
        assert set(element.attrib) <= attributes
        assert {child.tag for child in element} <= children
    (suite,) = root
    failed = [case for case in suite if case.find("failure") is not None]
    assert suite.get("tests") == root.get("tests") == str(len(criteria))
    assert suite.get("failures") == root.get("failures") == str(len(failed))
    assert len(failed) == sum(not criterion.met for criterion in criteria)
    kinds = {failure.get("type") for failure in root.iter("failure")}
    assert kinds <= {"not_met", "undecided"}


@settings(max_examples=50, deadline=None)
@given(CRITERIA, TEXT)
def test_a_summary_is_one_table_whatever_the_texts_are(
    criteria: list[Criterion], name: str
) -> None:
    lines = markdown(criteria, {"name": name, "smoke": False}).split("\n")
    assert lines[0].startswith("### paredown gate: ")
    rows = lines[4:-2]
    assert len(rows) == len(criteria)
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", re.sub(r"\\\\", "", row))) == 4
        assert "<" not in row


def test_the_gate_leaves_its_files(
    run: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, own = tmp_path / "step.md", tmp_path / "own.md"
    monkeypatch.setenv(SUMMARY, str(step))
    step.write_text("before\n")
    words = ["gate", str(run()), "--compute", "0.5", "--junit", str(tmp_path / "gate.xml")]
    assert cli.main([*words, "--summary"]) == 0
    assert cli.main([*words, "--summary-file", str(own), "--flip-rate", "0.01"]) == 3
    assert step.read_text(encoding="utf-8").startswith("before\n### paredown gate: small, met\n")
    assert "1 of 2 not met" in own.read_text(encoding="utf-8")
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()[0]
    assert [case.get("name") for case in suite] == ["compute", "flip-rate"]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--junit", "nowhere/gate.xml"], "there is no folder 'nowhere'"),
        (["--junit", "."], "is a folder; name a file"),
        (["--summary-file", "nowhere/gate.md"], "there is no folder 'nowhere'"),
        (["--summary"], "GITHUB_STEP_SUMMARY names, and it is not set"),
    ],
)
def test_a_place_that_cannot_be_is_told_before_anything_is_compared(
    run: Write,
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(SUMMARY, raising=False)
    monkeypatch.chdir(run())
    assert cli.main(["gate", ".", "--compute", "0.1", *words]) == 2
    seen = capsys.readouterr()
    assert said in seen.err and not seen.out
