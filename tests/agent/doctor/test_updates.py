"""What the doctor says of the fleet's models: their files, the way back, quarantine, the certificate, the outbox."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from edge_agent.config import AgentConfig, DeviceSection, MqttSection, TrustSection
from edge_agent.control.state import ControlState, Installed, ModelState, StateFile
from edge_agent.doctor import Grade
from edge_agent.doctor.findings import Finding
from edge_agent.doctor.updates import certificate_finding, update_findings
from edge_agent.telemetry.outbox import Outbox
from fleet_protocol.messages import Assignment, Phase
from fleet_protocol.topics import TopicKind
from tests.end_to_end.updates.bundles import Bundle, Keys, digits

OK, WARN, FAIL = Grade.OK, Grade.WARN, Grade.FAIL


@pytest.fixture(scope="module")
def made() -> tuple[Bundle, Bundle]:
    keys = Keys()
    return digits("1.0.0", keys.release), digits("1.1.0", keys.release)


def config_of(folder: Path) -> AgentConfig:
    return AgentConfig(
        data_dir=folder,
        device=DeviceSection(id="press-7"),
        mqtt=MqttSection(url="mqtt://127.0.0.1:1"),
        trust=TrustSection(release_keys=[folder / "none"], director_keys=[folder / "none"]),
    )


def installed(bundle: Bundle) -> Installed:
    return Installed(bundle=bundle.digest, version=bundle.version, variant=bundle.manifest.variants[0].name)


def keep(folder: Path, state: ControlState, *bundles: Bundle) -> None:
    StateFile(folder / "control").save(state)
    (folder / "bundles").mkdir(exist_ok=True)
    for bundle in bundles:
        for sha256, content in bundle.served().items():
            (folder / "bundles" / sha256).write_bytes(content)


def found(folder: Path) -> dict[str, Finding]:
    return {finding.topic: finding for finding in update_findings(config_of(folder))}


def state_of(old: Bundle, new: Bundle, **more: object) -> ControlState:
    target = Assignment(model="digits", version=new.version, bundle=new.digest)
    model = ModelState(phase=Phase.HEALTHY, active=installed(new), last_good=installed(old), target=target)
    return ControlState(models={"digits": model}, **more)  # type: ignore[arg-type]


def test_a_device_that_is_well_has_what_runs_and_the_way_back(tmp_path: Path, made: tuple[Bundle, Bundle]) -> None:
    old, new = made
    keep(tmp_path, state_of(old, new), old, new)
    findings = found(tmp_path)

    assert {finding.grade for finding in findings.values()} == {OK}
    assert "1.1.0" in findings["updates"].fact and "1.0.0 is the way back" in findings["updates"].fact


@pytest.mark.parametrize(("lost", "says"), [(0, "the way back, 1.0.0, lacks"), (1, "what runs, 1.1.0, lacks")])
def test_a_file_that_is_gone_or_cut_off_is_found(
    tmp_path: Path, made: tuple[Bundle, Bundle], lost: int, says: str
) -> None:
    keep(tmp_path, state_of(*made), *made)
    file = tmp_path / "bundles" / made[lost].model_sha256
    file.write_bytes(file.read_bytes()[:-1])
    cut = found(tmp_path)["updates"]
    file.unlink()
    gone = found(tmp_path)["updates"]

    assert cut.grade is gone.grade is FAIL
    assert says in cut.fact and says in gone.fact


def test_a_bundle_in_quarantine_is_told_with_its_reason(tmp_path: Path, made: tuple[Bundle, Bundle]) -> None:
    quarantine = {character * 64: "a run hangs" for character in "abcde"}
    keep(tmp_path, state_of(*made, quarantine=quarantine), *made)
    finding = found(tmp_path)["quarantine"]

    assert finding.grade is WARN
    assert "5 bundles failed here" in finding.fact and "a run hangs" in finding.fact and "2 more" in finding.fact


def test_nothing_that_runs_although_it_is_assigned_is_told_with_the_reason(
    tmp_path: Path, made: tuple[Bundle, Bundle]
) -> None:
    target = Assignment(model="digits", version="1.1.0", bundle=made[1].digest)
    model = ModelState(phase=Phase.FAILED, target=target, error="golden vectors differ")
    keep(tmp_path, ControlState(models={"digits": model}))

    assert found(tmp_path)["updates"].grade is WARN
    assert "golden vectors differ" in found(tmp_path)["updates"].fact


def test_a_damaged_state_fails_and_none_is_well(tmp_path: Path) -> None:
    assert found(tmp_path)["updates"].grade is OK
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "state.json").write_bytes(b"{")
    assert found(tmp_path)["updates"].grade is FAIL


def test_what_waits_in_the_outbox_of_a_running_agent_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(tmp_path)["outbox"].fact == "empty"
    outbox = Outbox(tmp_path / "outbox.db", max_bytes=1_000_000, max_age_s=60.0, confirm_timeout_s=60.0)
    try:
        outbox.append(TopicKind.EVENTS, lambda _sequence: b"{}")
        assert "1 records wait" in found(tmp_path)["outbox"].fact
        monkeypatch.chdir(tmp_path)  # as a config beside the shell names it
        assert "1 records wait" in found(Path())["outbox"].fact
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "outbox.db").write_bytes(b"not a database" * 1000)
        assert found(tmp_path / "other")["outbox"].grade is WARN
    finally:
        outbox.close()


@pytest.mark.parametrize(("days", "grade"), [(-1, FAIL), (3, WARN), (40, OK)])
def test_a_certificate_is_told_before_it_expires(tmp_path: Path, days: int, grade: Grade) -> None:
    key, now = Ed25519PrivateKey.generate(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "press-7")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, None)
    )
    file = tmp_path / "identity.pem"
    file.write_bytes(certificate.public_bytes(Encoding.PEM))

    assert certificate_finding(file, now_s=now.timestamp()).grade is grade
    file.write_text("nothing")
    assert certificate_finding(file, now_s=now.timestamp()).grade is FAIL
