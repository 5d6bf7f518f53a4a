"""Metrics of texts equal slow independent formulas, and decisions stand for texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.eval.errors import DataError, RecipeError, RunError
from paredown.eval.hub_metrics import as_evaluate_metric
from paredown.eval.metrics import METRICS, get_metric, score_texts, text_metric
from paredown.eval.text_metrics import Texts, common_subsequence, last_number

WORDS = st.lists(st.sampled_from(["red", "Shoe", "the", "a", "42", "é", "café,"]), max_size=12)


def slow_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            up = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else up
    return table[-1][-1]


def f_measure(shared: float, ours: int, theirs: int) -> float:
    if not ours and not theirs:
        return 1.0
    if not shared:
        return 0.0
    precision, recall = shared / ours, shared / theirs
    return 2 * precision * recall / (precision + recall)


def one(metric: str, text: str, reference: str) -> float:
    return score_texts([text], [reference], [metric]).value(metric)


@given(first=WORDS, second=WORDS)
def test_rouge_l_equals_the_table_of_the_definition(first: list[str], second: list[str]) -> None:
    assert common_subsequence(first, second) == slow_subsequence(first, second)
    ours, theirs = (
        re.findall(r"\w+", unicodedata.normalize("NFC", " ".join(words)).lower())
        for words in (first, second)
    )
    expected = f_measure(slow_subsequence(ours, theirs), len(ours), len(theirs))
    assert one("rouge_l", " ".join(first), " ".join(second)) == pytest.approx(expected)


@given(first=WORDS, second=WORDS)
def test_token_f1_counts_shared_words_without_articles(first: list[str], second: list[str]) -> None:
    ours, theirs = (
        [word.lower().strip(",") for word in words if word not in ("the", "a")]
        for words in (first, second)
    )
    left, shared = list(theirs), 0
    for word in ours:
        if word in left:
            left.remove(word)
            shared += 1
    expected = f_measure(shared, len(ours), len(theirs))
    assert one("token_f1", " ".join(first), " ".join(second)) == pytest.approx(expected)


def test_known_values() -> None:
    assert one("token_f1", "The red shoe.", "a red, red shoe!") == pytest.approx(0.8)
    assert one("rouge_l", "police kill the gunman", "police killed the gunman") == 0.75
    assert one("token_f1", "the", "...") == 1.0
    assert one("token_f1", "", "red") == 0.0
    assert one("rouge_l", "?!", "") == 1.0


def test_exact_match_ignores_composition_and_space_around_and_nothing_else() -> None:
    assert one("exact_match", " caf\u0065\u0301\n", "caf\u00e9") == 1.0
    for other in ("Café", "cafe", "café.", "ca fé", ""):
        assert one("exact_match", other, "café") == 0.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12 of 1,250.5 pages", 1250.5),
        ("-3", -3.0),
        ("10-20", 20.0),
        ("so 1,2345", 2345.0),
        ("1.5e3.", 1500.0),
        (".5", 0.5),
        ("the answer is 42.", 42.0),
        ("size42", 42.0),
        ("none", None),
        ("", None),
        ("1e999", None),
    ],
)
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_numbers_match_within_a_millionth() -> None:
    assert one("numeric_match", "about 1000000.9", "1,000,000") == 1.0
    assert one("numeric_match", "1000002", "1000000") == 0.0
    assert one("numeric_match", "0", "0.0") == 1.0
    assert one("numeric_match", "none", "none") == 0.0


@settings(max_examples=30)
@given(texts=st.lists(st.text(max_size=6), min_size=1, max_size=8))
def test_decisions_are_equal_for_equal_texts_in_every_call(texts: list[str]) -> None:
    first = score_texts(texts, texts)
    again = score_texts(texts[::-1], texts)
    assert first.agreement(score_texts(texts, [""] * len(texts))) == 1.0
    assert first.decisions[::-1].tolist() == again.decisions.tolist()
    same = [unicodedata.normalize("NFC", text).strip() for text in texts]
    assert len(set(first.decisions.tolist())) == len(set(same))
    assert first.decisions.min() >= 0 and first.top.shape == (len(texts), 1)


def test_a_decision_is_the_same_in_every_process() -> None:
    assert score_texts(["a"], ["a"]).decisions.tolist() == [4621899117637547996]


def test_metrics_of_special_answers_run_only_where_they_are_named() -> None:
    assert list(score_texts(["a"], ["a"]).values()) == ["exact_match", "token_f1", "rouge_l"]
    assert list(score_texts(["1"], ["1"], ["numeric_match"]).values()) == ["numeric_match"]


def test_a_metric_of_our_own_judges_texts() -> None:
    def shorter(judged: Texts) -> np.ndarray:
        pairs = zip(judged.texts, judged.references, strict=True)
        return np.array([len(text) < len(reference) for text, reference in pairs])

    METRICS["shorter"] = text_metric("shorter", shorter, any_text=False)
    try:
        assert score_texts(["a", "bb"], ["aa", "b"], ["shorter"]).value("shorter") == 0.5
    finally:
        del METRICS["shorter"]


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(RunError, match="a reference for each of 2 texts, got 1"):
        score_texts(["a", "b"], ["a"])
    with pytest.raises(DataError, match="at least one test row with a completion"):
        score_texts([], [])
    with pytest.raises(RecipeError, match="judges token distribution, but this task gives class"):
        get_metric("rouge_l", "class_logits")


def test_evaluate_gives_the_same_value(tmp_path: object) -> None:
    metric = as_evaluate_metric("token_f1", cache_dir=str(tmp_path))
    found = metric.compute(predictions=["red shoe", "x"], references=["red", "x"])
    assert found == {"token_f1": pytest.approx((2 / 3 + 1) / 2)}
