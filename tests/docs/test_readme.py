"""README's commands and code run as they stand there; only ports are moved to free ones and installs left out."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

from tests.docs.blocks import ROOT, Document, background, python, sh
from tests.real_servers.processes import accepts, free_port

README = Document("README.md")


def test_the_first_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.removeprefix("make ").split()[0] for line in README.commands("make demo ")]
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_a_model_is_served_without_a_fleet(checkout: Path, tmp_path: Path) -> None:
    (serve,) = README.commands("edge-agent run --model")
    port = free_port()
    with background(serve.replace("8080", str(port)), checkout, "agent") as agent:
        agent.wait_ready(lambda: accepts(port), 30, "the local API")
        answers = [
            sh(line.replace("8080", str(port)), tmp_path)
            for line in README.commands("curl -s http://127.0.0.1:8080/health")
        ]
    assert '"ready":true' in answers[0].replace(" ", "")
    assert '"digits"' in answers[1]
    assert "# TYPE edgefleet_inferences_total counter" in answers[2]


def test_the_python_examples_run(checkout: Path) -> None:
    (serve,) = README.commands("edge-agent run --model")
    port = free_port()
    assert python(README.block("import Agent"), checkout).startswith("(1, 10) ")
    with background(serve.replace("8080", str(port)), checkout, "agent") as agent:
        agent.wait_ready(lambda: accepts(port), 30, "the local API")
        assert "[[" in python(README.block("import Client").replace("8080", str(port)), checkout)


def test_the_tools_for_one_device_run(checkout: Path) -> None:
    doctor, bench, batch = README.commands("edge-agent doctor")
    assert "onnxruntime" in sh(f"{doctor} || test $? = 1", checkout)  # 1: this machine has something to fix
    assert "p99" in sh(bench, checkout)
    sh(batch, checkout)
    assert len((checkout / "scores.csv").read_text().splitlines()) > 400


def test_a_fleet_is_made_enrolled_published_to_and_rolled_out(checkout: Path) -> None:
    commands = README.commands("fleet init my-fleet")
    http, mqtt = free_port(), free_port()
    init, serve, export, *rest = commands
    assert init == "fleet init my-fleet" and serve.startswith("fleet serve") and export.startswith("export ")
    name, _, key_file = export.removeprefix("export ").partition("=")
    environment = {name: key_file, "EDGEFLEET_SERVER": f"http://127.0.0.1:{http}"}
    sh(f"{init} --http-port {http} --mqtt-port {mqtt}", checkout)
    with background(serve, checkout, "server") as server:
        server.wait_ready(lambda: accepts(http), 30, "the server")
        agents = []
        try:
            for command in rest:
                if command.startswith("edge-agent run"):
                    agents.append(background(command, checkout, "device"))
                elif "watch" not in command:
                    sh(command.replace("8080", str(http)), checkout, **environment)
            assert len(agents) == 1
            server.wait_ready(
                lambda: "ACTIVE" in sh("fleet rollout list", checkout, **environment), 60, "the rollout is active"
            )
        finally:
            for agent in agents:
                agent.stop()
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/docs", timeout=10) as page:
            assert page.status == 200


def test_every_file_and_folder_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
