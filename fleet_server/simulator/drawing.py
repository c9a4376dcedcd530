"""What devices did in some spans, many windows at a time. Pure but for the random generator.

Invariants:
- the counts of a window agree: classes, score, embedding and estimated accuracy are of `count` predictions each;
- a window's numbers are drawn from its device's habits, the hour and the drifts at its middle;
- signals are drawn apart from each other: nothing here ties one feature to another within one prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from msgspec import Struct
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.special import expit

from fleet_protocol.embedding_sums import FEATURE_SCALE
from fleet_protocol.histogram import BUCKETS, bucket_indices
from fleet_protocol.messages import EstimatedAccuracy, Outcomes
from fleet_server.simulator.behaviour import MAX_PREDICTIONS_PER_WINDOW, FleetBehaviour
from fleet_server.simulator.devices import Traits
from fleet_server.simulator.drift import Drift, DriftKind
from fleet_server.simulator.references import EMBEDDING_PER_SPREAD, ModelReference, NumericSignal
from fleet_server.telemetry_store.sketches import SparseCounts, encode_dense_many, encode_sparse_many, encode_sums_many

MAX_LATENCIES_DRAWN = 2_000
"""Above this a window's latencies are drawn so many times and counted up: the histogram's shape is the same."""
QUEUE_WAIT_SHARE, QUEUE_WAIT_SPREAD = 0.02, 1.0
"""The median wait over the median latency, and the spread of its logarithm."""
PAIRED_SHARE = 0.1
"""Of the predictions: those that were answered two at a time."""
_SHARED_NOISE = 0.5  # of the variance of an embedding's features: what they have in common within a sample
_NODES, _WEIGHTS = hermegauss(15)
_NS = 10**9

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Observed(Struct, frozen=True, kw_only=True):
    """What a window says a device did, in the window's own fields."""

    count: int
    errors: dict[str, int]
    latency: bytes
    queue_wait: bytes
    batch_sizes: dict[int, int]
    features: dict[str, bytes]
    classes: dict[int, int]
    score: bytes
    embedding_count: int
    embedding_sums: bytes
    outcomes: Outcomes | None
    estimated_accuracy: EstimatedAccuracy | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Windows to draw: row of the device in its traits, start and end `[n]`; `begun_ns` is the simulation's start."""

    device: Ints
    start_ns: Ints
    end_ns: Ints
    begun_ns: int


