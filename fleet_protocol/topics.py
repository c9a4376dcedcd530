"""The MQTT topics of one device, and the way back from a topic to its device.

`edgefleet/1/{fleet}/{device}/{kind}`: the 1 is the major version of the whole topic tree.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from fleet_protocol.errors import InvalidName
from fleet_protocol.names import check_name

_ROOT = "edgefleet/1"


class TopicKind(StrEnum):
    """The last level of a topic; it fixes direction, QoS, retention and the message struct."""

    DESIRED = "desired"
    REPORTED = "reported"
    TELEMETRY = "telemetry"
    EVENTS = "events"
    PRESENCE = "presence"
    STORED = "stored"


FROM_DEVICE = (TopicKind.REPORTED, TopicKind.TELEMETRY, TopicKind.EVENTS, TopicKind.PRESENCE)
TO_DEVICE = (TopicKind.DESIRED, TopicKind.STORED)
RETAINED = (TopicKind.DESIRED, TopicKind.REPORTED, TopicKind.PRESENCE)


class DeviceTopic(Struct, frozen=True):
    """A parsed topic."""

    fleet: str
    device: str
    kind: TopicKind

    def __str__(self) -> str:
        return f"{_ROOT}/{self.fleet}/{self.device}/{self.kind.value}"


def topic_of(fleet: str, device: str, kind: TopicKind) -> str:
    """The topic of one device's `kind`. Raises InvalidName."""
    return str(DeviceTopic(check_name("fleet", fleet), check_name("device", device), kind))


def fleet_filter(fleet: str, kind: TopicKind) -> str:
    """The subscription filter for `kind` of every device of one fleet. Raises InvalidName."""
    return f"{_ROOT}/{check_name('fleet', fleet)}/+/{kind.value}"


def parse_topic(topic: str) -> DeviceTopic:
    """The device and kind a topic names. Raises InvalidName for any other topic."""
    levels = topic.split("/")
    if len(levels) != 5 or levels[0] != "edgefleet" or levels[1] != "1":
        raise InvalidName(f"topic {topic[:200]!r} is not {_ROOT}/FLEET/DEVICE/KIND")
    try:
        kind = TopicKind(levels[4])
    except ValueError:
        raise InvalidName(f"topic {topic[:200]!r} ends in an unknown kind") from None
    return DeviceTopic(check_name("fleet", levels[2]), check_name("device", levels[3]), kind)
