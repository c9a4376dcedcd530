"""Carries out a decision's action: the desired states of its devices and their rows, in the caller's transaction.

Invariants:
- what a device ran before is kept in its row before the candidate is desired, and given back as it was. Where an
  earlier update ended badly that is what the device says it runs, not what it was told and could not;
- a new rollout, a retry and a restore are each an operator's word to try again, also where an earlier update failed;
- a device that left the fleet gets no desired state: its row is closed without one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import Struct, field
from sqlalchemy import Connection, Text, cast, select

from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import MAIN_ARM, Assignment, Phase
from fleet_server.database.tables import devices, versions
from fleet_server.registry.variants import VariantHints
from fleet_server.rollouts.desired import FRESHNESS_S, Terms, assign_all, batched, read_desired_of
from fleet_server.rollouts.device_rows import NewRow, Seen, add_rows, read_incumbents, read_present, reassign_rows
from fleet_server.rollouts.observation import Incumbent
from fleet_server.rollouts.progress import Action, Expose, Hold, Restore, Retry
from fleet_server.rollouts.records import RolloutRecord


class Assigner:
    """Writes what decisions ask for. `segments` of `carry_out` are those of devices that are new to the rollout."""

    def __init__(
        self, signer: PrivateKey, *, root_version: Callable[[], int], freshness_s: float = FRESHNESS_S
    ) -> None:
        self._signer, self._root_version, self._freshness_s = signer, root_version, freshness_s

    def carry_out(
        self,
        connection: Connection,
        record: RolloutRecord,
        action: Action,
        *,
        segments: Mapping[str, str],
        now_ns: int,
    ) -> None:
        """Do what the action says. Raises UnavailableError when other writers won every time."""
        match action:
            case Hold(devices=names):
                self._hold(connection, record, names, segments, now_ns)
            case Expose(devices=names):
                self._expose(connection, record, names, segments, now_ns)
            case Retry(devices=names):
                self._retry(connection, record, names, now_ns)
            case Restore(devices=names):
                self._restore(connection, record, names, now_ns)

    def _hold(
        self,
        connection: Connection,
        record: RolloutRecord,
        names: Sequence[str],
        segments: Mapping[str, str],
        now_ns: int,
    ) -> None:
        before = _incumbents(connection, record, names, _read_told(connection, record.fleet, names))
        rows = [
            NewRow(device=name, incumbent=before[name], generation=0, segment=segments.get(name, "")) for name in names
        ]
        add_rows(connection, record, rows, is_control=True, now_ns=now_ns)

    def _expose(
        self,
        connection: Connection,
        record: RolloutRecord,
        names: Sequence[str],
        segments: Mapping[str, str],
        now_ns: int,
    ) -> None:
        told = _read_told(connection, record.fleet, names)
        before = _incumbents(connection, record, names, told)
        generations = self._assign(connection, record, dict.fromkeys(names, (_candidate(record),)), told, now_ns)
        held = read_incumbents(connection, record.id, names)  # control that is let go has a row already
        rows = [
            NewRow(
                device=name,
                incumbent=before[name],
                generation=generations[name],
                segment=segments.get(name, ""),
                seen=told[name].seen if name in told else (None, 0),
            )
            for name in names
            if name not in held
        ]
        add_rows(connection, record, rows, is_control=False, now_ns=now_ns)
        let_go = {name: before[name] for name in names if name in held}
        reassign_rows(connection, record, let_go, generations, _seen(told), stage=record.progress.stage, now_ns=now_ns)

    def _retry(self, connection: Connection, record: RolloutRecord, names: Sequence[str], now_ns: int) -> None:
        before, told = read_incumbents(connection, record.id, names), _read_told(connection, record.fleet, names)
        generations = self._assign(connection, record, dict.fromkeys(names, (_candidate(record),)), told, now_ns)
        reassign_rows(connection, record, before, generations, _seen(told), is_retry=True, now_ns=now_ns)

    def _restore(self, connection: Connection, record: RolloutRecord, names: Sequence[str], now_ns: int) -> None:
        before, told = read_incumbents(connection, record.id, names), _read_told(connection, record.fleet, names)
        there = read_present(connection, record.id, names)
        back = {name: tuple(before[name].assignments) for name in names if name in there}
        generations = dict.fromkeys(names, 0) | self._assign(connection, record, back, told, now_ns)
        restored = {name: msgspec.structs.replace(incumbent, restored=True) for name, incumbent in before.items()}
        reassign_rows(connection, record, restored, generations, _seen(told), now_ns=now_ns)

    def _assign(
        self,
        connection: Connection,
        record: RolloutRecord,
        assignments: Mapping[str, tuple[Assignment, ...]],
        told: Mapping[str, _Told],
        now_ns: int,
    ) -> dict[str, int]:
        hinted = _hinted(connection, record.fleet, assignments, told)
        policy = record.policy
        terms = Terms(
            probation=policy.probation,
            jitter_s=policy.jitter_s,
            deadline_ns=now_ns + int(policy.deploy_deadline_s * 1e9),
            maintenance=policy.maintenance,
            freshness_s=self._freshness_s,
            root_version=self._root_version(),
        )
        return assign_all(
            connection,
            fleet=record.fleet,
            assignments={name: {record.model: entries} for name, entries in hinted.items()},
            signer=self._signer,
            now_ns=now_ns,
            terms=terms,
            retry={name: [entry.bundle for entry in entries] for name, entries in hinted.items()},
        )


def _candidate(record: RolloutRecord) -> Assignment:
    return Assignment(model=record.model, version=record.version, bundle=record.bundle)


def _incumbents(
    connection: Connection, record: RolloutRecord, names: Sequence[str], told: Mapping[str, _Told]
) -> dict[str, Incumbent]:
    wanted = read_desired_of(connection, fleet=record.fleet, devices=names, for_update=True)
    incumbents, runs_other = {}, {}
    for name in names:
        generation, entries = wanted.get(name, (0, []))
        incumbents[name] = Incumbent(assignments=[entry for entry in entries if entry.model == record.model])
        report = told[name].report.of(record.model) if name in told else None
        if report is not None and report.phase.is_failure and told[name].report.generation >= generation:
            runs_other[name] = report.active
    published = _published(connection, record.model, {bundle for bundle in runs_other.values() if bundle})
    for name, active in runs_other.items():
        known = [published[active]] if active in published else []
        if known or active is None:
            incumbents[name] = Incumbent(assignments=known)
    return incumbents


def _published(connection: Connection, model: str, bundles: Collection[str]) -> dict[str | None, Assignment]:
    query = select(versions.c.bundle, versions.c.version).where(
        versions.c.model == model, versions.c.bundle.in_(bundles)
    )
    return {
        bundle: Assignment(model=model, version=version, bundle=bundle)
        for bundle, version in (connection.execute(query) if bundles else ())
    }


def _seen(told: Mapping[str, _Told]) -> dict[str, Seen]:
    return {name: each.seen for name, each in told.items()}


class _Model(Struct, frozen=True):
    model: str
    phase: Phase
    active: str | None = None
    arm: str = MAIN_ARM


class _Report(Struct, frozen=True):
    """The part of a report that says which variants suit the device, and what it runs."""

    cpu_signature: str = ""
    onnxruntime_version: str = ""
    generation: int = 0
    models: list[_Model] = field(default_factory=list)

    @property
    def kind(self) -> tuple[str, str]:
        """What variants are chosen by."""
        return self.cpu_signature, self.onnxruntime_version

    def of(self, model: str) -> _Model | None:
        """What it says of the model's main arm."""
        return next((each for each in self.models if (each.model, each.arm) == (model, MAIN_ARM)), None)


