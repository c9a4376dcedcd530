"""The configuration in docs/updates.md is one that an agent starts with."""

from __future__ import annotations

from pathlib import Path

from edge_agent.config import load_config
from tests.docs.blocks import Document

GUIDE = Document("docs/updates.md")


def test_the_download_settings_are_read_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "fleet-ca.pem").touch()
    (tmp_path / "agent.toml").write_text(GUIDE.block("max_bytes_per_s"))

    config = load_config(tmp_path / "agent.toml")

    assert config.update.max_bytes_per_s == 50_000
    assert config.server is not None
    assert config.server.ca_file == tmp_path / "fleet-ca.pem"
