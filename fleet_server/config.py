"""The server's settings: one TOML file, checked whole before anything starts.

Invariants, in the order `load_config` keeps them:
1. a setting that does not exist is refused, with the nearest name that does;
2. every value has its type and range; the error is one line: file, where in the file, what is allowed;
3. secrets stand in files of their own or in the environment, never in this file, nor in its URLs;
4. relative paths start at the file's folder.

Secrets from the environment win over files: EDGEFLEET_MQTT_PASSWORD, EDGEFLEET_STORE_TOKEN,
EDGEFLEET_DATABASE_URL (the whole URL, since it holds the password).
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, field

from fleet_protocol.errors import KeyFileError
from fleet_protocol.keys import PrivateKey, PublicKey
from fleet_protocol.names import FleetId
from fleet_protocol.root import MAX_ROOT_BYTES
from fleet_server.config_identity import IdentityConfig, check_identity
from fleet_server.config_section import Section as _Section
from fleet_server.errors import ConfigError

MAX_CONFIG_BYTES = 256 * 1024
MAX_SECRET_FILE_BYTES = 16 * 1024

Port = Annotated[int, Meta(ge=0, le=65_535)]
NonEmpty = Annotated[str, Meta(min_length=1)]
ROLE_NAMES = ("viewer", "operator", "approver", "admin")

_SCHEMES = {
    "mqtt.url": ("mqtt", "mqtts"),
    "http.public_url": ("http", "https"),
    "oidc.issuer": ("https", "http"),
    "telemetry_store.url": ("sqlite", "influxdb+http", "influxdb+https"),
}


class HttpConfig(_Section, frozen=True, kw_only=True):
    """`[http]`: the operators' API and the artifact downloads.

    - `host`: the address to listen on. Default "127.0.0.1".
    - `port`: 0 to 65535, 0 takes a free one. Default 8080.
    - `public_url`: how devices reach this server ("https://fleet.example.com"). Default: host and port.
    """

    host: NonEmpty = "127.0.0.1"
    port: Port = 8080
    public_url: str = ""


class MqttConfig(_Section, frozen=True, kw_only=True):
    """`[mqtt]`: the broker.

    - `embedded`: run a broker inside the server, for a laptop or a demo. Default true.
    - `listen_host`, `listen_port`: where the embedded broker listens. Default "127.0.0.1" and 1883.
    - `tls`: the embedded broker speaks TLS, with a certificate of the authority in `[identity]`. Default false.
    - `url`: an external broker, "mqtt://HOST:PORT" or "mqtts://HOST:PORT"; with `embedded`, how devices reach it.
    - `username`, `password_file`: how the server signs in. Default "fleet.server": no device's name has a dot.
    - `sign_in`: "password", or "certificate" of the authority in `[identity]`, for the server and its devices alike, on
      a broker that takes the certificate's common name as the user (`fleet broker-config`). Default "password".
    - `ca_file`: PEM file with the authority that signed the broker's certificate. Default: that of `[identity]`, else
      the system's.
    - `protocol`: "auto" (5, then 3.1.1), "5" or "3.1.1". Default "auto".
    """

    embedded: bool = True
    listen_host: NonEmpty = "127.0.0.1"
    listen_port: Port = 1883
    tls: bool = False
    url: str = ""
    username: str = "fleet.server"
    password_file: Path | None = None
    sign_in: Literal["password", "certificate"] = "password"
    ca_file: Path | None = None
    protocol: Literal["auto", "5", "3.1.1"] = "auto"


class DatabaseConfig(_Section, frozen=True, kw_only=True):
    """`[database]`: devices, models, rollouts, audit.

    - `url`: "sqlite:///FILE" or "postgresql+psycopg://USER@HOST/NAME". Default: fleet.db in `data_dir`.
    """

    url: str = ""


class TelemetryStoreConfig(_Section, frozen=True, kw_only=True):
    """`[telemetry_store]`: where windows are kept.

    - `url`: "sqlite:///FILE" or "influxdb+http://HOST:PORT?org=ORG&bucket=BUCKET". Default: telemetry.db in `data_dir`.
    - `token_file`: file with InfluxDB's token.
    - `raw_retention_s`: how long single windows are kept. Default 1209600 (14 days).
    - `merged_retention_s`: how long merged hours, and points like those of drift, are kept. Default 63072000 (2 years).
    """

    url: str = ""
    token_file: Path | None = None
    raw_retention_s: Annotated[int, Meta(ge=3_600)] = 14 * 86_400
    merged_retention_s: Annotated[int, Meta(ge=3_600)] = 2 * 365 * 86_400


class DriftConfig(_Section, frozen=True, kw_only=True):
    """`[drift]`: the standing watch over what devices see.

    - `watch`: look for drift of every model version that sends telemetry. Default true.
    - `look_every_s`: seconds between looks, from 3600. Default 3600.
    - `span_s`: how much each look takes in, in whole hours; a day lets day and night cancel. Default 86400.
    - `false_alarms_per_week`: the chance that any look within a week raises a false alarm for a version. Default 0.05.
    - `against`: "reference", or "same-hours" for the same hours of earlier weeks. Default "reference".
    """

    watch: bool = True
    look_every_s: Annotated[int, Meta(ge=3_600, le=7 * 86_400)] = 3_600
    span_s: Annotated[int, Meta(ge=3_600, le=7 * 86_400)] = 86_400
    false_alarms_per_week: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    against: Literal["reference", "same-hours"] = "reference"


class DeltasConfig(_Section, frozen=True, kw_only=True):
    """`[deltas]`: what a device fetches instead of a whole file that differs little from one it has.

    - `max_bytes`: how much disk computed deltas may take; 0 computes none. Default 1073741824.
    """

    max_bytes: Annotated[int, Meta(ge=0)] = 1024**3


class TrustConfig(_Section, frozen=True, kw_only=True):
    """`[trust]`: whose signatures count.

    - `root`: path of the trust root that this server pins (`fleet keys root init`), in place of `release_keys`.
    - `release_keys`: paths of the public keys (.pub) that may release a bundle.
    - `release_threshold`: how many different ones of them must have signed it. Default 1.
    - `director_key`: path of the server's private key, which signs what each device should run.
    """

    root: Path | None = None
    release_keys: Annotated[list[Path], Meta(max_length=64)] = field(default_factory=list)
    release_threshold: Annotated[int, Meta(ge=1, le=64)] = 1
    director_key: Path


class OidcConfig(_Section, frozen=True, kw_only=True):
    """`[oidc]`: operators sign in at an identity provider. Off without `issuer`.

    - `issuer`: the provider, "https://login.example.com".
    - `client_id`: the public client that `fleet login` uses.
    - `audiences`: what a token's `aud` must name one of. Default: `client_id`.
    - `token`: which token the API is sent, "id" or "access". Default "id".
    - `scopes`: what `fleet login` asks for. Default openid, profile, email.
    - `roles_claim`: the claim with somebody's groups, a dotted path ("realm_access.roles"). Default "groups".
    - `roles`: the role that each of its values gives, { "fleet-admins" = "admin" }; without one nobody gets in.
    - `leeway_s`: how far the provider's clock may be off, 0 to 300 seconds. Default 30.
    - `ca_file`: PEM file with the authority that signed the provider's certificate.
    """

    issuer: str = ""
    client_id: str = ""
    audiences: Annotated[list[NonEmpty], Meta(max_length=16)] = field(default_factory=list)
    token: Literal["id", "access"] = "id"  # noqa: S105 - which token, not one
    scopes: Annotated[list[NonEmpty], Meta(max_length=32)] = field(
        default_factory=lambda: ["openid", "profile", "email"]
    )
    roles_claim: NonEmpty = "groups"
    roles: dict[str, str] = field(default_factory=dict)
    leeway_s: Annotated[int, Meta(ge=0, le=300)] = 30
    ca_file: Path | None = None


class LimitsConfig(_Section, frozen=True, kw_only=True):
    """`[limits]`: requests a minute, at once or spread; 0 is no limit.

    - `operator_per_minute`: of one operator. Default 3000.
    - `failed_per_minute`: with a wrong credential, from one address; right ones go on. Default 60.
    - `enrol_per_minute`: enrolments from one address. Default 120.
    - `artifacts_per_minute`: downloads of one device. Default 3000.
    """

    operator_per_minute: Annotated[int, Meta(ge=0, le=1_000_000)] = 3_000
    failed_per_minute: Annotated[int, Meta(ge=0, le=1_000_000)] = 60
    enrol_per_minute: Annotated[int, Meta(ge=0, le=1_000_000)] = 120
    artifacts_per_minute: Annotated[int, Meta(ge=0, le=1_000_000)] = 3_000


class ServerConfig(_Section, frozen=True, kw_only=True):
    """The top of the file.

    - `fleet`: the fleet's id, 1 to 64 of a-z 0-9 _ -.
    - `data_dir`: folder for everything the server keeps. Default "data".
    - `[http]`, `[mqtt]`, `[identity]`, `[database]`, `[telemetry_store]`, `[drift]`, `[deltas]`, `[trust]`, `[oidc]`,
      `[limits]`: see each section.
    """

    fleet: FleetId
    data_dir: Path = field(default_factory=lambda: Path("data"))
    trust: TrustConfig
    http: HttpConfig = field(default_factory=HttpConfig)
    mqtt: MqttConfig = field(default_factory=MqttConfig)
    identity: IdentityConfig = field(default_factory=IdentityConfig)
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    telemetry_store: TelemetryStoreConfig = field(default_factory=TelemetryStoreConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    deltas: DeltasConfig = field(default_factory=DeltasConfig)
    oidc: OidcConfig = field(default_factory=OidcConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    @property
    def database_url(self) -> str:
        """Where the database is."""
        from_environment = os.environ.get("EDGEFLEET_DATABASE_URL")
        return from_environment or self.database.url or f"sqlite:///{self.data_dir / 'fleet.db'}"

    @property
    def telemetry_store_url(self) -> str:
        """Where the telemetry store is."""
        return self.telemetry_store.url or f"sqlite:///{self.data_dir / 'telemetry.db'}"

    @property
    def artifacts_dir(self) -> Path:
        """The folder of the artifacts."""
        return self.data_dir / "artifacts"

    @property
    def deltas_dir(self) -> Path:
        """The folder of computed deltas."""
        return self.data_dir / "deltas"

    @property
    def mqtt_url(self) -> str:
        """How devices and the server reach the broker."""
        scheme = "mqtts" if self.mqtt.tls else "mqtt"
        return self.mqtt.url or f"{scheme}://{self.mqtt.listen_host}:{self.mqtt.listen_port}"

    @property
    def crl_file(self) -> Path:
        """Where the list of revoked certificates is written."""
        return self.identity.crl_file or self.data_dir / "revoked.crl"

    @property
    def public_url(self) -> str:
        """How devices reach the server."""
        return self.http.public_url.rstrip("/") or f"http://{self.http.host}:{self.http.port}"

    def mqtt_password(self) -> str | None:
        """The server's own MQTT password, None when there is none. Raises ConfigError."""
        return _secret("EDGEFLEET_MQTT_PASSWORD", "mqtt.password_file", self.mqtt.password_file)

    def store_token(self) -> str | None:
        """The telemetry store's token, None when there is none. Raises ConfigError."""
        return _secret("EDGEFLEET_STORE_TOKEN", "telemetry_store.token_file", self.telemetry_store.token_file)

    def pinned_root(self) -> bytes | None:
        """The signed trust root that `trust.root` names, None where plain keys are listed. Raises ConfigError."""
        if self.trust.root is None:
            return None
        try:
            with self.trust.root.open("rb") as file:
                return file.read(MAX_ROOT_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"trust.root: cannot read {self.trust.root}: {error.strerror}") from None

    def release_keys(self) -> list[PublicKey]:
        """The plain keys that may release a bundle, none where a trust root names them. Raises ConfigError."""
        if self.trust.root is not None:
            return []
        try:
            keys = [PublicKey.load(path) for path in self.trust.release_keys]
        except KeyFileError as error:
            raise ConfigError(f"trust.release_keys: {error}") from None
        different = len({key.key_id for key in keys})
        if self.trust.release_threshold > different:
            raise ConfigError(
                f"trust.release_threshold is {self.trust.release_threshold}, "
                f"and trust.release_keys names {different} different keys: no bundle could ever pass"
            )
        return keys

    def director_key(self) -> PrivateKey:
        """The key that signs desired states. Raises ConfigError."""
        try:
            return PrivateKey.load(self.trust.director_key)
        except KeyFileError as error:
            raise ConfigError(f"trust.director_key: {error}") from None


