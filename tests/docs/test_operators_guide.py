"""The commands of docs/operators.md run as they stand there, and its settings are taken."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet_server.cli import app
from fleet_server.config import parse_config
from tests.docs.blocks import Document
from tests.server.api.running import running_server

GUIDE = Document("docs/operators.md")
_LEAST = {"fleet": "demo", "trust": {"release_keys": ["release.pub"], "director_key": "director.key"}}


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGEFLEET_API_KEY_FILE", raising=False)
    with running_server(tmp_path / "server") as server:
        monkeypatch.setenv("EDGEFLEET_SERVER", server.url)
        monkeypatch.setenv("EDGEFLEET_API_KEY", server.keys["admin"])
        for line in GUIDE.commands("fleet operators add-person") + GUIDE.commands("fleet audit seal"):
            program, *arguments = shlex.split(line)
            assert program == "fleet"
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, f"{line}: {done.output} {done.exception}"
    assert (tmp_path / "ci.key").read_text().startswith("ef_")


def test_the_settings_are_taken(tmp_path: Path) -> None:
    config = parse_config({**_LEAST, **tomllib.loads(GUIDE.block("[oidc.roles]"))}, folder=tmp_path)
    assert config.oidc.roles["release-managers"] == "approver"
