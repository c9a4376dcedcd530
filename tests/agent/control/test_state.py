"""The state file: the last saved state, whole, whatever happened to the power or the disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.control.slots import quarantine_key, serving
from edge_agent.control.state import ControlState, CrashGuard, Installed, ModelState, StateFile
from fleet_protocol.messages import Assignment, Desired, Phase
from tests.real_servers.processes import Process

STATE = ControlState(
    desired=Desired(
        fleet="f", device="d", generation=7, issued_at_ns=1,
        assignments=[Assignment(model="m", version="1.0.0", bundle="a" * 64)],
    ),
    models={
        "m": ModelState(
            phase=Phase.PROBATION,
            active=Installed(bundle="a" * 64, version="1.0.0", variant="fp32"),
            last_good=Installed(bundle="b" * 64, version="0.9.0", variant="int8"),
            target=Assignment(model="m", version="1.0.0", bundle="a" * 64),
            guard=CrashGuard(machine_boot_id="x", machine_restarts=1),
        )
    },
    quarantine={"c" * 64: "golden vectors differ"},
)  # fmt: skip

# Saves states of growing generations until it is killed, and says which is durable.
_SAVING = """
import sys
from pathlib import Path
from msgspec.structs import replace
from edge_agent.control.slots import quarantine_key, serving
from edge_agent.control.state import StateFile
from tests.agent.control.test_state import STATE
file = StateFile(Path(sys.argv[1]))
generation = file.load().generation
while True:
    generation += 1
    file.save(replace(STATE, desired=replace(STATE.desired, generation=generation)))
    print(generation, flush=True)
"""


def test_the_saved_state_is_loaded_again(tmp_path: Path) -> None:
    StateFile(tmp_path / "control").save(STATE)

    assert StateFile(tmp_path / "control").load() == STATE


def test_a_first_start_has_an_empty_state(tmp_path: Path) -> None:
    assert StateFile(tmp_path / "control").load() == ControlState()


def test_a_killed_process_leaves_the_last_state_or_the_one_it_was_saving(tmp_path: Path) -> None:
    said = 0
    for attempt in range(3):
        with Process(
            [sys.executable, "-c", _SAVING, tmp_path / "control"], folder=tmp_path, name=f"child{attempt}"
        ) as child:
            child.wait_ready(lambda child=child: child.output().count("\n") > 20, 30, "twenty states were saved")  # type: ignore[misc]
            child.kill()
            said = int(child.stdout_path.read_text().splitlines()[-2])

        assert StateFile(tmp_path / "control").load().generation in range(said, said + 4)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\x00" * 500, b'{"models":3}', b"\xff\xfe", b"[" * 100_000, b'{"models":{"m":{"phase":"?"}}}'],
)
def test_a_damaged_state_is_kept_aside_and_the_device_starts_anew(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = StateFile(tmp_path)
    (tmp_path / "state.json").write_bytes(content)

    assert file.load() == ControlState()

    [aside] = tmp_path.glob("state.json.unreadable-*")
    assert aside.read_bytes() == content
    assert "unreadable" in caplog.text
    file.save(STATE)
    assert file.load() == STATE


def test_the_file_of_an_agent_that_knew_one_arm_is_read_as_what_it_meant(tmp_path: Path) -> None:
    def model(name: str, arm: str) -> dict[str, Any]:
        target = {"model": name, "version": "1.0.0", "bundle": "a" * 64, "arm": arm, "weight": 1.0, "shadow": False}
        active = {"bundle": "a" * 64, "version": "1.0.0", "variant": "fp32"}
        return {"phase": "HEALTHY", "active": active, "last_good": None, "target": target, "guard": None, "error": ""}

    models = {"m": model("m", "main"), "n": model("n", "canary")}
    state_of_then = {"desired": None, "models": models, "quarantine": {"c" * 64: "no"}}
    (tmp_path / "state.json").write_bytes(msgspec.json.encode(state_of_then))

    state = StateFile(tmp_path).load()

    assert set(state.models) == {"m", "n/canary"}
    assert {service.assignment.arm for service in serving(state).values()} == {"main", "canary"}
    assert quarantine_key("m", "c" * 64) in state.quarantine


def test_a_field_of_a_later_release_does_not_cost_the_state(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.save(STATE)
    path = tmp_path / "state.json"
    path.write_bytes(path.read_bytes().replace(b'{"desired"', b'{"later":[1],"desired"', 1))

    assert file.load() == STATE
