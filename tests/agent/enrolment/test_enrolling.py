"""`edge-agent enrol` and renewal against a real server."""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from edge_agent.cli import main
from edge_agent.config import load_config
from edge_agent.enrolment import command
from edge_agent.enrolment.der import CertificateFacts
from edge_agent.enrolment.identity_file import NewKey, read_identity, write_identity
from edge_agent.enrolment.renewal import CertificateKeeper, due_ns
from fleet_server.database.identity_tables import device_certificates
from fleet_server.identity.certificates import Issuing
from fleet_server.identity.signing_requests import key_sha256, read_request
from tests.real_servers.processes import free_port, wait_until
from tests.server.api.running import Server, running_server
from tests.server.identity.authority import make_issuing

DAY_NS = 86_400 * 10**9


@pytest.fixture(scope="module")
def issuing(tmp_path_factory: pytest.TempPathFactory) -> Issuing:
    return make_issuing(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, issuing: Issuing) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), issuing=issuing) as running:
        yield running


def _token(server: Server, **terms: Any) -> str:
    with server.client("operator") as client:
        answer = client.post("/api/v1/enrolment-tokens", json=terms)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def _enrol(server: Server, out: Path, token: str, device: str, *more: str) -> int:
    arguments = ["enrol", "--server", server.url, "--token", token, "--device", device, "--out", str(out), *more]
    return main(arguments)


def test_a_device_is_enrolled_with_a_key_that_stays_on_it(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "agent.toml"
    assert _enrol(server, out, _token(server, labels={"site": "lab"}), "cam-1", "--label", "rack=7") == 0
    assert f"edge-agent run --config {out}" in capsys.readouterr().out
    config = load_config(out)
    assert config.mqtt is not None
    assert config.device is not None
    assert config.device.id == "cam-1"
    identity_file = config.mqtt.certificate_file
    assert identity_file is not None
    assert identity_file == config.mqtt.key_file
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "agent.trust").iterdir()}
    assert modes["identity.pem"] == modes["secret"] == 0o600
    assert "pending-key.pem" not in modes
    assert read_identity(identity_file).certificate.expires_ns > time.time_ns() + 89 * DAY_NS
    with server.client("viewer") as client:
        shown = client.get("/api/v1/devices/cam-1")
        assert "PRIVATE" not in shown.text
        assert shown.json()["labels"] == {"site": "lab", "rack": "7"}
        assert shown.json()["certificate_expires_ns"] == read_identity(identity_file).certificate.expires_ns


def test_running_it_twice_changes_nothing_and_uses_no_token(server: Server, tmp_path: Path) -> None:
    out, token = tmp_path / "agent.toml", _token(server)
    assert _enrol(server, out, token, "cam-2") == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert _enrol(server, out, token, "cam-2") == 0
    assert _enrol(server, out, token, "cam-3") == 2, "this config is another device's"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_cut_short_before_the_config_was_written_it_goes_on_with_the_same_token(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, token = tmp_path / "agent.toml", _token(server)

    def power_cut(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(command, "write_agent_files", power_cut)
        _enrol(server, out, token, "cam-4")
    assert not out.exists()
    assert _enrol(server, out, token, "cam-4") == 0
    assert load_config(out).device is not None


@pytest.mark.parametrize(
    ("arguments", "says", "status"),
    [
        (["--token", "eft_" + "A" * 43], "unknown, used up, expired", 1),
        (["--token", "x", "--device", "Not An Id"], "--device", 2),
        (["--token", "x", "--label", "nonsense"], "is not KEY=VALUE", 2),
        (["--token", "x", "--server", "ftp://host"], "must be http://", 2),
        (["--token", "x", "--server", "http://fleet.example.com"], "is not encrypted", 2),
        (["--token-file", "/nowhere"], "cannot read /nowhere", 2),
        (["--token", "x", "--ca-file", "/nowhere"], "cannot read /nowhere", 2),
        (["--token", "x", "--out", "/proc/nowhere/agent.toml"], "cannot write", 2),
    ],
)
def test_what_is_wrong_is_one_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], *, says: str, status: int
) -> None:
    usual = {"--server": server.url, "--device": "cam-5", "--out": str(tmp_path / "agent.toml")}
    given_arguments = [part for name, value in usual.items() if name not in arguments for part in (name, value)]
    assert main(["enrol", *given_arguments, *arguments]) == status
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said
    assert not (tmp_path / "agent.toml").exists()