def draw_windows(
    behaviour: FleetBehaviour, traits: Traits, spans: Spans, *, model: str, version: str, random: np.random.Generator
) -> list[Observed]:
    """What the devices did in each span with a model's version."""
    reference, own = behaviour.reference(model, version), behaviour.of(version)
    at, middle_ns = spans.device, (spans.start_ns + spans.end_ns) // 2
    offset_h = traits.utc_offset_h[at]
    moves = _Moves(behaviour.drifts, traits.drifts[:, at], middle_ns - spans.begun_ns)
    mean_count = behaviour.rate_per_s * (spans.end_ns - spans.start_ns) / _NS * traits.traffic_factor[at]
    mean_count = mean_count * behaviour.day.traffic_factors(middle_ns, offset_h)
    tried = np.minimum(random.poisson(mean_count), MAX_PREDICTIONS_PER_WINDOW)
    failed = random.binomial(tried, own.error_rate)
    count = tried - failed

    accuracy = _accuracies(behaviour.accuracy(model, version), traits.accuracy_shift[at], behaviour.spread)
    known = random.binomial(count, behaviour.outcome_share)
    correct = random.binomial(known, np.clip(accuracy - moves.of(DriftKind.ACCURACY), 0.0, 1.0))
    middle_us = np.log(own.latency_us * traits.latency_factor[at])
    latency = _times(middle_us, own.latency_spread, count, random)
    queue_wait = _times(middle_us + np.log(QUEUE_WAIT_SHARE), QUEUE_WAIT_SPREAD, count, random)
    pairs = random.binomial(count // 2, PAIRED_SHARE)

    rows = _Rows(traits=traits, at=at, moves=moves, count=count)
    hour = behaviour.day.feature_shifts(middle_ns, offset_h)
    features: dict[str, list[bytes]] = {}
    for column, signal in enumerate(reference.features):
        mean = traits.location[at, column] + (hour if signal.follows_hour else 0.0)
        shares = signal.probabilities(
            mean,
            np.exp(traits.log_scale[at, column]),
            shift_sd=moves.of(DriftKind.FEATURE_SHIFT, signal.name),
            noise_sd=moves.of(DriftKind.FEATURE_NOISE, signal.name),
        )
        features[signal.name] = encode_dense_many(random.multinomial(count, shares))
    score, confident = _scores(reference, rows, random)
    classes = _classes(traits.classes[at], moves, count, random)
    sums = _embedding_sums(reference, rows, random)
    return [
        Observed(
            count=n,
            errors={"inference": bad} if bad else {},
            latency=latency[row],
            queue_wait=queue_wait[row],
            batch_sizes=_batches(n, paired),
            features={name: cells[row] for name, cells in features.items() if cells[row]},
            classes=classes[row],
            score=score[row],
            embedding_count=n if sums else 0,
            embedding_sums=sums[row] if sums and n else b"",
            outcomes=Outcomes(correct=right, wrong=truths - right) if truths else None,
            estimated_accuracy=confident[row],
        )
        for row, (n, bad, paired, truths, right) in enumerate(
            zip(count.tolist(), failed.tolist(), pairs.tolist(), known.tolist(), correct.tolist(), strict=True)
        )
    ]


class _Moves:
    """How far drifts have moved each window."""

    def __init__(self, drifts: Sequence[Drift], on: Floats, since_ns: Ints) -> None:
        self._rows = len(since_ns)
        self.each = [(drift, drift.by * on[place] * drift.strengths(since_ns)) for place, drift in enumerate(drifts)]

    def of(self, kind: DriftKind, feature: str = "", *, known: bool = False) -> Floats:
        """The sum `[n]` of the drifts of this kind (and feature; and, if `known`, of those the confidence shows)."""
        total = np.zeros(self._rows)
        for drift, size in self.each:
            if drift.kind == kind and drift.feature == feature and (drift.known or not known):
                total += size
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The windows in work: each one's row in `traits`, what drifts moved, how many predictions it has."""

    traits: Traits
    at: Ints
    moves: _Moves
    count: Ints


def _scores(
    reference: ModelReference, rows: _Rows, random: np.random.Generator
) -> tuple[list[bytes], list[EstimatedAccuracy | None]]:
    signal, traits, at = reference.score, rows.traits, rows.at
    if signal is None:
        return [b""] * len(at), [None] * len(at)
    shares = signal.probabilities(
        traits.location[at, -1],
        np.exp(traits.log_scale[at, -1]),
        shift_sd=-rows.moves.of(DriftKind.LESS_SURE),
        noise_sd=np.zeros(len(at)),
    )
    if signal.confidence is not None:
        shares = _less_confident(signal, signal.confidence, shares, rows.moves.of(DriftKind.ACCURACY, known=True))
    cells = random.multinomial(rows.count, shares)
    if signal.confidence is None:
        return encode_dense_many(cells), [None] * len(at)
    # beyond the edges the confidence is that of the nearest end; missing, NaN and infinite are never drawn
    confidence = np.concatenate((signal.confidence, signal.confidence[[0, -1]], np.zeros(3)))
    sums, variances = cells @ confidence, cells @ (confidence * (1 - confidence))
    return encode_dense_many(cells), [
        EstimatedAccuracy(count=n, confidence_sum=total, variance_sum=variance) if n else None
        for n, total, variance in zip(rows.count.tolist(), sums.tolist(), variances.tolist(), strict=True)
    ]


def _less_confident(signal: NumericSignal, confidence: Floats, shares: Floats, loss: Floats) -> Floats:
    """`shares` mixed with the least confident bin until the mean confidence has fallen by `loss`, or can no further."""
    lowest = int(np.argmin(confidence))
    room = float(signal.shares @ confidence - confidence[lowest])
    weight = np.clip(loss / room, 0.0, 1.0) if room > 0 else np.zeros(len(loss))
    mixed = shares * (1 - weight[:, None])
    mixed[:, lowest] += weight
    return mixed


def _classes(shares: Floats, moves: _Moves, count: Ints, random: np.random.Generator) -> list[dict[int, int]]:
    if shares.shape[1] == 0:
        return [{} for _ in count]
    for drift, size in moves.each:
        if drift.kind == DriftKind.CLASS_GONE and drift.class_index < shares.shape[1]:
            shares = shares.copy()
            shares[:, drift.class_index] *= 1 - np.minimum(size, 1.0)
    total = shares.sum(axis=1, keepdims=True)
    shares = np.where(total > 0, shares / np.where(total > 0, total, 1.0), 1 / shares.shape[1])
    drawn = random.multinomial(count, shares).tolist()
    return [{index: number for index, number in enumerate(row) if number} for row in drawn]


def _embedding_sums(reference: ModelReference, rows: _Rows, random: np.random.Generator) -> list[bytes]:
    embedding = reference.embedding
    if embedding is None:
        return []
    factors = EMBEDDING_PER_SPREAD * rows.traits.embedding[rows.at]
    factors[:, 0] += rows.moves.of(DriftKind.EMBEDDING_SHIFT)
    n = rows.count[:, None].astype(np.float64)
    shared = np.sqrt(_SHARED_NOISE * n) * random.standard_normal(factors.shape)
    own = np.sqrt((1 - _SHARED_NOISE) * n) * random.standard_normal((len(n), len(embedding.mean)), dtype=np.float32)
    sums = n * embedding.mean + embedding.sd * ((n * factors + shared) @ embedding.loadings.T + own)
    return encode_sums_many(np.rint(np.clip(sums, -n, n) * FEATURE_SCALE).astype(np.int64))


def _times(middle_us: Floats, spread: float, count: Ints, random: np.random.Generator) -> list[bytes]:
    """Histograms of log-normal times about exp(middle_us) microseconds, `count` `[n]` of them."""
    drawn = np.minimum(count, MAX_LATENCIES_DRAWN)
    rows = np.repeat(np.arange(len(count)), drawn)
    times_us = np.exp(middle_us[rows] + spread * random.standard_normal(len(rows)))
    keys, number = np.unique(rows * BUCKETS + bucket_indices(times_us), return_counts=True)
    cell_rows, places = keys // BUCKETS, keys % BUCKETS
    for row in np.flatnonzero(drawn < count):
        here = cell_rows == row
        number[here] = random.multinomial(count[row], number[here] / drawn[row])
    occupied = number > 0
    return encode_sparse_many(
        SparseCounts(
            size=len(count),
            width=BUCKETS,
            owners=cell_rows[occupied],
            places=places[occupied],
            counts=number[occupied],
            refused=(),
        )
    )


def _batches(count: int, pairs: int) -> dict[int, int]:
    batches = {1: count - 2 * pairs, 2: pairs}
    return {size: number for size, number in batches.items() if number}


def _accuracies(mean: float, shifts: Floats, spread: float) -> Floats:
    """Each device's accuracy, from the shift of its log-odds; over the population they average `mean`."""
    if mean in (0.0, 1.0):
        return np.full(len(shifts), mean)
    return np.asarray(expit(_centre(mean, spread) + shifts))


@lru_cache(maxsize=64)
def _centre(mean: float, spread: float) -> float:
    """The log-odds about which a population of this spread averages `mean`, by bisection."""
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        if expit(middle + spread * _NODES) @ _WEIGHTS / _WEIGHTS.sum() < mean:
            low = middle
        else:
            high = middle
    return (low + high) / 2
