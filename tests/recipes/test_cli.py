"""The command line: quick, quiet about code, and with exit codes that mean something."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import paredown
from paredown.eval.errors import RunError
from paredown.recipes import cli, doctor
from paredown.recipes.loading import packaged_recipes
from paredown.recipes.report_schema import SCHEMA

HEAVY = ("torch", "transformers", "datasets", "pyarrow", "numpy", "pydantic", "scipy")

REPORT: dict[str, Any] = {
    "schema": SCHEMA,
    "smoke": False,
    "verdict": "fail",
    "reasons": ["too little is kept"],
    "quality": {"retention": 0.9, "retention_ci95": [0.88, 0.92], "examples": 2000},
    "cost": {"ratio": {"flops": 0.19}},
}


class Pipeline:
    """Stands in for the stages: remembers how it was called, and gives what it was told to."""

    def __init__(self) -> None:
        self.report: dict[str, Any] | None = dict(REPORT)
        self.cached = False
        self.error: BaseException | None = None
        self.calls: list[SimpleNamespace] = []

    def __call__(self, recipe: Any, **options: Any) -> SimpleNamespace:
        self.calls.append(SimpleNamespace(recipe=recipe, **options))
        if self.error is not None:
            raise self.error
        folder = options["out"] or Path("runs") / recipe.name
        return SimpleNamespace(report=self.report, folder=folder, seconds=3.0, cached=self.cached)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    stand_in = Pipeline()
    module = ModuleType("paredown.recipes.pipeline")
    module.run_recipe = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(
        "paredown.recipes.report.print_summary", lambda report, console: console.print("figures")
    )
    monkeypatch.delenv("RANK", raising=False)
    return stand_in


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "report.json").write_text(json.dumps(REPORT), encoding="utf-8")
    return tmp_path


# Speed


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from paredown.recipes.cli import main; code = main(['--help']);"
        f"print([name for name in {HEAVY} if name in sys.modules], code)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[] 0"


def test_help_answers_at_once() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "paredown", "--help"], check=True, stdout=subprocess.DEVNULL
        )
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.4


@pytest.mark.parametrize("module", ["paredown", "paredown.recipes"])
def test_it_starts_as_a_module(module: str) -> None:
    out = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == paredown.__version__


# Arguments


@pytest.mark.parametrize(
    "words", [[], ["ran"], ["run"], ["gate"], ["run", "search_query", "--smok"], ["gate", "x", "y"]]
)
def test_a_wrong_command_exits_with_2(words: list[str]) -> None:
    assert cli.main(words) == 2


def test_a_wrong_recipe_exits_with_2_and_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "search_query", "prune.layerz=2"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("paredown: search_query.yaml (shipped) has 1 problem:\n")
    assert "Traceback" not in said.err


def test_debug_shows_where_an_error_arose() -> None:
    with pytest.raises(paredown.RecipeError):
        cli.main(["check", "nothing", "--debug"])


def test_check_says_whose_outputs_a_student_learns(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "query_filters"]) == 0
    assert "teacher made in the run" in " ".join(capsys.readouterr().out.split())


def test_check_says_that_a_recipe_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "search_query", "seed=3"]) == 0
    assert "search_query is fine" in capsys.readouterr().out


# Running


def test_run_hands_everything_on(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(["run", "search_query", "seed=1", "--out", str(tmp_path), "prune.layers=3"]) == 0
    )
    (call,) = pipeline.calls
    assert (call.recipe.seed, call.recipe.prune.layers) == (1, 3)
    assert (call.out, call.smoke) == (tmp_path, False)
    assert capsys.readouterr().out.splitlines() == [
        "figures",
        "Verdict: fail. too little is kept",
        f"Report: {tmp_path / 'report.html'}",
    ]


def test_strict_exits_with_3_after_showing_the_figures(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "search_query", "--strict"]) == 3
    said = capsys.readouterr()
    assert "figures" in said.out
    assert "The target is not met (fail): too little is kept" in said.err
    assert pipeline.report is not None
    pipeline.report["verdict"] = "undecided"
    assert cli.main(["run", "search_query", "--strict"]) == 3
    pipeline.report["verdict"] = "pass"
    assert cli.main(["run", "search_query", "--strict"]) == 0


def test_a_finished_run_says_that_there_was_nothing_to_do(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.cached = True
    assert cli.main(["run", "search_query"]) == 0
    assert "Nothing to do" in capsys.readouterr().out


def test_a_smoke_run_has_no_verdict(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.report = {**REPORT, "smoke": True}
    assert cli.main(["run", "search_query", "--smoke"]) == 0
    out = capsys.readouterr().out
    assert "Smoke run finished" in out
    assert "report.json" in out
    assert "Verdict" not in out


def test_smoke_and_strict_contradict_each_other(pipeline: Pipeline) -> None:
    assert cli.main(["run", "search_query", "--smoke", "--strict"]) == 2
    assert not pipeline.calls


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RunError("the stage 'capture' failed"), 1, "the stage 'capture' failed"),
        (KeyboardInterrupt(), 130, "What was finished is kept"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space is left on the disk"),
        (ValueError("I/O error: No space left on device (os error 28)"), 1, "what was finished"),
    ],
)
def test_a_failed_run_says_what_happened(
    pipeline: Pipeline,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    pipeline.error = error
    assert cli.main(["run", "search_query"]) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_fault_of_our_own_keeps_its_traceback(pipeline: Pipeline) -> None:
    pipeline.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "search_query"])


def test_of_several_processes_only_the_first_speaks(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["run", "search_query"]) == 0
    assert cli.main(["run", "serch_query"]) == 2
    assert capsys.readouterr() == ("", "")
    pipeline.error = RunError("my shard")
    assert cli.main(["run", "search_query"]) == 1
    assert capsys.readouterr().err == "paredown (process 1): my shard\n"


def test_a_module_of_the_current_folder_can_register_a_metric(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_metrics.py").write_text(
        "from paredown import Metric, register_metric\n"
        "from paredown.eval.metrics import correct\n"
        "register_metric(Metric('my_accuracy', 'class_logits', correct))\n"
    )
    from paredown.eval.metrics import METRICS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ["check", "query_intent", "target.metric=my_accuracy"]
    try:
        assert cli.main(words) == 2
        assert cli.main([*words, "--import", "my_metrics"]) == 0
    finally:
        METRICS.pop("my_accuracy", None)
        sys.modules.pop("my_metrics", None)


def test_a_module_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "search_query", "--import", "no_such_module.at_all"]) == 2
    assert "--import no_such_module.at_all: there is no such module" in capsys.readouterr().err


def test_a_module_that_lacks_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "needy.py").write_text("import no_such_dependency\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(["check", "search_query", "--import", "needy"]) == 2
    assert "it imports 'no_such_dependency', which is not installed" in capsys.readouterr().err


# Recipes


def test_shipped_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "list"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(packaged_recipes())
    assert re.search("search_query +Answer searches", out)


def test_a_shipped_recipe_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "show", "query_intent"]) == 0
    assert capsys.readouterr().out == packaged_recipes()["query_intent"]


def test_a_copy_is_the_recipe_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipes", "copy", "search_query"]) == 0
    copied = tmp_path / "search_query.yaml"
    assert copied.read_text(encoding="utf-8") == packaged_recipes()["search_query"]
    copied.write_text("mine")
    assert cli.main(["recipes", "copy", "search_query"]) == 2
    assert copied.read_text() == "mine"
    assert cli.main(["recipes", "copy", "search_query", "nowhere/a.yaml"]) == 2
    assert cli.main(["recipes", "copy", "search_query", "other.yaml"]) == 0
    assert "is there already" in capsys.readouterr().err


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "paredown recipe"


# Reports and gates


def test_a_gate_prints_a_line_for_each_criterion_and_exits_with_3(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["gate", str(run_folder), "--retain", "0.95", "--compute", "0.7"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["retain  >= 0.95", "compute <= 0.7"]
    assert cli.main(["gate", str(run_folder), "--retain", "0.85"]) == 0
    assert cli.main(["gate", str(run_folder)]) == 2
    assert cli.main(["gate", str(run_folder / "nothing"), "--retain", "0.9"]) == 2


def test_a_report_is_shown_with_its_page(
    pipeline: Pipeline, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(run_folder)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "figures"
    assert out.splitlines()[-1] == f"Report: {run_folder / 'report.html'}"


# Doctor


def test_doctor_says_which_precision_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("python", "processor", "precision", "torch", "transformers"):
        assert f"\n{word} " in out
    assert "not asked (HF_HUB_OFFLINE is set)" in out


def test_doctor_gives_a_hub_that_is_out_of_reach_little_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    start = time.perf_counter()
    assert doctor.hub_state(timeout=1.0).startswith("out of reach")
    assert time.perf_counter() - start < 3


# The same from Python


def test_python_runs_a_recipe(pipeline: Pipeline) -> None:
    result = paredown.run("search_query", {"prune.layers": 3}, seed=1, out="somewhere")
    (call,) = pipeline.calls
    assert (call.recipe.seed, call.recipe.prune.layers) == (1, 3)
    assert result.folder == Path("somewhere")
    with pytest.raises(paredown.TargetNotMet):
        paredown.run("search_query", strict=True)


def test_python_checks_a_recipe_and_names_the_wrong_key() -> None:
    assert paredown.check("search_query", seed=4).seed == 4
    with pytest.raises(paredown.RecipeError, match=r"sead: unknown key\. Did you mean 'seed'"):
        paredown.check("search_query", sead=4)


def test_a_report_without_its_figures_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text('{"schema": 1}')
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "is damaged: it has no" in capsys.readouterr().err


def test_python_reads_reports_and_gates(run_folder: Path) -> None:
    assert paredown.report(run_folder)["verdict"] == "fail"
    assert [c.met for c in paredown.gate(run_folder, compute=0.5)] == [True]
    assert set(paredown.list_recipes()) == set(packaged_recipes())


def test_everything_public_is_there_and_importing_paredown_is_light() -> None:
    for name in paredown.__all__:
        assert getattr(paredown, name) is not None
        assert name in dir(paredown)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        paredown.nothing  # noqa: B018
    code = f"import sys, paredown; print([n for n in {HEAVY} if n in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert os.path.exists(Path(paredown.__path__[0]) / "py.typed")