def test_a_server_that_is_away_is_asked_again_and_then_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_PAUSE_S", 0.001)
    out = tmp_path / "agent.toml"
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["enrol", "--server", url, "--token", "x", "--device", "d", "--out", str(out)]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert (tmp_path / "agent.trust" / "pending-key.pem").stat().st_mode & 0o777 == 0o600


class Renewing:
    """A device with a certificate that began and ends when the test says, known to the server."""

    def __init__(self, server: Server, issuing: Issuing, folder: Path, device: str) -> None:
        self.server, self.issuing, self.device = server, issuing, device
        self.path, self.changes = folder / f"{device}.pem", list[int]()
        with server.client("operator") as client:
            self.secret = client.post(f"/api/v1/devices/{device}/enrol", json={}).json()["secret"]

    def hold(self, *, begins: timedelta, ends: timedelta) -> str:
        """Give the device a certificate; its serial number."""
        new, now = NewKey.generate(), datetime.now(UTC)
        key = read_request(new.request(self.device))
        began = now + begins + timedelta(hours=1)  # the authority dates back by an hour
        issued = self.issuing.authority.issue_to_device(
            key, fleet="demo", device=self.device, now=began, life=now + ends - began
        )
        with self.server.engine.begin() as connection:
            row = {"serial": issued.serial, "key_sha256": key_sha256(key), "pem": issued.pem, "issued_ns": 1}
            values = {**row, "fleet": "demo", "device": self.device, "expires_ns": issued.expires_ns}
            connection.execute(insert(device_certificates).values(values))
        write_identity(self.path, new, certificate_pem=issued.pem, chain=[])
        return issued.serial

    def keeper(self, *, secret: str | None = None) -> CertificateKeeper:
        """What the agent runs."""
        return CertificateKeeper(
            path=self.path, server_url=self.server.url, ca_file=None, fleet="demo", device=self.device,
            secret=secret or self.secret, on_change=lambda: self.changes.append(1), first_pause_s=0.1,
        )  # fmt: skip

    @property
    def serial(self) -> str:
        """Of the certificate in the file."""
        return read_identity(self.path).certificate.serial


def _run_until(keeper: CertificateKeeper, condition: Any, what: str) -> None:
    keeper.start()
    try:
        wait_until(condition, 15, what)
    finally:
        keeper.stop()


@pytest.mark.parametrize("ends", [timedelta(days=5), timedelta(days=-3)])
def test_a_certificate_that_is_due_or_expired_within_the_grace_is_renewed(
    server: Server, issuing: Issuing, tmp_path: Path, ends: timedelta
) -> None:
    device = Renewing(server, issuing, tmp_path, f"due-{ends.days % 97}")
    old = device.hold(begins=timedelta(days=-85), ends=ends)
    keeper = device.keeper()
    _run_until(keeper, lambda: device.changes, "the certificate was renewed")
    assert device.serial != old
    assert keeper.expires_ns == read_identity(device.path).certificate.expires_ns > time.time_ns() + 80 * DAY_NS


