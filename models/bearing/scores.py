"""The model card's figures, from the committed holdout and bundle: `python -m models.bearing.scores`.

Intervals are of 95 % and resample machines, not records: records of one machine are alike, and a new machine is what
the next user has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.bundle_folder import file_path, read_manifest
from models.bearing.data import CALIBRATION, TRAIN, Vibration, holdout, part
from models.bearing.features import anomaly_score
from models.bearing.recipe import RECIPE
from models.bearing.vibration import FAULTS, SEVERITIES
from quantize.data import Samples
from quantize.evaluation import loaded, run_all
from quantize.metrics import METRICS

BOTTLENECK = 12
_RESAMPLES = 1_000
_SEED = 3
_FALSE_ALARMS = 0.01

Scores = NDArray[np.float64]
Scorer = Callable[[NDArray[np.float32]], Scores]


def scored(model: bytes, spectra: NDArray[np.float32]) -> Scores:
    """The anomaly scores `[n]` of an ONNX file for `spectra` `[n, 512]`."""
    with loaded(model) as runnable:
        return anomaly_score(run_all(runnable, {"spectrum": spectra})["reconstruction"], spectra)


def variants() -> dict[str, bytes]:
    """The bundle's ONNX files by the variant's name."""
    manifest = read_manifest(RECIPE.bundle)
    return {one.name: file_path(RECIPE.bundle, one.file.sha256).read_bytes() for one in manifest.variants}


def auc(scores: Scores, anomalous: NDArray[np.bool_]) -> float:
    """The chance that an anomalous record scores above another, ties half."""
    return METRICS["auc"](
        {"score": scores.astype(np.float64)}, Samples(inputs={"score": scores}, labels=anomalous.astype(np.int64))
    )


def by_fault(scores: Scores, heard: Vibration) -> dict[str, list[float]]:
    """The AUC of each fault against all healthy records, by severity and over all severities."""
    table = {}
    for place, fault in enumerate(FAULTS, start=1):
        of_fault = heard.faults == place
        subsets = [of_fault & (heard.severities == severity) for severity in SEVERITIES] + [of_fault]
        table[str(fault)] = [_against_healthy(scores, heard, subset) for subset in subsets]
    return table


def interval(scores: Scores, heard: Vibration, *, against: Scores | None = None) -> tuple[float, float]:
    """The 95 % interval of the AUC, or of its gain over the scores `against`, by resampling machines."""
    random = np.random.default_rng(_SEED)
    rows = [np.flatnonzero(heard.machines == number) for number in np.unique(heard.machines)]
    values = []
    for _ in range(_RESAMPLES):
        chosen = np.concatenate([rows[place] for place in random.integers(0, len(rows), len(rows))])
        truth = heard.labels[chosen] > 0
        value = auc(scores[chosen], truth)
        values.append(value if against is None else value - auc(against[chosen], truth))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def principal_components(training: NDArray[np.float32], count: int) -> Scorer:
    """The baseline: the squared distance from the first `count` principal components; 0 is from the mean."""
    mean = training.mean(axis=0, dtype=np.float64)
    _, _, axes = np.linalg.svd(training - mean, full_matrices=False)
    axes = axes[:count]

    def score(spectra: NDArray[np.float32]) -> Scores:
        centred = spectra - mean
        return anomaly_score(centred @ axes.T @ axes, centred)

    return score


def main() -> int:
    """Print the card's tables."""
    heard, fp32 = holdout(), RECIPE.fp32.read_bytes()
    truth = heard.labels > 0
    scores = scored(fp32, heard.spectra)
    lines = [_row(fault, figures) for fault, figures in by_fault(scores, heard).items()]
    lines.append(_overall("fp32", scores, heard))
    lines += [_overall(name, scored(content, heard.spectra), heard) for name, content in variants().items()]
    training = part(TRAIN).spectra
    for count in (0, BOTTLENECK):
        baseline = principal_components(training, count)(heard.spectra)
        low, high = interval(scores, heard, against=baseline)
        lines.append(f"{_overall(f'{count} components', baseline, heard)}, fp32 gains [{low:+.3f}, {high:+.3f}]")
    limit = float(np.quantile(scored(fp32, part(CALIBRATION).spectra), 1 - _FALSE_ALARMS))
    alarms, found = float((scores[~truth] > limit).mean()), float((scores[truth] > limit).mean())
    lines.append(f"threshold {limit:.4f}: {alarms:.3f} false alarms, {found:.3f} found")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _against_healthy(scores: Scores, heard: Vibration, subset: NDArray[np.bool_]) -> float:
    chosen = subset | (heard.faults == 0)
    return auc(scores[chosen], subset[chosen])


def _row(name: str, figures: list[float]) -> str:
    return f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |"


def _overall(name: str, scores: Scores, heard: Vibration) -> str:
    low, high = interval(scores, heard)
    return f"{name}: auc {auc(scores, heard.labels > 0):.4f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
