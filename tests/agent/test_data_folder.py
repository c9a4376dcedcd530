"""One agent per data folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.data_folder import DataFolder
from edge_agent.errors import ConfigError

_HOLD = "import sys, time; from pathlib import Path; from edge_agent.data_folder import DataFolder; "
_HOLD += "held = DataFolder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


def test_a_second_agent_is_told_to_take_a_folder_of_its_own_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "data"
    first = subprocess.Popen([sys.executable, "-c", _HOLD, folder], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="in use by another agent"):
            DataFolder(folder)
    finally:
        first.kill()
        first.communicate()
    DataFolder(folder).close()
    DataFolder(folder).close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/data cannot be used"):
        DataFolder(tmp_path / "file" / "data")
