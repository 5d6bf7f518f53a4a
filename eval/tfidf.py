"""TF-IDF with logistic regression: the classifier that any other must beat to be worth its cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .bag_of_words import BagOfWords, document_frequency
from .errors import DataError, RecipeError, RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST = 2
"""Words of a term, at most."""
STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse strengths of the penalty (scikit-learn's C) that validation rows choose among."""
UNSEEN = -1e4
"""The logit of a class that no training row has."""
INSTALL = "pip install 'paredown[baselines]'"
SETTINGS, WEIGHTS = "tfidf.json", "tfidf.safetensors"


@dataclass(frozen=True)
class Tfidf:
    """A fitted classifier; it needs no scikit-learn to be run.

    Attributes:
        bag: The terms of the training texts.
        rarity: Inverse document frequency of each term, (V,).
        weights: Of each class and term, (C, V).
        offsets: Of each class, (C,).
        strength: The inverse strength of the penalty that was chosen.
    """

    bag: BagOfWords
    rarity: NDArray[np.float64]
    weights: NDArray[np.float32]
    offsets: NDArray[np.float32]
    strength: float

    def features(self, texts: Sequence[str]) -> sparse.csr_array[Any, Any]:
        """(1 + ln f) · rarity of each term that occurs f times, rows of length 1; (n, V)."""
        return _features(self.bag.counts(texts), self.rarity)

    def logits(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Class logits, (n, C) float32.

        Args:
            texts: One text a row.
            progress: Called with the number of rows done, every thousand or so.
        """
        found = [np.empty((0, len(self.offsets)), dtype=np.float32)]
        for start in range(0, len(texts), 1024):
            some = texts[start : start + 1024]
            found.append((self.features(some) @ self.weights.T + self.offsets).astype(np.float32))
            if progress is not None:
                progress(len(some))
        return np.concatenate(found)

    def flops(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """FLOPs of each row's product: 2 C for each term it has, (n,)."""
        terms = np.diff(self.bag.counts(texts).indptr)
        return np.asarray(2 * len(self.offsets) * terms, dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Writes the terms as JSON and the numbers as safetensors."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        said: dict[str, Any] = {"longest": self.bag.longest, "strength": self.strength}
        said["terms"] = list(self.bag.places)
        (folder / SETTINGS).write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
        parts: dict[str, Any] = {
            "rarity": self.rarity,
            "weights": self.weights,
            "offsets": self.offsets,
        }
        save_file(parts, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> Tfidf:
        """Reads what `save` wrote.

        Raises:
            RunError: If it is not there, or its parts do not fit.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            said = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            parts = load_file(folder / WEIGHTS)
            places = {term: place for place, term in enumerate(said["terms"])}
            if parts["weights"].shape != (len(parts["offsets"]), len(places)):
                raise ValueError(f"weights of shape {parts['weights'].shape}")
            bag = BagOfWords(places, int(said["longest"]))
            made = parts["rarity"], parts["weights"], parts["offsets"], float(said["strength"])
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise RunError(f"'{folder}' holds no whole TF-IDF classifier ({error}).") from error
        return cls(bag, *made)


def _features(
    counts: sparse.csr_array[Any, Any], rarity: NDArray[np.float64]
) -> sparse.csr_array[Any, Any]:
    values = (1 + np.log(counts.data)) * rarity[counts.indices]
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    norms = np.sqrt(np.bincount(row, values**2, minlength=counts.shape[0]))
    filled = (values / norms[row], counts.indices, counts.indptr)
    return sparse.csr_array(filled, shape=counts.shape)


def fit_tfidf(
    texts: Sequence[str],
    labels: Sequence[int] | NDArray[np.int64],
    classes: int,
    held: tuple[Sequence[str], Sequence[int] | NDArray[np.int64]],
    progress: Callable[[int, int], None] | None = None,
) -> Tfidf:
    """Fits words and pairs of words (1 + ln f, smoothed inverse document frequency) to classes.

    Features are those of scikit-learn's ``TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))``;
    its ``LogisticRegression`` is fitted with each of `STRENGTHS`, and validation rows choose.

    Args:
        texts: Training texts.
        labels: The class of each.
        classes: How many there are, C.
        held: Validation texts and their classes.
        progress: Called with fits done and fits in all.

    Raises:
        RecipeError: If scikit-learn is not installed.
        DataError: If the training rows are of fewer than two classes, or have no word.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise RecipeError(f"The baseline tfidf needs scikit-learn: {INSTALL}") from error
    truth = np.asarray(labels, dtype=np.int64)
    if len(np.unique(truth)) < 2:
        raise DataError("The baseline tfidf needs labelled training rows of two classes or more.")
    bag = BagOfWords.of(texts, LONGEST)
    if not bag.places:
        raise DataError("The baseline tfidf needs texts with words, and no training row has one.")
    counts = bag.counts(texts)
    rarity = np.log((1 + len(texts)) / (1 + document_frequency(counts))) + 1
    features = _features(counts, rarity)
    judged, right = held[0], np.asarray(held[1], dtype=np.int64)
    found: list[tuple[float, Tfidf]] = []
    for number, strength in enumerate(STRENGTHS):
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(features, truth)
        made = Tfidf(bag, rarity, *_spread(fitted, classes), strength)
        share = float(np.mean(made.logits(judged).argmax(1) == right)) if len(right) else 0.0
        found.append((share, made))
        if progress is not None:
            progress(number + 1, len(STRENGTHS))
    best = max(share for share, _ in found)
    return next(made for share, made in found if share == best)


def _spread(fitted: Any, classes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights (C, V) and offsets (C,) of all classes, those without a training row included."""
    weights, offsets = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # it keeps the second class's alone
        weights = np.concatenate([np.zeros_like(weights), weights])
        offsets = np.concatenate([np.zeros_like(offsets), offsets])
    every = np.zeros((classes, weights.shape[1]), dtype=np.float32)
    every[fitted.classes_] = weights
    shift = np.full(classes, UNSEEN, dtype=np.float32)
    shift[fitted.classes_] = offsets
    return every, shift