def load_config(path: Path) -> ServerConfig:
    """The checked settings of a TOML file. Raises ConfigError, in one line."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}; `fleet init DIR` writes one") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} exceeds {MAX_CONFIG_BYTES} bytes: it is not a config")
    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    try:
        return parse_config(document, folder=path.absolute().parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_config(document: Mapping[str, Any], *, folder: Path) -> ServerConfig:
    """The checked settings of a parsed document. Raises ConfigError without the file's name."""
    _refuse_unknown(document, ServerConfig, "")

    def resolve(kind: type, value: Any) -> Any:
        if kind is Path and isinstance(value, str) and value:
            return (folder / value).absolute()
        raise ValueError("expected a path")

    try:
        config = msgspec.convert(document, ServerConfig, dec_hook=resolve)
    except msgspec.ValidationError as error:
        raise ConfigError(_in_one_line(str(error), document)) from None
    if not config.data_dir.is_absolute():  # the default, which no hook has seen
        config = msgspec.structs.replace(config, data_dir=folder / config.data_dir)
    _check_urls(config)
    mqtt = config.mqtt
    check_identity(
        config.identity, mqtt_url=config.mqtt_url, embedded=mqtt.embedded, tls=mqtt.tls, sign_in=mqtt.sign_in
    )
    if (config.trust.root is None) == (not config.trust.release_keys):
        raise ConfigError("trust.release_keys: list at least one key, or set trust.root instead, but not both")
    _check_oidc(config.oidc)
    if config.mqtt.username and "." not in config.mqtt.username and config.mqtt.embedded:
        raise ConfigError(f"mqtt.username {config.mqtt.username!r} could be a device's name: use one with a dot in it")
    return config


