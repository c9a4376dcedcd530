"""TLS contexts of the bus: who the server is to a broker, and who the embedded broker is to its clients.

Invariant: TLS 1.2 at least. The server's own certificate is made anew for every connection by the fleet's authority,
so it never runs out and is never the same file as a device's.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fleet_server.errors import ConfigError
from fleet_server.identity.certificate_authority import CertificateAuthority

OWN_LIFE = timedelta(days=7)
EXPULSION_LIFE = timedelta(minutes=10)

MakeContext = Callable[[], ssl.SSLContext]


def client_context(
    *,
    broker_authority: str,
    authority: CertificateAuthority | None = None,
    user: str = "",
    life: timedelta = OWN_LIFE,
) -> ssl.SSLContext:
    """A client's context that believes `broker_authority` (PEM, "" for the system's authorities).

    With `authority` the client signs in as `user`, with a certificate made for this context. Raises ConfigError.
    """
    try:
        context = ssl.create_default_context(cadata=broker_authority or None)
    except ssl.SSLError:
        raise ConfigError("mqtt.ca_file does not hold a certificate in PEM form") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authority is not None:
        issued, key = authority.issue_to_client(user, now=datetime.now(UTC), life=life)
        _load(context, key + issued.pem)
    return context


def broker_context(authority: CertificateAuthority, hosts: Sequence[str]) -> ssl.SSLContext:
    """The embedded broker's context: a new certificate for `hosts`; clients may show one of the authority's."""
    issued, key = authority.issue_to_broker(hosts, now=datetime.now(UTC))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=authority.pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_OPTIONAL
    _load(context, key + issued.pem)
    return context


def _load(context: ssl.SSLContext, pem: str) -> None:
    """OpenSSL reads a chain from a file only: it lives for this moment, readable by its owner."""
    descriptor, name = tempfile.mkstemp(prefix="edgefleet-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(pem)
        context.load_cert_chain(name)
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()
