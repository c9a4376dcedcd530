"""What the doctor says of figures, of configs, and as a command."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from edge_agent.config import AgentConfig, MqttSection, RuntimeSection, ServerSection, load_config
from edge_agent.doctor import Finding, Grade, any_failed, as_json, as_text, examine
from edge_agent.doctor.findings import MAX_COLUMNS
from edge_agent.doctor.fleet import (
    broker_finding,
    clock_finding,
    config_findings,
    disk_finding,
    secret_finding,
    server_finding,
)
from edge_agent.doctor.machine import (
    cores_finding,
    cpu_finding,
    files_finding,
    governor_finding,
    governors,
    machine_findings,
    memory_finding,
    memory_limit,
    swap_finding,
    temperature_finding,
    throttled,
    throttling_finding,
)
from edge_agent.doctor.trust import key_finding
from edge_agent.runtime.cpu import MachineFacts
from fleet_protocol.keys import PrivateKey
from tests.agent.runtime import onnx_files
from tests.real_servers.processes import free_port

OK, WARN, FAIL = Grade.OK, Grade.WARN, Grade.FAIL
GB = 10**9


def machine(*, quota: float = 4.0, saturates: bool = False) -> MachineFacts:
    return MachineFacts(
        signature="x86_64:avx2", quota=quota, host_cores=8, int8_saturates=saturates, model_name="Some CPU"
    )


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("finding", "grade", "says"),
    [
        (cpu_finding(machine()), OK, "Some CPU, x86_64:avx2"),
        (cpu_finding(machine(saturates=True)), WARN, "saturate"),
        (cores_finding(machine()), OK, "4 of the host's 8"),
        (cores_finding(machine(quota=0.5)), WARN, "0.5 of the host's 8"),
        (memory_finding(total=GB, available=GB // 2, limit=None, budget=None), OK, "500 MB of 1000 MB"),
        (memory_finding(total=GB, available=GB // 20, limit=None, budget=None), WARN, "50 MB of 1000 MB"),
        (memory_finding(total=GB, available=GB, limit=(GB // 4, GB // 5), budget=None), OK, "200 MB of 250 MB (lim"),
        (memory_finding(total=GB, available=GB, limit=(GB // 4, GB // 100), budget=None), WARN, "10 MB of 250 MB"),
        (memory_finding(total=GB, available=GB // 2, limit=None, budget=GB), WARN, "less than runtime.memory_budget"),
        (swap_finding(total=0, used=0), OK, "none"),
        (swap_finding(total=GB, used=GB // 4), OK, "250 MB of 1000 MB"),
        (swap_finding(total=GB, used=3 * GB // 4), WARN, "750 MB of 1000 MB"),
        (temperature_finding(None), OK, "does not tell"),
        (temperature_finding(45.4), OK, "45 °C"),
        (temperature_finding(80.0), WARN, "80 °C"),
        (throttling_finding(None, None), OK, "does not tell"),
        (throttling_finding(0, None), OK, "none since boot"),
        (throttling_finding(7, None), WARN, "7 times"),
        (throttling_finding(None, 0), OK, "none since boot"),
        (throttling_finding(None, 0x50005), WARN, "supply was too weak"),
        (throttling_finding(None, 0x40004), WARN, "too hot"),
        (governor_finding(()), OK, "no governor"),
        (governor_finding(("schedutil",)), OK, "schedutil"),
        (governor_finding(("performance", "powersave")), WARN, "powersave"),
        (files_finding(4096), OK, "4096"),
        (files_finding(256), WARN, "only 256"),
        (files_finding(-1), OK, "any number"),
        (clock_finding(now=1.8e9, server_at=1.8e9 + 3, is_synchronised=None), OK, "3 s"),
        (clock_finding(now=1.8e9, server_at=1.8e9 - 300, is_synchronised=True), WARN, "300 s"),
        (clock_finding(now=1.8e9, server_at=1.9e9, is_synchronised=True), FAIL, "s from the server's"),
        (clock_finding(now=0.0, server_at=None, is_synchronised=None), FAIL, "1970"),
        (clock_finding(now=1.8e9, server_at=None, is_synchronised=True), OK, "set by the network"),
    ],
)  # fmt: skip
def test_a_figure_is_judged_and_what_is_not_well_comes_with_what_to_do(
    finding: Finding, grade: Grade, says: str
) -> None:
    assert (finding.grade, says in finding.fact) == (grade, True), finding
    assert bool(finding.advice) is (grade is not OK)


def test_the_tightest_memory_limit_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    two = write(tmp_path / "two", "0::/pods/one\n")
    write(tmp_path / "fs/pods/one/memory.max", "max\n")
    write(tmp_path / "fs/pods/memory.max", "500000000\n")
    write(tmp_path / "fs/pods/memory.current", "100000000\n")
    one = write(tmp_path / "one", "4:memory:/job\n")
    write(tmp_path / "fs/memory/job/memory.limit_in_bytes", "300000000\n")
    write(tmp_path / "fs/memory/memory.limit_in_bytes", "9223372036854771712\n")

    assert memory_limit(self_cgroup=two, root=tmp_path / "fs") == (500_000_000, 400_000_000)
    assert memory_limit(self_cgroup=one, root=tmp_path / "fs") == (300_000_000, 300_000_000)
    assert memory_limit(self_cgroup=tmp_path / "none", root=tmp_path / "fs") is None


def test_throttling_and_governors_are_read_where_a_kernel_tells_them(tmp_path: Path) -> None:
    for cpu, count in (("cpu0", 2), ("cpu1", 3)):
        write(tmp_path / cpu / "thermal_throttle/core_throttle_count", f"{count}\n")
        write(tmp_path / cpu / "cpufreq/scaling_governor", "powersave\n")
    bits = write(tmp_path / "throttled", "0x50000\n")

    assert throttled(tmp_path, bits) == (5, 0x50000)
    assert throttled(tmp_path / "none", tmp_path / "none") == (None, None)
    assert governors(tmp_path) == ("powersave",)
    write(tmp_path / "cpu0/cpufreq/scaling_driver", "intel_pstate\n")
    assert governors(tmp_path) == ("demand-driven",)  # that driver's powersave is not slow
    assert governors(tmp_path / "none") == ()


def test_this_machine_is_examined_with_a_reason_for_every_setting() -> None:
    findings = machine_findings(RuntimeSection())

    topics = {finding.topic for finding in findings}
    assert topics >= {"cpu", "cores", "memory", "swap", "temperature", "onnxruntime", "session", "files", "service"}
    assert any("threads: 1 (" in finding.fact for finding in findings)


def test_text_is_narrow_and_json_is_whole() -> None:
    findings = [
        Finding(grade=WARN, topic="topic", fact="a long fact " * 30, advice="long advice " * 30),
        Finding(grade=OK, topic="other", fact="x"),
    ]

    lines = as_text(findings).splitlines()

    assert max(map(len, lines)) <= MAX_COLUMNS
    assert lines[-1] == "1 OK, 1 WARN, 0 FAIL"
    assert json.loads(as_json(findings)) == {
        "ok": True,
        "findings": [
            {"grade": "WARN", "topic": "topic", "fact": "a long fact " * 30, "advice": "long advice " * 30},
            {"grade": "OK", "topic": "other", "fact": "x"},
        ],
    }


def test_only_a_failure_fails() -> None:
    finding = Finding(grade=WARN, topic="t", fact="f", advice="a")

    assert not any_failed([finding])
    assert any_failed([finding, Finding(grade=FAIL, topic="t", fact="f", advice="a")])


def test_a_disk_is_judged_by_what_the_config_will_put_on_it(tmp_path: Path) -> None:
    roomy = load_config(write(tmp_path / "a.toml", 'data_dir = "new/deep"'))
    tight = load_config(
        write(tmp_path / "b.toml", 'data_dir = "new"\n[telemetry]\noutbox_max_bytes = 1000000000000000')
    )
    full = load_config(write(tmp_path / "c.toml", 'data_dir = "new"\n[update]\nreserve_disk_bytes = 1000000000000000'))
    write(tmp_path / "file", "")
    blocked = load_config(write(tmp_path / "d.toml", 'data_dir = "file/inside"'))

    grades = [disk_finding(config).grade for config in (AgentConfig(), roomy, tight, full, blocked)]

    assert grades == [OK, OK, WARN, FAIL, FAIL]
    assert not (tmp_path / "new").exists()  # a look changes nothing


def test_keys_and_secrets_are_looked_at(tmp_path: Path) -> None:
    key = PrivateKey.generate().public
    good = tmp_path / "good.pem"
    good.write_bytes(key.pem())
    bad = write(tmp_path / "bad.pem", "no key")
    secret = write(tmp_path / "password", "x")

    assert key_finding("release key", good).grade is OK
    assert key_finding("release key", bad).grade is FAIL
    secret.chmod(0o644)
    assert secret_finding("mqtt.password_file", secret).grade is WARN
    secret.chmod(0o600)
    assert secret_finding("mqtt.password_file", secret).grade is OK
    assert secret_finding("mqtt.password_file", tmp_path / "none").grade is FAIL


def test_a_broker_that_listens_is_seen_and_one_that_does_not_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert broker_finding(MqttSection(url=f"mqtt://127.0.0.1:{port}")).grade is OK
    absent = broker_finding(MqttSection(url=f"mqtt://127.0.0.1:{free_port()}"))

    assert absent.grade is WARN
    assert "kept until it answers" in absent.advice


def test_a_broker_without_the_tls_that_the_config_asks_for_is_a_failure_within_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def answer_in_clear() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(10)
                connection.sendall(b"\x20\x02\x00\x00 this is no TLS at all")

        thread = threading.Thread(target=answer_in_clear)
        thread.start()
        finding = broker_finding(MqttSection(url=f"mqtts://127.0.0.1:{port}"))
        thread.join(10)

    assert finding.grade is FAIL
    assert "no TLS" in finding.fact


def test_a_broker_that_accepts_and_says_nothing_does_not_hold_the_doctor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        start = time.monotonic()
        finding = broker_finding(MqttSection(url=f"mqtts://127.0.0.1:{listening.getsockname()[1]}"))

    assert finding.grade is not OK
    assert time.monotonic() - start < 5


@contextmanager
def server(*, status: int = 200, date: str | None = None) -> Iterator[ServerSection]:
    """A fleet server that answers /health with a status and a date."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status if self.path == "/fleet/health" else 404)
            if date is not None:
                self.send_header("Date", date)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield ServerSection(url=f"http://127.0.0.1:{listening.server_port}/fleet")
        finally:
            listening.shutdown()
            thread.join(10)


