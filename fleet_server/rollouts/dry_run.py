"""Reads what a plan needs (devices, sizes, recent telemetry) and plans. Writes nothing.

Invariants: the policy is checked as it is at creation; a telemetry store that is away makes assumptions of what would
be known, and the plan says so; what is read of telemetry is bounded in time and devices.
"""

from __future__ import annotations

import logging
import math
import statistics
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, select

from fleet_server.database.tables import devices, versions
from fleet_server.errors import NotFoundError
from fleet_server.registry.variants import preferred_variant, variant_pools
from fleet_server.rollouts.device_facts import read_device_facts
from fleet_server.rollouts.planning import RolloutPlan, plan_rollout
from fleet_server.rollouts.policy import RolloutPolicy, parse_policy
from fleet_server.rollouts.power_of_gates import Traffic
from fleet_server.rollouts.selection import DeviceFacts, select_devices
from fleet_server.telemetry_store.port import DeviceTotals, Slice, TelemetryStore

LOOKBACK_S = 86_400
"""How far back telemetry is read: a day, because devices live by days."""
MAX_HEARD_DEVICES = 1_000
"""Devices whose telemetry is read: enough for means and spreads."""
WINDOW_S = 60.0
"""The least span that a device with telemetry was heard."""

_LOGGER = logging.getLogger(__name__)


def plan_dry_run(
    engine: Engine,
    store: TelemetryStore,
    *,
    fleet: str,
    model: str,
    version: str,
    policy_json: bytes | str | Mapping[str, Any],
    now_ns: int,
) -> RolloutPlan:
    """What a rollout of a published version would do now.

    Raises InvalidRequestError for the policy, NotFoundError for the version.
    """
    policy = parse_policy(policy_json)
    with engine.connect() as connection:
        row = connection.execute(
            select(versions.c.bundle, versions.c.manifest).where(
                versions.c.model == model, versions.c.version == version
            )
        ).one_or_none()
        if row is None:
            raise NotFoundError(f"model {model!r} has no version {version!r}: publish it first")
        facts = read_device_facts(connection, fleet=fleet, model=model)
        sizes = _download_bytes(connection, facts, fleet=fleet, bundle=row.bundle, manifest=row.manifest)
    return plan_rollout(
        policy,
        facts,
        model=model,
        version=version,
        download_bytes=sizes,
        traffic=_recent_traffic(store, policy, facts, fleet=fleet, model=model, now_ns=now_ns),
        now_ns=now_ns,
        salt=policy.salt or uuid.uuid4().hex,
    )


def traffic_of(totals: Iterable[DeviceTotals]) -> Traffic:
    """Means and spreads over devices of what each did, all its versions together."""
    by_device: defaultdict[str, list[DeviceTotals]] = defaultdict(list)
    for entry in totals:
        by_device[entry.device].append(entry)
    if not by_device:
        return Traffic()
    spans_s = [
        max(WINDOW_S, (max(e.last_end_ns for e in each) - min(e.first_end_ns for e in each)) / 1e9 + WINDOW_S)
        for each in by_device.values()
    ]
    errors = [(sum(e.totals.errors for e in each), sum(e.totals.count for e in each)) for each in by_device.values()]
    wrong = [(sum(e.totals.wrong for e in each), sum(e.totals.correct for e in each)) for each in by_device.values()]
    assumed = Traffic()
    error_rate, error_spread, calls = _rate(errors)
    wrong_rate, wrong_spread, outcomes = _rate(wrong)
    return Traffic(
        devices=len(by_device),
        past_s=statistics.fmean(spans_s),
        inferences_per_s=calls / sum(spans_s),
        error_rate=error_rate,
        error_spread=error_spread,
        outcomes_per_s=outcomes / sum(spans_s),
        accuracy=1 - wrong_rate if outcomes else assumed.accuracy,
        accuracy_spread=wrong_spread,
    )


def _rate(counts: Sequence[tuple[int, int]]) -> tuple[float, float, int]:
    """The pooled rate of (bad, good) counts, its spread between devices beyond what counting gives, all events."""
    events = [bad + good for bad, good in counts]
    whole = sum(events)
    if whole == 0:
        return 0.0, 0.0, 0
    rate = sum(bad for bad, _ in counts) / whole
    rates = [bad / (bad + good) for bad, good in counts if bad + good]
    if len(rates) < 2:
        return rate, 0.0, whole
    by_counting = statistics.fmean(rate * (1 - rate) / count for count in events if count)
    return rate, math.sqrt(max(0.0, statistics.variance(rates) - by_counting)), whole


def _recent_traffic(
    store: TelemetryStore, policy: RolloutPolicy, facts: Sequence[DeviceFacts], *, fleet: str, model: str, now_ns: int
) -> Traffic:
    meant = [each.device for each in select_devices(policy, facts).devices]
    step = max(1, len(meant) // MAX_HEARD_DEVICES)
    heard = frozenset(meant[::step][:MAX_HEARD_DEVICES])
    where = Slice(fleet=fleet, start_ns=now_ns - LOOKBACK_S * 10**9, end_ns=now_ns, model=model, devices=heard)
    try:
        return traffic_of(store.totals_by_device(where)) if heard else Traffic()
    except Exception:
        _LOGGER.exception("a plan for model %s goes by assumptions: the telemetry store failed", model)
        return Traffic()


def _download_bytes(
    connection: Connection, facts: Sequence[DeviceFacts], *, fleet: str, bundle: str, manifest: Mapping[str, Any]
) -> dict[str, int]:
    """What each device would fetch: one file where its kind's fastest variant is known, else every candidate."""
    preferred = {
        (pool.cpu_signature, pool.onnxruntime_version): preferred_variant(pool)
        for pool in variant_pools(connection, fleet=fleet, bundle=bundle)
    }
    runtime = devices.c.reported["onnxruntime_version"].as_string()
    rows = connection.execute(select(devices.c.device, runtime).where(devices.c.fleet == fleet))
    runtimes = {device: version or "" for device, version in rows}
    by_kind: dict[tuple[str, str], int] = {}
    sizes = {}
    for each in facts:
        kind = (each.cpu_signature, runtimes.get(each.device, ""))
        if kind not in by_kind:
            by_kind[kind] = _kind_bytes(manifest, kind[0], preferred.get(kind, ""))
        sizes[each.device] = by_kind[kind]
    return sizes


def _kind_bytes(manifest: Mapping[str, Any], signature: str, preferred: str) -> int:
    architecture = signature.partition(":")[0].lower()
    fetched = 0
    for variant in manifest.get("variants", []):
        architectures = [name.lower() for name in variant.get("architectures", [])]
        is_candidate = not architectures or architecture in architectures
        if is_candidate and preferred in ("", variant["name"]):
            fetched += int(variant.get("file", {}).get("size_bytes", 0))
    return fetched + int(manifest.get("golden", {}).get("size_bytes", 0))
