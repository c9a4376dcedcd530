"""What `fleet broker-config` writes, the template for containers, and the script that reads revocations again."""

from __future__ import annotations

import os
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet_server.cli import app
from fleet_server.cli.starting import make_server_folder
from fleet_server.config import load_config
from fleet_server.message_bus.broker_files import mosquitto_config
from fleet_server.message_bus.opening import load_authority
from tests.real_servers.mosquitto import Mosquitto, certify_mosquitto
from tests.real_servers.processes import Process, accepts, wait_until
from tests.real_servers.requirements import require_program
from tests.server.identity.authority import make_authority

ROOT = Path(__file__).parents[3]


def test_the_template_for_containers_is_what_the_command_writes() -> None:
    template = (ROOT / "compose" / "mosquitto" / "mosquitto.conf").read_text()
    assert template == mosquitto_config(port=8883, at="/mosquitto/config", data="/mosquitto/data")


def test_the_command_writes_files_of_the_servers_authority_and_renews_them(tmp_path: Path) -> None:
    made = make_server_folder(tmp_path / "server", fleet="demo", host="127.0.0.1", http_port=1, mqtt_port=1)
    folder = tmp_path / "broker"
    arguments = ["broker-config", str(folder), "--config", str(made.config_file), "--host", "mqtt.example.com"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert 'sign_in = "certificate"' in done.output
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()}
    assert modes == {
        "mosquitto.conf": 0o644, "acl": 0o600, "ca.crt": 0o644, "broker.crt": 0o644, "broker.key": 0o600,
        "revoked.crl": 0o644,
    }  # fmt: skip
    authority = load_authority(load_config(made.config_file))
    assert authority is not None
    assert (folder / "ca.crt").read_text() == authority.pem
    before = (folder / "broker.crt").read_text()
    (folder / "revoked.crl").write_text("the server's")
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (folder / "broker.crt").read_text() != before
    assert (folder / "revoked.crl").read_text() == "the server's"
    assert CliRunner().invoke(app, [*arguments, "--at", "/with a space"]).exit_code != 0


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_the_container_script_makes_the_broker_read_a_changed_list(tmp_path: Path) -> None:
    require_program("mosquitto")
    authority = make_authority(tmp_path / "ca", "demo")
    mosquitto = Mosquitto(tmp_path / "m")
    certify_mosquitto(mosquitto, authority, fleet="demo")
    script = ROOT / "compose" / "mosquitto" / "reload-on-revocation.sh"
    listed = mosquitto.folder / "revoked.crl"
    with Process(
        ["/bin/sh", script, listed, mosquitto.folder / "mosquitto.conf"], folder=tmp_path, name="script",
        env={"PATH": f"/usr/sbin:{os.environ['PATH']}"},
    ) as running:  # fmt: skip
        running.wait_ready(lambda: accepts(mosquitto.port), 15, "the broker listens")
        listed.write_bytes(authority.revocation_list([("0f" * 16, time.time_ns())], now=datetime.now(UTC)))
        wait_until(lambda: "Reloading config" in running.output(), 10, "the broker read its files again")
        assert running.stop(10) is not None
    assert not accepts(mosquitto.port)
    assert ssl.OPENSSL_VERSION_INFO >= (1, 1, 1), "Ed25519 certificates need it"