def test_a_server_that_answers_tells_its_clock() -> None:
    with server(date=formatdate(1_800_000_000, usegmt=True)) as section:
        finding, at = server_finding(section)

    assert (finding.grade, at) == (OK, 1_800_000_000)


def test_a_server_that_is_ill_absent_or_talks_nonsense_is_a_warning() -> None:
    with server(status=500) as section:
        assert server_finding(section)[0].grade is WARN
    with server(date="yesterday") as section:
        assert server_finding(section) == (Finding(grade=OK, topic="server", fact=f"{section.url} answers"), None)
    assert server_finding(ServerSection(url=f"http://127.0.0.1:{free_port()}"))[0].grade is WARN


def test_every_model_of_the_config_is_loaded(tmp_path: Path) -> None:
    onnx_files.linear(tmp_path / "good.onnx")
    write(tmp_path / "bad.onnx", "not a model")
    config = write(
        tmp_path / "agent.toml",
        '[models.good]\npath = "good.onnx"\n[models.good.arms.b]\npath = "bad.onnx"\n',
    )

    findings = [finding for finding in config_findings(load_config(config)) if finding.topic == "model"]

    assert [finding.grade for finding in findings] == [OK, FAIL]
    assert "models.good.arms.b" in findings[1].fact


def test_a_wrong_config_is_one_failure_and_the_machine_is_examined_all_the_same(tmp_path: Path) -> None:
    config = write(tmp_path / "agent.toml", "[http]\nprot = 1")

    findings = examine(config)

    assert [finding.topic for finding in findings if finding.grade is FAIL] == ["config"]
    assert "did you mean 'port'?" in next(finding.fact for finding in findings if finding.topic == "config")
    assert any(finding.topic == "cpu" for finding in findings)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_agent", "doctor", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_the_command_ends_with_0_when_nothing_fails_and_with_1_when_something_does(tmp_path: Path) -> None:
    onnx_files.linear(tmp_path / "good.onnx")
    good = write(tmp_path / "good.toml", '[models.good]\npath = "good.onnx"\n')

    well, ill = run("--config", good), run("--config", tmp_path / "none.toml", "--json")

    assert well.returncode == 0, well.stdout
    assert "models.good: loads and warms" in well.stdout
    assert all(len(line) <= MAX_COLUMNS for line in well.stdout.splitlines())
    assert ill.returncode == 1
    assert json.loads(ill.stdout)["ok"] is False
