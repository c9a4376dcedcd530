"""The model card's figures, from the committed holdout and bundle: `python -m models.tabular.scores`.

The baseline is a logistic regression on standardised columns, fitted to the same training rows. Intervals are of
95 % and resample the final rows; that of the difference resamples both models' answers together.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.bundle_folder import file_path, read_manifest
from models.tabular.data import TRAIN, Table, holdout, split
from models.tabular.recipe import RECIPE
from quantize.data import Samples
from quantize.evaluation import loaded, run_all
from quantize.metrics import METRICS

_RESAMPLES = 2_000
_SEED = 3

Probabilities = NDArray[np.float64]


def shipped(columns: NDArray[np.float32]) -> Probabilities:
    """The probabilities `[n, 2]` of the bundle's first variant."""
    manifest = read_manifest(RECIPE.bundle)
    content = file_path(RECIPE.bundle, manifest.variants[0].file.sha256).read_bytes()
    with loaded(content) as model:
        return run_all(model, {"columns": columns})["probabilities"].astype(np.float64)


def logistic_regression(training: Table, columns: NDArray[np.float32]) -> Probabilities:
    """The baseline's probabilities `[n, 2]` for `columns`. Needs scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    baseline: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
    baseline.fit(training.columns.astype(np.float64), training.labels)
    probabilities: Probabilities = baseline.predict_proba(columns.astype(np.float64))
    return probabilities


def score(metric: str, probabilities: Probabilities, labels: NDArray[np.uint8]) -> float:
    """The "auc" or "accuracy" of `probabilities` `[n, 2]`."""
    # auc takes an output shaped like an input for a reconstruction: the rows' numbers stand for the columns
    truth = Samples(inputs={"row": np.arange(len(labels))}, labels=labels.astype(np.int64))
    return METRICS[metric]({"probabilities": probabilities}, truth)


def interval(
    metric: str, labels: NDArray[np.uint8], probabilities: Probabilities, against: Probabilities | None = None
) -> tuple[float, float]:
    """The 95 % interval of the metric, or of its gain over `against`."""
    random = np.random.default_rng(_SEED)
    values = []
    for _ in range(_RESAMPLES):
        chosen = random.integers(0, len(labels), len(labels))
        value = score(metric, probabilities[chosen], labels[chosen])
        values.append(value if against is None else value - score(metric, against[chosen], labels[chosen]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def main() -> int:
    """Print the card's table."""
    final = holdout()
    trees, baseline = shipped(final.columns), logistic_regression(split()[TRAIN], final.columns)
    for metric in ("auc", "accuracy"):
        cells = []
        for probabilities in (trees, baseline):
            low, high = interval(metric, final.labels, probabilities)
            cells.append(f"{score(metric, probabilities, final.labels):.3f} [{low:.3f}, {high:.3f}]")
        low, high = interval(metric, final.labels, trees, baseline)
        gain = score(metric, trees, final.labels) - score(metric, baseline, final.labels)
        sys.stdout.write(f"| {metric} | {cells[0]} | {cells[1]} | {gain:+.3f} [{low:+.3f}, {high:+.3f}] |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
