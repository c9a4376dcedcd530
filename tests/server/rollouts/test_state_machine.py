"""The state machine: example walks. Random ones are in `test_state_machine_walks`."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fleet_protocol.messages import Phase
from fleet_server.errors import ConflictError, ForbiddenError, InvalidRequestError
from fleet_server.rollouts.approvals import approvals_missing
from fleet_server.rollouts.gates import GateResult, Verdict
from fleet_server.rollouts.policy import RolloutPolicy, parse_policy
from fleet_server.rollouts.state_machine import (
    MAX_DEVICES_PER_DECISION,
    Command,
    Decision,
    Expose,
    ExposedDevice,
    Hold,
    Observation,
    Progress,
    Restore,
    Retry,
    RolloutState,
    Step,
    apply_command,
    decide,
    tally_of,
)

POLICY = parse_policy(
    {
        "stages": [{"count": 2, "bake_s": 10}, {"percent": 100, "bake_s": 10}],
        "gates": [{"gate": "update_failures"}, {"gate": "outcome_accuracy"}],
        "max_bake_extensions": 1,
    }
)
S = 1_000_000_000


def gates_of(first: Verdict, second: Verdict) -> tuple[GateResult, ...]:
    return tuple(
        GateResult(gate=name, verdict=verdict, evidence={}, explanation=f"{name} says {verdict}")
        for name, verdict in (("update_failures", first), ("outcome_accuracy", second))
    )


PASSED = gates_of(Verdict.PASS, Verdict.PASS)
FAILED = gates_of(Verdict.PASS, Verdict.FAIL)
UNCLEAR = gates_of(Verdict.PASS, Verdict.INCONCLUSIVE)
HEALTHY = ExposedDevice(device="a", phase=Phase.HEALTHY)


def _active(step: Step, **changes: object) -> Progress:
    progress = Progress(state=RolloutState.ACTIVE, step=step, exposed=True, bake_started_ns=100 * S)
    return msgspec.structs.replace(progress, **changes)


def _seen(now_ns: int = 105 * S, exposed: tuple[ExposedDevice, ...] = (HEALTHY,), **seen: Any) -> Observation:
    """What a look sees of these devices."""
    control = seen.pop("control", 0)
    return Observation(now_ns=now_ns, tally=tally_of(exposed, control=control), **seen)


def _next(progress: Progress, policy: RolloutPolicy = POLICY, **seen: Any) -> Decision:
    return decide(policy, progress, _seen(**seen))


def test_a_healthy_rollout_walks_through_every_stage_to_its_end() -> None:
    progress, now, exposed = Progress(), 0, ()
    seen = []
    for _ in range(30):
        waiting = ("a",) if not exposed else ()
        decision = decide(POLICY, progress, _seen(now, exposed, waiting=waiting, gates=PASSED))
        exposed = (HEALTHY,) if isinstance(decision.action, Expose) else exposed
        progress, now = decision.progress, now + 11 * S
        place = (progress.state, progress.stage, progress.step)
        if not seen or seen[-1] != place:
            seen.append(place)
    active = RolloutState.ACTIVE
    assert seen == [
        (RolloutState.SCHEDULED, 0, None),
        *((active, stage, step) for stage in (0, 1) for step in (Step.DEPLOYING, Step.BAKING, Step.GATING)),
        (RolloutState.COMPLETED, 1, None),
    ]


def test_deploying_lasts_until_every_exposed_device_ended() -> None:
    moving = ExposedDevice(device="b", phase=Phase.DOWNLOADING)
    assert _next(_active(Step.DEPLOYING), exposed=(HEALTHY, moving)).progress.step is Step.DEPLOYING
    lost = ExposedDevice(device="b", phase=Phase.LOST)
    assert _next(_active(Step.DEPLOYING), exposed=(HEALTHY, lost)).progress.step is Step.BAKING


def test_without_any_device_a_stage_waits_and_says_so() -> None:
    decision = _next(_active(Step.DEPLOYING, exposed=False), exposed=(), gates=PASSED)
    assert decision.progress.step is Step.DEPLOYING
    assert "no device" in decision.progress.reason
    assert _next(_active(Step.GATING), exposed=(), gates=PASSED).progress.stage == 0


def test_a_pass_does_not_count_before_the_bake_is_over() -> None:
    assert _next(_active(Step.BAKING), gates=PASSED).progress.step is Step.BAKING
    assert _next(_active(Step.BAKING), gates=PASSED, now_ns=110 * S).progress.step is Step.GATING


@pytest.mark.parametrize("step", list(Step))
def test_a_fail_at_any_look_rolls_back_at_once(step: Step) -> None:
    decision = _next(_active(step), gates=FAILED, waiting=("b",))
    assert decision.progress.state is RolloutState.ROLLING_BACK
    assert "outcome_accuracy says fail" in decision.progress.reason
    assert decision.action is None


def test_a_fail_rolls_back_also_while_paused() -> None:
    assert _next(_active(Step.BAKING, state=RolloutState.PAUSED), gates=FAILED).progress.state is (
        RolloutState.ROLLING_BACK
    )
    assert _next(_active(Step.BAKING, state=RolloutState.PAUSED), gates=PASSED).progress.state is RolloutState.PAUSED


def test_inconclusive_extends_the_bake_then_pauses_with_the_reason() -> None:
    extended = _next(_active(Step.GATING), gates=UNCLEAR).progress
    assert (extended.step, extended.bake_extensions, extended.bake_started_ns) == (Step.BAKING, 1, 105 * S)
    paused = _next(msgspec.structs.replace(extended, step=Step.GATING), gates=UNCLEAR).progress
    assert paused.state is RolloutState.PAUSED
    assert "outcome_accuracy says inconclusive" in paused.reason


@pytest.mark.parametrize("gates", [(), PASSED[:1], PASSED[1:]])
def test_a_gate_that_gave_no_result_does_not_pass(gates: tuple[GateResult, ...]) -> None:
    progress = _next(_active(Step.GATING), gates=gates).progress
    assert (progress.stage, progress.step) == (0, Step.BAKING)


def test_devices_are_exposed_a_bounded_number_at_a_time() -> None:
    names = tuple(f"d{n}" for n in range(MAX_DEVICES_PER_DECISION + 1))
    assert _next(_active(Step.DEPLOYING), waiting=names).action == Expose(devices=names[:-1])


def test_a_rollback_ends_when_every_reachable_device_is_back() -> None:
    progress = Progress(state=RolloutState.ROLLING_BACK, step=Step.BAKING, exposed=True, reason="bad")
    assert _next(progress, to_restore=("a",)).action == Restore(devices=("a",))
    assert _next(progress).progress == progress  # not everybody is restored
    restored = ExposedDevice(device="a", phase=Phase.HEALTHY, restored=True)
    assert _next(progress, exposed=(restored,)).progress == progress
    back = ExposedDevice(device="b", phase=Phase.HEALTHY, restored=True, is_back=True)
    assert _next(progress, exposed=(restored, back)).progress == progress
    away = ExposedDevice(device="a", phase=Phase.LOST, restored=True, reachable=False)
    over = _next(progress, exposed=(away, back)).progress
    assert over.state is RolloutState.ROLLED_BACK
    assert over.reason.startswith("bad; 1 devices")


def test_an_approval_is_waited_for_when_the_policy_asks_for_one() -> None:
    policy = msgspec.structs.replace(POLICY, require_approval=True)
    waiting = apply_command(policy, Progress(), Command.SUBMIT, actor="ann")
    assert waiting.state is RolloutState.AWAITING_APPROVAL
    assert decide(policy, waiting, Observation(now_ns=0, waiting=("a",))) == Decision(progress=waiting)
    assert apply_command(policy, waiting, "approve", actor="bob").state is RolloutState.SCHEDULED


@pytest.mark.parametrize(
    ("state", "exposed", "command", "expected"),
    [
        (RolloutState.SCHEDULED, False, "pause", RolloutState.PAUSED),
        (RolloutState.SCHEDULED, False, "abort", RolloutState.CANCELED),
        (RolloutState.AWAITING_APPROVAL, False, "abort", RolloutState.CANCELED),
        (RolloutState.ACTIVE, False, "abort", RolloutState.CANCELED),
        (RolloutState.ACTIVE, True, "abort", RolloutState.ROLLING_BACK),
        (RolloutState.ACTIVE, True, "rollback", RolloutState.ROLLING_BACK),
        (RolloutState.PAUSED, True, "rollback", RolloutState.ROLLING_BACK),
        (RolloutState.ACTIVE, False, "rollback", None),
        (RolloutState.ACTIVE, True, "approve", None),
        (RolloutState.AWAITING_APPROVAL, True, "rollback", RolloutState.ROLLING_BACK),
        (RolloutState.SCHEDULED, True, "abort", RolloutState.ROLLING_BACK),
        (RolloutState.ROLLING_BACK, True, "abort", RolloutState.CANCELED),
        (RolloutState.ROLLING_BACK, True, "pause", None),
        (RolloutState.COMPLETED, True, "rollback", None),
        (RolloutState.ROLLED_BACK, True, "resume", None),
        (RolloutState.CANCELED, False, "approve", None),
    ],
)
def test_a_command_works_where_its_state_allows_it(
    state: RolloutState, exposed: bool, command: str, expected: RolloutState | None
) -> None:
    progress = Progress(state=state, exposed=exposed)
    if expected is None:
        with pytest.raises(ConflictError, match=state.value):
            apply_command(POLICY, progress, command, actor="ann")
    else:
        after = apply_command(POLICY, progress, command, actor="ann")
        assert after.state is expected
        assert "ann" in after.reason


def test_an_unknown_command_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match="approve"):
        apply_command(POLICY, Progress(), "explode", actor="ann")


def test_a_resumed_rollout_bakes_anew() -> None:
    paused = _active(Step.GATING, state=RolloutState.PAUSED, bake_extensions=1)
    resumed = apply_command(POLICY, paused, "resume", actor="ann")
    assert (resumed.state, resumed.step, resumed.bake_extensions) == (RolloutState.ACTIVE, Step.DEPLOYING, 0)
    assert (
        apply_command(POLICY, Progress(state=RolloutState.PAUSED), "resume", actor="ann").state
        is RolloutState.SCHEDULED
    )


def test_devices_are_exposed_no_faster_than_the_pace_allows() -> None:
    slow = _next(_active(Step.DEPLOYING), waiting=("b", "c", "d"), allowance=2)
    assert slow.action == Expose(devices=("b", "c"))
    held_up = _next(_active(Step.DEPLOYING), waiting=("b",), allowance=0)
    assert (held_up.action, held_up.progress.step) == (None, Step.DEPLOYING)


def test_a_stage_waits_for_devices_whose_maintenance_hours_are_closed() -> None:
    assert _next(_active(Step.DEPLOYING), blocked=1).progress.step is Step.DEPLOYING
    assert _next(_active(Step.DEPLOYING), blocked=0).progress.step is Step.BAKING


def test_control_is_held_before_anybody_is_exposed() -> None:
    decision = _next(_active(Step.DEPLOYING, exposed=False), exposed=(), to_hold=("c",), waiting=("a",))
    assert decision.action == Hold(devices=("c",))


def test_control_is_released_only_after_every_gate_passed_on_the_last_stage() -> None:
    last = _active(Step.GATING, stage=1)
    released = _next(last, gates=PASSED, control=1).progress
    assert (released.state, released.step) == (RolloutState.ACTIVE, Step.RELEASING)
    assert _next(last, gates=PASSED).progress.state is RolloutState.COMPLETED
    assert _next(released, waiting=("c",), control=1).action == Expose(devices=("c",))
    moving = ExposedDevice(device="c", phase=Phase.DOWNLOADING)
    assert _next(released, exposed=(HEALTHY, moving)).progress == released
    assert _next(released).progress.state is RolloutState.COMPLETED


def test_a_failed_device_is_given_the_candidate_again_when_it_is_due() -> None:
    assert _next(_active(Step.DEPLOYING), to_retry=("b",)).action == Retry(devices=("b",))


def test_a_rollout_starts_not_before_its_time() -> None:
    policy = msgspec.structs.replace(POLICY, start_at="1970-01-01T02:00:00+01:00")
    early = _next(Progress(state=RolloutState.SCHEDULED), policy, now_ns=3_599 * S).progress
    assert (early.state, early.reason) == (RolloutState.SCHEDULED, "starts at 1970-01-01T02:00:00+01:00")
    assert _next(early, policy, now_ns=3_600 * S).progress.state is RolloutState.ACTIVE


def test_a_rollout_that_is_not_over_by_its_deadline_pauses_until_a_person_gives_it_more_time() -> None:
    policy = msgspec.structs.replace(POLICY, deadline_s=60.0)
    late = _next(_active(Step.BAKING, clock_started_ns=44 * S), policy).progress
    assert late.state is RolloutState.PAUSED
    assert "deadline" in late.reason
    resumed = apply_command(policy, late, "resume", actor="ann", now_ns=105 * S)
    assert _next(resumed, policy).progress.state is RolloutState.ACTIVE


def test_on_fail_pause_pauses_and_stays_paused() -> None:
    policy = msgspec.structs.replace(POLICY, on_fail="pause")
    paused = _next(_active(Step.BAKING), policy, gates=FAILED).progress
    assert paused.state is RolloutState.PAUSED
    assert "outcome_accuracy says fail" in paused.reason
    assert _next(paused, policy, gates=FAILED) == Decision(progress=paused)


def test_on_inconclusive_rollback_rolls_back_after_the_last_extension() -> None:
    policy = msgspec.structs.replace(POLICY, on_inconclusive="rollback")
    last = _active(Step.GATING, bake_extensions=1)
    assert _next(last, policy, gates=UNCLEAR).progress.state is RolloutState.ROLLING_BACK


def _in_segment(verdict: Verdict, segment: str) -> GateResult:
    return GateResult(gate="outcome_accuracy", verdict=verdict, evidence={}, explanation="lost", segment=segment)


def test_a_segment_that_fails_is_taken_back_alone_and_the_others_go_on() -> None:
    both = frozenset({"arm", "x86"})
    fails = (*FAILED, _in_segment(Verdict.FAIL, "arm"), _in_segment(Verdict.PASS, "x86"))
    halted = _next(_active(Step.GATING), gates=fails, segments=both).progress
    assert (halted.state, halted.step, list(halted.halted)) == (RolloutState.ACTIVE, Step.GATING, ["arm"])
    assert "arm" in halted.reason
    assert _next(halted, to_restore=("b",), gates=PASSED, segments=both).action == Restore(devices=("b",))
    assert _next(halted, gates=PASSED, segments=both).progress.stage == 1
    all_bad = _next(halted, gates=(_in_segment(Verdict.FAIL, "x86"),), segments=both).progress
    assert all_bad.state is RolloutState.ROLLING_BACK
    assert "every segment failed" in all_bad.reason


def test_a_fail_that_no_segment_explains_takes_everything_back() -> None:
    fails = (*gates_of(Verdict.FAIL, Verdict.PASS), _in_segment(Verdict.FAIL, "arm"))
    decided = _next(_active(Step.GATING), gates=fails, segments=frozenset({"arm", "x86"})).progress
    assert decided.state is RolloutState.ROLLING_BACK


def test_a_rollout_completes_only_when_the_segments_taken_back_run_what_they_ran_before() -> None:
    last = _active(Step.GATING, stage=1, halted={"arm": "accuracy fell"})
    restored = ExposedDevice(device="b", phase=Phase.PENDING, restored=True)
    waits = _next(last, gates=PASSED, exposed=(HEALTHY, restored)).progress
    assert waits.step is Step.RELEASING
    assert _next(waits, exposed=(HEALTHY, restored)).progress == waits
    back = ExposedDevice(device="b", phase=Phase.HEALTHY, restored=True, is_back=True)
    done = _next(waits, exposed=(HEALTHY, back)).progress
    assert done.state is RolloutState.COMPLETED
    assert "arm (accuracy fell)" in done.reason


def test_two_approvals_need_two_people_and_neither_may_be_the_author() -> None:
    policy = msgspec.structs.replace(POLICY, approvals=2)
    waiting = apply_command(policy, Progress(), Command.SUBMIT, actor="ann")
    with pytest.raises(ForbiddenError, match="ann created"):
        apply_command(policy, waiting, "approve", actor="ann")
    once = apply_command(policy, waiting, "approve", actor="bob", now_ns=7)
    assert once.state is RolloutState.AWAITING_APPROVAL
    with pytest.raises(ConflictError, match="bob approved"):
        apply_command(policy, once, "approve", actor="bob")
    twice = apply_command(policy, once, "approve", actor="eve", now_ns=9)
    assert twice.state is RolloutState.SCHEDULED
    assert [(each.actor, each.stage, each.at_ns) for each in twice.approvals] == [("bob", 0, 7), ("eve", 0, 9)]


def test_a_person_is_one_whatever_they_signed_in_with() -> None:
    policy = msgspec.structs.replace(POLICY, approvals=2)
    waiting = apply_command(policy, Progress(), Command.SUBMIT, actor="key:ci", person="person:1")
    with pytest.raises(ForbiddenError, match="oidc:ann created"):
        apply_command(policy, waiting, "approve", actor="oidc:ann", person="person:1")
    once = apply_command(policy, waiting, "approve", actor="oidc:bob", person="person:2")
    with pytest.raises(ConflictError, match="key:bob approved"):
        apply_command(policy, once, "approve", actor="key:bob", person="person:2")
    assert approvals_missing(policy, once, 0) == 1


def test_a_stage_that_needs_an_approval_is_not_entered_without_one() -> None:
    guarded = [POLICY.stages[0], msgspec.structs.replace(POLICY.stages[1], needs_approval=True)]
    policy = msgspec.structs.replace(POLICY, stages=guarded)
    waiting = _next(_active(Step.GATING), policy, gates=PASSED).progress
    assert (waiting.state, waiting.stage) == (RolloutState.AWAITING_APPROVAL, 1)
    assert _next(waiting, policy, gates=PASSED).progress == waiting
    assert _next(waiting, policy, gates=FAILED).progress.state is RolloutState.ROLLING_BACK
    approved = apply_command(policy, waiting, "approve", actor="bob")
    entered = _next(approved, policy, gates=PASSED).progress
    assert (entered.state, entered.stage, entered.step) == (RolloutState.ACTIVE, 1, Step.DEPLOYING)
