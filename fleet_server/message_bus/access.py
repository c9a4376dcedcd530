"""Who may say and hear what on the bus: the one rule, and its form for a Mosquitto broker.

A device writes its own reported, telemetry, events and presence, and reads its own desired and stored;
the server reads the whole fleet, writes to devices, and clears what is retained of one that is gone; nobody else
exists. The user name is the device id; the server's name has a dot, which no device id can have.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from fleet_protocol.errors import InvalidName
from fleet_protocol.topics import FROM_DEVICE, RETAINED, TO_DEVICE, DeviceTopic, TopicKind, parse_topic

SERVER_USER = "fleet.server"
_PASSWORD_ROUNDS = 20_000  # the passwords are 256 random bits: rounds only slow a broker's start


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRule:
    """The rule for one fleet."""

    fleet: str
    server_user: str = SERVER_USER

    def may_publish(self, user: str, topic: str) -> bool:
        """Whether `user` may publish to `topic`."""
        parsed = self._parse(topic)
        if parsed is None:
            return False
        if user == self.server_user:
            return parsed.kind in TO_DEVICE or parsed.kind in RETAINED
        return _speaks_for(user, parsed, FROM_DEVICE)

    def may_receive(self, user: str, topic: str) -> bool:
        """Whether `user` may subscribe to, or be sent, `topic`; only the server may use wildcards."""
        if user == self.server_user:
            return topic.startswith(f"edgefleet/1/{self.fleet}/")
        parsed = self._parse(topic)
        return parsed is not None and _speaks_for(user, parsed, TO_DEVICE)

    def _parse(self, topic: str) -> DeviceTopic | None:
        try:
            parsed = parse_topic(topic)
        except InvalidName:
            return None
        return parsed if parsed.fleet == self.fleet else None


def _speaks_for(user: str, topic: DeviceTopic, kinds: tuple[TopicKind, ...]) -> bool:
    return topic.device == user and topic.kind in kinds


def mosquitto_acl(fleet: str) -> str:
    """The rule as a Mosquitto ACL file."""
    lines = [f"user {SERVER_USER}", f"topic readwrite edgefleet/1/{fleet}/#", ""]
    lines += [f"pattern write edgefleet/1/{fleet}/%u/{kind.value}" for kind in FROM_DEVICE]
    lines += [f"pattern read edgefleet/1/{fleet}/%u/{kind.value}" for kind in TO_DEVICE]
    return "\n".join(lines) + "\n"


def mosquitto_passwords(passwords: Mapping[str, str]) -> str:
    """A Mosquitto password file (mosquitto_passwd's PBKDF2-SHA512 form, `$7$`)."""
    return "".join(f"{user}:{_mosquitto_hash(password)}\n" for user, password in passwords.items())


def _mosquitto_hash(password: str) -> str:
    salt = os.urandom(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _PASSWORD_ROUNDS)
    encoded = (base64.b64encode(part).decode("ascii") for part in (salt, digest))
    return f"$7${_PASSWORD_ROUNDS}$" + "$".join(encoded)
