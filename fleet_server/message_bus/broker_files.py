"""What a Mosquitto needs to serve a fleet by certificates: its configuration, access list, certificates, revocations.

The configuration makes these true at the broker:
- nobody connects without a certificate of the fleet's authority that is not revoked;
- the certificate's common name is the user and the client id, so nobody takes over the session of somebody else;
- a device writes and reads its own topics and no others; nobody may use wildcards but the server.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from fleet_server.errors import ConfigError
from fleet_server.identity.certificate_authority import CertificateAuthority
from fleet_server.message_bus.access import mosquitto_acl

CONFIG, ACL, AUTHORITY, CERTIFICATE, KEY, REVOKED = (
    "mosquitto.conf",
    "acl",
    "ca.crt",
    "broker.crt",
    "broker.key",
    "revoked.crl",
)
_CONFIG = """\
# Mosquitto 2 for the fleet, by certificates. Written by `fleet broker-config`.
listener {port}{address}
cafile {at}/ca.crt
certfile {at}/broker.crt
keyfile {at}/broker.key
crlfile {crl}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {at}/acl
persistence true
persistence_location {data}/
autosave_interval 30
max_queued_messages 100000
max_inflight_messages 1000
max_packet_size 1048576
"""


def mosquitto_config(*, port: int, at: str, data: str, crl: str = "", address: str = "") -> str:
    """mosquitto.conf for files in the folder `at`; `crl` defaults to revoked.crl there, `address` to every one."""
    return _CONFIG.format(
        port=port, at=at, data=data, crl=crl or f"{at}/{REVOKED}", address=f" {address}" if address else ""
    )


def write_broker_files(
    folder: Path,
    *,
    authority: CertificateAuthority,
    fleet: str,
    hosts: Sequence[str],
    config: str,
    now: datetime | None = None,
) -> None:
    """Write everything into `folder`; there already, the certificate and its key are made anew. Raises ConfigError.

    A list of revoked certificates that is there stays: the server keeps it up to date.
    """
    now = now or datetime.now(UTC)
    issued, key = authority.issue_to_broker(hosts, now=now)
    files = {
        AUTHORITY: authority.pem.encode(),
        CERTIFICATE: issued.pem.encode(),
        ACL: mosquitto_acl(fleet).encode(),
        CONFIG: config.encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / KEY, key.encode(), 0o600)
        for name, content in files.items():
            _replace(folder / name, content, 0o600 if name == ACL else 0o644)
        if not (folder / REVOKED).exists():
            _replace(folder / REVOKED, authority.revocation_list([], now=now), 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from None


def is_folder_name(text: str) -> bool:
    """Whether a folder's path can stand in mosquitto.conf."""
    return text.startswith("/") and text.isprintable() and " " not in text and ".." not in PurePosixPath(text).parts


def _replace(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
