"""docs/quantization.md: its commands run as they stand there, and it names every option."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quantize.cli import main
from tests.docs.blocks import ROOT, Document, python, sh

GUIDE = Document("docs/quantization.md")


def test_every_option_of_the_command_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    explained = set(re.findall(r"^\| `(--[a-z-]+)", GUIDE.text, re.MULTILINE))
    assert explained == options


def test_the_first_example_makes_a_bundle_and_its_report(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    python(GUIDE.block("np.savez"), tmp_path)
    run, show = GUIDE.commands("edge-quantize run")
    said = sh(f"{run} --placement-seconds 0.2", tmp_path)
    assert said.startswith("digits 1.1.0: ")
    assert (tmp_path / "bundle" / "report" / "report.html").is_file()
    assert "digits 1.1.0" in sh(show, tmp_path)
