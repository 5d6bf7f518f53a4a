"""The shipped action and workflow: their steps run in order on a smoke run, and trust no input."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from paredown.recipes import cli
from paredown.recipes.cache_key import cache_key

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
WORKFLOW = yaml.safe_load((ROOT / "docs" / "examples" / "nightly.yml").read_text(encoding="utf-8"))
OURS = "OWNER/paredown@"
RECIPE = """
name: student
task: classification
data: {source: nobody/needs-it}
teacher: {model: nobody/has-it}
prune: {layers: 1}
evaluate: {latency_rows: 0, resamples: 100}
smoke: {architecture: bert}
"""

Step = dict[str, Any]


def action_steps() -> list[Step]:
    return list(ACTION["runs"]["steps"])


def workflow_steps() -> list[Step]:
    return [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


@dataclass
class Runner:
    """What of GitHub's runner the shipped steps need: bash, environment, outputs.

    Attributes:
        folder: Where the steps run.
        inputs: Of the action, if they are an action's.
        steps: The outputs of earlier steps by their id.
    """

    folder: Path
    inputs: dict[str, str] = field(default_factory=dict)
    steps: dict[str, dict[str, str]] = field(default_factory=dict)

    def expand(self, text: str) -> str:
        """Puts contexts in the place of ``${{ … }}``."""

        def value(found: re.Match[str]) -> str:
            section, name, *rest = found[1].split(".")
            if section == "inputs":
                return self.inputs[name]
            assert section == "steps" and rest[0] == "outputs", found[0]
            return self.steps[name].get(rest[1], "")

        return re.sub(r"\$\{\{ ([\w.-]+) \}\}", value, str(text))

    def run(self, step: Step) -> int:
        """Runs a step as GitHub does ``shell: bash``, and gives its exit code."""
        outputs = self.folder / "outputs.txt"
        outputs.write_text("")
        script = self.folder / "step.sh"
        script.write_text(step["run"], encoding="utf-8")
        tools = self.folder / "tools"
        tools.mkdir(exist_ok=True)
        command = tools / "paredown"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m paredown "$@"\n')
        command.chmod(0o755)
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")},
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "GITHUB_OUTPUT": str(outputs),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            **{name: self.expand(text) for name, text in step.get("env", {}).items()},
        }
        assert step["shell"] == "bash"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        lines = [line.split("=", 1) for line in outputs.read_text().splitlines()]
        self.steps[step.get("id", "")] = {name: value for name, value in lines}
        self.said = done.stdout + done.stderr
        return done.returncode

    def act(self, given: dict[str, str]) -> dict[str, str]:
        """Runs the action's own steps but the installation, and gives its outputs."""
        inputs = {name: str(of.get("default", "")) for name, of in ACTION["inputs"].items()}
        inside = Runner(self.folder, inputs | given)
        for step in action_steps():
            if "run" in step and step.get("id") != "install":
                assert inside.run(step) == 0, (step["name"], inside.said)
        return {name: inside.expand(of["value"]) for name, of in ACTION["outputs"].items()}


