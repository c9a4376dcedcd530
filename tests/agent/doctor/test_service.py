"""The unit that is shipped, by systemd's own judgement and the doctor's; and units that leave something open."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_agent.doctor import Grade
from edge_agent.doctor.findings import Finding
from edge_agent.doctor.service import UNIT, service_findings, unit_settings

_SHIPPED = Path(__file__).resolve().parents[3] / "compose" / "systemd" / UNIT
_EXPOSURE_TENTHS = "20"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of units with the shipped one."""
    shutil.copy(_SHIPPED, tmp_path)
    return tmp_path


def looked_at(*folders: Path, in_service: bool = False, watchdog_usec: str = "") -> dict[str, Finding]:
    found = service_findings(has_systemd=True, in_service=in_service, watchdog_usec=watchdog_usec, folders=folders)
    return {finding.topic: finding for finding in found}


def change(folder: Path, text: str) -> None:
    drop_in = folder / f"{UNIT}.d"
    drop_in.mkdir(exist_ok=True)
    (drop_in / "10-mine.conf").write_text(f"[Service]\n{text}\n")


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze here: apt-get install systemd")
    return subprocess.run([tool, *arguments], check=False, capture_output=True, text=True, timeout=60)


def test_systemd_finds_nothing_wrong_with_the_shipped_unit_and_little_exposed(tmp_path: Path) -> None:
    unit = tmp_path / UNIT  # this machine has no agent in /opt: any program that is there does for the look
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", _SHIPPED.read_text(), flags=re.MULTILINE))

    verified = analyze("verify", "--man=no", unit)
    assert (verified.returncode, verified.stderr) == (0, "")
    rated = analyze("security", "--offline=true", "--no-pager", f"--threshold={_EXPOSURE_TENTHS}", unit)
    assert rated.returncode == 0, rated.stdout
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert analyze("security", "--offline=true", "--no-pager", f"--threshold={_EXPOSURE_TENTHS}", unit).returncode == 1


def test_the_shipped_unit_is_whole(folder: Path) -> None:
    findings = looked_at(folder)

    assert list(findings) == ["service", "watchdog", "hardening"]
    assert {finding.grade for finding in findings.values()} == {Grade.OK}
    settings = unit_settings([folder])
    assert settings is not None
    assert settings["ExecStart"].endswith("edge-agent run --config /etc/edgefleet/agent.toml")


@pytest.mark.parametrize(
    ("text", "topic", "says"),
    [
        ("Restart=on-failure", "service", "Restart=on-failure"),
        ("Type=simple", "service", "Type=simple"),
        ("WatchdogSec=0", "watchdog", "no WatchdogSec"),
        ("NoNewPrivileges=no", "hardening", "NoNewPrivileges"),
        ("ProtectSystem=full", "hardening", "ProtectSystem"),
        ("User=root\nDynamicUser=no", "hardening", "User or DynamicUser"),
    ],
)
def test_what_a_drop_in_takes_away_is_found(folder: Path, text: str, topic: str, says: str) -> None:
    change(folder, text)
    finding = looked_at(folder)[topic]

    assert finding.grade is Grade.WARN
    assert says in finding.fact and finding.advice


def test_the_first_folders_unit_counts_with_drop_ins_of_all_its_own_first(folder: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    change(folder, "WatchdogSec=5")
    assert "WatchdogSec=5" in looked_at(earlier, folder)["watchdog"].fact
    change(earlier, "WatchdogSec=7")
    assert "WatchdogSec=7" in looked_at(earlier, folder)["watchdog"].fact
    (earlier / UNIT).write_text("[Service]\nExecStart=/bin/true\n")
    assert "Restart=no" in looked_at(earlier, folder)["service"].fact


def test_inside_the_service_its_own_patience_is_told(folder: Path) -> None:
    assert "60 s in this process" in looked_at(folder, in_service=True, watchdog_usec="60000000")["watchdog"].fact


@pytest.mark.parametrize(
    ("has_systemd", "in_service", "grade", "says"),
    [
        (True, False, Grade.WARN, f"there is no {UNIT}"),
        (True, True, Grade.OK, "by another unit"),
        (False, False, Grade.OK, "no systemd"),
    ],
)
def test_without_a_unit_it_is_told_who_starts_the_agent(
    tmp_path: Path, has_systemd: bool, in_service: bool, grade: Grade, says: str
) -> None:
    (finding,) = service_findings(has_systemd=has_systemd, in_service=in_service, folders=[tmp_path])
    assert (finding.grade, says in finding.fact) == (grade, True), finding
