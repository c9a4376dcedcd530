"""README's commands and code run as they stand there; only ports are moved to free ones and installs left out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.real_servers.processes import Process, accepts, free_port

_ROOT = Path(__file__).parent.parent.parent
_README = (_ROOT / "README.md").read_text(encoding="utf-8")
_BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", _README, re.DOTALL)
_ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
_COMMAND_TIMEOUT_S = 60


def _block(containing: str) -> list[str]:
    """The lines of the one block with this text, without comments and installs."""
    found = [text for _, text in _BLOCKS if containing in text]
    assert len(found) == 1, f"README has {len(found)} blocks with {containing!r}"
    lines = [re.sub(r"\s+#.*$", "", line).strip() for line in found[0].splitlines()]
    return [line for line in lines if line and not line.startswith("pip install")]


def _sh(command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env={**_ENVIRONMENT, **environment},
        capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def _background(command: str, folder: Path, name: str) -> Process:
    return Process(["bash", "-c", f"cd {folder} && exec {command}"], folder=folder, name=name, env=_ENVIRONMENT)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the checkout, but may be written to."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    _sh(f"cp -r {_ROOT}/models {folder}/", tmp_path)
    return folder


def test_the_first_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (_ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.removeprefix("make ").split()[0] for line in _block("make demo ")]
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_a_model_is_served_without_a_fleet(checkout: Path, tmp_path: Path) -> None:
    (serve,) = _block("edge-agent run --model")
    port = free_port()
    with _background(serve.replace("8080", str(port)), checkout, "agent") as agent:
        agent.wait_ready(lambda: accepts(port), 30, "the local API")
        answers = [
            _sh(line.replace("8080", str(port)), tmp_path) for line in _block("curl -s http://127.0.0.1:8080/health")
        ]
    assert '"ready":true' in answers[0].replace(" ", "")
    assert '"digits"' in answers[1]
    assert "# TYPE edgefleet_inferences_total counter" in answers[2]


def test_the_python_example_runs(checkout: Path) -> None:
    (code,) = [text for language, text in _BLOCKS if language == "python"]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env=_ENVIRONMENT, capture_output=True, text=True,
        timeout=_COMMAND_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("(1, 10) "), done.stdout + done.stderr


def test_a_fleet_is_made_enrolled_published_to_and_rolled_out(checkout: Path) -> None:
    commands = _block("fleet init my-fleet")
    http, mqtt = free_port(), free_port()
    init, serve, export, *rest = commands
    assert init == "fleet init my-fleet" and serve.startswith("fleet serve") and export.startswith("export ")
    name, _, key_file = export.removeprefix("export ").partition("=")
    environment = {name: key_file, "EDGEFLEET_SERVER": f"http://127.0.0.1:{http}"}
    _sh(f"{init} --http-port {http} --mqtt-port {mqtt}", checkout)
    with _background(serve, checkout, "server") as server:
        server.wait_ready(lambda: accepts(http), 30, "the server")
        agents = []
        try:
            for command in rest:
                if command.startswith("edge-agent run"):
                    agents.append(_background(command, checkout, "device"))
                elif "watch" not in command:
                    _sh(command, checkout, **environment)
            assert len(agents) == 1
            server.wait_ready(
                lambda: "ACTIVE" in _sh("fleet rollout list", checkout, **environment), 60, "the rollout is active"
            )
        finally:
            for agent in agents:
                agent.stop()
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/docs", timeout=10) as page:
            assert page.status == 200


def test_every_file_and_folder_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", _README)
    assert links
    assert [link for link in links if not (_ROOT / link).exists()] == []
