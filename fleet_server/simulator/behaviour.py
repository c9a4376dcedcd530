"""How virtual devices behave: how fast, how right, how reliable each model version is on them. Pure but for the
random generator that is handed in.

Invariant: the same seed gives the same devices and, window by window, the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from msgspec import Struct

from fleet_protocol.bins import BinSketch
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import Outcomes, Phase
from fleet_server.errors import InvalidRequestError

MAX_PREDICTIONS_PER_WINDOW = 1_000_000
MAX_LATENCIES_DRAWN = 2_000
"""Above this a window's latencies are drawn so many times and counted up: the histogram's shape is the same."""
_ENDS = (Phase.HEALTHY, Phase.REJECTED, Phase.FAILED, Phase.REVERTED)


class Behaviour(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version on an average device. `ends_in` is where its update ends on every device."""

    accuracy: float = 0.95
    error_rate: float = 0.0
    latency_us: float = 2_000.0
    latency_spread: float = 0.3
    ends_in: Phase = Phase.HEALTHY

    def __post_init__(self) -> None:
        for name in ("accuracy", "error_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidRequestError(f"{name} is {getattr(self, name)}: use a share from 0 to 1")
        if not (0 < self.latency_us < 1e9 and 0 <= self.latency_spread <= 3):
            raise InvalidRequestError("latency_us lies between 0 and 1e9, latency_spread between 0 and 3")
        if self.ends_in not in _ENDS:
            names = ", ".join(phase.value for phase in _ENDS)
            raise InvalidRequestError(f"an update cannot end in {self.ends_in.value}: use {names}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetBehaviour:
    """What every device of a simulation has in common.

    `rate_per_s` are predictions per second and device. `spread` is how much devices differ, in standard deviations
    of the log of their speed and of the log-odds of their accuracy. `outcome_share` is the share of predictions whose
    truth becomes known. Versions with a manifest in `manifests` also send features, classes and scores, drawn from
    its reference. `update_s` is how long an update takes before its probation.
    """

    rate_per_s: float = 10.0
    window_s: float = 60.0
    spread: float = 0.2
    outcome_share: float = 1.0
    update_s: float = 5.0
    default: Behaviour = field(default_factory=Behaviour)
    by_version: Mapping[str, Behaviour] = field(default_factory=dict)
    manifests: Mapping[tuple[str, str], Manifest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (0 < self.window_s <= 86_400 and 0 <= self.rate_per_s * self.window_s <= MAX_PREDICTIONS_PER_WINDOW):
            raise InvalidRequestError(
                f"a window lasts up to a day and holds up to {MAX_PREDICTIONS_PER_WINDOW} predictions: "
                "take a shorter window or a lower rate"
            )
        if not (0 <= self.spread <= 3 and 0 <= self.outcome_share <= 1 and 0 <= self.update_s <= 86_400):
            raise InvalidRequestError("spread lies in 0..3, outcome_share in 0..1, update_s in 0..86400")

    def of(self, version: str) -> Behaviour:
        """The version's behaviour, the default one where none was set."""
        return self.by_version.get(version, self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """How one device differs from the average: a factor on latency, a shift of the log-odds of being right."""

    latency_factor: float
    accuracy_shift: float

    @classmethod
    def drawn(cls, random: np.random.Generator, spread: float) -> Character:
        """A device of a fleet of that spread."""
        speed, skill = random.normal(0.0, spread, 2) if spread else (0.0, 0.0)
        return cls(latency_factor=math.exp(speed), accuracy_shift=float(skill))


class Observed(Struct, frozen=True, kw_only=True):
    """What a window says a device did, in the window's own fields."""

    count: int
    errors: dict[str, int]
    latency: bytes
    outcomes: Outcomes | None
    features: dict[str, bytes]
    classes: dict[int, int]
    score: bytes


def observe(
    fleet: FleetBehaviour, character: Character, model: str, version: str, *, span_s: float, random: np.random.Generator
) -> Observed:
    """What a device of this character did with a version in `span_s` seconds."""
    behaviour = fleet.of(version)
    tried = min(int(random.poisson(fleet.rate_per_s * span_s)), MAX_PREDICTIONS_PER_WINDOW)
    failed = int(random.binomial(tried, behaviour.error_rate))
    count = tried - failed
    known = int(random.binomial(count, fleet.outcome_share))
    correct = int(random.binomial(known, _shifted(behaviour.accuracy, character.accuracy_shift)))
    seen = Observed(
        count=count,
        errors={"inference": failed} if failed else {},
        latency=_latency(behaviour, character, count, random).to_bytes(),
        outcomes=Outcomes(correct=correct, wrong=known - correct) if known else None,
        features={},
        classes={},
        score=b"",
    )
    manifest = fleet.manifests.get((model, version))
    return _with_references(seen, manifest, random) if manifest is not None and count else seen


def _latency(behaviour: Behaviour, character: Character, count: int, random: np.random.Generator) -> LatencyHistogram:
    drawn = min(count, MAX_LATENCIES_DRAWN)
    middle = math.log(behaviour.latency_us * character.latency_factor)
    histogram = LatencyHistogram.of(random.lognormal(middle, behaviour.latency_spread, drawn))
    if drawn < count:
        histogram.counts = random.multinomial(count, histogram.counts / drawn).astype(np.int64)
    return histogram


def _with_references(seen: Observed, manifest: Manifest, random: np.random.Generator) -> Observed:
    def draw(edges: list[float], counts: list[int]) -> bytes:
        sketch = BinSketch(edges)
        if total := sum(counts):
            sketch.bins[:] = random.multinomial(seen.count, np.array(counts) / total)
        return sketch.to_bytes()

    classes: dict[int, int] = {}
    if total := sum(manifest.classes):
        drawn = random.multinomial(seen.count, np.array(manifest.classes) / total)
        classes = {index: int(number) for index, number in enumerate(drawn) if number}
    score = manifest.score
    return msgspec.structs.replace(
        seen,
        features={feature.name: draw(feature.edges, feature.counts) for feature in manifest.features},
        classes=classes,
        score=draw(score.edges, score.counts) if score is not None else b"",
    )


def _shifted(share: float, log_odds: float) -> float:
    if share in (0.0, 1.0):
        return share
    return 1 / (1 + math.exp(-(math.log(share / (1 - share)) + log_odds)))
