"""What a bundle's reference describes: everything of a model version that can drift. Pure.

A signal is one thing that can drift: a feature of the inputs, the predicted classes, the winning score. Beside these
stand the embedding's random features and two accuracies, which have no cells. Invariants:
- devices and reference are counted in the same cells, the reference's;
- a reference that does not add up is refused by name, before anything is compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleet_protocol.bins import Edges, check_edges
from fleet_protocol.errors import SketchError
from fleet_protocol.manifest import Manifest, RandomFeatureReference
from fleet_server.drift.evidence import class_scores, moment_scores
from fleet_server.drift.findings import SignalKind
from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.divergences import smoothed

Counts = NDArray[np.int64]
Matrix = NDArray[np.float64]

CLASSES, SCORE, EMBEDDING = "classes", "score", "embedding"
ACCURACY, ESTIMATED_ACCURACY = "accuracy", "estimated_accuracy"
"""The names of the signals that are no features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A thing that can drift, and how often each of its cells occurs in the reference; `edges` None for classes."""

    name: str
    kind: SignalKind
    reference: Counts
    edges: Edges | None
    labels: tuple[str, ...] = ()

    @property
    def scores(self) -> Matrix:
        """A few numbers a cell, `[cells, scores]`: what tells where in the distribution a value lies."""
        return moment_scores(self.reference) if self.edges is not None else class_scores(self.reference)

    @property
    def standard_values(self) -> Matrix | None:
        """The middle of each cell `[cells]` in standard deviations from the reference's mean; None for classes."""
        if self.edges is None:
            return None
        middles, weights = (self.edges[:-1] + self.edges[1:]) / 2, smoothed(self.reference)
        mean = float(weights @ middles)
        deviation = float(weights @ (middles - mean) ** 2) ** 0.5
        standard: Matrix = (middles - mean) / deviation if deviation > 0 else np.zeros(len(middles))
        return standard


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """All that a version was made with. The accuracies are None where the bundle does not know them.

    `expected_accuracy` was measured on held-out data, of the worst variant; `estimated_accuracy` is the mean calibrated
    confidence of the reference itself, so that devices are held against the same estimate. Both rest on about `values`
    samples.
    """

    model: str
    version: str
    signals: tuple[Signal, ...]
    embedding: RandomFeatureReference | None = None
    expected_accuracy: float | None = None
    estimated_accuracy: float | None = None
    values: int = 0
    variant_accuracies: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that devices could be held against."""
        return not self.signals and self.embedding is None and self.expected_accuracy is None


def read_manifest(document: Mapping[str, Any]) -> Manifest:
    """The manifest in a catalogue entry. Raises InvalidRequestError when it is not one."""
    try:
        return msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(
            f"the published manifest cannot be read ({error}): publish the version again"
        ) from None


def reference_of(manifest: Manifest) -> Reference:
    """Everything the manifest says of the data it was made with. Raises InvalidRequestError as `signals_of` does."""
    signals = signals_of(manifest)
    accuracies = {
        variant.name: float(variant.expected["accuracy"])
        for variant in manifest.variants
        if 0 < variant.expected.get("accuracy", 0.0) <= 1
    }
    values = max((int(signal.reference.sum()) for signal in signals), default=0)
    return Reference(
        model=manifest.model,
        version=manifest.version,
        signals=tuple(signals),
        embedding=manifest.random_features,
        expected_accuracy=min(accuracies.values(), default=None),
        estimated_accuracy=_estimated_accuracy(manifest),
        values=values,
        variant_accuracies=accuracies,
    )


def signals_of(manifest: Manifest) -> list[Signal]:
    """Everything with cells that the manifest has a reference for: features in its order, then classes, then the score.

    Raises InvalidRequestError when a reference does not add up.
    """
    signals = [
        _numeric(feature.name, SignalKind.FEATURE, feature.edges, feature.counts) for feature in manifest.features
    ]
    if manifest.classes:
        reference = np.array(manifest.classes, dtype=np.int64)
        names = tuple(manifest.labels) if len(manifest.labels) == len(reference) else ()
        signals.append(Signal(name=CLASSES, kind=SignalKind.CLASSES, reference=reference, edges=None, labels=names))
    if manifest.score is not None:
        signals.append(_numeric(SCORE, SignalKind.SCORE, manifest.score.edges, manifest.score.counts))
    return signals


def _numeric(name: str, kind: SignalKind, edges: list[float], counts: list[int]) -> Signal:
    try:
        checked = check_edges(edges)
    except SketchError as error:
        raise InvalidRequestError(f"the reference of {name!r} is not usable: {error}; rebuild the bundle") from None
    if len(counts) != len(checked) - 1:
        raise InvalidRequestError(
            f"the reference of {name!r} has {len(counts)} counts for {len(checked) - 1} bins: rebuild the bundle"
        )
    return Signal(name=name, kind=kind, reference=np.array(counts, dtype=np.int64), edges=checked)


def _estimated_accuracy(manifest: Manifest) -> float | None:
    """The mean calibrated confidence of the reference's scores, each at the middle of its bin."""
    score, calibration = manifest.score, manifest.confidence
    if score is None or calibration is None or not sum(score.counts):
        return None
    edges = np.array(score.edges)
    confidences = np.interp((edges[:-1] + edges[1:]) / 2, calibration.scores, calibration.confidences)
    return float(np.average(confidences, weights=score.counts))
