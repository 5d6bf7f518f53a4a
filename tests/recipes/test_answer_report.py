"""The report of answers in text: slices, costs of an answer, what was recorded, what was cut."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from paredown.recipes.answer_report import recorded_lines
from paredown.recipes.cost_rows import cost_rows, unit
from paredown.recipes.html import page
from paredown.recipes.model_card import card_metadata, model_card
from paredown.recipes.report import print_summary

Make = Callable[..., dict[str, Any]]

NEW = {"architecture": "llama", "vocabulary": 1024, "config": {"hidden_size": 256}}
RECIPE: dict[str, Any] = {
    "name": "filters",
    "task": "generation",
    "data": {"source": "query_filters"},
    "teacher": {"kind": "checkpoint", "model": None, "new": NEW, "finetune": {"epochs": 2}},
    "prune": {"layers": 2, "intermediate_size": 512},
    "distill": {"epochs": 2, "losses": {"forward_kl": {"weight": 1.0}}, "on_policy": 0.5},
    "generation": {"max_new_tokens": 64, "template": {"enable_thinking": False}, "settings": {}},
    "target": {"metric": "exact_match", "retain": 0.96, "compute": 0.25},
}
RECORDED: dict[str, Any] = {
    "kind": "checkpoint",
    "encoding": "topk",
    "k": 16,
    "draws": None,
    "over": "references",
    "items": 12_345,
    "bytes_per_token": 46.99,
    "divergence": {
        "tokens": 2048,
        "bytes_per_token": 47.0,
        "total_variation": 0.04,
        "kl": 0.0057,
        "kl_bucketed": 4e-8,
        "rest": 0.031,
    },
    "hidden": {},
    "unfinished": None,
    "unmapped_mass": None,
    "refused": {},
    "truncated": {"teacher": 0, "capture": 3},
    "endpoint": {},
}
ASKED = {
    "recorded": 200, "requests": 207, "retries": 7, "prompt_tokens": 9000, "usd": 0.126,
    "completion_tokens": 3345, "truncated": 4, "filtered": 0, "refused": 1, "empty": 0,
}  # fmt: skip


@pytest.fixture
def report(make_report: Make) -> dict[str, Any]:
    """A run of a generation task whose teacher was made in the run."""
    full = make_report()
    answer = {"prefill_flops": 4e7, "decode_flops": 6e7, "new_tokens": 17.25, "unfinished": 3,
              "kv_cache_bytes": 98_304.0}  # fmt: skip
    more = {"tokens_per_s": 321.0, "ttft_ms_p50": 2.5}
    sides = {
        side: {**full["cost"][side], **more, "answer": answer} for side in ("teacher", "student")
    }
    quality = {
        **full["quality"],
        "metric": "exact_match",
        "metrics": {
            "exact_match": {"teacher": 0.9, "student": 0.88, "higher_is_better": True},
            "invalid_json": {"teacher": 0.01, "student": 0.04, "higher_is_better": False},
        },
        "slices": [
            {"name": "new phrasings", "rows": 1200, "teacher": 0.92, "student": 0.9},
            {"name": "new <combinations>", "rows": 812, "teacher": 0.8, "student": 0.6},
        ],
    }
    timing = {**full["measurements"][0], "tokens_per_s": 321.0, "ttft": {"p50": 2.5, "p90": 3.0}}
    return make_report(
        recipe=RECIPE, quality=quality, recorded=RECORDED, measurements=[timing], **sides
    )


def said(report: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_summary(report, Console(file=stream, width=120))
    return stream.getvalue()


def test_costs_are_of_an_answer_where_there_are_answers(
    report: dict[str, Any], make_report: Make
) -> None:
    assert (unit(report["cost"]), unit(make_report()["cost"])) == ("answer", "row")
    rows = {row.label: row.student for row in cost_rows(report["cost"])}
    assert rows["compute per answer"] == "111 MFLOP"
    assert rows["– of it the prompt (prefill)"] == "40.0 MFLOP"
    assert rows["– of it the answer (decode)"] == "60.0 MFLOP"
    assert rows["answers cut at the limit"] == "3" and rows["tokens written per answer"] == "17.2"
    assert rows["cache of keys and values"] == "98.3 kB"
    assert rows["time to first token, p50"] == "2.50 ms" and rows["writing speed"] == "321 tokens/s"
    plain = [row.label for row in cost_rows(make_report()["cost"])]
    assert "compute per row" in plain and not [label for label in plain if "token" in label]


def test_a_model_that_was_not_measured_has_no_zeros(report: dict[str, Any]) -> None:
    nothing = dict.fromkeys(report["cost"]["teacher"])
    rows = cost_rows({**report["cost"], "teacher": nothing})
    assert {row.teacher for row in rows} == {"not measured"}


def test_slices_stand_beside_the_metrics_everywhere(report: dict[str, Any]) -> None:
    text = said(report)
    assert "new phrasings, 1,200 rows (exact_match)" in text and "75.0 %" in text
    html = page(report, [])
    assert "By kind of row" in html and "new &lt;combinations&gt;" in html
    assert "| `exact_match of new phrasings (1,200 rows)` | 0.9200 | 0.9000 |" in model_card(report)


def test_less_errors_are_not_said_to_be_kept(report: dict[str, Any]) -> None:
    (line,) = [line for line in said(report).splitlines() if "invalid_json" in line]
    assert "0.0400" in line and "%" not in line and "not measured" not in line
    html = page(report, [])
    row = html[html.index("invalid_json</th>") :].split("</tr>")[0]
    assert row.endswith("<td>0.0400</td><td></td>")
    assert "400.0 %" not in html + said(report)


def test_the_page_speaks_of_answers(report: dict[str, Any], make_report: Make) -> None:
    html = page(report, [])
    for words in ("Per answer", "an answer", "Tokens/s", "First token", "(prefill)", "(decode)"):
        assert words in html
    assert "What was recorded" in html and "Rows/s" not in html
    other = page(make_report(), [])
    assert "Per row" in other and "Rows/s" in other
    for words in ("What was recorded", "answer</th>", "Tokens/s", "By kind of row"):
        assert words not in other


def test_what_was_recorded_is_told(report: dict[str, Any]) -> None:
    text = " ".join(said(report).split())
    for words in (
        "12,345 distinct rows, the 16 largest of each token (topk), 47.0 bytes a token",
        "2,048 tokens: 3.1 % of the probability lies outside the largest",
        "KL of 4.0e-08 nats, and by 5.7e-03 with the rest spread evenly",
        "Completions cut to the maximum length: 3 in the stage capture.",
    ):
        assert words in text
        assert words in model_card(report)


def test_nothing_cut_is_said_too_and_nothing_known_is_not() -> None:
    assert "No completion was cut" in " ".join(
        recorded_lines({**RECORDED, "truncated": {"capture": 0}})
    )
    assert "cut" not in " ".join(recorded_lines({**RECORDED, "truncated": {}}))
    assert recorded_lines(None) == []


def test_each_encoding_says_what_it_is() -> None:
    draws = {"tokens": 9, "bytes_per_token": 1, "total_variation": 0.2, "kl_of_draws": 0.3,
             "bias_squared": 1e-5, "bias_squared_error": 2e-5}  # fmt: skip
    (what, how, *_) = recorded_lines(
        {**RECORDED, "encoding": "sampled", "k": None, "draws": 50, "divergence": draws}
    )
    assert "50 draws" in what and "1.0e-05 ± 2.0e-05" in how
    full = {"tokens": 9, "bytes_per_token": 1, "total_variation": 0.2, "kl": 1e-6}
    (what, how, *_) = recorded_lines({**RECORDED, "encoding": "full", "divergence": full})
    assert "in full" in what and "by 1.0e-06 nats" in how
    texts = {"encoding": "text", "over": None, "bytes_per_token": None, "divergence": None}
    lines = recorded_lines({**RECORDED, **texts})
    assert "texts alone" in lines[0] and "nats" not in " ".join(lines)


def test_recorded_layers_are_told_with_what_they_lose() -> None:
    layers = {"3": {"rank": 8, "bytes_per_token": 10.0, "error": 0.0417}}
    text = " ".join(recorded_lines({**RECORDED, "hidden": layers}))
    assert (
        "Token vectors of layer 3: 8 components, 10.0 bytes a token, reconstruction error 0.0417."
        in text
    )


def test_an_endpoint_and_its_losses_are_told() -> None:
    text = " ".join(
        recorded_lines(
            {
                **RECORDED,
                "unmapped_mass": 0.0123,
                "refused": {"unknown token": 2, "two ways": 1},
                "unfinished": 12,
                "endpoint": {"capture": ASKED},
            }
        )
    )
    assert "1.23 % of the probability" in text and "teacher.tokenizer" in text
    assert "3 answers are not learned from (unknown token: 2, two ways: 1)" in text
    assert "12 of the teacher's own completions ended at generation.max_new_tokens" in text
    assert "200 answers for the stage capture: 207 requests, 7 of them tried again" in text
    assert "12,345 tokens, 0.13 USD; 4 ended at the length limit, 1 refused." in text
    assert "empty" not in text


def test_the_card_of_a_teacher_made_in_the_run(report: dict[str, Any]) -> None:
    metadata, card = card_metadata(report), model_card(report)
    assert metadata["pipeline_tag"] == "text-generation"
    assert not {"base_model", "base_model_relation", "datasets"} & set(metadata)
    assert "None" not in card
    assert "pared down from a teacher made and trained in the same run" in card
    assert "a `llama` of random weights" in card and "completions for 2 epochs" in card
    assert "For 50 % of the rows the student wrote" in card
    assert 'pipeline("text-generation"' in card and "max_new_tokens=64" in card
    assert "enable_thinking" in card and "| per answer |" in card


def test_the_card_of_a_student_of_an_endpoint(report: dict[str, Any]) -> None:
    teacher = {"kind": "endpoint", "model": "big-one", "endpoint": {"base_url": "http://x/v1"}}
    recipe = {**RECIPE, "teacher": teacher, "student": {"model": "org/small"}, "prune": None}
    changed = {**report, "recipe": recipe}
    assert card_metadata(changed)["base_model"] == "org/small"
    assert "learned from `big-one` behind an endpoint" in model_card(changed)
