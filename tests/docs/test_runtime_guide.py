"""The commands and code of docs/runtime.md run as they stand there."""

from __future__ import annotations

import shutil
from pathlib import Path

from edge_agent import Agent
from tests.docs.blocks import Document, background, python, sh
from tests.real_servers.processes import accepts, free_port

GUIDE = Document("docs/runtime.md")
MODEL = "models/digits/fp32/1.1.0.onnx"


def test_calls_from_in_process(checkout: Path) -> None:
    assert "[[" in python(GUIDE.block("import Agent"), checkout)


def test_calls_from_another_process_and_a_swap(checkout: Path) -> None:
    port = free_port()
    command = f"edge-agent run --model digits={MODEL} --http 127.0.0.1:{port}"
    with background(command, checkout, "agent") as agent:
        agent.wait_ready(lambda: accepts(port), 30, "the local API")
        assert "0.0.0" in python(GUIDE.block("import Client").replace("8080", str(port)), checkout)
        (load,) = GUIDE.commands("repository/models/digits/load")
        assert "error" not in sh(load.replace("8080", str(port)), checkout)


def test_the_config_with_two_versions_and_a_shadow_serves(checkout: Path) -> None:
    for name in ("digits.onnx", "digits-2.onnx", "digits-3.onnx"):
        shutil.copy(checkout / MODEL, checkout / name)
    (checkout / "agent.toml").write_text(GUIDE.block("[models.digits.arms.candidate]"))

    with Agent.open(checkout / "agent.toml") as agent:
        arms = {entry.arm: entry.shadow for entry in agent.describe_models()}

    assert arms == {"main": False, "challenger": False, "candidate": True}


def test_the_tools_run(checkout: Path) -> None:
    doctor, bench = GUIDE.commands("edge-agent doctor")
    assert "onnxruntime" in sh(f"{doctor} || test $? = 1", checkout)
    assert "p99" in sh(bench, checkout)
    (batch,) = GUIDE.commands("edge-agent batch")
    sh(batch, checkout)
    assert (checkout / "scores.csv").is_file()
