"""What a device's message says, checked against the topic it came on. Pure.

Invariant: a payload speaks only for the device whose topic it came on; a broker's ACL decides who may use the topic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fleet_protocol.errors import MalformedMessage, ProtocolError, UnsupportedSchema
from fleet_protocol.messages import Event, Presence, Reported, Window, decode
from fleet_protocol.topics import TopicKind, parse_topic
from fleet_server.message_bus.port import Incoming

_STRUCTS: dict[TopicKind, type[Window] | type[Event] | type[Presence] | type[Reported]] = {
    TopicKind.TELEMETRY: Window,
    TopicKind.EVENTS: Event,
    TopicKind.PRESENCE: Presence,
    TopicKind.REPORTED: Reported,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that cannot be used: why, for the log, and which counter it belongs to."""

    topic: str
    reason: str
    counter: str


@dataclass(slots=True)
class Batch:
    """What a run of messages said, in order of arrival."""

    windows: list[Window] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    presences: list[Presence] = field(default_factory=list)
    reports: list[Reported] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def decode_messages(messages: Sequence[Incoming], fleet: str) -> Batch:
    """Sort messages by what they are; what is malformed, oversized, newer or foreign becomes a refusal."""
    batch = Batch()
    for message in messages:
        try:
            _decode_into(batch, message, fleet)
        except UnsupportedSchema as error:
            batch.refusals.append(Refusal(message.topic, str(error), "unsupported_schema"))
        except ProtocolError as error:
            batch.refusals.append(Refusal(message.topic, str(error), "malformed"))
    return batch


def _decode_into(batch: Batch, message: Incoming, fleet: str) -> None:
    topic = parse_topic(message.topic)
    kind = _STRUCTS.get(topic.kind)
    if kind is None or topic.fleet != fleet:
        raise MalformedMessage("devices of this fleet do not speak on this topic")
    if not message.payload and topic.kind in (TopicKind.PRESENCE, TopicKind.REPORTED):
        return  # an operator cleared the retained message
    decoded = decode(kind, message.payload)
    if decoded.device != topic.device:
        raise MalformedMessage(f"a message of device {decoded.device} came on the topic of {topic.device}")
    match decoded:
        case Window():
            batch.windows.append(decoded)
        case Event():
            batch.events.append(decoded)
        case Presence():
            batch.presences.append(decoded)
        case Reported():
            batch.reports.append(decoded)
