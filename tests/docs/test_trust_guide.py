"""The commands of docs/trust.md run as they stand there, and the tests that it names for each attack are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet_server.cli import app
from tests.docs.blocks import ROOT, Document

GUIDE = Document("docs/trust.md")
_WHERE = ("tests/end_to_end/trust", "tests/end_to_end/updates")


def test_a_root_is_made_signed_by_two_and_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for containing in ("fleet keys root init", "fleet keys root rotate"):
        for line in GUIDE.block(containing).replace("\\\n", " ").splitlines():
            for command in shlex.join(shlex.split(line, comments=True)).split(" '&&' "):
                program, *arguments = shlex.split(command)
                assert program == "fleet"
                result = CliRunner().invoke(app, arguments)
                assert result.exit_code == 0, f"{command}: {result.output} {result.exception}"
    assert "up to version 2" in result.stdout


def test_every_test_that_the_table_of_attacks_names_is_there() -> None:
    rows = [line for line in GUIDE.text.splitlines() if line.startswith("|") and "test" in line.rpartition("|")[0]]
    named = [row for row in rows if "`" in row.split("|")[-2]]
    assert len(named) >= 15
    for row in named:
        cell = row.split("|")[-2]
        files = [ROOT / path for path in re.findall(r"`(tests/[\w/.]+)`", cell)]
        assert all(file.exists() for file in files), row
        folders = [file for where in _WHERE for file in (ROOT / where).glob("test_*attacks.py")]
        text = "".join(file.read_text(encoding="utf-8") for file in [*files, *folders])
        for name in re.findall(r"`(test_\w+)`", cell):
            assert f"def {name}(" in text, name
