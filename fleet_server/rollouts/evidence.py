"""Collects what the gates judge: each device's telemetry with the candidate, and with its incumbent before.

Invariants:
- an exposed device's candidate counts start at its assignment, its incumbent counts end with what the incumbent
  answered; a control device's are those of its one version, after and before a moment of the same distribution
  (`matched_starts`): a control watched longer would have seen another share of day and night;
- a device whose incumbent is the candidate has nothing to compare and gives phases only; one that was given its
  incumbent back is judged no more;
- a device that joined during the bake and is still updating is not counted yet: others need not wait for it;
- outcomes count once their windows are as old as the policy says that truths take (`maturity_s`);
- one query per question, never one per device;
- whatever keeps the store from answering becomes `telemetry_error`, so that no gate passes on it.
"""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import ModelReport, Phase
from fleet_server.errors import FleetError
from fleet_server.rollouts.measures import DeviceEvidence, Evidence, Measures
from fleet_server.rollouts.observation import RolloutDevice, model_report
from fleet_server.rollouts.policy import Gate, OutcomeAccuracyGate
from fleet_server.rollouts.state_machine import ExposedDevice
from fleet_server.telemetry_store.port import DeviceTotals, Slice, TelemetryStore, Totals

INCUMBENT_LOOKBACK_S = 14 * 86_400
"""How far back the incumbent's past on a device is read: the raw telemetry's default retention."""
LARGE_FLEET_DEVICES = 200
"""From so many devices on the past is read LARGE_FLEET_LOOKBACK_S back: many devices need less of each."""
LARGE_FLEET_LOOKBACK_S = 86_400
"""A whole day, so that the past has its share of every hour."""
CLOCK_AHEAD_S = 86_400
"""How far a device's clock may be ahead of the server's before its windows are not counted."""
SILENCE_GRACE_S = 180.0
"""How long a device that is not online must not have been heard before it counts as silent: three windows."""

MAX_CONTROL_STARTS = 16
"""Different moments from which on the control is watched, each a query."""

_NS = 10**9
_OWN_TROUBLE = re.compile(
    r"(?:in quarantine: )*(?:no space|no memory|download |cannot write |cannot store |file [0-9a-f]{64} on this disk)"
)
"""How the agent's reasons begin (edge_agent/control) that are about the device, its disk or its network."""
_LOGGER = logging.getLogger(__name__)


def collect_evidence(
    store: TelemetryStore,
    rows: Sequence[RolloutDevice],
    exposed: Sequence[ExposedDevice],
    *,
    fleet: str,
    model: str,
    version: str,
    manifest: Mapping[str, Any],
    bake_started_ns: int,
    now_ns: int,
    gates: Sequence[Gate] = (),
) -> Evidence:
    """The evidence on the exposed devices and the control.

    `exposed` has the facts on every row that is not of the control, by name; others are ignored. `gates` say what must
    be known beyond counts: how long outcomes take.
    """
    facts_of = {facts.device: facts for facts in exposed}
    counted = [
        (row, facts)
        for row, facts in ((row, facts_of[row.device]) for row in rows if not row.is_control)
        if not facts.restored and (facts.phase.is_end or not 0 < bake_started_ns < row.assigned_ns)
    ]
    control = _matched_control([row for row in rows if row.is_control], [row.assigned_ns for row, _ in counted])
    reader = _Reader(store=store, fleet=fleet, model=model, now_ns=now_ns, maturity_s=_maturity_s(gates))
    telemetry_error = ""
    measured: tuple[_ByDevice, _ByDevice, _ByDevice, _ByDevice] = ({}, {}, {}, {})
    try:
        judged = [row for row, _ in counted]
        measured = (
            reader.candidates(judged, version),
            reader.incumbents(judged),
            reader.controls_now(control),
            reader.controls_before(control),
        )
    except FleetError as error:
        telemetry_error = str(error)
    except Exception as error:
        _LOGGER.exception("rollout of %s %s: the telemetry store failed", model, version)
        telemetry_error = f"the telemetry store failed ({type(error).__name__}); the server's log has the reason"
    candidate, incumbent, held_now, held_before = measured
    expected = _expected_accuracies(manifest)
    devices = []
    for row, facts in counted:
        main = row.incumbent.main
        comparable = main is None or main.version != version
        report = model_report(row, model)
        watched_s, silent_after_s = _watched(row, now_ns)
        devices.append(
            DeviceEvidence(
                device=row.device,
                phase=facts.phase,
                candidate=candidate.get(row.device, _NOTHING) if comparable else _NOTHING,
                incumbent=incumbent.get(row.device, _NOTHING) if main is not None else None,
                expected_accuracy=_expected_accuracy(expected, report.variant if report else ""),
                segment=row.segment,
                watched_s=watched_s,
                silent_after_s=silent_after_s,
                own_trouble=_is_own_trouble(facts.phase, report),
            )
        )
    for row in control:
        watched_s, silent_after_s = _watched(row, now_ns)
        devices.append(
            DeviceEvidence(
                device=row.device,
                phase=Phase.HEALTHY,
                candidate=held_now.get(row.device, _NOTHING),
                incumbent=held_before.get(row.device, _NOTHING) if row.incumbent.main is not None else None,
                segment=row.segment,
                is_control=True,
                watched_s=watched_s,
                silent_after_s=silent_after_s,
            )
        )
    return Evidence(devices=tuple(devices), telemetry_error=telemetry_error)


