"""What one (model, version, variant, arm) did in the current window, and since the agent started.

The serving path only appends to a list (`samples`); everything that costs time happens in `absorb`, which
the telemetry thread calls. Invariant: a sample is counted in exactly one window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.telemetry.features import extract
from fleet_protocol.bins import BinSketch
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.manifest import FeatureReference, ScoreReference
from fleet_protocol.messages import OutboxStatus, Outcomes, Resources, Window

_MAX_CLASSES = 4096  # a window tells the counts of the most frequent ones: the protocol's limit


class SeriesKey(NamedTuple):
    """What a window is about."""

    model: str
    version: str
    variant: str
    arm: str


class Sample(NamedTuple):
    """One answered inference: latency in microseconds, and per row the winning class and its score."""

    latency_us: float
    classes: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ServingStats:
    """What a series did since it first served in this process: the evidence of probation."""

    count: int
    errors: int
    latency: LatencyHistogram


@dataclass(slots=True)
class _Sums:
    count: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    classes: Counter[int] = field(default_factory=Counter)
    correct: int = 0
    wrong: int = 0
    squared_error_sum: float = 0.0
    squared_error_count: int = 0


class Series:
    """Accumulates one series. `samples` is appended to by any thread; all else belongs to the telemetry's lock."""

    __slots__ = (
        "_feature_sketches", "_features", "_reference", "_score", "_since_start", "_sums",
        "idle_windows", "key", "samples",
    )  # fmt: skip

    def __init__(
        self, key: SeriesKey, features: tuple[FeatureReference, ...] = (), score: ScoreReference | None = None
    ) -> None:
        self.key = key
        self.samples: list[Sample] = []
        self.idle_windows = 0
        self._since_start = ServingStats(0, 0, LatencyHistogram())
        self._sums = _Sums()
        self._features: tuple[FeatureReference, ...] = ()
        self._reference: ScoreReference | None = None
        self._begin_sketches()
        self.watch(features, score)

    def watch(self, features: tuple[FeatureReference, ...], score: ScoreReference | None) -> None:
        """Sketch over these references from now on; the sketches so far go on where nothing changed."""
        if (features, score) != (self._features, self._reference):
            self._features, self._reference = features, score
            self._begin_sketches()

    def _begin_sketches(self) -> None:
        self._feature_sketches = {feature.name: BinSketch(feature.edges) for feature in self._features}
        self._score = BinSketch(self._reference.edges) if self._reference else None

    def absorb(self) -> None:
        """Move the waiting samples into the sums."""
        waiting = len(self.samples)
        if not waiting:
            return
        taken = self.samples[:waiting]
        del self.samples[:waiting]
        self._sums.count += waiting
        self._sums.latency.record_many([sample.latency_us for sample in taken])
        for sample in taken:
            self._sums.classes.update(sample.classes)
        if self._score is not None:
            self._score.record_many([score for sample in taken for score in sample.scores])

    def absorb_inputs(self, inputs: Mapping[str, NDArray[np.generic]]) -> None:
        """Count the features of one sampled call's inputs."""
        for feature in self._features:
            self._feature_sketches[feature.name].record_many(extract(feature, inputs))

    def add_error(self, kind: str) -> None:
        """Count a failed inference."""
        self._sums.errors[kind] += 1

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
        return ServingStats(
            count=self._since_start.count + self._sums.count,
            errors=self._since_start.errors + self._sums.errors.total(),
            latency=latency,
        )

    @property
    def has_features(self) -> bool:
        """Whether inputs are of any use to this series."""
        return bool(self._features)

    @property
    def has_something(self) -> bool:
        """Whether the current window holds anything worth sending for a series that no longer serves."""
        sums = self._sums
        return bool(sums.count or sums.errors or sums.correct or sums.wrong or sums.squared_error_count)

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
            features={name: sketch.to_bytes() for name, sketch in self._feature_sketches.items()},
            classes=dict(sums.classes.most_common(_MAX_CLASSES)),
            score=scored.to_bytes() if scored else b"",
            outcomes=_outcomes(sums),
            resources=resources,
            outbox=outbox,
        )
        self._since_start = self.stats()
        self._sums = _Sums()
        self._begin_sketches()
        return window


def _outcomes(sums: _Sums) -> Outcomes | None:
    if not (sums.correct or sums.wrong or sums.squared_error_count):
        return None
    return Outcomes(
        correct=sums.correct,
        wrong=sums.wrong,
        squared_error_sum=sums.squared_error_sum,
        squared_error_count=sums.squared_error_count,
    )