def test_the_workflow_s_dry_run_passes_step_by_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "student.yaml").write_text(RECIPE, encoding="utf-8")
    runner = Runner(tmp_path)
    ran = []
    for step in WORKFLOW["jobs"]["dry-run"]["steps"]:
        if "run" in step:
            assert runner.run(step) == 0, (step["name"], runner.said)
            ran.append(step["name"])
        elif step["uses"].startswith(OURS):
            runner.steps[step["id"]] = runner.act(step["with"])
            assert runner.steps[step["id"]] == {"folder": "runs/student-smoke", "code": "0"}
    assert len(ran) == 2
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "paredown gate: student-smoke, met, of a smoke run" in summary
    suite = ElementTree.parse(tmp_path / "runs" / "student-smoke" / "gate.xml").getroot()[0]
    assert [(case.get("name"), len(case.findall("failure"))) for case in suite] == [("compute", 0)]

    # what one night publishes, the next compares with
    (pack,) = [s for s in WORKFLOW["jobs"]["retrain"]["steps"] if "Pack" in s.get("name", "")]
    assert runner.run(pack) == 0, runner.said
    assert (tmp_path / "student.tar.gz").exists() and (tmp_path / "run.tar.gz").exists()
    for path in (tmp_path / "packed").rglob("*"):
        assert not path.is_symlink() and path.name not in ("train.arrow", "validation.arrow")
    words = ["gate", str(tmp_path / "runs" / "student-smoke"), "--allow-smoke"]
    against = ["--against", str(tmp_path / "packed" / "run"), "--margin", "0"]
    capsys.readouterr()
    assert cli.main([*words, *against]) == 0
    assert "against >= 0: met, +0.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recipe", "a; touch owned"),
        ("recipe", "--out"),
        ("recipe", ""),
        ("out", "../elsewhere"),
        ("out", "/etc"),
        ("out", "runs/$(touch owned)"),
        ("retain", "0.9; touch owned"),
        ("latency-ms", "fast"),
        ("smoke", "yes"),
        ("cache", ""),
        ("extras", "demo] evil[x"),
        ("python-version", "3.11 && touch owned"),
        ("runtime", "onnx\ntouch owned"),
        ("against", "-x"),
        ("against", "runs/nowhere"),
        ("retain", "95"),
        ("retain", "0"),
        ("compute", "1.2"),
        ("runtime", "onnx"),
        ("flip-rate", ""),
        ("cache-version", "a b"),
    ],
)
def test_an_input_that_cannot_be_is_refused_before_anything_runs(
    tmp_path: Path, name: str, value: str
) -> None:
    inputs = {key: str(of.get("default", "")) for key, of in ACTION["inputs"].items()}
    given = {"recipe": "student.yaml", "flip-rate": "0.01"}
    if value.startswith("onnx\n"):
        given["size-mb"] = "5"
    runner = Runner(tmp_path, inputs | given | {name: value})
    first = action_steps()[0]
    assert runner.run(first) == 2
    assert runner.said.count("::error::") == 1
    assert not (tmp_path / "owned").exists() and not runner.steps["check"]


def test_overrides_are_words_and_never_commands(tmp_path: Path) -> None:
    inputs = {key: str(of.get("default", "")) for key, of in ACTION["inputs"].items()}
    given = {
        "recipe": "search_query",
        "overrides": "  seed=1 \n\n$(touch owned)\n--smoke\nname=a b",
    }
    runner = Runner(tmp_path, inputs | given)
    (step,) = [step for step in action_steps() if step.get("id") == "run"]
    assert runner.run(step) == 2
    assert "$(touch owned)" in runner.said and "--smoke" in runner.said  # no overrides, both told
    assert not (tmp_path / "owned").exists() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "step",
    [*action_steps(), *workflow_steps()],
    ids=lambda step: step.get("name") or step.get("uses"),
)
def test_no_script_holds_an_expression(step: Step) -> None:
    assert "${{" not in step.get("run", "")
    if "run" in step:
        assert step["shell"] == "bash"
    else:
        assert re.search(r"@v\d", step["uses"])


def test_every_input_is_used_and_every_one_used_is_declared() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8").split("\nruns:")[1]
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(ACTION["inputs"])
    for step in workflow_steps():
        if step.get("uses", "").startswith(OURS):
            assert set(step["with"]) <= set(ACTION["inputs"])
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    for name in ACTION["inputs"]:
        assert f"`{name}`" in page, name


def test_only_publishing_may_write() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    writers = [name for name, job in WORKFLOW["jobs"].items() if "permissions" in job]
    assert writers == ["publish"] and WORKFLOW["jobs"]["publish"]["needs"] == "retrain"


def test_the_key_of_kept_stages_names_software_and_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["cache-key"]) == 0
    key = capsys.readouterr().out.strip()
    assert key == cache_key() and re.fullmatch(r"paredown-\w+-\w+-[0-9a-f]{8}-[0-9a-f]{16}", key)
    machine = key.rpartition("-")[0]
    monkeypatch.setattr("paredown.recipes.cache_key.library_versions", lambda: {"torch": "0"})
    assert cache_key() != key and cache_key().startswith(machine)
    monkeypatch.setattr("paredown.recipes.cache_key.processor", lambda: "another")
    assert not cache_key().startswith(machine)