def _check_urls(config: ServerConfig) -> None:
    urls = {
        "mqtt.url": config.mqtt.url,
        "http.public_url": config.http.public_url,
        "oidc.issuer": config.oidc.issuer,
        "database.url": config.database.url,
        "telemetry_store.url": config.telemetry_store.url,
    }
    for name, url in urls.items():
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise ConfigError(f"{name} is not a URL") from None
        if parts.password is not None or "token=" in parts.query or "password=" in parts.query:
            raise ConfigError(f"{name} holds a secret: put it into its *_file setting or an EDGEFLEET_* variable")
        allowed = _SCHEMES.get(name)
        if url and allowed and (parts.scheme not in allowed or not (parts.hostname or parts.scheme == "sqlite")):
            raise ConfigError(
                f"{name} {url!r} is not understood: it starts with {' or '.join(f'{s}://' for s in allowed)}"
            )
    if not config.mqtt.embedded and not config.mqtt.url:
        raise ConfigError("mqtt.url is missing: with mqtt.embedded = false the server needs a broker, mqtt://HOST:PORT")


def _check_oidc(oidc: OidcConfig) -> None:
    """What one setting alone does not show. Raises ConfigError."""
    if not oidc.issuer:
        if oidc.client_id or oidc.roles:
            raise ConfigError("oidc.issuer is missing: without it nobody signs in")
        return
    issuer = urlsplit(oidc.issuer)
    if issuer.scheme != "https" and issuer.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError("oidc.issuer is not https: whoever is on the way could hand out keys")
    if not oidc.client_id:
        raise ConfigError("oidc.client_id is missing: the name of the public client at the provider")
    if not oidc.roles:
        raise ConfigError('oidc.roles is missing: say who gets in, { "fleet-admins" = "admin" }')
    for value, role in oidc.roles.items():
        if role not in ROLE_NAMES:
            raise ConfigError(f"oidc.roles: {value!r} gives {role!r}, which is not one of {', '.join(ROLE_NAMES)}")


