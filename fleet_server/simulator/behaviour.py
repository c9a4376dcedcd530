"""How a simulated fleet behaves: how fast, right and reliable each version is on it, and how unequal its devices are.

Settings only, checked when they are made. Invariant: the same settings and seed give the same devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import Phase
from fleet_server.errors import InvalidRequestError
from fleet_server.simulator.day_night import DayNight
from fleet_server.simulator.drift import Drift, DriftKind
from fleet_server.simulator.network import NetFaults
from fleet_server.simulator.references import NOTHING_KNOWN, ModelReference, reference_of

MAX_PREDICTIONS_PER_WINDOW = 1_000_000
MAX_WINDOW_WITH_DAY_S = 7_200.0
DEFAULT_ACCURACY = 0.95
_ENDS = (Phase.HEALTHY, Phase.REJECTED, Phase.FAILED, Phase.REVERTED)


class Behaviour(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version on an average device. `accuracy` None is what its bundle expects, DEFAULT_ACCURACY without one;
    `ends_in` is where its update ends on every device.
    """

    accuracy: float | None = None
    error_rate: float = 0.0
    latency_us: float = 2_000.0
    latency_spread: float = 0.3
    ends_in: Phase = Phase.HEALTHY

    def __post_init__(self) -> None:
        for name in ("accuracy", "error_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InvalidRequestError(f"{name} is {value}: use a share from 0 to 1")
        if not (0 < self.latency_us < 1e9 and 0 <= self.latency_spread <= 3):
            raise InvalidRequestError("latency_us lies between 0 and 1e9, latency_spread between 0 and 3")
        if self.ends_in not in _ENDS:
            names = ", ".join(phase.value for phase in _ENDS)
            raise InvalidRequestError(f"an update cannot end in {self.ends_in.value}: use {names}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetBehaviour:
    """What every device of a simulation has in common.

    `rate_per_s` are predictions per second of the mean device. `spread` is how much devices differ: the standard
    deviation of the log of their speed, of the log-odds of their accuracy, of each feature's and the score's mean in
    standard deviations of the reference, of the relative share of a class. `traffic_spread` is that of the log of
    their traffic, and `silent_share` of them send a hundredth of it. `sites` are names with their offset from UTC in
    hours; devices are spread over them. `outcome_share` is the share of predictions whose truth becomes known.
    Versions with a manifest in `manifests` also send features, classes, scores, embedding sums and estimated accuracy,
    drawn about its reference. `update_s` is how long an update takes before its probation.
    """

    rate_per_s: float = 10.0
    window_s: float = 60.0
    spread: float = 0.2
    traffic_spread: float = 0.0
    silent_share: float = 0.0
    outcome_share: float = 1.0
    update_s: float = 5.0
    day: DayNight = field(default_factory=DayNight)
    sites: Mapping[str, float] = field(default_factory=dict)
    default: Behaviour = field(default_factory=Behaviour)
    by_version: Mapping[str, Behaviour] = field(default_factory=dict)
    manifests: Mapping[tuple[str, str], Manifest] = field(default_factory=dict)
    drifts: tuple[Drift, ...] = ()
    network: NetFaults = field(default_factory=NetFaults)
    _references: dict[tuple[str, str], ModelReference] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        if not (0 < self.window_s <= 86_400 and 0 <= self.rate_per_s * self.window_s <= MAX_PREDICTIONS_PER_WINDOW):
            raise InvalidRequestError(
                f"a window lasts up to a day and holds up to {MAX_PREDICTIONS_PER_WINDOW} predictions: "
                "take a shorter window or a lower rate"
            )
        if not (0 <= self.spread <= 3 and 0 <= self.outcome_share <= 1 and 0 <= self.update_s <= 86_400):
            raise InvalidRequestError("spread lies in 0..3, outcome_share in 0..1, update_s in 0..86400")
        if not (0 <= self.traffic_spread <= 3 and 0 <= self.silent_share < 1):
            raise InvalidRequestError("traffic_spread lies in 0..3, silent_share in 0..1 (1 not included)")
        if not self.day.is_flat and self.window_s > MAX_WINDOW_WITH_DAY_S:
            raise InvalidRequestError(
                f"a window of {self.window_s:g} s sees no day and night: take up to {MAX_WINDOW_WITH_DAY_S:g} s"
            )
        for site, offset_h in self.sites.items():
            if not (0 < len(site) <= 64 and -14 <= offset_h <= 14):
                raise InvalidRequestError(f"site {site!r} with offset {offset_h}: a name, and -14 to 14 hours from UTC")
        self._check_drifts()

    def of(self, version: str) -> Behaviour:
        """The version's behaviour, the default one where none was set."""
        return self.by_version.get(version, self.default)

    def reference(self, model: str, version: str) -> ModelReference:
        """The layout of the version's references; NOTHING_KNOWN without a manifest."""
        key = (model, version)
        if key not in self.manifests:
            return NOTHING_KNOWN
        if key not in self._references:
            self._references[key] = reference_of(self.manifests[key], spread=self.spread, day=self.day)
        return self._references[key]

    def accuracy(self, model: str, version: str) -> float:
        """The share of right answers over all devices."""
        accuracy = self.of(version).accuracy
        if accuracy is None:
            accuracy = self.reference(model, version).expected_accuracy
        return DEFAULT_ACCURACY if accuracy is None else accuracy

    def _check_drifts(self) -> None:
        """A drift of what no manifest has would move nothing, silently."""
        for drift in self.drifts:
            if drift.kind == DriftKind.ACCURACY and not drift.known:
                continue
            suited = [
                manifest
                for (_, version), manifest in self.manifests.items()
                if drift.version in ("", version) and _has(manifest, drift)
            ]
            if not suited:
                moved = f"class {drift.class_index}" if drift.kind == DriftKind.CLASS_GONE else drift.feature
                raise InvalidRequestError(
                    f"drift {drift.kind}: no bundle of the simulation has {moved or 'what it moves'}; "
                    f"there is {_names(self.manifests)}"
                )
        unknown = {value for drift in self.drifts if (value := drift.where.get("site")) and value not in self.sites}
        if unknown:
            raise InvalidRequestError(
                f"drift at site={min(unknown)}: the simulation has {sorted(self.sites) or 'none'}"
            )


def _has(manifest: Manifest, drift: Drift) -> bool:
    match drift.kind:
        case DriftKind.FEATURE_SHIFT | DriftKind.FEATURE_NOISE:
            return any(feature.name == drift.feature and sum(feature.counts) for feature in manifest.features)
        case DriftKind.CLASS_GONE:
            return drift.class_index < len(manifest.classes)
        case DriftKind.LESS_SURE:
            return manifest.score is not None
        case DriftKind.EMBEDDING_SHIFT:
            return manifest.random_features is not None
        case DriftKind.ACCURACY:
            return manifest.score is not None and manifest.confidence is not None


def _names(manifests: Mapping[tuple[str, str], Manifest]) -> str:
    return (
        "; ".join(
            f"{model} {version}: features {', '.join(feature.name for feature in manifest.features) or 'none'}, "
            f"{len(manifest.classes)} classes"
            for (model, version), manifest in manifests.items()
        )
        or "nothing: give one with --bundle"
    )
