"""What a run cost: sums, prices, when it has paid, and what is said where it is not known."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from paredown.eval.errors import RecipeError
from paredown.recipes.api import check
from paredown.recipes.ledger import break_even, ledger_lines, ledger_of, spent_record
from paredown.recipes.report import print_summary
from paredown.recipes.report_schema import Ledger, Spent
from paredown.recipes.schema import Recipe
from paredown.recipes.store import Folder
from paredown.recipes.timing_notes import timing_notes

BASE: dict[str, Any] = {
    "name": "small",
    "task": "retrieval",
    "data": {"source": "python_docs"},
    "teacher": {"model": "a/teacher"},
    "prune": {"layers": 1},
    "evaluate": {"usd_per_hour": 0.36},
}
ENDPOINT: dict[str, Any] = {
    "name": "asked",
    "task": "generation",
    "data": {"source": "query_filters"},
    "teacher": {
        "kind": "endpoint",
        "model": "m",
        "endpoint": {
            "base_url": "http://127.0.0.1:1/v1",
            "usd_per_million_input": 1.0,
            "usd_per_million_output": 2.0,
        },
    },
    "student": {"model": "a/student"},
    "distill": {"losses": {"cross_entropy": 1.0}},
    "evaluate": {"usd_per_hour": 0.36},
}


def folders(**records: Mapping[str, Any]) -> dict[str, Folder]:
    """Stages with these records; the names' underscores stand for hyphens."""
    plain = {"cores": 2, "world_size": 1, "energy_joules": None, "energy_source": None}
    names = {name.replace("_", "-"): record for name, record in records.items()}
    return {
        name: Folder(name, Path(name), {**plain, "fingerprint": name, **record}, cached=True)
        for name, record in names.items()
    }


def priced(side: str, usd: float | None, **changes: Any) -> dict[str, Any]:
    """A measurement of batches."""
    return {"side": side, "scenario": "offline", "usd_per_million": usd, **changes}


TIMES = [
    priced("teacher", 3.0),
    priced("student", 2.0),
    priced("student", 1.0),
    {"side": "student"},
]


def test_stages_are_added_up() -> None:
    made = folders(
        capture={"seconds": 100, "flops": 1e12, "energy_joules": 50.0, "energy_source": "RAPL a"},
        distill={"seconds": 50, "flops": 4e12, "energy_joules": 25.0, "energy_source": "RAPL a",
                 "world_size": 3},
        evaluate={"seconds": 10, "energy_joules": 5.0, "energy_source": "RAPL a"},
    )  # fmt: skip
    found = ledger_of(check(BASE), made, [], TIMES)
    assert set(found) == set(get_type_hints(Ledger))
    assert [set(line) for line in found["stages"]] == [set(get_type_hints(Spent))] * 3
    assert [line["usd"] for line in found["stages"]] == pytest.approx([0.02, 0.03, 0.002])
    total = found["total"]
    assert (total["seconds"], total["flops"], total["energy_joules"]) == (160, 5e12, 80)
    assert total["usd"] == pytest.approx(0.052)
    assert found["energy_source"] == "RAPL a" and found["endpoint_usd"] is None
    assert (found["teacher"], found["student"]) == (3e-6, 1e-6)
    assert found["break_even"] == 26_000 and found["reason"] == ""


def test_trials_of_a_search_are_one_line() -> None:
    trials = [
        spent_record({"seconds": 10, "cores": 1, "flops": 2e9, "name": "distill", "settings": {}}),
        spent_record({"seconds": 20, "cores": 1, "energy_joules": 4.0}),
    ]
    assert "settings" not in trials[0]
    found = ledger_of(check(BASE), folders(data={"seconds": 1, "energy_joules": 1.0}), trials, [])
    line = found["stages"][-1]
    assert line["name"] == "search (2 stages)" and line["seconds"] == 30
    assert line["flops"] == 2e9 and line["usd"] == pytest.approx(0.003)
    assert line["energy_joules"] is None and found["total"]["energy_joules"] is None


def test_without_a_price_there_is_no_money() -> None:
    recipe = check({**BASE, "evaluate": {}})
    found = ledger_of(recipe, folders(data={"seconds": 5}), [], [priced("student", None)])
    assert found["total"]["usd"] is None and found["stages"][0]["usd"] is None
    assert found["break_even"] is None and "set evaluate.usd_per_hour" in found["reason"]


def test_a_stage_of_an_earlier_version_has_no_price() -> None:
    made = folders(data={"seconds": 5, "cores": None}, distill={"seconds": 5})
    found = ledger_of(check(BASE), made, [], TIMES)
    assert found["stages"][0]["usd"] is None and found["total"]["usd"] is None
    assert found["break_even"] is None and "earlier version" in found["reason"]


def test_an_endpoint_is_charged_and_priced_by_what_it_charged() -> None:
    made = folders(
        capture={"seconds": 0, "endpoint": {"usd": 0.5, "recorded": 1000}},
        evaluate_teacher={"seconds": 0, "endpoint": {"usd": 0.02, "recorded": 100}},
    )
    found = ledger_of(check(ENDPOINT), made, [], TIMES)
    assert found["endpoint_usd"] == pytest.approx(0.52)
    assert found["total"]["usd"] == pytest.approx(0.52)
    assert found["teacher"] == pytest.approx(2e-4)
    assert found["break_even"] == math.ceil(found["total"]["usd"] / (2e-4 - 1e-6))


