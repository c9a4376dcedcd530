"""What the network is compared with, and where it errs: the model card's figures. Needs scikit-learn and the packages.

    python -m models.tiny_transformer.scores

The simple way to tell languages is to count short runs of letters. Both baselines do that inside words, on the same
training phrases and on the very text that the tokenizer keeps of the others: naive Bayes over runs of one to four
letters, the same with only as many runs as fit in the network's size, and logistic regression over runs of one to
three. Their settings were chosen on the selection part, and so were the network's.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.tiny_transformer.data import ELSEWHERE, FINAL, INPUT, LABELS, TRAIN, from_packages, kept, samples
from models.tiny_transformer.recipe import RECIPE
from models.tiny_transformer.tokenizer import PADDING, readable
from quantize.data import Samples
from quantize.evaluation import loaded, run_all
from quantize.metrics import predicted_classes

LENGTHS = ((1, 15), (16, 31), (32, 64))
CONFUSIONS = 8
WEIGHT_BYTES = 4

_SIDES = 1.959963984540054  # of the normal distribution, for 95 %


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score method (E. B. Wilson, 1927)."""
    share, square = right / count, _SIDES**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _SIDES * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return centre - half, centre + half


def answers(model: bytes, part: Samples) -> NDArray[np.int64]:
    """The network's classes `[n]` for a part."""
    with loaded(model) as runnable:
        return predicted_classes(run_all(runnable, part.inputs))


def confusions(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> list[tuple[str, int]]:
    """The pairs of languages that are taken for one another most, either way round, and how often."""
    pairs: Counter[str] = Counter()
    for right, wrong in zip(truth, predicted, strict=True):
        if right != wrong:
            pairs["/".join(sorted((LABELS[right], LABELS[wrong])))] += 1
    return pairs.most_common(CONFUSIONS)


def baselines(train: Samples) -> Iterator[tuple[str, Any]]:
    """The fitted baselines by name."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    def counts(limit: int | None) -> Any:
        return CountVectorizer(analyzer="char_wb", ngram_range=(1, 4), max_features=limit)

    weighted = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), sublinear_tf=True)
    as_small = RECIPE.fp32.stat().st_size // (WEIGHT_BYTES * len(LABELS))
    for name, vectors, classifier in (
        ("naive Bayes", counts(None), MultinomialNB(alpha=0.1, fit_prior=False)),
        ("naive Bayes as small", counts(as_small), MultinomialNB(alpha=0.1, fit_prior=False)),
        ("logistic regression", weighted, LogisticRegression(C=20, max_iter=200, class_weight="balanced")),
    ):
        pipeline = make_pipeline(vectors, classifier).fit(readable(train.inputs[INPUT]), train.labels)
        yield f"{name}, {len(vectors.vocabulary_) * len(LABELS) * WEIGHT_BYTES:,} bytes of weights", pipeline


def report() -> Iterator[str]:
    """The lines of the report."""
    parts = {FINAL: kept(FINAL), ELSEWHERE: kept(ELSEWHERE)}
    predicted = {name: answers(RECIPE.fp32.read_bytes(), part) for name, part in parts.items()}
    for name, part in parts.items():
        yield _scored(f"network, {name}", part, predicted[name])
    final, truth = parts[FINAL], np.asarray(parts[FINAL].labels)
    lengths = (final.inputs[INPUT] != PADDING).sum(axis=1)
    for least, most in LENGTHS:
        chosen = np.flatnonzero((lengths >= least) & (lengths <= most))
        yield _scored(f"network, {FINAL}, {least} to {most} bytes", final.take(chosen), predicted[FINAL][chosen])
    for place, label in enumerate(LABELS):
        chosen = np.flatnonzero(truth == place)
        yield _scored(f"network, {FINAL}, {label}", final.take(chosen), predicted[FINAL][chosen])
    for pair, count in confusions(truth, predicted[FINAL]):
        yield f"taken for one another: {pair} {count}"
    for model, fitted in baselines(samples(from_packages()[TRAIN])):
        for name, part in parts.items():
            yield _scored(f"{model}, {name}", part, fitted.predict(readable(part.inputs[INPUT])))


def _scored(name: str, part: Samples, predicted: NDArray[np.int64]) -> str:
    right = int((predicted == part.labels).sum())
    low, high = interval(right, len(part))
    return f"{name}: {right / len(part):.4f} ({low:.4f} to {high:.4f}) of {len(part)}"


if __name__ == "__main__":
    for line in report():
        sys.stdout.write(line + "\n")
