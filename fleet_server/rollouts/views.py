"""A rollout as people look at it: where it is, what it waits for, its devices counted and the first of them named."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field
from sqlalchemy import Connection

from fleet_server.rollouts.approvals import approvals_needed
from fleet_server.rollouts.device_rows import (
    read_exposures,
    read_phases,
    read_rollout_devices,
    read_segments,
    read_tally,
)
from fleet_server.rollouts.observation import exposed_device
from fleet_server.rollouts.outlook import Outlook
from fleet_server.rollouts.policy import RolloutPolicy, policy_document
from fleet_server.rollouts.progress import Approval, Progress
from fleet_server.rollouts.records import RolloutRecord, latest_evaluations

MAX_SHOWN_DEVICES = 1000
"""Exposed devices that a view names; `exposed_count` and `phases` have them all."""


class DeviceView(Struct, frozen=True, kw_only=True):
    """An exposed device: when it came in, where its update is, what it ran before ("" for nothing)."""

    device: str
    stage: int
    phase: str
    restored: bool
    incumbent_version: str
    assigned_generation: int
    assigned_ns: int
    segment: str = ""
    attempts: int = 0


class GateView(Struct, frozen=True, kw_only=True):
    """The last result of a gate, over all devices (`segment` "") or over one segment's."""

    gate: str
    stage: int
    verdict: str
    explanation: str
    evidence: dict[str, Any]
    at_ns: int
    segment: str = ""


class SegmentView(Struct, frozen=True, kw_only=True):
    """A segment: how many of its devices were exposed and restored, and why it was taken back, "" where it was not."""

    segment: str
    exposed: int
    restored: int
    halted_because: str = ""


class RolloutView(Struct, frozen=True, kw_only=True):
    """A rollout as people look at it. What has a default is filled by `detailed_view`, and empty in a list.

    `exposed_count` devices were given the candidate, `control_count` are held on the incumbent. `phases` counts the
    exposed by phase, `exposures` by the stage that exposed them. `approvals_needed` is of the stage it is in or waits
    to enter. `next` is what it waits for.
    """

    id: str
    fleet: str
    model: str
    version: str
    bundle: str
    state: str
    stage: int
    stages: int
    step: str | None
    reason: str
    bake_extensions: int
    bake_ends_ns: int | None
    exposed_count: int
    control_count: int
    restored_count: int
    created_by: str
    created_ns: int
    updated_ns: int
    revision: int
    policy: dict[str, Any]
    next: Outlook
    approvals: list[Approval]
    approvals_needed: int
    devices: list[DeviceView] = field(default_factory=list)
    gates: list[GateView] = field(default_factory=list)
    phases: dict[str, int] = field(default_factory=dict)
    exposures: list[int] = field(default_factory=list)
    segments: list[SegmentView] = field(default_factory=list)


def short_view(connection: Connection, record: RolloutRecord) -> RolloutView:
    """The rollout without what takes one line per device, gate or segment."""
    progress = record.progress
    tally = read_tally(connection, record, now_ns=record.updated_ns)
    return RolloutView(
        id=record.id,
        fleet=record.fleet,
        model=record.model,
        version=record.version,
        bundle=record.bundle,
        state=progress.state.value,
        stage=progress.stage,
        stages=len(record.policy.stages),
        step=progress.step.value if progress.step else None,
        reason=progress.reason,
        bake_extensions=progress.bake_extensions,
        bake_ends_ns=_bake_ends_ns(record.policy, progress),
        exposed_count=tally.exposed,
        control_count=tally.control,
        restored_count=tally.restored,
        created_by=record.created_by,
        created_ns=record.created_ns,
        updated_ns=record.updated_ns,
        revision=record.revision,
        policy=policy_document(record.policy),
        next=Outlook() if progress.state.is_terminal else msgspec.convert(record.outlook, Outlook),
        approvals=progress.approvals,
        approvals_needed=approvals_needed(record.policy, progress.stage),
    )


def detailed_view(connection: Connection, record: RolloutRecord) -> RolloutView:
    """The rollout with its first devices, the last result of each gate, and everything counted."""
    exposures = read_exposures(connection, record.id)
    halted = record.progress.halted
    segments = read_segments(connection, record.id) if record.policy.segments else {}
    return msgspec.structs.replace(
        short_view(connection, record),
        devices=_device_views(connection, record),
        gates=[
            GateView(
                gate=row.gate,
                segment=row.segment,
                stage=row.stage,
                verdict=row.verdict,
                explanation=row.evidence["explanation"],
                evidence=row.evidence["numbers"],
                at_ns=row.at_ns,
            )
            for row in latest_evaluations(connection, record.id).values()
        ],
        phases=read_phases(connection, record, now_ns=record.updated_ns),
        exposures=[exposures.get(stage, 0) for stage in range(len(record.policy.stages))],
        segments=[
            SegmentView(segment=name, exposed=exposed, restored=restored, halted_because=halted.get(name, ""))
            for name, (exposed, restored) in sorted(segments.items())
        ],
    )


def _bake_ends_ns(policy: RolloutPolicy, progress: Progress) -> int | None:
    if not progress.bake_started_ns:
        return None
    return progress.bake_started_ns + int(policy.stages[progress.stage].bake_s * 1e9)


def _device_views(connection: Connection, record: RolloutRecord) -> list[DeviceView]:
    views = []
    for row in read_rollout_devices(connection, record, limit=MAX_SHOWN_DEVICES, control=False):
        facts = exposed_device(
            row,
            model=record.model,
            candidate=record.bundle,
            deploy_deadline_s=record.policy.deploy_deadline_s,
            now_ns=record.updated_ns,
        )
        main = row.incumbent.main
        views.append(
            DeviceView(
                device=row.device,
                stage=row.stage,
                phase=facts.phase.value,
                restored=facts.restored,
                incumbent_version=main.version if main else "",
                assigned_generation=row.assigned_generation,
                assigned_ns=row.assigned_ns,
                segment=row.segment,
                attempts=row.attempts,
            )
        )
    return views
