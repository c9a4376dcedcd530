"""The audit log through the API and the command: found, filtered, exported, pinned, sealed, checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fleet_protocol.keys import PrivateKey
from fleet_server.cli import app
from fleet_server.cli.audit import parse_since
from fleet_server.errors import ConfigError, FleetError, InvalidRequestError
from tests.server.api.running import Server


@pytest.fixture
def audited(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server on which an admin did three things, and a command that speaks to it."""
    monkeypatch.setenv("EDGEFLEET_SERVER", server.url)
    monkeypatch.setenv("EDGEFLEET_API_KEY", server.keys["viewer"])
    monkeypatch.delenv("EDGEFLEET_API_KEY_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    with server.client() as admin:
        for device in ("pi-1", "pi-2"):
            admin.post(f"/api/v1/devices/{device}/enrol", json={})
        admin.post("/api/v1/operators/keys", json={"name": "ci", "role": "viewer"})
    return server


def fleet(*arguments: str) -> Result:
    """Run `fleet audit`."""
    return CliRunner().invoke(app, ["audit", *arguments])


def test_the_log_is_listed_by_what_is_asked_for(audited: Server) -> None:
    actions = [e["action"] for e in json.loads(fleet("list", "--json").stdout)]
    assert actions == ["key.create", "device.enrol", "device.enrol"]
    assert len(json.loads(fleet("list", "--action", "device.*", "--since", "1h", "--json").stdout)) == 2
    assert json.loads(fleet("list", "--actor", "key:nobody", "--json").stdout) == []
    assert "key:admin" in fleet("list").stdout
    with audited.client("viewer") as client:
        page = client.get("/api/v1/audit", params={"limit": 1, "action": "device.*"}).json()
        rest = client.get("/api/v1/audit", params={"cursor": page["next_cursor"], "action": "device.*"}).json()
        assert (page["items"][0]["subject"], rest["items"][0]["subject"]) == ("pi-2", "pi-1")


def test_a_log_that_lost_its_tail_fails_against_its_pinned_head(audited: Server) -> None:
    head = fleet("head").stdout.strip()
    whole = fleet("verify", "--head", head)
    assert (whole.exit_code, head in whole.stdout) == (0, True)
    with audited.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM audit_log WHERE id = 3")
    assert fleet("verify").exit_code == 0
    cut = fleet("verify", "--head", head, "--json")
    assert cut.exit_code == 1
    assert json.loads(cut.stdout)["first_broken_id"] == 3


def test_an_export_is_checked_without_the_server(audited: Server, tmp_path: Path) -> None:
    assert fleet("export", "--out", "audit.jsonl").exit_code == 0
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert fleet("verify", "--file", "audit.jsonl").exit_code == 0
    (tmp_path / "audit.jsonl").write_text("\n".join([lines[0], lines[1].replace("pi-2", "pi-9"), lines[2]]))
    broken = fleet("verify", "--file", "audit.jsonl")
    assert broken.exit_code == 1
    assert "broken from entry 2" in broken.stdout
    (tmp_path / "audit.jsonl").write_text("nonsense\n")
    assert isinstance(fleet("verify", "--file", "audit.jsonl").exception, InvalidRequestError)


def test_a_seal_finds_a_log_that_was_written_anew(audited: Server, tmp_path: Path) -> None:
    PrivateKey.generate().save(tmp_path / "auditor.key")
    PrivateKey.generate().save(tmp_path / "stranger.key")
    assert fleet("seal", "--key", "auditor.key", "--out", "a.seal").exit_code == 0
    assert isinstance(fleet("seal", "--key", "auditor.key", "--out", "a.seal").exception, ConfigError), "never over one"
    checked = ("verify", "--seal", "a.seal", "--public-key")
    assert fleet(*checked, "auditor.pub").exit_code == 0
    assert isinstance(fleet(*checked, "stranger.pub").exception, FleetError)
    assert isinstance(fleet("verify", "--seal", "a.seal").exception, ConfigError)
    with audited.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM audit_log")
    with audited.client() as admin:
        for device in ("pi-1", "pi-2", "pi-3"):
            admin.post(f"/api/v1/devices/{device}/enrol", json={})
    assert fleet("verify").exit_code == 0
    rewritten = fleet(*checked, "auditor.pub")
    assert rewritten.exit_code == 1
    assert "written anew" in rewritten.stdout


def test_a_broken_log_is_not_sealed(audited: Server, tmp_path: Path) -> None:
    PrivateKey.generate().save(tmp_path / "auditor.key")
    with audited.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE audit_log SET subject = 'x' WHERE id = 2")
    assert fleet("seal", "--key", "auditor.key", "--out", "a.seal").exit_code == 1
    assert not (tmp_path / "a.seal").exists()


def test_the_servers_own_machine_checks_its_database(audited: Server, tmp_path: Path) -> None:
    text = 'fleet = "demo"\n[trust]\nrelease_keys = ["r.pub"]\ndirector_key = "d.key"\n[database]\nurl = "{}"\n'
    (tmp_path / "fleet.toml").write_text(text.format(f"sqlite:///{audited.folder / 'fleet.db'}"))
    found = fleet("verify", "--config", "fleet.toml", "--json")
    assert json.loads(found.stdout)["holds"], found.output
    assert json.loads(found.stdout)["fleet"] == "demo"


@pytest.mark.parametrize(
    ("text", "since_s"), [("90s", 910), ("15min", 100), ("0d", 1_000), ("1970-01-01T00:00:07", 7), ("7d", 0)]
)
def test_since_is_a_span_or_a_time(text: str, since_s: int) -> None:
    assert parse_since(text, now_s=1_000) == since_s * 10**9


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "7 d", "yesterday", "1e9d", "9999999999d"])
def test_since_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="--since"):
        parse_since(text, now_s=1_000)
