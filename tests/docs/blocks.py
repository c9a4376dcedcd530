"""The code blocks of a document, and a checkout in which they run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.real_servers.processes import Process

ROOT = Path(__file__).parent.parent.parent
_ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
_COMMAND_TIMEOUT_S = 60


class Document:
    """A Markdown file of the checkout and its code blocks."""

    def __init__(self, name: str) -> None:
        self.text = (ROOT / name).read_text(encoding="utf-8")
        self._blocks = re.findall(r"```(sh|python|toml)\n(.*?)```", self.text, re.DOTALL)

    def block(self, containing: str) -> str:
        """The one block with this text."""
        found = [text for _, text in self._blocks if containing in text]
        assert len(found) == 1, f"there are {len(found)} blocks with {containing!r}"
        return str(found[0])

    def commands(self, containing: str) -> list[str]:
        """The lines of the one block with this text, without comments and installs."""
        lines = [re.sub(r"\s+#.*$", "", line).strip() for line in self.block(containing).splitlines()]
        return [line for line in lines if line and not line.startswith("pip install")]


def sh(command: str, folder: Path, **environment: str) -> str:
    """The output of a command that succeeds."""
    return _output(["bash", "-ec", command], folder, environment)


def python(code: str, folder: Path) -> str:
    """The output of a script that succeeds."""
    return _output([sys.executable, "-c", code], folder, {})


def _output(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**_ENVIRONMENT, **environment}, capture_output=True, text=True,
        timeout=_COMMAND_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"
    return done.stdout


def background(command: str, folder: Path, name: str) -> Process:
    """A command that runs until the test ends it."""
    return Process(["bash", "-c", f"cd {folder} && exec {command}"], folder=folder, name=name, env=_ENVIRONMENT)
