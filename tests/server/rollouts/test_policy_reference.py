"""docs/rollouts.md says what the code does: every field with its default, the examples as they are, the figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleet_server.rollouts.gate_policies import GATES, gate_name
from fleet_server.rollouts.planning import plan_rollout
from fleet_server.rollouts.policy import (
    ControlPolicy,
    MaintenancePolicy,
    ProbationPolicy,
    RatePolicy,
    RetryPolicy,
    RolloutPolicy,
    SegmentPolicy,
    Selector,
    Stage,
    parse_policy,
)
from fleet_server.rollouts.policy_file import read_policy_file, read_yaml_object
from fleet_server.rollouts.power_of_gates import Traffic
from fleet_server.rollouts.selection import DeviceFacts

ROOT = Path(__file__).parents[3]
_PAGE = (ROOT / "docs" / "rollouts.md").read_text(encoding="utf-8")
_EXAMPLES = sorted((ROOT / "examples" / "policies").glob("*.yaml"))
_ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", _PAGE, re.MULTILINE))


def test_every_field_of_a_policy_has_its_row() -> None:
    assert set(RolloutPolicy.__struct_fields__) | {gate_name(gate) for gate in GATES} == set(_ROWS)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("stages", Stage),
        ("control", ControlPolicy),
        ("rate", RatePolicy),
        ("maintenance", MaintenancePolicy),
        ("retry", RetryPolicy),
        ("segments", SegmentPolicy),
        ("probation", ProbationPolicy),
    ],
)
def test_every_field_of_a_part_is_in_its_row(row: str, kind: Any) -> None:
    assert [name for name in kind.__struct_fields__ if name not in _ROWS[row]] == []


def test_every_field_of_a_selector_is_explained() -> None:
    paragraph = _PAGE[_PAGE.index("**A selector**") : _PAGE.index("**Order.**")]
    assert [name for name in Selector.__struct_fields__ if f"`{name}`" not in paragraph] == []


def test_defaults_are_those_of_the_code() -> None:
    policy = msgspec.to_builtins(RolloutPolicy())
    for name in ("jitter_s", "deploy_deadline_s", "deadline_s", "max_bake_extensions", "approvals"):
        assert float(_ROWS[name].split(" | ")[0]) == policy[name], name
    for name in ("on_fail", "on_inconclusive"):
        assert _ROWS[name].startswith(f"`{policy[name]}`"), name
    for name, fields in (("control", ["percent"]), ("retry", ["attempts", "after_s"])):
        told = read_yaml_object(_ROWS[name].split("`")[1])
        assert told == {field: policy[name][field] for field in fields}


@pytest.mark.parametrize("gate", GATES, ids=gate_name)
def test_each_gate_is_told_with_its_margin_and_its_default(gate: Any) -> None:
    values = {name: getattr(gate(), name) for name in gate.__struct_fields__ if name != "alpha"}
    for name, value in values.items():
        pattern = rf"`{name}` \(?{value:g}\)?"
        assert re.search(pattern, _ROWS[gate_name(gate)]), pattern


def test_the_examples_of_the_page_are_the_files_and_hold() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", _PAGE, re.DOTALL)
    files = {path.read_text(encoding="utf-8") for path in _EXAMPLES}
    assert len(blocks) > 1
    assert set(blocks) <= files
    for path in _EXAMPLES:
        assert f"examples/policies/{path.name}" in _PAGE
        assert parse_policy(read_policy_file(path)).stages


def test_the_figures_of_the_large_example_are_what_a_dry_run_says() -> None:
    policy = parse_policy(read_policy_file(ROOT / "examples" / "policies" / "ten-thousand-devices.yaml"))
    fleet = [
        DeviceFacts(device=f"d{n}", hardware=("arm", "x86")[n % 2], agent_version="0.1.0", has_reported=True)
        for n in range(10_000)
    ]
    traffic = Traffic(devices=20, inferences_per_s=0.1, error_rate=0.002, error_spread=0.001, outcomes_per_s=0.002)
    sizes = {facts.device: 1 for facts in fleet}
    plan = plan_rollout(
        policy, fleet, model="m", version="1.0.0", download_bytes=sizes, traffic=traffic, now_ns=0, salt="s"
    )
    seen = {(gate.gate, gate.stage): gate.smallest_harm for gate in plan.gates}
    told = [("error_rate", 0, 0.013), ("latency", 0, 0.22), ("error_rate", 1, 0.011), ("latency", 1, 0.18),
            ("losses", 0, 0.22)]  # fmt: skip
    for gate, stage, harm in told:
        assert seen[gate, stage] == pytest.approx(harm, rel=0.08), (gate, stage)
    assert (seen["losses", 2] or 1) < 0.08
    exposing_s = sum(stage.deploy_s for stage in plan.stages)
    assert 0.8 < exposing_s / 3600 < 1.2
    assert 1.5 < plan.least_s / 86_400 < 2


def test_commands_of_the_page_are_commands() -> None:
    from fleet_server.cli.rollouts import app

    named = {command.name for command in app.registered_commands}
    told = re.findall(r"fleet rollout (\w+)", _PAGE)
    assert set(told) | {"pause", "resume", "abort", "rollback"} <= named
