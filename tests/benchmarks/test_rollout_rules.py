"""The rules that stand beside ours in U3, on small simulated rollouts, and the policy that U1 to U3 are about."""

from __future__ import annotations

import pytest

from benchmarks.rollouts.rival_rules import hawkbit, hawkbit_with_reverts, three_looks_by_device, three_looks_pooled
from benchmarks.rollouts.scenarios import DEVICES, EXPOSED_TARGETS, HARMS, policy
from benchmarks.u3_rival_rules import _of_groups
from fleet_server.rollouts.cohorts import stage_size
from fleet_server.rollouts.simulation import End, RunResult, Scenario, parse_breaks, simulate_rollout
from fleet_server.rollouts.simulation.summary import MakeJudge

_SMALL = 400


def _run(rule: MakeJudge, harm: str, *, groups: bool, seed: int = 3) -> RunResult:
    of = _of_groups(policy()) if groups else policy()
    return simulate_rollout(Scenario(policy=of, devices=_SMALL, breaks=parse_breaks([harm])), seed, judge=rule())


def test_hawkbits_rule_completes_a_model_that_crashes_after_its_installation() -> None:
    assert _run(hawkbit, "crash:30%", groups=True).end is End.COMPLETED
    assert _run(hawkbit_with_reverts, "crash:30%", groups=True).end is End.PAUSED_BY_FAIL


@pytest.mark.parametrize("rule", [three_looks_pooled, three_looks_by_device])
def test_the_t_test_sees_a_gross_harm_at_a_look(rule: MakeJudge) -> None:
    result = _run(rule, "accuracy:-60%", groups=False)
    assert result.end is End.ROLLED_BACK
    assert "outcome_accuracy" in result.gates


def test_the_first_stage_of_the_measured_policy_is_within_the_exposed_targets() -> None:
    first = stage_size(DEVICES, policy().stages[0])
    assert set(HARMS.values()) == set(EXPOSED_TARGETS)
    assert first <= min(EXPOSED_TARGETS.values()) * DEVICES
