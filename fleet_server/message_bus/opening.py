"""From the settings to the bus: the embedded broker where configured, the server's connection, and how devices are cut.

Invariant: with an authority every certificate is checked by TLS first and then, at the embedded broker, against the
database at each sign-in; another broker is told by the list of revoked certificates.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import Engine

from fleet_server.config import ServerConfig
from fleet_server.errors import ConfigError
from fleet_server.identity.certificate_authority import CertificateAuthority
from fleet_server.identity.certificates import Issuing, is_good
from fleet_server.identity.device_credentials import verify_device
from fleet_server.message_bus.access import AccessRule
from fleet_server.message_bus.embedded_broker import EmbeddedBroker
from fleet_server.message_bus.paho_bus import PahoBus
from fleet_server.message_bus.takeover import Takeover
from fleet_server.message_bus.tls import EXPULSION_LIFE, broker_context, client_context

_LOG = logging.getLogger(__name__)
_MAX_CA_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedBus:
    """The connection, not started. `cut` is None where this server has no way to end a device's connection."""

    bus: PahoBus
    issuing: Issuing | None
    broker_authority: str
    cut: Callable[[str], None] | None


def open_bus(config: ServerConfig, engine: Engine, opened: ExitStack) -> OpenedBus:
    """Start the embedded broker where configured, and make the server's connection. Raises ConfigError."""
    authority = load_authority(config)
    broker_authority = _broker_authority(config, authority)
    by_certificate = config.mqtt.sign_in == "certificate"
    password = config.mqtt_password()
    cut: Callable[[str], None] | None = None
    if config.mqtt.embedded:
        password = password or secrets.token_urlsafe(32)
        broker = _start_embedded(config, engine, authority, password)
        opened.callback(broker.stop)
        cut = broker.cut
    elif by_certificate and authority is not None:
        signer = authority
        cut = Takeover(
            url=config.mqtt_url,
            fleet=config.fleet,
            make_tls=lambda device: (
                lambda: client_context(
                    broker_authority=broker_authority, authority=signer, user=device, life=EXPULSION_LIFE
                )
            ),
        ).cut
    signs_in_as = config.mqtt.username if by_certificate else ""
    bus = PahoBus(
        url=config.mqtt_url,
        client_id=f"edgefleet-server-{config.fleet}",
        username=None if by_certificate else config.mqtt.username,
        password=None if by_certificate else password,
        make_tls=lambda: client_context(
            broker_authority=broker_authority, authority=authority if by_certificate else None, user=signs_in_as
        ),
        protocol="3.1.1" if config.mqtt.embedded else config.mqtt.protocol,
    )
    opened.callback(bus.stop)
    return OpenedBus(
        bus=bus,
        issuing=_issuing(config, authority),
        broker_authority=broker_authority,
        cut=cut,
    )


def load_authority(config: ServerConfig) -> CertificateAuthority | None:
    """The authority of `[identity]`, None without one. Raises ConfigError."""
    if config.identity.ca_certificate is None or config.identity.ca_key is None:
        return None
    try:
        return CertificateAuthority.load(
            certificate_file=config.identity.ca_certificate, key_file=config.identity.ca_key
        )
    except ConfigError as error:
        raise ConfigError(f"identity.ca_certificate and identity.ca_key: {error}") from None


def _issuing(config: ServerConfig, authority: CertificateAuthority | None) -> Issuing | None:
    if authority is None:
        return None
    return Issuing(
        authority=authority,
        life=timedelta(days=config.identity.certificate_days),
        renewal_grace=timedelta(days=config.identity.renewal_grace_days),
        broker_takes_certificates=config.mqtt.sign_in == "certificate" or config.mqtt.tls,
    )


def _broker_authority(config: ServerConfig, authority: CertificateAuthority | None) -> str:
    """PEM of what the broker's certificate is checked with; "" for the system's authorities or no TLS."""
    if not config.mqtt_url.startswith("mqtts:"):
        return ""
    if config.mqtt.ca_file is not None:
        return _read(config.mqtt.ca_file)
    return authority.pem if authority is not None else ""


def _start_embedded(
    config: ServerConfig, engine: Engine, authority: CertificateAuthority | None, own_password: str
) -> EmbeddedBroker:
    def verify_user(user: str, given: str) -> bool:
        if user == config.mqtt.username:
            return hmac.compare_digest(given.encode(), own_password.encode())
        with engine.connect() as connection:
            return verify_device(connection, config.fleet, user, given)

    def verify_certificate(name: str, serial: str) -> bool:
        if name == config.mqtt.username:
            return True  # nobody but this authority's server has one: no device's name has a dot
        with engine.connect() as connection:
            return is_good(connection, config.fleet, name, serial)

    host, port = config.mqtt.listen_host, config.mqtt.listen_port
    tls = None
    if config.mqtt.tls and authority is not None:
        reached_at = urlsplit(config.mqtt_url).hostname or host
        tls = broker_context(authority, [reached_at, host, "localhost", "127.0.0.1", "::1"])
    broker = EmbeddedBroker(
        host=host,
        port=port,
        rule=AccessRule(fleet=config.fleet, server_user=config.mqtt.username),
        verify_user=verify_user,
        tls=tls,
        verify_certificate=verify_certificate,
    )
    broker.start()
    _LOG.info("embedded broker on %s:%s%s", host, port, ", with TLS" if tls else "")
    return broker


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_CA_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"mqtt.ca_file: cannot read {path}: {getattr(error, 'strerror', None) or 'not PEM'}"
        ) from None
