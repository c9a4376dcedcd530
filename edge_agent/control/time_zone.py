"""The time zone of this device, by its IANA name: TZ, else what /etc/localtime points to, else /etc/timezone."""

from __future__ import annotations

import os
from pathlib import Path

_MAX_CHARS = 64  # the protocol's limit
_DATABASE = "zoneinfo/"


def device_time_zone(*, etc: Path = Path("/etc")) -> str:
    """Its name, "" where it has none that can be told."""
    named = os.environ.get("TZ", "").removeprefix(":")
    for name in (named.rpartition(_DATABASE)[2], _of_link(etc / "localtime"), _of_file(etc / "timezone")):
        if name and len(name) <= _MAX_CHARS and not name.startswith("/"):
            return name
    return ""


def _of_link(link: Path) -> str:
    try:
        _, found, name = str(link.readlink()).rpartition(_DATABASE)
    except OSError:  # a copy of the zone, or nothing
        return ""
    return name if found else ""


def _of_file(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