def matched_starts(assigned: Sequence[int], count: int) -> list[int]:
    """For `count` control devices moments that are spread as those of the `assigned` ones are; empty without any.

    At most MAX_CONTROL_STARTS different ones: the middles of as many equal parts of the sorted moments.
    """
    if not assigned or not count:
        return []
    ordered, parts = sorted(assigned), min(MAX_CONTROL_STARTS, count)
    return [ordered[(2 * (index % parts) + 1) * len(ordered) // (2 * parts)] for index in range(count)]


def _matched_control(rows: Sequence[RolloutDevice], assigned_ns: Sequence[int]) -> list[RolloutDevice]:
    """The control's rows, in order of their names, each as if it had been assigned when an exposed device was."""
    ordered = sorted(rows, key=lambda row: row.device)
    starts_ns = matched_starts(assigned_ns, len(ordered)) or [row.assigned_ns for row in ordered]
    return [
        replace(row, assigned_ns=max(row.assigned_ns, start_ns))
        for row, start_ns in zip(ordered, starts_ns, strict=True)
    ]


_ByDevice = dict[str, Measures]
_NOTHING = Measures()


def _maturity_s(gates: Sequence[Gate]) -> float:
    return max((gate.maturity_s for gate in gates if isinstance(gate, OutcomeAccuracyGate)), default=0.0)


def _is_own_trouble(phase: Phase, report: ModelReport | None) -> bool:
    """Whether it was not the bundle: the device says so, or never saw it. What is not known is the bundle's.

    `report` is what the device says since it saw its assignment, None when it has not seen it.
    """
    if phase is Phase.LOST:
        return report is None
    return phase in (Phase.REJECTED, Phase.FAILED) and report is not None and bool(_OWN_TROUBLE.match(report.error))


def _watched(row: RolloutDevice, now_ns: int) -> tuple[float, float | None]:
    """(watched_s, silent_after_s) of a device since its assignment.

    A device that went offline a moment ago is watched until it was heard last; it is silent once the grace is over. One
    that was silent before its assignment, or has never been heard, is not at risk.
    """
    since_s = max(0.0, (now_ns - row.assigned_ns) / _NS)
    if row.online:
        return since_s, None
    if not row.last_seen_ns or row.last_seen_ns < row.assigned_ns - SILENCE_GRACE_S * _NS:
        return 0.0, None
    heard_s = min(since_s, max(0.0, (row.last_seen_ns - row.assigned_ns) / _NS))
    if now_ns - row.last_seen_ns <= SILENCE_GRACE_S * _NS:
        return heard_s, None
    return since_s, heard_s


@dataclass(slots=True)
class _Sum:
    """One device's totals over arms and queries, while they are added."""

    count: int = 0
    errors: int = 0
    correct: int = 0
    wrong: int = 0
    shadow_compared: int = 0
    shadow_disagreed: int = 0
    rss_bytes: int = 0
    rss_windows: int = 0
    temperature_mc: int = 0
    temperature_windows: int = 0
    latency: LatencyHistogram | None = None
    classes: dict[int, int] = field(default_factory=dict)

    def add(self, totals: Totals) -> None:
        self.count += totals.count
        self.errors += totals.errors
        self.correct += totals.correct
        self.wrong += totals.wrong
        self.shadow_compared += totals.shadow_compared
        self.shadow_disagreed += totals.shadow_disagreed
        self.rss_bytes += totals.rss_bytes_sum
        self.rss_windows += totals.rss_windows
        self.temperature_mc += totals.temperature_mc_sum
        self.temperature_windows += totals.temperature_windows
        if self.latency is None:
            self.latency, self.classes = totals.latency, dict(totals.classes)
            return
        self.latency = LatencyHistogram(self.latency.counts + totals.latency.counts)
        for name, count in totals.classes.items():
            self.classes[name] = self.classes.get(name, 0) + count

    def measures(self) -> Measures:
        has_latency = self.latency is not None and bool(self.latency.counts.any())
        return Measures(
            count=self.count,
            errors=self.errors,
            correct=self.correct,
            wrong=self.wrong,
            p95_us=self.latency.quantile_us(0.95) if self.latency is not None and has_latency else None,
            rss_bytes=self.rss_bytes / self.rss_windows if self.rss_windows else None,
            temperature_c=self.temperature_mc / self.temperature_windows / 1000 if self.temperature_windows else None,
            classes=self.classes,
            shadow_compared=self.shadow_compared,
            shadow_disagreed=self.shadow_disagreed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Asks the store for one model's measures by device."""

    store: TelemetryStore
    fleet: str
    model: str
    now_ns: int
    maturity_s: float

    def candidates(self, rows: Sequence[RolloutDevice], version: str) -> _ByDevice:
        """What the candidate did on each device since its assignment."""
        if not rows:
            return {}
        assigned = {row.device: row.assigned_ns for row in rows}

        def read(end_ns: int) -> list[DeviceTotals]:
            found = self._totals(assigned, version, min(assigned.values()), end_ns)
            # One query serves all but those that ran this very version before their assignment: an earlier rollout's.
            earlier = [totals.device for totals in found if totals.first_end_ns <= assigned[totals.device]]
            return [totals for totals in found if totals.device not in set(earlier)] + [
                totals
                for start_ns, devices in _by_start(assigned, earlier)
                for totals in self._totals(devices, version, start_ns, end_ns)
            ]

        return self._matured(read)

    def incumbents(self, rows: Sequence[RolloutDevice]) -> _ByDevice:
        """What each device's incumbent ever did on it, within the lookback.

        Until now: an outcome learnt after the switch still belongs to the version that answered.
        """
        groups = [
            (version, [row.device for row in group], self._past_ns(group, min(row.assigned_ns for row in group)))
            for version, group in _by_version(rows)
        ]
        return self._matured(
            lambda end_ns: [
                totals
                for version, devices, start_ns in groups
                for totals in self._totals(devices, version, start_ns, end_ns)
            ]
        )

    def controls_now(self, rows: Sequence[RolloutDevice]) -> _ByDevice:
        """What the incumbent of each control device did since its start."""
        return self._matured(
            lambda end_ns: [
                totals
                for version, group in _by_version(rows)
                for start_ns, devices in _by_start({row.device: row.assigned_ns for row in group})
                for totals in self._totals(devices, version, start_ns, end_ns)
            ]
        )

    def controls_before(self, rows: Sequence[RolloutDevice]) -> _ByDevice:
        """What the incumbent of each control device did before its start."""
        return self._matured(
            lambda end_ns: [
                totals
                for version, group in _by_version(rows)
                for switch_ns, devices in _by_start({row.device: row.assigned_ns for row in group})
                for totals in self._totals(devices, version, self._past_ns(group, switch_ns), min(end_ns, switch_ns))
            ]
        )

    def _past_ns(self, group: Sequence[RolloutDevice], switch_ns: int) -> int:
        lookback_s = INCUMBENT_LOOKBACK_S if len(group) < LARGE_FLEET_DEVICES else LARGE_FLEET_LOOKBACK_S
        return max(0, switch_ns - lookback_s * _NS)

    def _matured(self, read: Callable[[int], list[DeviceTotals]]) -> _ByDevice:
        """Everything until now, but outcomes only of windows that are old enough."""
        sums = _sum_by_device(read(self.now_ns + CLOCK_AHEAD_S * _NS))
        if self.maturity_s > 0:
            mature = _sum_by_device(read(self.now_ns - int(self.maturity_s * _NS)))
            for device, total in sums.items():
                old = mature.get(device, _Sum())
                total.correct, total.wrong = old.correct, old.wrong
        return {device: total.measures() for device, total in sums.items()}

    def _totals(self, devices: Iterable[str], version: str, start_ns: int, end_ns: int) -> list[DeviceTotals]:
        return self.store.totals_by_device(
            Slice(
                fleet=self.fleet,
                start_ns=start_ns,
                end_ns=end_ns,
                model=self.model,
                version=version,
                devices=frozenset(devices),
            )
        )


def _by_version(rows: Iterable[RolloutDevice]) -> list[tuple[str, list[RolloutDevice]]]:
    groups: defaultdict[str, list[RolloutDevice]] = defaultdict(list)
    for row in rows:
        if row.incumbent.main is not None:
            groups[row.incumbent.main.version].append(row)
    return sorted(groups.items())


def _by_start(starts_ns: Mapping[str, int], devices: Iterable[str] | None = None) -> list[tuple[int, list[str]]]:
    """Devices by the moment they were assigned: those of one decision have the same."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for device in starts_ns if devices is None else sorted(set(devices)):
        groups[starts_ns[device]].append(device)
    return sorted(groups.items())


def _sum_by_device(found: Iterable[DeviceTotals]) -> dict[str, _Sum]:
    sums: dict[str, _Sum] = {}
    for entry in found:
        sums.setdefault(entry.device, _Sum()).add(entry.totals)
    return sums


def _expected_accuracies(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Variant name -> the accuracy its makers measured, where they did and it is a rate."""
    accuracies = {}
    for variant in manifest.get("variants", []):
        accuracy = variant.get("expected", {}).get("accuracy")
        if isinstance(accuracy, int | float) and math.isfinite(accuracy) and 0 <= accuracy <= 1:
            accuracies[str(variant.get("name", ""))] = float(accuracy)
    return accuracies


def _expected_accuracy(accuracies: Mapping[str, float], variant: str) -> float | None:
    """Of the variant that runs; of the best one while the device has not said which runs."""
    return accuracies.get(variant, max(accuracies.values(), default=None))
