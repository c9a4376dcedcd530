"""Reads what policies select by: each device's labels and the part of its report that a selector names."""

from __future__ import annotations

import msgspec
from msgspec import Struct, field
from sqlalchemy import Connection, Text, cast, select

from fleet_protocol.messages import MAIN_ARM
from fleet_server.database.tables import devices
from fleet_server.identity.revocation import not_revoked
from fleet_server.rollouts.selection import DeviceFacts


class _Model(Struct):
    model: str
    arm: str = MAIN_ARM
    active: str | None = None
    version: str = ""


class _Report(Struct):
    """The few fields of `Reported` that are needed here: a fleet's reports are read often."""

    device: str
    cpu_signature: str = ""
    agent_version: str = ""
    time_zone: str = ""
    models: list[_Model] = field(default_factory=list)


_REPORTS = msgspec.json.Decoder(_Report)
_LABELS = msgspec.json.Decoder(dict[str, str])


def read_device_facts(connection: Connection, *, fleet: str, model: str) -> list[DeviceFacts]:
    """The facts of every device that is let in, neither revoked nor decommissioned; `runs` is of `model`.

    A report that cannot be read counts as none.
    """
    query = select(
        devices.c.device, cast(devices.c.labels, Text), cast(devices.c.reported, Text), devices.c.online
    ).where(devices.c.fleet == fleet, not_revoked())
    return [_facts(model, *row) for row in connection.execute(query)]


def _facts(model: str, device: str, labels: str, reported: str | None, online: bool) -> DeviceFacts:
    report = _read(reported)
    if report is None:
        return DeviceFacts(device=device, labels=_LABELS.decode(labels), online=online)
    active = next((each for each in report.models if (each.model, each.arm) == (model, MAIN_ARM) and each.active), None)
    return DeviceFacts(
        device=device,
        labels=_LABELS.decode(labels),
        cpu_signature=report.cpu_signature,
        agent_version=report.agent_version,
        runs=active.version if active else "",
        online=online,
        has_reported=True,
        time_zone=report.time_zone,
        hardware=report.cpu_signature,
    )


def _read(reported: str | None) -> _Report | None:
    if reported is None:
        return None
    try:
        return _REPORTS.decode(reported)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
