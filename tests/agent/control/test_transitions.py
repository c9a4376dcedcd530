"""Single courses of an update that a newcomer would ask about."""

from __future__ import annotations

from msgspec.structs import replace

from edge_agent.control import transitions
from edge_agent.control.state import ControlState, Installed
from fleet_protocol.messages import Assignment, Phase
from tests.agent.control.updates import (
    BUNDLES,
    bundle_of,
    desired,
)

A, B, C = BUNDLES["eyes"][:3]


def installed(state: ControlState, bundle: str) -> ControlState:
    """`state` after `bundle` was assigned, activated and proven."""
    state = transitions.accepted(state, desired(state.generation + 1, {"eyes": bundle}))
    state = transitions.warming(state, "eyes", "boot")
    state = transitions.activated(state, "eyes", Installed(bundle=bundle, version="1.0.0", variant="fp32"))
    return transitions.proven(state, "eyes")


def test_a_rollback_to_the_last_good_bundle_serves_without_a_second_probation() -> None:
    state = installed(installed(ControlState(), A), B)
    state = transitions.accepted(state, desired(9, {"eyes": A}))
    state = transitions.warming(state, "eyes", "boot")

    assert state.models["eyes"].guard is None
    state = transitions.activated(state, "eyes", Installed(bundle=A, version="1.0.0", variant="fp32"))
    assert state.models["eyes"].phase is Phase.HEALTHY


def test_a_last_good_bundle_that_fails_is_no_way_back_any_more() -> None:
    state = installed(installed(ControlState(), A), B)
    state = transitions.warming(transitions.accepted(state, desired(9, {"eyes": A})), "eyes", "boot")
    state = transitions.failed(state, "eyes", "golden vectors differ")

    state = transitions.active_unusable(state, "eyes", "damaged")

    assert state.models["eyes"].active is None


def test_a_model_that_was_unassigned_comes_back_to_what_it_ran_when_its_next_version_fails() -> None:
    state = installed(ControlState(), A)
    state = transitions.accepted(state, desired(5, {"eyes": None}))
    assert state.models["eyes"].active is None

    state = transitions.warming(transitions.accepted(state, desired(6, {"eyes": B})), "eyes", "boot")
    state = transitions.activated(state, "eyes", Installed(bundle=B, version="1.0.0", variant="fp32"))
    state = transitions.reverted(state, "eyes", "worse")

    assert bundle_of(state.models["eyes"].active) == A


def test_a_damaged_active_bundle_does_not_end_the_update_that_may_cure_it() -> None:
    state = transitions.accepted(installed(ControlState(), A), desired(5, {"eyes": B}))

    after = transitions.active_unusable(state, "eyes", "damaged")

    assert after.models["eyes"].phase is Phase.ACKED
    assert after.models["eyes"].active is None


def test_a_quarantined_bundle_is_rejected_until_the_server_says_retry() -> None:
    state = transitions.accepted(ControlState(), desired(1, {"eyes": A}))
    state = transitions.failed(transitions.advanced(state, "eyes", Phase.DOWNLOADING), "eyes", "no luck")

    state = transitions.accepted(state, desired(2, {"eyes": A}))
    assert state.models["eyes"].phase is Phase.REJECTED
    assert "no luck" in state.models["eyes"].error

    state = transitions.accepted(state, desired(3, {"eyes": A}, retry=[A]))
    assert state.models["eyes"].phase is Phase.ACKED


def test_a_newer_desired_takes_an_unproven_bundle_out_of_work_without_quarantine() -> None:
    state = transitions.accepted(installed(ControlState(), A), desired(5, {"eyes": B}))
    state = transitions.activated(
        transitions.warming(state, "eyes", "boot"), "eyes", Installed(bundle=B, version="1.0.0", variant="fp32")
    )

    state = transitions.accepted(state, desired(6, {"eyes": C}))

    eyes = state.models["eyes"]
    assert (bundle_of(eyes.active), eyes.phase, eyes.guard, state.quarantine) == (A, Phase.ACKED, None, {})


def test_the_same_assignment_in_a_newer_desired_does_not_begin_again() -> None:
    state = transitions.accepted(ControlState(), desired(1, {"eyes": A}))
    state = transitions.warming(state, "eyes", "boot")
    other_arm = replace(desired(2, {"eyes": A}), assignments=[
        Assignment(model="eyes", version="1.0.0", bundle=A, arm="canary")
    ])  # fmt: skip

    after = transitions.accepted(state, other_arm)

    assert after.models["eyes"].phase is Phase.WARMING
    assert after.models["eyes"].target == other_arm.assignments[0]


def test_a_damaged_active_bundle_during_a_rollback_ends_the_rollback_on_the_last_good_one() -> None:
    state = transitions.accepted(installed(installed(ControlState(), A), B), desired(9, {"eyes": A}))

    state = transitions.active_unusable(state, "eyes", "damaged")

    eyes = state.models["eyes"]
    assert (eyes.phase, bundle_of(eyes.active), eyes.guard) == (Phase.HEALTHY, A, None)
