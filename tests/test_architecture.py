"""The house's walls: imports point one way, the agent stays light, and a file is a room."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from edge_agent.batch.extras import _PACKAGES as OPTIONAL_OF_BATCH

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fleet_protocol", "edge_agent", "fleet_server", "quantize", "models", "benchmarks", "tests")
MAX_LINES = 450

# what a package may import of the project, besides itself
INWARD = {
    "fleet_protocol": set(),
    "edge_agent": {"fleet_protocol"},
    "fleet_server": {"fleet_protocol"},
    "quantize": {"edge_agent", "fleet_protocol"},
    "models": {"quantize", "edge_agent", "fleet_protocol"},
}
# what a package may import of others
PROTOCOL_LIBRARIES = {"msgspec", "nacl", "numpy"}
AGENT_LIBRARIES = PROTOCOL_LIBRARIES | {"httptools", "onnxruntime", "paho", "psutil"}
SERVER_ONLY = {
    "alembic", "amqtt", "cryptography", "fastapi", "httpx", "influxdb_client", "onnx", "pydantic", "requests", "rich",
    "scipy", "sklearn", "sqlalchemy", "starlette", "torch", "typer", "urllib3", "uvicorn",
}  # fmt: skip
"""Libraries that a device must not need, by whatever way they would come in."""


def modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if "migrations" not in path.parts)


@cache
def imported(path: Path) -> frozenset[str]:
    """Top-level names of everything a file imports, wherever in the file, absolutely or relatively."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(path.relative_to(ROOT).parts[0] if node.level else (node.module or "").partition(".")[0])
    return frozenset(names)


def imports(package: str) -> Iterator[tuple[str, str]]:
    """(file, imported name) of a package."""
    for path in modules(package):
        for name in sorted(imported(path)):
            yield str(path.relative_to(ROOT)), name


@pytest.mark.parametrize("package", INWARD)
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        f"{file} imports {name}"
        for file, name in imports(package)
        if name in PACKAGES and name != package and name not in INWARD[package]
    ]

    assert modules(package)
    assert wrong == []


@pytest.mark.parametrize(
    ("package", "allowed"), [("fleet_protocol", PROTOCOL_LIBRARIES), ("edge_agent", AGENT_LIBRARIES)]
)
def test_what_runs_on_a_device_imports_only_the_base_dependencies(package: str, allowed: set[str]) -> None:
    wrong = [
        f"{file} imports {name}"
        for file, name in imports(package)
        if name not in sys.stdlib_module_names and name not in PACKAGES and name not in allowed
    ]

    assert wrong == []


def test_the_agent_loads_libraries_by_name_in_one_room_only() -> None:
    by_name = [
        str(path.relative_to(ROOT))
        for path in modules("edge_agent")
        if "importlib" in imported(path) and path.name != "__init__.py"
    ]

    assert by_name == ["edge_agent/batch/extras.py"]  # what an extra brings for some files of `batch`
    assert set(OPTIONAL_OF_BATCH) == {"pyarrow", "PIL"}


def test_statistics_are_functions_of_numbers() -> None:
    allowed = {"numpy", "scipy", "fleet_server", "fleet_protocol"} | sys.stdlib_module_names
    for path in modules("fleet_server/statistics"):
        assert imported(path) <= allowed, path
        inside = {
            node.module
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fleet_server")
        }
        assert all(module.startswith(("fleet_server.statistics", "fleet_server.errors")) for module in inside), path


def test_a_file_is_a_room_and_not_a_hall() -> None:
    halls = [
        f"{path.relative_to(ROOT)} has {lines} lines"
        for package in PACKAGES
        for path in modules(package)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    ]

    assert halls == []


def test_every_module_says_its_job() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for package in INWARD
        for path in modules(package)
        if (tree := ast.parse(path.read_text(encoding="utf-8"))).body and ast.get_docstring(tree) is None
    ]

    assert silent == []


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`, without what it loads by itself."""
    script = (
        "import json, sys; before = set(sys.modules)\n"
        f"{code}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    names = json.loads(output.stdout.splitlines()[-1])
    return {name for name in names if name not in sys.stdlib_module_names}


@pytest.mark.parametrize(
    "code",
    [
        "from edge_agent import Agent",
        "import edge_agent.agent, edge_agent.cli, edge_agent.serverless, edge_agent.batch",
        "import edge_agent.local_api.server, edge_agent.mqtt_link, edge_agent.control.updater, edge_agent.fleet_member",
    ],
)
def test_the_agent_loads_no_library_that_only_the_server_needs(code: str) -> None:
    loaded = loaded_by(code)

    assert "onnxruntime" in loaded  # the list is of a run that did import the agent
    assert loaded & SERVER_ONLY == set()
    assert loaded & {"fleet_server", "quantize", "models", "benchmarks", "tests"} == set()


def test_everything_in_the_agent_imports_without_what_only_the_server_has() -> None:
    """Each module of the two packages of a device, with every other library made absent."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in ("fleet_protocol", "edge_agent")
        for path in modules(package)
        if path.name != "__main__.py"
    ]
    code = (
        f"for name in {sorted(SERVER_ONLY)!r}: sys.modules[name] = None\n"
        f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    )

    loaded = loaded_by(code)

    assert {"edge_agent", "fleet_protocol"} <= loaded


def test_the_protocol_loads_neither_a_runtime_nor_a_client() -> None:
    names = [f"fleet_protocol.{path.stem}" for path in modules("fleet_protocol") if path.stem != "__init__"]

    loaded = loaded_by(f"import importlib\nfor name in {names!r}: importlib.import_module(name)")

    assert loaded >= PROTOCOL_LIBRARIES
    assert loaded & ((AGENT_LIBRARIES - PROTOCOL_LIBRARIES) | SERVER_ONLY | set(PACKAGES)) == {"fleet_protocol"}