def test_an_endpoint_without_prices_is_not_free() -> None:
    teacher = {**ENDPOINT["teacher"], "endpoint": {"base_url": "http://127.0.0.1:1/v1"}}
    made = folders(evaluate_teacher={"seconds": 0, "endpoint": {"usd": 0.0, "recorded": 100}})
    found = ledger_of(check({**ENDPOINT, "teacher": teacher}), made, [], [priced("student", 1.0)])
    assert found["endpoint_usd"] is None and found["teacher"] is None
    assert found["break_even"] is None and "neither measured here nor charged" in found["reason"]


positive = st.floats(1e-9, 1e3)


@given(total=positive, teacher=positive, student=positive)
def test_the_break_even_is_the_first_query_that_pays(
    total: float, teacher: float, student: float
) -> None:
    count, reason = break_even(total, teacher, student)
    if teacher <= student:
        assert count is None and "saves nothing" in reason
        return
    assert count is not None and reason == ""
    saved = teacher - student
    assert count * saved >= total * (1 - 1e-9)
    assert (count - 1) * saved < total * (1 + 1e-9)


@pytest.mark.parametrize(
    ("figures", "options", "words"),
    [
        ((1.0, 2.0, 1.0), {"smoke": True}, "smoke run"),
        ((1.0, 2.0, 1.0), {"priced": False}, "evaluate.usd_per_hour"),
        ((1.0, 2.0, None), {}, "was not measured"),
        ((1.0, None, 1.0), {}, "neither measured here nor charged"),
        ((None, 2.0, 1.0), {}, "earlier version"),
        ((1.0, 1.0, 1.0), {}, "saves nothing: a million queries cost it 1,000,000 USD"),
    ],
)
def test_where_nothing_pays_the_reason_is_told(
    figures: tuple[float | None, float | None, float | None], options: dict[str, bool], words: str
) -> None:
    count, reason = break_even(*figures, **options)
    assert count is None and words in reason


def test_the_summary_says_what_was_spent(make_report: Callable[..., dict[str, Any]]) -> None:
    made = folders(distill={"seconds": 75, "flops": 4e15}, capture={"seconds": 10})
    ledger = ledger_of(check(BASE), made, [], TIMES)
    spent, paid = ledger_lines(ledger)
    assert spent == (
        "Spent on this run: 1 min 25 s in 2 stages, 4.00 PFLOP of recording and training, "
        "energy not measured, 0.0170 USD."
    )
    assert paid == (
        "Paid for after 8,500 queries (a million cost the teacher 3.00 USD and the student "
        "1.00 USD)."
    )
    stream = io.StringIO()
    print_summary(make_report(ledger=ledger), Console(file=stream, width=200))
    assert spent in stream.getvalue() and paid in stream.getvalue()
    assert ledger_lines(None) == []
    ledger |= {"break_even": None, "reason": "No price is given."}
    assert ledger_lines(ledger)[1].endswith("No price is given.")


@pytest.mark.parametrize("price", ["0", "-1", "0.0"])
def test_a_price_of_nothing_is_refused(price: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check("search_query", [f"evaluate.usd_per_hour={price}"])
    message = str(caught.value)
    assert "evaluate.usd_per_hour: expected a value greater than 0, got" in message


def test_a_bound_needs_rows_that_are_timed() -> None:
    asked = ["evaluate.server_ms=5", "evaluate.latency_rows=0"]
    with pytest.raises(RecipeError, match=r"evaluate\.server_ms: starts from the times of single"):
        check("search_query", asked)
    with pytest.raises(RecipeError, match=r"evaluate\.server_ms: expected a value greater than 0"):
        check("search_query", ["evaluate.server_ms=0"])


def test_a_busy_machine_and_a_bound_that_nothing_meets_are_noted() -> None:
    quiet = {"busy_before": 0.05, "busy_during": None, "rate_per_s": 9.0}
    assert timing_notes([]) == timing_notes([quiet]) == []
    (note,) = timing_notes([quiet, {"busy_before": 0.05, "busy_during": 0.4}])
    assert "not idle" in note and "40% used by others meanwhile" in note and "before" not in note
    (note,) = timing_notes([{**quiet, "busy_before": 0.3, "busy_during": 0.4}])
    assert "30% of its processors in use before, 40% used" in note
    unmet = {"side": "teacher", "runtime": "pytorch", "precision": "fp32", "bound_ms": 5.0}
    (note,) = timing_notes([quiet | unmet | {"rate_per_s": 0}])
    assert "within 5.00 ms by the teacher on pytorch fp32" in note


def test_the_page_about_costs_says_what_the_program_does() -> None:
    from paredown.recipes.baselines import BASELINES
    from paredown.recipes.yaml_source import YamlSource

    page = (Path(__file__).parents[2] / "docs" / "cost.md").read_text(encoding="utf-8")
    (text,) = [part.split("```")[0] for part in page.split("```yaml\n")[1:]]
    asked = YamlSource(text).value["evaluate"]
    recipe: Recipe = check("search_query", {f"evaluate.{key}": v for key, v in asked.items()})
    assert recipe.evaluate.server_ms == 20
    (block,) = [part.split("```")[0] for part in page.split("```bash\n")[1:]]
    for line in block.splitlines():
        name, override = line.removeprefix("paredown run ").split(" ", 1)
        assert check(name, [override.strip("'")]).evaluate.baselines
    table = page.split("| word |")[1].split("\n\n")[0]
    assert all(f"| `{name}` |" in table for name in BASELINES)
