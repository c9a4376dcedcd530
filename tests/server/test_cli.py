"""The `fleet` command as a process, against a running server."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from edge_agent.config import load_config as load_agent_config
from fleet_protocol.keys import PrivateKey
from fleet_server.cli import app
from fleet_server.config import load_config
from fleet_server.database.engine import open_engine
from fleet_server.identity.api_keys import authenticate
from tests.real_servers.processes import free_port
from tests.server.api.running import Server, make_bundle, running_server

_ENTRY = "import sys; from fleet_server.cli import main; sys.argv[0] = 'fleet'; main()"


class Fleet:
    """Runs `fleet` with a server and a key in its environment."""

    def __init__(self, folder: Path, server: Server, role: str) -> None:
        self._folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGEFLEET_")}
        self.environment = {**kept, "EDGEFLEET_SERVER": server.url, "EDGEFLEET_API_KEY": server.keys[role]}
        self.environment |= {"COLUMNS": "200", "NO_COLOR": "1"}

    def run(self, *arguments: str, exits: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", _ENTRY, *arguments],
            cwd=self._folder,
            env={**self.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == exits, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr + done.stdout
        return done

    def json(self, *arguments: str, exits: int = 0) -> Any:
        return msgspec.json.decode(self.run(*arguments, "--json", exits=exits).stdout)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path / "server") as running:
        yield running


@pytest.fixture
def fleet(tmp_path: Path, server: Server) -> Fleet:
    (tmp_path / "work").mkdir()
    return Fleet(tmp_path / "work", server, "admin")


def test_a_device_is_enrolled_with_a_config_its_agent_accepts(fleet: Fleet, tmp_path: Path, server: Server) -> None:
    answer = fleet.json("enrol", "pi-1", "--label", "site=lab", "--out", "agent.toml")
    assert "secret" not in answer
    config = load_agent_config(tmp_path / "work" / "agent.toml")
    assert config.device is not None
    assert config.mqtt is not None
    assert config.mqtt.password_file is not None
    assert config.trust is not None
    assert (config.device.id, config.device.fleet, config.trust.release_threshold) == ("pi-1", "demo", 2)
    assert stat.S_IMODE(config.mqtt.password_file.stat().st_mode) == 0o600
    with server.client(None) as client:
        secret = config.mqtt.password_file.read_text().strip()
        assert client.get("/api/v1/artifacts/" + "0" * 64, auth=("pi-1", secret)).status_code == 404
    [listed] = fleet.json("devices", "list", "--label", "site=lab")
    assert listed["device"] == "pi-1"
    assert "site=lab" in fleet.run("devices", "list").stdout
    assert fleet.json("devices", "show", "pi-1")["labels"] == {"site": "lab"}
    assert "pi-1" in fleet.run("devices", "show", "pi-1").stdout
    assert len(fleet.run("enrol", "pi-2").stdout.splitlines()[-1]) == 43
    fleet.run("enrol", "pi-1", "--out", "agent.toml", exits=2)


def test_a_bundle_is_signed_published_and_rolled_out(fleet: Fleet, tmp_path: Path, server: Server) -> None:
    bundle = make_bundle(tmp_path / "work" / "bundle", [])
    for number, key in enumerate(server.release_keys):
        key.save(tmp_path / "work" / f"release{number}.key")
    (bundle.folder / "bundle.dsse.json").unlink()
    assert "not signed" in fleet.run("models", "publish", "bundle", exits=1).stderr
    fleet.run("keys", "sign", "bundle", "--key", "release0.key")
    assert "2 needed" in fleet.run("models", "publish", "bundle", exits=1).stderr
    signed = fleet.json("keys", "sign", "bundle", "--key", "release1.key")
    published = fleet.json("models", "publish", "bundle")
    assert (published["bundle"], published["created"]) == (signed["bundle"], True)
    again = fleet.json("models", "publish", "bundle")
    assert (again["created"], again["uploaded"]) == (False, 0)
    assert fleet.json("models", "inspect", "bundle")["bundle"] == signed["bundle"]
    assert "digits" in fleet.run("models", "inspect", "bundle").stdout
    assert "digits" in fleet.run("models", "list").stdout
    assert "1.0.0" in fleet.run("models", "show", "digits").stdout

    (tmp_path / "work" / "policy.yaml").write_text("require_approval: true\nmaintenance: {start: 22:00, end: 05:00}\n")
    planned = fleet.run("rollout", "create", "digits", "1.0.0", "-f", "policy.yaml", "--dry-run").stdout
    assert "nothing was changed" in planned
    assert fleet.json("rollout", "list") == []
    created = fleet.json("rollout", "create", "digits", "1.0.0", "-f", "policy.yaml")
    assert created["state"] == "AWAITING_APPROVAL"
    assert created["id"] in fleet.run("rollout", "list").stdout
    assert "AWAITING_APPROVAL" in fleet.run("rollout", "show", created["id"]).stdout
    assert "still AWAITING_APPROVAL" in fleet.run("rollout", "watch", created["id"], "--timeout", "0", exits=1).stdout
    fleet.environment["EDGEFLEET_API_KEY"] = server.keys["approver"]  # its author may not
    assert fleet.json("rollout", "approve", created["id"])["state"] != "AWAITING_APPROVAL"
    fleet.run("rollout", "abort", created["id"])
    assert fleet.json("rollout", "watch", created["id"], exits=1)["state"] in ("CANCELED", "ROLLED_BACK")
    (tmp_path / "work" / "policy.json").write_text('{"stagse": []}')
    assert "stagse" in fleet.run("rollout", "create", "digits", "1.0.0", "-f", "policy.json", exits=2).stderr


def test_the_audit_log_kpis_ingest_and_keys_are_shown(fleet: Fleet, tmp_path: Path) -> None:
    fleet.run("operators", "add", "ci", "viewer", "--out", "ci.key")
    assert stat.S_IMODE((tmp_path / "work" / "ci.key").stat().st_mode) == 0o600
    [ci] = [key for key in fleet.json("operators", "list") if key["name"] == "ci"]
    fleet.environment["EDGEFLEET_API_KEY_FILE"] = "ci.key"
    fleet.run("devices", "list")
    assert "needs the role operator" in fleet.run("enrol", "pi-1", exits=4).stderr
    del fleet.environment["EDGEFLEET_API_KEY_FILE"]
    fleet.run("operators", "revoke", ci["id"])
    fleet.run("devices", "list", "--api-key-file", "ci.key", exits=4)
    assert [entry["action"] for entry in fleet.json("audit", "list")] == ["key.revoke", "key.create"]
    assert "key:admin" in fleet.run("audit", "list").stdout
    assert fleet.json("audit", "verify")["holds"]
    assert fleet.json("kpis")["predictions"] == 0
    assert "devices online" in fleet.run("kpis").stdout
    assert "windows stored" in fleet.run("ingest").stdout


def test_a_forged_audit_log_fails_the_check(fleet: Fleet, server: Server) -> None:
    fleet.run("enrol", "pi-1")
    with server.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE audit_log SET actor = 'nobody'")
    assert "broken from entry 1" in fleet.run("audit", "verify", exits=1).stdout


def test_exit_codes_tell_who_must_act(fleet: Fleet, tmp_path: Path) -> None:
    assert "no device" in fleet.run("devices", "show", "none", exits=1).stderr
    fleet.run("devices", "explode", exits=2)
    fleet.run("enrol", "pi-1", "--label", "noequals", exits=2)
    assert "pi 1" not in fleet.run("enrol", "UPPER", exits=2).stdout
    fleet.run("devices", "list", "--server", "nonsense", exits=2)
    fleet.run("devices", "list", "--api-key-file", "absent", exits=2)
    away = fleet.run("devices", "list", "--server", f"http://127.0.0.1:{free_port()}", "--json", exits=3)
    assert msgspec.json.decode(away.stderr)["exit_code"] == 3
    fleet.environment["EDGEFLEET_API_KEY"] = "ef_wrong"
    fleet.run("devices", "list", exits=4)
    del fleet.environment["EDGEFLEET_API_KEY"]
    assert "EDGEFLEET_API_KEY" in fleet.run("devices", "list", exits=4).stderr
    (tmp_path / "work" / "bad.toml").write_text("flet = 'x'")
    for command in (("serve",), ("db", "upgrade"), ("db", "init")):
        done = fleet.run(*command, "--config", "bad.toml", exits=2)
        assert done.stderr.count("\n") == 1
        assert "did you mean fleet?" in done.stderr


def test_text_of_a_device_cannot_steer_the_terminal(fleet: Fleet, server: Server) -> None:
    fleet.run("enrol", "pi-1")
    reported = {"models": [{"model": "m", "phase": "FAILED", "error": "\x1b[2J\x1b]0;x\x07[bold]ok\n"}]}
    with server.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE devices SET reported = ?", (msgspec.json.encode(reported).decode(),))
    shown = fleet.run("devices", "show", "pi-1").stdout
    assert "\x1b" not in shown
    assert "[bold]ok" in shown


def test_init_writes_a_server_that_is_ready_and_never_overwrites_one(fleet: Fleet, tmp_path: Path) -> None:
    made = fleet.json("init", "my-fleet", "--fleet", "farm", "--http-port", "0")
    folder = tmp_path / "work" / "my-fleet"
    config = load_config(folder / "fleet.toml")
    assert config.fleet == "farm"
    assert config.mqtt_password()
    assert config.director_key().public.key_id != config.release_keys()[0].key_id
    for secret in ("admin.key", "keys/release.key", "keys/director.key", "keys/mqtt.password"):
        assert stat.S_IMODE((folder / secret).stat().st_mode) == 0o600, secret
    engine = open_engine(config.database_url)
    with engine.connect() as connection:
        assert authenticate(connection, (folder / "admin.key").read_text().strip(), now_ns=1).name == "admin"
    engine.dispose()
    assert made["config"].endswith("fleet.toml")
    fleet.run("init", "my-fleet", exits=2)
    assert (folder / "admin.key").exists()
    assert fleet.json("db", "init", "--config", "my-fleet/fleet.toml")["before"] is not None
    assert (folder / "data" / "telemetry.db").exists()
    fleet.run("db", "upgrade", "--config", "my-fleet/fleet.toml")
    fleet.run("init", "other", "--fleet", "NOT A NAME", exits=2)
    assert not (tmp_path / "work" / "other").exists()


def test_keys_are_made_once_and_shown(fleet: Fleet, tmp_path: Path) -> None:
    made = fleet.json("keys", "make", "release")
    assert PrivateKey.load(tmp_path / "work" / "release.key").public.key_id == made["key_id"]
    for name in ("release.key", "release.pub"):
        assert fleet.json("keys", "show", name)["key_id"] == made["key_id"]
    assert "PRIVATE" not in fleet.run("keys", "show", "release.key", "--json").stdout
    fleet.run("keys", "make", "release", exits=2)
    (tmp_path / "work" / "junk.pub").write_text("junk")
    fleet.run("keys", "show", "junk.pub", exits=2)


def test_every_command_has_help_with_an_example() -> None:
    groups: list[list[str]] = [[]]
    commands = 0
    while groups:
        path = groups.pop()
        text = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [*path, "--help"]).stdout
        if "Commands" in text:
            listed = text[text.index("Commands") :].splitlines()
            groups += [[*path, line.split()[1]] for line in listed if line.startswith("│ ") and line[2].isalpha()]
        else:
            commands += 1
            assert f"Example: fleet {' '.join(path)}" in text, path
    assert commands > 25
