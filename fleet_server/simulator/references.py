"""What a version's bundle says devices count, laid out so that unequal devices add up to it. Pure.

A numeric signal lives on a normal scale z: a device has its own mean and spread there, the hour of day moves it, and
the reference's bins lie at the quantiles of the mixture of all of them. So each device differs, and the population of
devices over whole days, weighted by the day's traffic, has the reference's shares. That is the null.
A drift is applied in the feature's own unit: the bins' edges move against the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.special import ndtr

from fleet_protocol.bins import OVER, UNDER, check_edges
from fleet_protocol.manifest import FeatureReference, Manifest, RandomFeatureReference, ScoreReference
from fleet_server.simulator.day_night import DayNight

SCALE_PER_SPREAD = 0.5
"""A device's spread varies half as much as its mean: the SD of its logarithm over the fleet's `spread`."""
EMBEDDING_PER_SPREAD = 0.25
EMBEDDING_FACTORS = 8
"""Directions in which devices' embeddings differ, and their samples' features go together."""
_OUTSIDE = 5
_GRID = np.linspace(-9.0, 9.0, 3_601)
_NODES, _WEIGHTS = hermegauss(9)
_TAIL = 1e-4

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericSignal:
    """A feature or the score. `edges` in its unit and `edges_z` `[bins + 1]`; `sd` is the reference's."""

    name: str
    edges: Floats
    edges_z: Floats
    shares: Floats
    sd: float
    follows_hour: bool
    confidence: Floats | None = None
    """Of a score: the calibrated confidence at each bin's middle."""

    def probabilities(self, mean: Floats, scale: Floats, *, shift_sd: Floats, noise_sd: Floats) -> Floats:
        """Shares `[n, bins + 5]` of cells as BinSketch orders them, for rows with this mean and scale of z."""
        size = len(self.shares)
        out = np.zeros((len(mean), size + _OUTSIDE))
        moved = (shift_sd != 0) | (noise_sd != 0)
        below = ndtr((self.edges_z[1:-1] - mean[:, None]) / scale[:, None])
        out[:, 0], out[:, 1 : size - 1], out[:, size - 1] = below[:, 0], np.diff(below, axis=1), 1 - below[:, -1]
        if moved.any():
            out[moved] = 0.0
            for node, weight in zip(_NODES, _WEIGHTS / _WEIGHTS.sum(), strict=True):
                by = self.sd * (shift_sd[moved] + node * noise_sd[moved])
                z = np.interp(self.edges - by[:, None], self.edges, self.edges_z, left=-np.inf, right=np.inf)
                under = ndtr((z - mean[moved, None]) / scale[moved, None])
                # what the edges did not hold before the move lies in the outer bins still
                under[by >= 0, 0], under[by <= 0, -1] = 0.0, 1.0
                out[moved, :size] += weight * np.diff(under, axis=1)
                out[moved, size + UNDER] += weight * under[:, 0]
                out[moved, size + OVER] += weight * (1 - under[:, -1])
        np.clip(out, 0.0, 1.0, out=out)
        return np.asarray(out / out.sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """Means `[features]` of the cosines on the reference, and how devices and samples vary about them."""

    mean: Floats
    sd: Floats
    loadings: Floats
    """`[features, EMBEDDING_FACTORS]`, rows of length 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReference:
    """All that a version's windows are drawn from."""

    features: tuple[NumericSignal, ...]
    score: NumericSignal | None
    classes: Floats
    embedding: Embedding | None
    expected_accuracy: float | None

    @property
    def numeric(self) -> tuple[NumericSignal, ...]:
        """The features, then the score."""
        return (*self.features, self.score) if self.score is not None else self.features


NOTHING_KNOWN = ModelReference(features=(), score=None, classes=np.zeros(0), embedding=None, expected_accuracy=None)


def reference_of(manifest: Manifest, *, spread: float, day: DayNight) -> ModelReference:
    """The layout of a bundle's references for a fleet of this `spread`. Every second feature follows the hour.

    Raises SketchError for edges that are none.
    """
    classes = np.array(manifest.classes, dtype=np.float64)
    expected = [variant.expected["accuracy"] for variant in manifest.variants if "accuracy" in variant.expected]
    return ModelReference(
        features=tuple(
            _numeric(feature.name, feature, spread=spread, day=day, follows_hour=index % 2 == 0 and day.features > 0)
            for index, feature in enumerate(manifest.features)
            if sum(feature.counts)
        ),
        score=_score(manifest, spread, day),
        classes=classes / classes.sum() if classes.sum() else np.zeros(0),
        embedding=_embedding(manifest.random_features, manifest.model) if manifest.random_features else None,
        expected_accuracy=expected[0] if expected else None,
    )


def _score(manifest: Manifest, spread: float, day: DayNight) -> NumericSignal | None:
    if manifest.score is None or not sum(manifest.score.counts):
        return None
    confidence = None
    if rule := manifest.confidence:
        edges = np.array(manifest.score.edges)
        confidence = np.interp((edges[:-1] + edges[1:]) / 2, rule.scores, rule.confidences)
    return _numeric("score", manifest.score, spread=spread, day=day, follows_hour=False, confidence=confidence)


def _numeric(
    name: str,
    reference: FeatureReference | ScoreReference,
    *,
    spread: float,
    day: DayNight,
    follows_hour: bool,
    confidence: Floats | None = None,
) -> NumericSignal:
    edges = check_edges(reference.edges)
    counts = np.array(reference.counts, dtype=np.float64)
    shares = counts / counts.sum()
    shifts, weights = day.day()
    hours = (tuple(shifts), tuple(weights)) if follows_hour else ((0.0,), (1.0,))
    grid = _mixture(spread, *hours)
    cumulative = np.concatenate(([0.0], np.cumsum(shares)))
    # the outermost values lie at the outermost edges: beyond them is no place in the reference
    inside = np.clip(cumulative, shares[shares > 0].min() * _TAIL, 1 - shares[shares > 0].min() * _TAIL)
    rising = np.concatenate(([True], np.diff(grid) > 0))
    edges_z = np.interp(inside, grid[rising], _GRID[rising])
    middles = (edges[:-1] + edges[1:]) / 2
    mean = float(shares @ middles)
    variance = float(shares @ ((middles - mean) ** 2 + np.diff(edges) ** 2 / 12))
    return NumericSignal(
        name=name,
        edges=edges,
        edges_z=edges_z,
        shares=shares,
        sd=float(np.sqrt(variance)),
        follows_hour=follows_hour,
        confidence=confidence,
    )


@lru_cache(maxsize=64)
def _mixture(spread: float, shifts: Sequence[float], weights: Sequence[float]) -> Floats:
    """The population's distribution function at `_GRID`: device means, device scales and hours all mixed."""
    total = np.zeros(len(_GRID))
    for node, share in zip(_NODES, _WEIGHTS / _WEIGHTS.sum(), strict=True):
        width = np.hypot(spread, np.exp(SCALE_PER_SPREAD * spread * node))
        for shift, weight in zip(shifts, weights, strict=True):
            total += share * weight * ndtr((_GRID - shift) / width)
    return total


def _embedding(reference: RandomFeatureReference, model: str) -> Embedding:
    # in the bundle a feature is sqrt(2 / D) cos, on the wire it is the cosine
    size = len(reference.sums)
    mean = np.array(reference.sums) / reference.count / np.sqrt(2.0 / size)
    loadings = np.random.default_rng(crc32(model.encode())).standard_normal((size, EMBEDDING_FACTORS))
    return Embedding(
        mean=mean,
        sd=np.sqrt(np.maximum(0.5 - mean**2 / 2, 0.01)),
        loadings=loadings / np.linalg.norm(loadings, axis=1, keepdims=True),
    )