_REPORTS = msgspec.json.Decoder(_Report)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a device had told before it is given something new."""

    report: _Report
    seen: Seen


def _read_told(connection: Connection, fleet: str, names: Sequence[str]) -> dict[str, _Told]:
    told: dict[str, _Told] = {}
    columns = (devices.c.device, devices.c.boot_id, devices.c.reported_sequence, cast(devices.c.reported, Text))
    for some in batched(names):
        query = select(*columns).where(devices.c.fleet == fleet, devices.c.device.in_(some))
        for device, boot_id, sequence, reported in connection.execute(query):
            told[device] = _Told(_read_report(reported), (boot_id, sequence))
    return told


def _read_report(reported: str | None) -> _Report:
    try:
        return _REPORTS.decode(reported) if reported else _Report()
    except msgspec.DecodeError:
        return _Report()


def _hinted(
    connection: Connection, fleet: str, assignments: Mapping[str, tuple[Assignment, ...]], told: Mapping[str, _Told]
) -> dict[str, list[Assignment]]:
    """The assignments with the variant that devices of each kind found fastest; each kind is asked for once."""
    hints = VariantHints(connection, fleet=fleet)
    applied: dict[tuple[tuple[str, str] | None, tuple[Assignment, ...]], list[Assignment]] = {}
    hinted = {}
    for name, entries in assignments.items():
        key = (told[name].report.kind if name in told else None, entries)
        if key not in applied:
            applied[key] = hints.applied(name, entries)
        hinted[name] = applied[key]
    return hinted
