"""The form of every name that crosses the wire, as types msgspec checks while decoding.

Invariant: a name that passed here is safe as an MQTT topic level, an InfluxDB tag, a URL path
segment and a file name: no separators, no wildcards, no leading dot, bounded length.
"""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from fleet_protocol.errors import InvalidName

_IDENTIFIER = r"^[a-z0-9][a-z0-9_-]{0,63}\Z"
_MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
# https://semver.org/#backusnaur-form-grammar-for-valid-semver-versions, without build metadata
_VERSION = r"^(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})(-[0-9A-Za-z.-]{1,40})?\Z"
_SHA256 = r"^[0-9a-f]{64}\Z"
_BOOT_ID = r"^[0-9a-f]{8}-[0-9a-f]{8}\Z"

FleetId = Annotated[str, Meta(pattern=_IDENTIFIER)]
DeviceId = Annotated[str, Meta(pattern=_IDENTIFIER)]
ModelName = Annotated[str, Meta(pattern=_MODEL_NAME)]
VariantName = Annotated[str, Meta(pattern=_MODEL_NAME)]
ArmName = Annotated[str, Meta(pattern=_IDENTIFIER)]
Version = Annotated[str, Meta(pattern=_VERSION)]
Sha256 = Annotated[str, Meta(pattern=_SHA256)]
BootId = Annotated[str, Meta(pattern=_BOOT_ID)]

_FORMS = {
    "fleet": (re.compile(_IDENTIFIER), "1 to 64 of a-z 0-9 _ -, starting with a letter or digit"),
    "device": (re.compile(_IDENTIFIER), "1 to 64 of a-z 0-9 _ -, starting with a letter or digit"),
    "model": (re.compile(_MODEL_NAME), "1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit"),
    "version": (re.compile(_VERSION), "a semantic version such as 1.4.0 or 2.0.0-rc.1"),
    "sha256": (re.compile(_SHA256), "64 lower-case hexadecimal digits"),
}


def check_name(kind: str, value: str) -> str:
    """Return `value` when it is a well-formed `kind` ("fleet", "device", "model", "version", "sha256").

    Raises InvalidName, which says the allowed form.
    """
    form, description = _FORMS[kind]
    if not form.match(value):
        raise InvalidName(f"{kind} name {value[:80]!r} is not allowed: use {description}")
    return value
