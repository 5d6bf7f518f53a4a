"""TF-IDF with logistic regression, against scikit-learn's own pipeline."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from paredown.eval.errors import DataError, RecipeError, RunError
from paredown.eval.tfidf import STRENGTHS, Tfidf, fit_tfidf

KINDS = ("open the account", "close the card", "find a bank near me")
TEXTS = [f"{KINDS[i % 3]} number {['one', 'two', 'three', 'four'][i % 4]}" for i in range(36)]
LABELS = [i % 3 for i in range(36)]
HELD = (["open it", "close it", "find it"], [0, 1, 2])
UNSEEN = ["open a card", "", "größe", "bank bank bank near"]


def fitted(classes: int = 3) -> Tfidf:
    chosen = [i for i in range(36) if LABELS[i] < classes]
    held = (HELD[0][:classes], HELD[1][:classes])
    return fit_tfidf([TEXTS[i] for i in chosen], [LABELS[i] for i in chosen], classes, held)


def peer(model: Tfidf, classes: int) -> np.ndarray:
    chosen = [i for i in range(36) if LABELS[i] < classes]
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    features = vectorizer.fit_transform([TEXTS[i] for i in chosen])
    assert list(model.bag.places) == list(vectorizer.get_feature_names_out())
    regression = LogisticRegression(C=model.strength, max_iter=1000)
    regression.fit(features, [LABELS[i] for i in chosen])
    ours, theirs = model.features(UNSEEN).toarray(), vectorizer.transform(UNSEEN).toarray()
    assert ours == pytest.approx(theirs)
    return regression.decision_function(vectorizer.transform(UNSEEN))


def test_it_answers_as_scikit_learn_does() -> None:
    model = fitted()
    assert model.strength in STRENGTHS
    assert model.logits(UNSEEN) == pytest.approx(peer(model, 3), rel=1e-3, abs=1e-4)
    assert model.logits(HELD[0]).argmax(1).tolist() == HELD[1]


def test_two_classes_have_two_logits() -> None:
    model = fitted(2)
    logits = model.logits(UNSEEN)
    assert logits.shape == (4, 2)
    assert logits[:, 1] - logits[:, 0] == pytest.approx(peer(model, 2), rel=1e-3, abs=1e-4)


def test_a_class_without_a_training_row_is_never_chosen() -> None:
    model = fit_tfidf(TEXTS, [2 * label for label in LABELS], 6, ([], []))
    logits = model.logits([*TEXTS, *UNSEEN])
    assert logits.shape[1] == 6 and np.isfinite(logits).all()
    assert set(logits.argmax(1)) <= {0, 2, 4}
    assert model.strength == STRENGTHS[0]  # nothing to choose by: the strongest penalty


def test_it_is_kept_and_run_without_scikit_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fitted()
    model.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tfidf.json", "tfidf.safetensors"]
    monkeypatch.setitem(sys.modules, "sklearn", None)
    loaded = Tfidf.load(tmp_path)
    done: list[int] = []
    assert np.array_equal(loaded.logits(UNSEEN, done.append), model.logits(UNSEEN))
    assert sum(done) == 4 and loaded.logits([]).shape == (0, 3)
    assert loaded.strength == model.strength


def test_its_flops_are_those_of_its_product() -> None:
    assert fitted().flops(["open the account", "", "unknown"]).tolist() == [2 * 3 * 5, 0, 0]


def test_fits_are_told() -> None:
    seen: list[tuple[int, int]] = []
    fit_tfidf(TEXTS, LABELS, 3, HELD, lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_missing_scikit_learn_is_told_with_the_install_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(RecipeError, match=r"pip install 'paredown\[baselines\]'"):
        fitted()


def test_rows_of_one_class_or_without_words_are_refused() -> None:
    with pytest.raises(DataError, match="two classes"):
        fit_tfidf(TEXTS, [0] * 36, 3, HELD)
    with pytest.raises(DataError, match="two classes"):
        fit_tfidf([], [], 3, HELD)
    with pytest.raises(DataError, match="texts with words"):
        fit_tfidf(["x", "?"], [0, 1], 3, HELD)


def test_a_damaged_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no whole TF-IDF classifier"):
        Tfidf.load(tmp_path)
    fitted().save(tmp_path)
    (tmp_path / "tfidf.json").write_text('{"longest": 2, "strength": 1.0, "terms": ["open"]}')
    with pytest.raises(RunError, match="weights of shape"):
        Tfidf.load(tmp_path)
