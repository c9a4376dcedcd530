"""A store's URL names one store, or says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_server.errors import ConfigError
from fleet_server.telemetry_store import EmbeddedStore, InfluxStore, Slice, open_store
from tests.real_servers.influxdb import InfluxDB
from tests.server.telemetry_store.windows import RETENTION_S, window

EVERYTHING = Slice(fleet="home", start_ns=-1, end_ns=2**63 - 1)


def test_a_sqlite_url_opens_the_file_it_names(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/a%20b.db")
    assert isinstance(store, EmbeddedStore)
    store.close()
    assert (tmp_path / "a b.db").is_file()


def test_an_influxdb_url_opens_the_bucket_it_names(influxdb: InfluxDB) -> None:
    store = open_store(
        f"influxdb+{influxdb.url}/?org={influxdb.org}&bucket={influxdb.new_bucket()}", token=influxdb.token
    )
    assert isinstance(store, InfluxStore)
    store.set_up(raw_retention_s=RETENTION_S)
    store.write("home", [window()])
    assert store.windows(EVERYTHING) == [window()]
    store.close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "sqlite:///PATH"),
        ("postgresql://host/db", "sqlite:///PATH"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("influxdb+http:///?bucket=b", "not understood"),
        ("influxdb+http://host:8086/", "names no bucket"),
        ("influxdb+http://host:8086/?bucket=b&orgs=x", "unknown setting 'orgs'"),
        ("influxdb+http://host:port/?bucket=b", "Port"),
        ("influxdb+http://me:hunter2@host/?bucket=b", "holds a secret"),
    ],
)
def test_a_malformed_url_is_refused_with_the_allowed_form(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        open_store(url)
    assert "hunter2" not in str(refused.value)
