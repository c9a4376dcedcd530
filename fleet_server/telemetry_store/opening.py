"""From a telemetry store's URL to the store.

`sqlite:///relative/path` or `sqlite:////absolute/path` is the embedded store;
`influxdb+http://host:port/?org=..&bucket=..` (or `influxdb+https`) is InfluxDB. A secret never stands in the URL.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from fleet_server.errors import ConfigError
from fleet_server.telemetry_store.embedded import EmbeddedStore
from fleet_server.telemetry_store.influx import InfluxStore

_FORMS = "sqlite:///PATH or influxdb+http://HOST:PORT/?org=ORG&bucket=BUCKET"
_INFLUX_SCHEMES = {"influxdb+http": "http", "influxdb+https": "https"}
_INFLUX_SETTINGS = frozenset({"org", "bucket"})


def open_store(
    url: str, *, token: str = "", timeout_s: float = 10.0, ca_file: Path | None = None
) -> EmbeddedStore | InfluxStore:
    """The store `url` names.

    Raises ConfigError for a malformed URL and StoreUnavailableError when a file cannot be opened.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"telemetry store URL {url!r}: {error}: use {_FORMS}") from None
    if parts.scheme == "sqlite":
        return EmbeddedStore(_path_of(url))
    if parts.scheme not in _INFLUX_SCHEMES or not parts.hostname:
        raise ConfigError(f"telemetry store URL {_without_secrets(url)!r} is not understood: use {_FORMS}")
    if parts.username or parts.password:
        raise ConfigError(f"telemetry store URL {_without_secrets(url)!r} holds a secret: give the token separately")
    settings = parse_qs(parts.query, keep_blank_values=True)
    unknown = sorted(set(settings) - _INFLUX_SETTINGS)
    if unknown:
        raise ConfigError(f"telemetry store URL has an unknown setting {unknown[0]!r}: allowed are bucket and org")
    bucket = settings.get("bucket", [""])[-1]
    if not bucket:
        raise ConfigError(f"telemetry store URL {url!r} names no bucket: add ?bucket=NAME")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return InfluxStore(
        url=f"{_INFLUX_SCHEMES[parts.scheme]}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}",
        token=token,
        org=settings.get("org", [""])[-1],
        bucket=bucket,
        timeout_s=timeout_s,
        ca_file=str(ca_file) if ca_file else None,
    )


def _path_of(url: str) -> Path:
    _, found, path = url.partition("sqlite:///")
    if not found or not path:
        raise ConfigError(f"telemetry store URL {url!r} names no file: use sqlite:///PATH")
    return Path(unquote(path))


def _without_secrets(url: str) -> str:
    scheme, _, rest = url.rpartition("@")
    return f"{scheme.partition('://')[0]}://***@{rest}" if scheme else url
