"""The `edge-agent` command as a process: it serves, and what cannot be is one line and exit status 2."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.agent.runtime import onnx_files
from tests.real_servers.processes import Process, free_port

_START_TIMEOUT_S = 60.0
EDGE_AGENT = (sys.executable, "-m", "edge_agent")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return onnx_files.linear(tmp_path / "linear.onnx")


def run(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EDGE_AGENT, *map(str, arguments)], check=False, capture_output=True, text=True, timeout=60, input=stdin
    )


def refused(*arguments: str | Path, stdin: str = "") -> str:
    """The one line of a command that ends with status 2."""
    ended = run(*arguments, stdin=stdin)
    errors = [line for line in ended.stderr.splitlines() if " INFO " not in line]
    assert (ended.returncode, len(errors), ended.stdout) == (2, 1, ""), ended.stderr
    return errors[0]


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> tuple[int, object]:
    connection.request(method, path, body=None if body is None else json.dumps(body))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_one_command_serves_a_model_on_a_port_and_a_socket_and_ends_when_asked(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "a.sock"
    arguments = ["run", "--model", f"linear={model}", "--http", "127.0.0.1:0", "--socket", str(path)]
    with Process([*EDGE_AGENT, *arguments], folder=tmp_path, name="agent") as agent:
        found = agent.wait_ready(
            lambda: re.search(r"http://127\.0\.0\.1:(\d+)", agent.output()), _START_TIMEOUT_S, "the agent listens"
        )
        tcp, unix = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20), UnixConnection(path)
        request = {"model": "linear", "inputs": {"x": [[1, 2, 3]]}}

        answers = [ask(connection, "POST", "/predict", request) for connection in (tcp, unix)]
        health, _ = ask(tcp, "GET", "/health")

        assert health == 200
        for status, body in answers:
            assert status == 200
            assert isinstance(body, dict)
            assert body["outputs"]["scores"] == [[0.0, 12.0]]
        tcp.close()
        unix.close()
        assert agent.stop() == 0
    assert "Traceback" not in agent.output()
    assert not path.exists()


def test_an_interrupt_from_the_keyboard_ends_it_with_status_0(tmp_path: Path, model: Path) -> None:
    arguments = ["run", "--model", f"linear={model}", "--http", "127.0.0.1:0"]
    with Process([*EDGE_AGENT, *arguments], folder=tmp_path, name="agent") as agent:
        agent.wait_ready(lambda: "local API" in agent.output(), _START_TIMEOUT_S, "the agent listens")
        agent.signal(signal.SIGINT)

        assert agent.wait(20) == 0
    assert "Traceback" not in agent.output()


def test_nothing_to_run_is_told() -> None:
    assert "nothing to run: give --model" in refused("run")


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("linear", "is not NAME=FILE.onnx"),
        ("=x.onnx", "is not NAME=FILE.onnx"),
        ("linear=", "is not NAME=FILE.onnx"),
        ("li near=x.onnx", "is not NAME=FILE.onnx"),
        ("linear=absent.onnx", "there is no file absent.onnx"),
        ("linear=.", "there is no file"),
    ],
)
def test_a_model_argument_that_cannot_be_is_told(argument: str, says: str) -> None:
    assert says in refused("run", "--model", argument, "--http", "127.0.0.1:0")


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x08\x12\x04" * 100])
def test_a_file_that_is_no_model_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)

    assert str(path) in refused("run", "--model", f"m={path}", "--http", "127.0.0.1:0")


@pytest.mark.parametrize("address", ["8080", "localhost:", "127.0.0.1:65536", "a:b", "127.0.0.1:-1", "::1:80"])
def test_an_address_that_is_none_is_told(model: Path, address: str) -> None:
    assert "is not HOST:PORT" in refused("run", "--model", f"m={model}", "--http", address)


def test_an_address_of_another_machine_is_told(model: Path) -> None:
    assert "192.0.2.1" in refused("run", "--model", f"m={model}", "--http", "192.0.2.1:0")


def test_a_port_in_use_is_told(model: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert "is in use" in refused("run", "--model", f"m={model}", "--http", f"127.0.0.1:{port}")


def test_a_socket_path_that_is_a_file_or_in_no_folder_is_told(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("precious")

    assert "another kind" in refused("run", "--model", f"m={model}", "--socket", tmp_path / "file")
    assert "cannot listen" in refused("run", "--model", f"m={model}", "--socket", tmp_path / "absent" / "a.sock")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[http]\nprot = 1", "unknown setting 'http.prot', did you mean 'port'?"),
        ('[http]\nport = "80"', "http.port: Expected"),
        ("[models.m]\npath = 'absent.onnx'", "models.m.path: there is no file"),
        ("[http", "not TOML"),
        ("", "nothing to run"),
    ],
)
def test_a_config_that_cannot_be_is_told(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)

    assert says in refused("run", "--config", path)


def test_a_config_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "cannot read the config file" in refused("run", "--config", tmp_path / "absent.toml")


def fleet_config(folder: Path, data_dir: Path, extra: str = "") -> Path:
    path = folder / "agent.toml"
    path.write_text(
        f'data_dir = "{data_dir}"\n[device]\nid = "d"\n[mqtt]\nurl = "mqtt://127.0.0.1:{free_port()}"\n{extra}'
    )
    return path


def test_a_data_folder_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")

    assert "data_dir" in refused("run", "--config", fleet_config(tmp_path, tmp_path / "data"))


def test_a_key_file_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "k.pub").write_text("no key")
    extra = '[server]\nurl = "http://127.0.0.1:1"\n[trust]\nrelease_keys = ["k.pub"]\ndirector_keys = ["k.pub"]\n'

    assert "k.pub" in refused("run", "--config", fleet_config(tmp_path, tmp_path / "data", extra))


def test_a_password_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xfe\x00")

    line = refused("run", "--config", fleet_config(tmp_path, tmp_path / "data", 'password_file = "secret"\n'))
    assert "mqtt.password_file" in line


def test_without_a_broker_the_agent_still_serves(tmp_path: Path, model: Path) -> None:
    config = fleet_config(tmp_path, tmp_path / "data", f'[models.linear]\npath = "{model}"\n[http]\nport = 0\n')
    with Process([*EDGE_AGENT, "run", "--config", config], folder=tmp_path, name="agent") as agent:
        found = agent.wait_ready(
            lambda: re.search(r"http://127\.0\.0\.1:(\d+)", agent.output()), _START_TIMEOUT_S, "the agent listens"
        )
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        status, _ = ask(connection, "POST", "/predict", {"model": "linear", "inputs": {"x": [[1, 2, 3]]}})
        connection.close()

        assert status == 200
        assert agent.stop() == 0
    assert "Traceback" not in agent.output()


@pytest.mark.parametrize("arguments", [[], ["serve"], ["run", "--nonsense"], ["infer"]])
def test_arguments_that_do_not_exist_show_the_usage(arguments: list[str]) -> None:
    ended = run(*arguments)

    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: edge-agent")


def test_one_inference_is_printed_as_json(tmp_path: Path, model: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=np.array([[1, 2, 3]], dtype=np.float32))
    (tmp_path / "inputs.json").write_text('{"x": [[1, 2, 3]]}')

    answers = [
        run("infer", f"linear={model}", tmp_path / "inputs.npz"),
        run("infer", f"linear={model}", tmp_path / "inputs.json"),
        run("infer", f"linear={model}", "-", stdin='{"x": [[1, 2, 3]]}'),
    ]

    for answer in answers:
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout)["outputs"]["scores"] == [[0.0, 12.0]]


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        ("{", "not valid"),
        ("[1]", "JSON object"),
        ('{"y": 1}', "missing x"),
        ('{"x": "text"}', "x"),
        ("[" * 100_000, "not valid"),
    ],
)
def test_inputs_that_cannot_be_are_told(model: Path, stdin: str, says: str) -> None:
    assert says in refused("infer", f"linear={model}", "-", stdin=stdin)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY", b"text"])
def test_an_input_file_that_is_no_npz_is_told(tmp_path: Path, model: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)

    assert "x.npz" in refused("infer", f"linear={model}", tmp_path / "x.npz")
    assert "absent.npz" in refused("infer", f"linear={model}", tmp_path / "absent.npz")


def test_a_single_array_under_the_name_of_an_npz_is_told(tmp_path: Path, model: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.ones(3))

    assert "x.npz" in refused("infer", f"linear={model}", tmp_path / "x.npz")


def test_the_version_is_told() -> None:
    ended = run("--version")

    assert (ended.returncode, ended.stdout.split()[0]) == (0, "edgefleet")
