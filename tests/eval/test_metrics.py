"""Metrics against independent formulas in float64, scikit-learn, and their edge cases."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import accuracy_score, f1_score, ndcg_score

from paredown.eval import ranking
from paredown.eval.errors import DataError, RecipeError, RunError
from paredown.eval.hub_metrics import as_evaluate_metric, hub_metric
from paredown.eval.metrics import (
    METRICS,
    Metric,
    get_metric,
    register_metric,
    score_classes,
    score_decisions,
    score_ranking,
    score_top,
)
from paredown.eval.tasks import TASKS


def plain_ranking(top: list[int], grades: dict[int, int], depth: int) -> dict[str, float]:
    """The ranking metrics of one query, written as their definitions."""
    found = [grades.get(row, 0) for row in top]
    first = next((1 / (i + 1) for i, g in enumerate(found[:10]) if g > 0), 0.0)
    gain = sum(g / math.log2(i + 2) for i, g in enumerate(found[:10]))
    best = sorted(grades.values(), reverse=True)[:10]
    return {
        "mrr@10": first,
        "recall@1": sum(g > 0 for g in found[:1]) / len(grades),
        "recall@10": sum(g > 0 for g in found[:10]) / len(grades),
        "ndcg@10": gain / sum(g / math.log2(i + 2) for i, g in enumerate(best)),
    }


def test_every_metric_of_a_task_exists_for_its_signal() -> None:
    for task in TASKS.values():
        for name in (*task.metrics, task.default_metric):
            assert get_metric(name, task.signal).name == name


@given(st.integers(1, 60), st.integers(2, 90), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_classification_equals_scikit_learn(rows: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.standard_normal((rows, classes))
    logits[np.arange(rows), labels] += rng.integers(0, 3)
    scores = score_classes(logits, labels)
    decided = logits.argmax(axis=1)
    assert (scores.decisions == decided).all()
    assert scores.value("accuracy") == pytest.approx(accuracy_score(labels, decided), abs=1e-12)
    wanted = f1_score(labels, decided, average="macro", zero_division=0)
    assert scores.value("macro_f1") == pytest.approx(wanted, abs=1e-12)


def test_macro_f1_leaves_out_classes_that_neither_labels_nor_decisions_hold() -> None:
    present = score_decisions([0, 1, 1], [0, 1, 0], classes=2).value("macro_f1")
    assert score_decisions([0, 1, 1], [0, 1, 0], classes=50).value("macro_f1") == present
    assert present == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_macro_f1_counts_a_class_that_is_only_decided_or_only_labelled() -> None:
    assert score_decisions([2], [1], classes=3).value("macro_f1") == 0.0
    assert score_decisions([0, 2], [0, 1], classes=3).value("macro_f1") == pytest.approx(1 / 3)


def test_macro_f1_statistics_stay_small_with_many_classes() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5000, 2000)
    scores = score_decisions(rng.integers(0, 5000, 2000), labels, classes=5000)
    statistics = scores.statistics["macro_f1"]
    assert sparse.issparse(statistics)
    assert statistics.shape == (2000, 15000)
    assert sparse.csr_array(statistics).nnz <= 4000


def test_equal_logits_decide_the_lowest_class() -> None:
    scores = score_classes([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]], [0, 1])
    assert scores.decisions.tolist() == [0, 1]
    assert scores.top.tolist() == [[0, 1, 2], [1, 2, 0]]


def test_one_row_right_and_one_row_wrong() -> None:
    assert score_classes([[0.0, 1.0]], [1]).values() == {"accuracy": 1.0, "macro_f1": 1.0}
    assert score_classes([[1.0, 0.0]], [1]).values() == {"accuracy": 0.0, "macro_f1": 0.0}


def test_classification_refuses_what_cannot_be_judged() -> None:
    with pytest.raises(DataError, match="row 1 has label -1"):
        score_classes([[0.0, 1.0], [0.0, 1.0]], [1, -1])
    with pytest.raises(DataError, match="label 2, but the classes are 0 to 1"):
        score_classes([[0.0, 1.0]], [2])
    with pytest.raises(DataError, match="at least one test row"):
        score_classes(np.empty((0, 2)), [])
    with pytest.raises(RunError, match="NaN"):
        score_classes([[np.nan, 1.0]], [1])
    with pytest.raises(RunError, match="label for each of 1 rows"):
        score_classes([[0.0, 1.0]], [1, 1])
    with pytest.raises(RunError, match="shape"):
        score_classes([0.0, 1.0], [1])


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_ranking_equals_its_definitions(data: st.DataObject) -> None:
    texts = data.draw(st.integers(1, 30))
    queries = data.draw(st.integers(1, 6))
    block = data.draw(st.integers(1, 40))
    # Whole numbers make exact ties likely.
    values = st.integers(-2, 2)
    matrix = data.draw(
        st.lists(st.lists(values, min_size=3, max_size=3), min_size=texts, max_size=texts)
    )
    asked = data.draw(
        st.lists(st.lists(values, min_size=3, max_size=3), min_size=queries, max_size=queries)
    )
    grades = [
        data.draw(st.dictionaries(st.integers(0, texts - 1), st.integers(1, 3), min_size=1))
        for _ in range(queries)
    ]
    scores = score_ranking(
        np.array(asked, dtype=np.float32),
        np.array(matrix, dtype=np.float32),
        [list(g) for g in grades],
        [list(g.values()) for g in grades],
        block=block,
    )
    expected = []
    for place, query in enumerate(asked):
        dots = [sum(a * b for a, b in zip(query, text, strict=True)) for text in matrix]
        order = sorted(range(texts), key=lambda row: (-dots[row], row))[:10]
        assert scores.top[place].tolist() == order
        expected.append(plain_ranking(order, grades[place], 10))
    assert scores.decisions.tolist() == scores.top[:, 0].tolist()
    for name in METRICS:
        if METRICS[name].signal == "embedding":
            wanted = np.mean([row[name] for row in expected if name in row])
            assert scores.value(name) == pytest.approx(wanted, abs=1e-12)


def test_ndcg_equals_scikit_learn_where_no_scores_tie() -> None:
    rng = np.random.default_rng(3)
    similarity = rng.standard_normal((20, 40))
    truth = rng.integers(0, 4, (20, 40))
    relevant = [np.flatnonzero(row).tolist() for row in truth]
    grades = [row[row > 0].tolist() for row in truth]
    top = np.argsort(-similarity, axis=1)[:, :10]
    ours = score_top(top, relevant, grades).value("ndcg@10")
    assert ours == pytest.approx(ndcg_score(truth, similarity, k=10), abs=1e-12)


def test_blocks_do_not_change_the_answer() -> None:
    rng = np.random.default_rng(0)
    queries = rng.integers(-3, 4, (300, 8)).astype(np.float32)
    texts = rng.integers(-3, 4, (1000, 8)).astype(np.float32)
    whole = ranking.top_rows(queries, texts, 10, block=1000)
    for block in (1, 7, 10, 333, 5000):
        assert (ranking.top_rows(queries, texts, 10, block=block) == whole).all()
    plain = np.argsort(-(queries.astype(np.float64) @ texts.T), axis=1, kind="stable")[:, :10]
    assert (whole == plain).all()


def test_equal_scores_are_ordered_by_row_number() -> None:
    texts = np.zeros((25, 4), dtype=np.float32)
    assert ranking.top_rows(np.ones((1, 4)), texts, 10, block=4).tolist() == [list(range(10))]
    minus = np.array([[-0.0], [0.0], [-0.0], [1.0]], dtype=np.float32)
    assert ranking.top_rows(np.ones((1, 1)), minus, 4).tolist() == [[3, 0, 1, 2]]


def test_a_collection_smaller_than_ten() -> None:
    scores = score_ranking(np.eye(3), np.eye(3), [[0], [1], [2]])
    assert scores.top.shape == (3, 3)
    assert set(scores.values().values()) == {1.0}


def test_ndcg_of_a_small_collection_still_counts_every_relevant_text() -> None:
    # One text found of two relevant: the ideal holds both, however short the list is.
    value = score_top(np.array([[0]]), [[0, 1]]).value("ndcg@10")
    assert value == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_several_relevant_texts_repeats_and_grades_of_zero() -> None:
    top = np.array([[4, 2, 0]])
    scores = score_top(top, [[2, 2, 9, 4]], [[1, 3, 1, 0]])
    assert scores.value("mrr@10") == 0.5
    assert scores.value("recall@1") == 0.0
    assert scores.value("recall@10") == 0.5  # 2 of {2, 9}; 4 was judged not relevant
    assert scores.value("ndcg@10") == pytest.approx((3 / math.log2(3)) / (3 + 1 / math.log2(3)))


def test_ranking_refuses_what_cannot_be_judged() -> None:
    with pytest.raises(DataError, match=r"Query 1 .* no relevant text"):
        score_top(np.array([[0], [0]]), [[0], []])
    with pytest.raises(DataError, match=r"Query 0 .* no relevant text"):
        score_top(np.array([[0]]), [[0]], [[0]])
    with pytest.raises(DataError, match="one grade for each"):
        score_top(np.array([[0]]), [[0, 1]], [[1]])
    with pytest.raises(DataError, match="each of 1 queries"):
        score_top(np.array([[0]]), [[0], [1]])
    with pytest.raises(DataError, match="at least one query"):
        score_top(np.empty((0, 10)), [])
    with pytest.raises(RunError, match="one width"):
        score_ranking(np.ones((1, 3)), np.ones((2, 4)), [[0]])
    with pytest.raises(RunError, match="empty"):
        score_ranking(np.ones((1, 3)), np.ones((0, 3)), [[0]])
    with pytest.raises(RunError, match="NaN or infinity"):
        score_ranking(np.full((1, 3), np.inf), np.ones((2, 3)), [[0]])


def test_agreement_is_the_share_of_equal_decisions() -> None:
    one = score_decisions([0, 1, 1, 0], [0, 1, 0, 0], 2)
    other = score_decisions([0, 1, 0, 1], [0, 1, 0, 0], 2)
    assert one.agreement(one) == 1.0
    assert one.agreement(other) == 0.5
    with pytest.raises(RunError, match="4 and 1"):
        one.agreement(score_decisions([0], [0], 2))


def test_unknown_metrics_name_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'mrr@10'"):
        get_metric("mrr@1O")
    with pytest.raises(RecipeError, match="judges embedding"):
        get_metric("mrr@10", "class_logits")


def test_a_registered_metric_is_scored_and_its_name_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("paredown.eval.metrics.METRICS", dict(METRICS))
    wrong = Metric("error", "class_logits", lambda judged: judged.decisions != judged.labels)
    register_metric(wrong)
    assert score_decisions([0, 1], [0, 0], 2).value("error") == 0.5
    with pytest.raises(RecipeError, match="exists already"):
        register_metric(Metric("error", "class_logits", lambda judged: judged.labels))


def test_evaluate_adapter_takes_batches_offline(tmp_path: Path) -> None:
    metric = as_evaluate_metric("macro_f1", cache_dir=str(tmp_path))
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add_batch(predictions=[2], references=[2])
    wanted = f1_score([0, 0, 2], [0, 1, 2], average="macro", zero_division=0)
    assert metric.compute() == {"macro_f1": pytest.approx(wanted)}


def test_evaluate_adapter_takes_plain_and_graded_rankings(tmp_path: Path) -> None:
    top = [list(range(10)), list(range(10, 20))]
    plain = as_evaluate_metric("ndcg@10", cache_dir=str(tmp_path))
    wanted = score_top(top, [[1], [10, 40]]).value("ndcg@10")
    assert plain.compute(predictions=top, references=[[1], [10, 40]])["ndcg@10"] == wanted
    graded = as_evaluate_metric("ndcg@10", cache_dir=str(tmp_path))
    wanted = score_top(top, [[1], [10, 40]], [[3], [1, 2]]).value("ndcg@10")
    found = graded.compute(predictions=top, references=[[[1, 3]], [[10, 1], [40, 2]]])
    assert found["ndcg@10"] == wanted


ONE_OF_TWO = """
import sys
from paredown.eval.hub_metrics import as_evaluate_metric

process, folder = int(sys.argv[1]), sys.argv[2]
metric = as_evaluate_metric(
    "accuracy", num_process=2, process_id=process, experiment_id="two", cache_dir=folder
)
metric.add_batch(predictions=[1, 1, process], references=[1, 0, 1])
print("RESULT", metric.compute())
"""


def test_evaluate_adapter_pools_two_processes(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, str(process), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        said = [process.communicate(timeout=90)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [line for line in said[0].splitlines() if "RESULT" in line] == [
        "RESULT {'accuracy': 0.5}"
    ]
    assert "RESULT None" in said[1]


def test_a_metric_from_the_hub_fails_clearly_without_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr("evaluate.load", no_network)
    with pytest.raises(RecipeError, match=r"Couldn't reach the hub.*Did you mean 'accuracy'"):
        hub_metric("acuracy")
    with pytest.raises(RecipeError, match="plain name"):
        hub_metric("someone/metric")
    with pytest.raises(RecipeError, match="plain name"):
        hub_metric("./metric.py")