def test_beyond_the_grace_it_is_refused_with_what_to_do(
    server: Server, issuing: Issuing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = Renewing(server, issuing, tmp_path, "late")
    old = device.hold(begins=timedelta(days=-200), ends=timedelta(days=-40))
    _run_until(device.keeper(), lambda: "enrol the device again with a token" in caplog.text, "the refusal was logged")
    assert "more than 30 days ago" in caplog.text
    assert device.serial == old, "a failure changes nothing"


def test_a_wrong_secret_alone_or_a_wrong_key_alone_renews_nothing(
    server: Server, issuing: Issuing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device, other = Renewing(server, issuing, tmp_path, "one"), Renewing(server, issuing, tmp_path, "two")
    old = device.hold(begins=timedelta(days=-85), ends=timedelta(days=5))
    _run_until(device.keeper(secret="wrong"), lambda: "refused" in caplog.text, "the wrong secret was refused")
    theirs = other.hold(begins=timedelta(days=-85), ends=timedelta(days=5))
    identity, csr = read_identity(device.path), NewKey.generate().request("one")
    proof = identity.prove(fleet="demo", device="one", csr=csr)
    with server.client(None) as client:
        for serial, sent, auth, status in (
            (theirs, proof, ("one", device.secret), 403),  # another device's certificate
            (old, proof, ("two", other.secret), 403),  # another device's secret
            (old, proof[:-8] + "AAAAAAA=", ("one", device.secret), 403),  # without the key
            ("0" * 32, proof, ("one", device.secret), 403),
            (old, "***", ("one", device.secret), 403),
            (old, proof, ("one", "wrong"), 401),
        ):
            body = {"csr": csr, "serial": serial, "proof": sent}
            answer = client.post("/api/v1/devices/one/certificate", json=body, auth=auth)
            assert answer.status_code == status, (serial, sent, answer.text)
    assert device.serial == old
    with server.client("operator") as operator:
        assert operator.post("/api/v1/devices/one/revoke", json={"reason": "stolen"}).status_code == 200
    with server.client(None) as client:
        body = {"csr": csr, "serial": old, "proof": proof}
        assert client.post("/api/v1/devices/one/certificate", json=body, auth=("one", device.secret)).status_code == 401


def test_a_broker_that_turns_the_device_away_makes_it_ask_early_and_then_not_for_long(
    server: Server, issuing: Issuing, tmp_path: Path
) -> None:
    device = Renewing(server, issuing, tmp_path, "turned-away")
    device.hold(begins=timedelta(days=-1), ends=timedelta(days=89))
    keeper = device.keeper()
    keeper.turned_away()
    _run_until(keeper, lambda: device.changes, "it was renewed before it was due")
    keeper.turned_away()
    assert keeper._wait_s(time.time_ns(), time.monotonic()) > 3600, "not again for hours"


def test_a_file_that_is_not_ours_is_left_alone(server: Server, issuing: Issuing, tmp_path: Path) -> None:
    device = Renewing(server, issuing, tmp_path, "foreign")
    device.path.write_text("-----BEGIN PRIVATE KEY-----\nof another kind\n-----END PRIVATE KEY-----\n")
    keeper = device.keeper()
    keeper.start()
    keeper.stop()
    assert keeper.expires_ns == 0
    assert "of another kind" in device.path.read_text()


@given(serial=st.integers(0, 2**128 - 1), begins=st.integers(0, 2**60), life=st.integers(3, 2**60))
def test_renewal_is_due_in_the_last_third_and_long_before_the_end(serial: int, begins: int, life: int) -> None:
    facts = CertificateFacts(serial=f"{serial:032x}", begins_ns=begins, expires_ns=begins + life)
    assert begins + life * 0.66 <= due_ns(facts) + 1
    assert due_ns(facts) <= begins + life * 0.76


def test_a_fleet_enrolled_at_once_does_not_renew_at_once() -> None:
    facts = [
        CertificateFacts(serial=hashlib.sha256(bytes([n])).hexdigest()[:32], begins_ns=0, expires_ns=90 * DAY_NS)
        for n in range(200)
    ]
    days = {due_ns(each) // DAY_NS for each in facts}
    assert days == set(range(60, 68)), "spread over a twelfth of their life"
