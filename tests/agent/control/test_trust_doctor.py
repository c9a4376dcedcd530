"""What `edge-agent doctor` says of whom the device believes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.config import AgentConfig, DeviceSection, TrustSection
from edge_agent.control.state import ControlState, StateFile
from edge_agent.control.trust import KnownTime
from edge_agent.doctor.findings import Grade
from edge_agent.doctor.trust import trust_findings
from tests.agent.control.roots import DAY_NS, NOW_NS, desired, pin, signed_root


@pytest.mark.parametrize(
    ("envelope", "days", "says"),
    [
        (signed_root(1), 0, [(Grade.OK, "good for 365 days"), (Grade.OK, "generation 1 is fresh")]),
        (signed_root(1), 15, [(Grade.OK, "good for 350 days"), (Grade.WARN, "generation 1 expired on")]),
        (signed_root(1), 320, [(Grade.WARN, "expires in 45 days"), (Grade.WARN, "generation 1 expired")]),
        (signed_root(1), 400, [(Grade.WARN, "expired 35 days ago"), (Grade.WARN, "trust root 1 expired")]),
        (signed_root(1, fleet="g"), 0, [(Grade.FAIL, "fleet g, this is f")]),
    ],
)
def test_a_stale_word_and_an_ending_root_are_told(
    tmp_path: Path, envelope: bytes, days: int, says: list[tuple[Grade, str]]
) -> None:
    pinned = pin(tmp_path, envelope)
    StateFile(tmp_path / "control").save(ControlState(desired=desired()))
    config = AgentConfig(data_dir=tmp_path, device=DeviceSection(id="d", fleet="f"), trust=TrustSection(root=pinned))
    known = KnownTime(clock_ns=lambda: NOW_NS + days * DAY_NS, uptime_ns=lambda: 0)

    found = list(trust_findings(config, known_time=known))
    assert [finding.grade for finding in found] == [grade for grade, _ in says]
    for finding, (_, text) in zip(found, says, strict=True):
        assert text in finding.fact
    assert not (tmp_path / "roots").exists(), "the doctor changed something"