def _refuse_unknown(document: Mapping[str, Any], kind: type[Struct], prefix: str) -> None:
    known = {f.name: f.type for f in msgspec.structs.fields(kind)}
    for name, value in document.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are: {', '.join(sorted(known))}"
            raise ConfigError(f"unknown setting {prefix}{name}: {hint}")
        section = known[name]
        if isinstance(section, type) and issubclass(section, Struct) and isinstance(value, Mapping):
            _refuse_unknown(value, section, f"{prefix}{name}.")


def _in_one_line(message: str, document: Mapping[str, Any]) -> str:
    """msgspec's message with our way of naming a place, and the allowed values where it only says "invalid"."""
    what, _, place = message.partition(" - at `$")
    name = place.rstrip("`").lstrip(".")
    if "enum value" in what:
        section, _, setting = name.partition(".")
        kinds = {f.name: f.type for f in msgspec.structs.fields(ServerConfig)}
        allowed = next(f.type for f in msgspec.structs.fields(kinds[section]) if f.name == setting)
        what = f"{document[section][setting]!r} is not one of {', '.join(map(repr, get_args(allowed)))}"
    if name == "fleet" and "regex" in what:
        what = "use 1 to 64 of a-z 0-9 _ -, starting with a letter or digit"
    return f"{name}: {what}" if name else what


def _secret(variable: str, setting: str, path: Path | None) -> str | None:
    if value := os.environ.get(variable):
        return value
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SECRET_FILE_BYTES + 1)
        text = data.decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: cannot read {path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    if not text or len(data) > MAX_SECRET_FILE_BYTES:
        raise ConfigError(f"{setting}: {path} is empty or too large to be a secret")
    return text
