"""Schemathesis against the OpenAPI document of the local API: every check, on a running agent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.agent.runtime import onnx_files
from tests.conformance.client_environments import HERE, environment
from tests.real_servers.processes import Process, accepts, free_port

SEED = 20
MAX_EXAMPLES = 10
_START_TIMEOUT_S = 60.0
_TIMEOUT_S = 150.0


def test_the_agent_answers_as_its_document_says(tmp_path: Path) -> None:
    program = environment("schemathesis") / "schemathesis"
    path = onnx_files.linear(tmp_path / "linear.onnx")
    config = tmp_path / "agent.toml"
    config.write_text(f'[models.linear]\npath = {json.dumps(str(path))}\nlabels = ["no", "yes"]\n', encoding="utf-8")
    port = free_port()
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "edge_agent",
        "run",
        "--config",
        config,
        "--http",
        f"127.0.0.1:{port}",
    ]
    with Process(command, folder=tmp_path, name="edge-agent") as agent:
        agent.wait_ready(lambda: accepts(port), _START_TIMEOUT_S, "the agent answered")
        ended = subprocess.run(
            [
                program, "--config-file", HERE / "schemathesis.toml", "run", f"http://127.0.0.1:{port}/openapi.json",
                "--checks", "all", "--seed", str(SEED), "--max-examples", str(MAX_EXAMPLES), "--workers", "1",
                "--continue-on-failure", "--no-shrink", "--warnings", "off", "--no-color",
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            cwd=tmp_path,
        )  # fmt: skip

        assert ended.returncode == 0, ended.stdout[-8000:]
        assert agent.returncode is None
        assert "Traceback" not in agent.output(), agent.output()[-4000:]
