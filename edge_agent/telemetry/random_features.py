"""Random Fourier features of one tensor: what its samples look like in a few hundred sums, whatever its shape.

The mean of `random_features` over samples tells their distribution as a Gaussian kernel sees it, so the distance
between two means is the maximum mean discrepancy (MMD) of two sets of samples, and sums of many devices add up
(Rahimi and Recht 2007: "Random Features for Large-Scale Kernel Machines"). Invariants:
1. the frequencies, phases and signs are a function of the reference's seed alone, the same on every CPU
   (`features.directions`);
2. the cost of a sample is bounded: what has more than MAX_FOLDED numbers is first folded (`fold`);
3. a NaN or an infinity in a sample makes that sample's features NaN and no other's; whoever sums leaves it out.

The kernel is exp(-|x - y|^2 / (2 bandwidth^2)) on the numbers as they are: a tensor whose numbers have very unequal
scales is watched by its largest ones.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.telemetry.features.directions import STANDARD_DEVIATION, gaussian_integers, hashes
from edge_agent.telemetry.features.extractors import flat_samples
from fleet_protocol.embedding_sums import FEATURE_SCALE, Sums
from fleet_protocol.manifest import RandomFeatureReference

DEFAULT_FEATURES = 256
MAX_FOLDED = 256
_FREQUENCIES, _PHASES, _SIGNS = range(3)  # streams of the seed
_TABLES_KEPT = 4  # of the usual 256 features: 256 KiB each

Floats = NDArray[np.float32]


def random_features(reference: RandomFeatureReference, x: NDArray[Any]) -> Floats:
    """sqrt(2 / D) cos(w.x + b) for the D pairs (w, b) of `reference`: float32 `[n, D]`, of `x` `[n, ...]`.

    D is the number of the reference's sums. The cosines are rounded as in `whole_sums`, so that the mean of a
    reference and that of devices are of the same quantity, however many samples they are over.
    """
    features = _whole_features(reference, x)
    features *= np.float32(math.sqrt(2.0 / len(reference.sums)) / FEATURE_SCALE)
    return features


def whole_sums(reference: RandomFeatureReference, x: NDArray[Any]) -> tuple[int, Sums]:
    """(samples, sums int64 `[D]`) over the samples `[n, ...]` of rint(FEATURE_SCALE cos(w.x + b)): what a window tells.

    Each sample is rounded by itself, so that sums add up exactly in any order. One with a NaN or an infinity is in
    neither.
    """
    features = _whole_features(reference, x)
    good = np.isfinite(features).all(axis=1)
    if not good.all():
        features = features[good]
    return len(features), features.sum(axis=0, dtype=np.int64)


def _whole_features(reference: RandomFeatureReference, x: NDArray[Any]) -> Floats:
    """rint(FEATURE_SCALE cos(w.x + b)): float32 `[n, D]`, in an array of its own."""
    folded = fold(x, seed=reference.seed)
    frequencies, phases = _table(reference.seed, folded.shape[1], len(reference.sums), reference.bandwidth)
    with np.errstate(invalid="ignore", over="ignore"):
        features: Floats = folded @ frequencies
        features += phases
        np.cos(features, out=features)
    features *= np.float32(FEATURE_SCALE)
    np.rint(features, out=features)
    return features


def fold(x: NDArray[Any], *, seed: int) -> Floats:
    """The samples `[n, ...]` as float32 `[n, numbers]`, at most MAX_FOLDED of them.

    Number i of a longer sample is added to place i mod MAX_FOLDED, under a seeded random sign, which keeps squared
    distances in expectation (feature hashing: Weinberger et al. 2009) at one multiplication and addition a number.
    """
    flat = flat_samples(x)
    places = flat.shape[1]
    if places <= MAX_FOLDED:
        return flat.astype(np.float32, copy=False)
    rows = -(-places // MAX_FOLDED)
    signed = np.zeros((len(flat), rows * MAX_FOLDED), dtype=np.float32)
    with np.errstate(invalid="ignore"):
        np.multiply(flat, _signs(seed, places), out=signed[:, :places], casting="unsafe")
        folded: Floats = signed.reshape(len(flat), rows, MAX_FOLDED).sum(axis=1)
    return folded


@lru_cache(maxsize=_TABLES_KEPT)
def _table(seed: int, places: int, features: int, bandwidth: float) -> tuple[Floats, Floats]:
    """Frequencies `[places, features]`, normal with deviation 1 / bandwidth, and phases `[features]` in a circle."""
    normal = gaussian_integers(seed, _FREQUENCIES, places * features) / (STANDARD_DEVIATION * bandwidth)
    turns = (hashes(seed, _PHASES, 0, features) >> np.uint64(11)) / 2.0**53
    return normal.reshape(places, features).astype(np.float32), (turns * (2.0 * math.pi)).astype(np.float32)


@lru_cache(maxsize=_TABLES_KEPT)
def _signs(seed: int, places: int) -> Floats:
    bits = (hashes(seed, _SIGNS, 0, places) >> np.uint64(63)).astype(np.float32)
    return bits * np.float32(2.0) - np.float32(1.0)
