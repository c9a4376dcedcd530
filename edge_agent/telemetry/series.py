"""What one (model, version, variant, arm) did in the current window, and since the agent started.

The serving path only appends to a list (`samples`); everything that costs time happens in `absorb`, which
the telemetry thread calls. Invariant: a sample is counted in exactly one window.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from edge_agent.telemetry.call_sampling import CallSampler
from edge_agent.telemetry.features import extract
from fleet_protocol.bins import BinSketch
from fleet_protocol.embedding_sums import encode_sums
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.manifest import ConfidenceCalibration, FeatureReference, RandomFeatureReference, ScoreReference
from fleet_protocol.messages import (
    EstimatedAccuracy,
    OutboxStatus,
    Outcomes,
    Resources,
    ShadowAgreement,
    Window,
)

_MAX_BATCH_SIZES = 256  # the protocol's limit
_MAX_CLASSES = 4096  # a window tells the counts of the most frequent ones: the protocol's limit

Tensors = Mapping[str, NDArray[np.generic]]


class SeriesKey(NamedTuple):
    """What a window is about."""

    model: str
    version: str
    variant: str
    arm: str


Sample = tuple[float, float, int, tuple[int, ...], tuple[float, ...]]
"""One answered call: latency and queue wait in microseconds, the number of calls that shared its run, and per
row the winning class and its score. A bare tuple: one is made per inference, on the serving path."""

_CLASSIFICATION = "classification"

_FAULTS = ("inference", "deadline")
"""The kinds of errors that speak of the model; the others are its callers' or the load's."""


class ServingStats(Struct, frozen=True):
    """What a series did since it first served in this process: the evidence of probation.

    `errors` counts the model's own faults, `refused` the calls that were wrong or too many.
    """

    count: int
    errors: int
    latency: LatencyHistogram
    refused: int = 0


class Totals(Struct, frozen=True):
    """Sums over all of a series' calls since the start: durations in microseconds, runs by the calls that shared them.

    `last_at_ns` is the wall clock of the last one, 0 without one.
    """

    count: int = 0
    failed: int = 0
    latency_us: float = 0.0
    queue_us: float = 0.0
    last_at_ns: int = 0
    runs: Mapping[int, int] = field(default_factory=dict)


class _Sums(Struct):
    count: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    queue_wait: LatencyHistogram = field(default_factory=LatencyHistogram)
    latency_us: float = 0.0
    queue_us: float = 0.0
    shared: Counter[int] = field(default_factory=Counter)
    shadow_compared: int = 0
    shadow_disagreed: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    correct: int = 0
    wrong: int = 0
    squared_error_sum: float = 0.0
    squared_error_count: int = 0
    estimated: int = 0
    confidence_sum: float = 0.0
    variance_sum: float = 0.0


class Series:
    """Accumulates one series. `samples` is appended to by any thread; all else belongs to the telemetry's lock."""

    __slots__ = (
        "_confidence", "_embedding", "_embedding_count", "_embedding_sums", "_feature_sketches", "_features",
        "_last_at_ns", "_reference", "_score", "_since_start", "_sums", "_task", "_totals", "has_features",
        "idle_windows", "key", "needs_outputs", "sampler", "samples",
    )  # fmt: skip

    def __init__(
        self, key: SeriesKey, features: tuple[FeatureReference, ...] = (), score: ScoreReference | None = None
    ) -> None:
        self.key = key
        self.samples: list[Sample] = []
        self.sampler = CallSampler()
        self.idle_windows = 0
        self.has_features = self.needs_outputs = False
        self._since_start = ServingStats(0, 0, LatencyHistogram())
        self._totals = Totals()
        self._last_at_ns = 0
        self._sums = _Sums()
        self._features: tuple[FeatureReference, ...] = ()
        self._reference: ScoreReference | None = None
        self._confidence: ConfidenceCalibration | None = None
        self._embedding: RandomFeatureReference | None = None
        self._task = _CLASSIFICATION
        self._begin_sketches()
        self.watch(features, score)

    def watch(
        self,
        features: tuple[FeatureReference, ...],
        score: ScoreReference | None,
        *,
        confidence: ConfidenceCalibration | None = None,
        task: str = _CLASSIFICATION,
        embedding: RandomFeatureReference | None = None,
        embedding_is_output: bool = False,
    ) -> None:
        """Sketch over these references from now on; the sketches so far go on where nothing changed.

        With `confidence`, the accuracy is estimated from the winning scores. The score of another `task` than
        classification is counted on the samples whose inputs are (`needs_outputs`). `embedding` names the tensor
        whose random features are summed.
        """
        self._confidence = confidence
        if (features, score, task, embedding) != (self._features, self._reference, self._task, self._embedding):
            self._features, self._reference, self._task, self._embedding = features, score, task, embedding
            scored_by_answers = score is not None and task != _CLASSIFICATION
            self.needs_outputs = scored_by_answers or (embedding is not None and embedding_is_output)
            self.has_features = bool(features) or scored_by_answers or embedding is not None
            self._begin_sketches()

    def _begin_sketches(self) -> None:
        self._feature_sketches = {feature.name: BinSketch(feature.edges) for feature in self._features}
        self._score = BinSketch(self._reference.edges) if self._reference else None
        self._embedding_count = 0
        self._embedding_sums = np.zeros(len(self._embedding.sums) if self._embedding else 0, dtype=np.int64)

    def absorb(self) -> None:
        """Move the waiting samples into the sums."""
        waiting = len(self.samples)
        if not waiting:
            return
        taken = self.samples[:waiting]
        del self.samples[:waiting]
        latencies, waits, shared, classes, scores = zip(*taken, strict=True)
        sums = self._sums
        sums.count += waiting
        sums.latency.record_many(latencies)
        sums.latency_us += sum(latencies)
        sums.queue_wait.record_many(waits)
        sums.queue_us += sum(waits)
        sums.shared.update(shared)
        sums.classes.update(chain.from_iterable(classes))
        if self._score is not None or self._confidence is not None:
            self._absorb_scores(list(chain.from_iterable(scores)))
        self._last_at_ns = time.time_ns()

    def _absorb_scores(self, scores: list[float]) -> None:
        if self._score is not None:
            self._score.record_many(scores)
        if self._confidence is not None:
            sums, numbers = self._sums, np.asarray(scores, dtype=np.float64)
            right = np.interp(numbers[~np.isnan(numbers)], self._confidence.scores, self._confidence.confidences)
            sums.estimated += len(right)
            sums.confidence_sum += float(right.sum())
            sums.variance_sum += float((right * (1.0 - right)).sum())

    def absorb_inputs(self, inputs: Tensors, outputs: Tensors | None = None) -> None:
        """Count the features of sampled calls' inputs, and the score and embedding of their outputs where needed.

        All of it or, where anything does not fit, nothing. Raises what extracting raises.
        """
        values = [(self._feature_sketches[feature.name], extract(feature, inputs)) for feature in self._features]
        tensor = self._watched(inputs, outputs)
        if self._embedding is not None and tensor is not None:
            from edge_agent.telemetry.random_features import whole_sums

            count, sums = whole_sums(self._embedding, tensor)
            self._embedding_count += count
            self._embedding_sums += sums
        for sketch, numbers in values:
            sketch.record_many(numbers)
        if self._task != _CLASSIFICATION and self._score is not None and outputs is not None:
            from edge_agent.telemetry.features.answers import answer_scores

            scores = answer_scores(self._task, inputs, outputs)
            if scores is not None:
                self._score.record_many(scores)

    def _watched(self, inputs: Tensors, outputs: Tensors | None) -> NDArray[np.generic] | None:
        """The tensor whose random features are summed; None where this call has none."""
        if self._embedding is None:
            return None
        name = self._embedding.tensor
        found = inputs.get(name) if outputs is None or name in inputs else outputs.get(name)
        return found if found is not None and found.ndim and found.dtype.kind in "biuf" else None

    def add_error(self, kind: str) -> None:
        """Count a failed inference."""
        self._sums.errors[kind] += 1

    def add_comparison(self, *, disagreed: bool) -> None:
        """Count a shadow run of this series against what answered."""
        self._sums.shadow_compared += 1
        self._sums.shadow_disagreed += disagreed

    def add_outcome(self, *, correct: bool | None, squared_error: float | None) -> None:
        """Count a truth about an earlier prediction of this series."""
        if correct is not None:
            self._sums.correct += correct
            self._sums.wrong += not correct
        if squared_error is not None:
            self._sums.squared_error_sum += squared_error
            self._sums.squared_error_count += 1

    def stats(self) -> ServingStats:
        """Sums since the start of this process, the current window included."""
        latency = LatencyHistogram(self._since_start.latency.counts + self._sums.latency.counts)
        faults = sum(self._sums.errors[kind] for kind in _FAULTS)
        return ServingStats(
            count=self._since_start.count + self._sums.count,
            errors=self._since_start.errors + faults,
            latency=latency,
            refused=self._since_start.refused + self._sums.errors.total() - faults,
        )

    def totals(self) -> Totals:
        """Sums over all calls since the start, the current window included."""
        before, sums = self._totals, self._sums
        return Totals(
            count=before.count + sums.count,
            failed=before.failed + sums.errors.total(),
            latency_us=before.latency_us + sums.latency_us,
            queue_us=before.queue_us + sums.queue_us,
            last_at_ns=self._last_at_ns,
            runs=Counter(before.runs) + Counter(_runs(sums.shared)),
        )

    @property
    def answered(self) -> int:
        """Calls counted since the start."""
        return self._totals.count + self._sums.count

    @property
    def has_something(self) -> bool:
        """Whether the current window holds anything worth sending for a series that no longer serves."""
        sums = self._sums
        told = sums.count or sums.errors or sums.correct or sums.wrong or sums.squared_error_count
        return bool(told or sums.shadow_compared)

    def close_window(
        self, *, start_ns: int, end_ns: int, resources: Resources, outbox: OutboxStatus
    ) -> Callable[..., Window]:
        """The window's record, to be called with its identity (device, boot_id, sequence).

        The sums start again from nothing.
        """
        sums, scored = self._sums, self._score
        window = partial(
            Window,
            **self.key._asdict(),
            start_ns=start_ns,
            end_ns=end_ns,
            count=sums.count,
            errors=dict(sums.errors),
            latency=sums.latency.to_bytes(),
            queue_wait=sums.queue_wait.to_bytes(),
            batch_sizes=dict(Counter(_runs(sums.shared)).most_common(_MAX_BATCH_SIZES)),
            features={name: sketch.to_bytes() for name, sketch in self._feature_sketches.items()},
            classes=dict(sums.classes.most_common(_MAX_CLASSES)),
            score=scored.to_bytes() if scored else b"",
            embedding_count=self._embedding_count,
            embedding_sums=encode_sums(self._embedding_sums) if self._embedding_count else b"",
            shadow=_shadow(sums),
            outcomes=_outcomes(sums),
            estimated_accuracy=_estimated_accuracy(sums),
            resources=resources,
            outbox=outbox,
        )
        self._since_start, self._totals = self.stats(), self.totals()
        self._sums = _Sums()
        self._begin_sketches()
        return window


def _runs(shared: Mapping[int, int]) -> dict[int, int]:
    """Runs by the calls that shared one, from calls by the same; a run that two windows share counts in one."""
    return {size: -(-calls // size) for size, calls in shared.items()}


def _shadow(sums: _Sums) -> ShadowAgreement | None:
    if not sums.shadow_compared:
        return None
    return ShadowAgreement(compared=sums.shadow_compared, disagreed=sums.shadow_disagreed)


def _outcomes(sums: _Sums) -> Outcomes | None:
    if not (sums.correct or sums.wrong or sums.squared_error_count):
        return None
    return Outcomes(
        correct=sums.correct,
        wrong=sums.wrong,
        squared_error_sum=sums.squared_error_sum,
        squared_error_count=sums.squared_error_count,
    )


def _estimated_accuracy(sums: _Sums) -> EstimatedAccuracy | None:
    if not sums.estimated:
        return None
    # to a thousandth of one prediction, in the binary system: the zeros travel for nothing
    confidence, variance = (round(total * 1024) / 1024 for total in (sums.confidence_sum, sums.variance_sum))
    return EstimatedAccuracy(count=sums.estimated, confidence_sum=confidence, variance_sum=variance)
