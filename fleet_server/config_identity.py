"""`[identity]` of the server's settings, and how it goes together with `[mqtt]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, field

from fleet_server.config_section import Section
from fleet_server.errors import ConfigError


class IdentityConfig(Section, frozen=True, kw_only=True):
    """`[identity]`: the authority that signs devices' certificates. Without it devices have secrets only.

    - `ca_certificate`, `ca_key`: its certificate and key, as `fleet init` makes them.
    - `certificate_days`: how long a device's certificate is good. Default 90.
    - `renewal_grace_days`: how long after its end a device may still renew it by itself. Default 30.
    - `crl_file`: where the list of revoked certificates is written for the broker. Default: revoked.crl in `data_dir`.
    - `reload_command`: what makes the broker read that file again, ["systemctl", "reload", "mosquitto"]. Default none.
    """

    ca_certificate: Path | None = None
    ca_key: Path | None = None
    certificate_days: Annotated[int, Meta(ge=1, le=825)] = 90
    renewal_grace_days: Annotated[int, Meta(ge=0, le=3_650)] = 30
    crl_file: Path | None = None
    reload_command: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=16)] = field(
        default_factory=list
    )


def check_identity(identity: IdentityConfig, *, mqtt_url: str, embedded: bool, tls: bool, sign_in: str) -> None:
    """Refuse settings that do not go together. Raises ConfigError."""
    has_authority = identity.ca_certificate is not None
    if has_authority != (identity.ca_key is not None):
        raise ConfigError("identity.ca_certificate and identity.ca_key belong together: set both or neither")
    if tls and not embedded:
        raise ConfigError("mqtt.tls is for the embedded broker: another one is told by mqtt.url, mqtts://HOST:8883")
    for setting, needs in (("mqtt.tls", tls), ("mqtt.sign_in", sign_in == "certificate")):
        if needs and not has_authority:
            raise ConfigError(f"{setting} needs an authority: set identity.ca_certificate and identity.ca_key")
    if sign_in == "certificate" and not mqtt_url.startswith("mqtts:"):
        raise ConfigError('mqtt.sign_in is "certificate", which needs TLS: mqtts:// in mqtt.url, or mqtt.tls')
