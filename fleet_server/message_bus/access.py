"""Who may say and hear what on the bus: the one rule, and its form for a Mosquitto broker.

A device writes its own reported, telemetry, events and presence, and reads its own desired and stored;
the server reads and writes the whole fleet; nobody else exists. The user name is the device id; the
server's name has a dot, which no device id can have.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping

from fleet_protocol.errors import InvalidName
from fleet_protocol.topics import FROM_DEVICE, TO_DEVICE, parse_topic

SERVER_USER = "fleet.server"
_PASSWORD_ROUNDS = 20_000  # the passwords are 256 random bits: rounds only slow a broker's start


def may_publish(user: str, topic: str, fleet: str) -> bool:
    """Whether `user` may publish to `topic`."""
    return _may(user, topic, fleet, server_kinds=TO_DEVICE, device_kinds=FROM_DEVICE)


def may_receive(user: str, topic: str, fleet: str) -> bool:
    """Whether `user` may subscribe to, or be sent, `topic`."""
    if user == SERVER_USER:
        return topic.startswith(f"edgefleet/1/{fleet}/")
    return _may(user, topic, fleet, server_kinds=FROM_DEVICE, device_kinds=TO_DEVICE)


def _may(user: str, topic: str, fleet: str, *, server_kinds: tuple[str, ...], device_kinds: tuple[str, ...]) -> bool:
    try:
        parsed = parse_topic(topic)
    except InvalidName:
        return False
    if parsed.fleet != fleet:
        return False
    return parsed.kind in server_kinds if user == SERVER_USER else parsed.device == user and parsed.kind in device_kinds


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
