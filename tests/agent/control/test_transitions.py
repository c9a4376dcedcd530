"""Single courses of an update that a newcomer would ask about."""

from __future__ import annotations

from edge_agent.control import slots, transitions
from edge_agent.control.state import ControlState, Installed
from fleet_protocol.messages import Phase
from tests.agent.control.updates import (
    BUNDLES,
    Choice,
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


def test_only_the_variant_that_runs_is_kept_when_another_one_of_the_last_good_bundle_is_chosen() -> None:
    state = installed(installed(ControlState(), A), B)
    state = transitions.warming(transitions.accepted(state, desired(9, {"eyes": A})), "eyes", "boot")
    assert transitions.kept_variants(state) == {A: None, B: frozenset({"fp32"})}

    state = transitions.activated(state, "eyes", Installed(bundle=A, version="1.0.0", variant="int8"))

    assert transitions.kept_variants(state) == {A: frozenset({"int8"})}


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


def exchanged(state: ControlState, choice: Choice) -> ControlState:
    """`state` once `choice` was accepted."""
    return transitions.accepted(state, desired(state.generation + 1, choice))


def answering(state: ControlState) -> dict[str, tuple[str, float]]:
    """(bundle, weight) of every slot that answers."""
    return {
        slot: (service.installed.bundle, service.assignment.weight)
        for slot, service in slots.serving(state).items()
        if not service.assignment.shadow
    }


def activated(state: ControlState, slot: str, bundle: str) -> ControlState:
    state = transitions.warming(state, slot, "boot")
    return transitions.activated(state, slot, Installed(bundle=bundle, version="1.0.0", variant="fp32"))


def test_the_old_arm_stands_in_until_one_of_the_new_arms_answers_and_comes_back_when_that_is_reverted() -> None:
    state = exchanged(installed(ControlState(), A), {"eyes/a": B, "eyes/b": C})
    assert answering(state) == {"eyes": (A, 1.0)}

    state = activated(state, "eyes/a", B)
    assert answering(state) == {"eyes/a": (B, 1.0)}

    state = transitions.reverted(state, "eyes/a", "worse")
    assert answering(state) == {"eyes": (A, 1.0)}

    state = transitions.proven(activated(state, "eyes/b", C), "eyes/b")
    assert answering(state) == {"eyes/b": (C, 1.0)}
    eyes = state.models["eyes"]
    assert (eyes.stands_in, eyes.active, bundle_of(eyes.last_good)) == (None, None, A)


def test_a_reverted_arm_goes_alone_and_its_share_to_the_others() -> None:
    state = installed(ControlState(), A)
    state = transitions.accepted(state, desired(5, {"eyes": A, "eyes/b": B}, weights={"eyes": 0.8, "eyes/b": 0.2}))
    assert answering(state) == {"eyes": (A, 0.8)}
    state = activated(state, "eyes/b", B)
    assert answering(state) == {"eyes": (A, 0.8), "eyes/b": (B, 0.2)}

    state = transitions.reverted(state, "eyes/b", "worse")

    assert answering(state) == {"eyes": (A, 0.8)}
    assert state.models["eyes"].phase is Phase.HEALTHY


def test_an_arm_that_is_assigned_no_more_is_forgotten_and_its_bundle_may_go() -> None:
    state = exchanged(installed(ControlState(), A), {"eyes": A, "eyes/b": B})
    state = transitions.proven(activated(state, "eyes/b", B), "eyes/b")

    state = exchanged(state, {"eyes": A})

    assert set(state.models) == {"eyes"}
    assert transitions.kept_bundles(state) == {A}


def test_what_proved_itself_as_a_shadow_proves_itself_again_before_it_is_trusted_to_answer() -> None:
    state = exchanged(installed(ControlState(), A), {"eyes": A, "eyes/s": f"*{B}"})
    state = transitions.proven(activated(state, "eyes/s", B), "eyes/s")
    assert answering(state) == {"eyes": (A, 1.0)}
    assert set(slots.serving(state)) == {"eyes", "eyes/s"}

    state = exchanged(state, {"eyes": A, "eyes/s": B})
    assert state.models["eyes/s"].phase is Phase.ACKED
    assert set(slots.serving(state)) == {"eyes"}

    assert activated(state, "eyes/s", B).models["eyes/s"].phase is Phase.PROBATION


def test_a_bundle_that_failed_as_one_arm_is_rejected_as_another_unless_it_proved_itself_there() -> None:
    state = exchanged(installed(ControlState(), A), {"eyes": A, "eyes/b": A, "eyes/c": B})
    state = transitions.failed(transitions.warming(state, "eyes/b", "boot"), "eyes/b", "no luck")
    state = transitions.failed(transitions.warming(state, "eyes/c", "boot"), "eyes/c", "none at all")

    state = exchanged(state, {"eyes": B, "eyes/b": C, "eyes/d": A})
    assert (state.models["eyes"].phase, state.models["eyes/d"].phase) == (Phase.REJECTED, Phase.REJECTED)
    assert "none at all" in state.models["eyes"].error
    assert answering(state) == {"eyes": (A, 1.0)}

    state = exchanged(state, {"eyes": A})
    assert (state.models["eyes"].phase, state.models["eyes"].error) == (Phase.HEALTHY, "")

    state = transitions.accepted(state, desired(99, {"eyes": A, "eyes/d": B}, retry=[B]))
    assert state.models["eyes/d"].phase is Phase.ACKED


def test_a_process_that_died_with_an_unproven_arm_takes_that_arm_away_and_no_other() -> None:
    state = exchanged(installed(ControlState(), A), {"eyes": A, "eyes/b": B, "eyes/s": f"*{C}"})
    state = transitions.proven(activated(state, "eyes/s", C), "eyes/s")
    state = transitions.warming(state, "eyes/b", "boot")

    state = transitions.recovered(state, "boot")

    phases = {slot: model.phase for slot, model in state.models.items()}
    assert phases == {"eyes": Phase.HEALTHY, "eyes/b": Phase.REVERTED, "eyes/s": Phase.HEALTHY}
    assert set(slots.serving(state)) == {"eyes", "eyes/s"}


def test_the_same_assignment_in_a_newer_desired_does_not_begin_again() -> None:
    state = transitions.accepted(ControlState(), desired(1, {"eyes": A}))
    state = transitions.warming(state, "eyes", "boot")
    other_weight = desired(2, {"eyes": A}, weights={"eyes": 0.3})

    after = transitions.accepted(state, other_weight)

    assert after.models["eyes"].phase is Phase.WARMING
    assert after.models["eyes"].target == other_weight.assignments[0]


def test_a_damaged_active_bundle_during_a_rollback_ends_the_rollback_on_the_last_good_one() -> None:
    state = transitions.accepted(installed(installed(ControlState(), A), B), desired(9, {"eyes": A}))

    state = transitions.active_unusable(state, "eyes", "damaged")

    eyes = state.models["eyes"]
    assert (eyes.phase, bundle_of(eyes.active), eyes.guard) == (Phase.HEALTHY, A, None)
