"""A real `edge-agent run` over the real models and small made-up ones, for every foreign client."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.agent.local_api.oip.asking import ONNX_TYPES
from tests.agent.runtime import onnx_files
from tests.real_servers.processes import Process, accepts, free_port

VERSION = "1.2.3"
_START_TIMEOUT_S = 60.0
_REAL_MODELS = {"kws": (2, 49, 10, 1), "ad": (3, 640), "ic": (1, 32, 32, 3), "vww": (1, 96, 96, 3)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """Where the agent listens, and the .npz with an input and the expected output of every real model."""

    address: str
    cases: Path


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An agent with the real models, the labelled "linear", and one "same_TYPE" for every datatype."""
    folder = tmp_path_factory.mktemp("conformance")
    files = {name: onnx_files.mlperf_tiny(f"{name}.onnx") for name in _REAL_MODELS}
    lines = [_section(name, path) for name, path in files.items()]
    lines.append(_section("linear", onnx_files.linear(folder / "linear.onnx"), labels=["no", "yes"]))
    for datatype, element in ONNX_TYPES.items():
        path = onnx_files.identity(folder / f"{datatype}.onnx", element, ["n"])
        lines.append(_section(f"same_{datatype.lower()}", path))
    config = folder / "agent.toml"
    config.write_text("\n".join(lines), encoding="utf-8")
    cases = folder / "cases.npz"
    np.savez(cases, **_cases(files))  # type: ignore[arg-type]  # the stub takes any keyword for allow_pickle
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
    with Process(command, folder=folder, name="edge-agent") as agent:
        agent.wait_ready(lambda: accepts(port), _START_TIMEOUT_S, "the agent answered")
        yield Served(address=f"127.0.0.1:{port}", cases=cases)
        assert agent.returncode is None, agent.output()


def _section(name: str, path: Path, *, labels: list[str] | None = None) -> str:
    section = f"[models.{name}]\npath = {json.dumps(str(path))}\nversion = {json.dumps(VERSION)}\n"
    return section if labels is None else f"{section}labels = {json.dumps(labels)}\n"


def _cases(files: dict[str, Path]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    cases = {}
    for name, path in files.items():
        array = random.uniform(0, 255 if name == "ic" else 1, _REAL_MODELS[name]).astype(np.float32)
        cases[f"{name}/input"] = array
        cases[f"{name}/output"] = ort.InferenceSession(str(path)).run(None, {"input_1": array})[0]
    return cases
