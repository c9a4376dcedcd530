"""Collects what the gates judge: each exposed device's telemetry with the candidate, and with its incumbent before.

Invariants:
- a device's candidate counts start at its assignment, its incumbent counts end with what the incumbent answered;
- a device whose incumbent is the candidate has nothing to compare and gives phases only;
- a device that joined during the bake and is still updating is not counted yet: others need not wait for it;
- whatever keeps the store from answering becomes `telemetry_error`, so that no gate passes on it.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fleet_server.errors import FleetError
from fleet_server.rollouts.measures import DeviceEvidence, Evidence, Measures
from fleet_server.rollouts.observation import RolloutDevice, model_report
from fleet_server.rollouts.state_machine import ExposedDevice
from fleet_server.telemetry_store.port import DeviceTotals, Slice, TelemetryStore

INCUMBENT_LOOKBACK_S = 14 * 86_400
"""How far back the incumbent's past on a device is read: the raw telemetry's default retention."""
CLOCK_AHEAD_S = 86_400
"""How far a device's clock may be ahead of the server's before its windows are not counted."""

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
) -> Evidence:
    """The evidence on the exposed devices; `rows` and `exposed` are of the same devices in the same order."""
    counted = [
        (row, facts)
        for row, facts in zip(rows, exposed, strict=True)
        if facts.phase.is_end or not 0 < bake_started_ns < row.assigned_ns
    ]
    counted_rows = [row for row, _ in counted]
    telemetry_error = ""
    candidate: dict[str, Measures] = {}
    incumbent: dict[str, Measures] = {}
    try:
        candidate = _candidate_counts(store, counted_rows, fleet=fleet, model=model, version=version, now_ns=now_ns)
        incumbent = _incumbent_counts(store, counted_rows, fleet=fleet, model=model, now_ns=now_ns)
    except FleetError as error:
        telemetry_error = str(error)
    except Exception as error:
        _LOGGER.exception("rollout of %s %s: the telemetry store failed", model, version)
        telemetry_error = f"the telemetry store failed ({type(error).__name__}); the server's log has the reason"
    expected = _expected_accuracies(manifest)
    devices = []
    for row, facts in counted:
        main = row.incumbent.main
        comparable = main is None or main.version != version
        report = model_report(row, model)
        devices.append(
            DeviceEvidence(
                device=row.device,
                phase=facts.phase,
                candidate=candidate.get(row.device, Measures()) if comparable else Measures(),
                incumbent=incumbent.get(row.device, Measures()) if main is not None else None,
                expected_accuracy=_expected_accuracy(expected, report.variant if report else ""),
            )
        )
    return Evidence(devices=tuple(devices), telemetry_error=telemetry_error)


def _candidate_counts(
    store: TelemetryStore, rows: Sequence[RolloutDevice], *, fleet: str, model: str, version: str, now_ns: int
) -> dict[str, Measures]:
    if not rows:
        return {}

    def read(devices: Iterable[str], start_ns: int) -> list[DeviceTotals]:
        names = frozenset(devices)
        return store.totals_by_device(
            Slice(
                fleet=fleet,
                start_ns=start_ns,
                end_ns=now_ns + CLOCK_AHEAD_S * 10**9,
                model=model,
                version=version,
                devices=names,
            )
        )

    assigned = {row.device: row.assigned_ns for row in rows}
    found = read(assigned, min(assigned.values()))
    # One query serves all but the few that ran this very version before their assignment: an earlier rollout's.
    earlier = {totals.device for totals in found if totals.first_end_ns <= assigned[totals.device]}
    kept = [totals for totals in found if totals.device not in earlier]
    for device in sorted(earlier):
        kept += read([device], assigned[device])
    return _sum_by_device(kept)


def _incumbent_counts(
    store: TelemetryStore, rows: Sequence[RolloutDevice], *, fleet: str, model: str, now_ns: int
) -> dict[str, Measures]:
    by_version: defaultdict[str, list[RolloutDevice]] = defaultdict(list)
    for row in rows:
        if row.incumbent.main is not None:
            by_version[row.incumbent.main.version].append(row)
    found: list[DeviceTotals] = []
    for version, group in sorted(by_version.items()):
        first_ns = min(row.assigned_ns for row in group)
        found += store.totals_by_device(
            Slice(
                fleet=fleet,
                start_ns=max(0, first_ns - INCUMBENT_LOOKBACK_S * 10**9),
                # Until now: an outcome learnt after the switch still belongs to the version that answered.
                end_ns=now_ns + CLOCK_AHEAD_S * 10**9,
                model=model,
                version=version,
                devices=frozenset(row.device for row in group),
            )
        )
    return _sum_by_device(found)


def _sum_by_device(found: Iterable[DeviceTotals]) -> dict[str, Measures]:
    sums: dict[str, Measures] = {}
    for entry in found:
        before, totals = sums.get(entry.device, Measures()), entry.totals
        sums[entry.device] = Measures(
            count=before.count + totals.count,
            errors=before.errors + totals.errors,
            correct=before.correct + totals.correct,
            wrong=before.wrong + totals.wrong,
        )
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
