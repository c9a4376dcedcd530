"""Random walks that look for a way around the state machine's invariants."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fleet_protocol.messages import Phase
from fleet_server.errors import ConflictError
from fleet_server.rollouts.gates import GateResult, Verdict
from fleet_server.rollouts.state_machine import (
    Command,
    Decision,
    Expose,
    ExposedDevice,
    Observation,
    Progress,
    Restore,
    RolloutState,
    Step,
    apply_command,
    decide,
    tally_of,
)
from tests.server.rollouts.test_state_machine import POLICY, S, gates_of


class RandomWalk(RuleBasedStateMachine):
    """Devices, gates, time and people do anything; the record of what happened is checked after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = apply_command(POLICY, Progress(), Command.SUBMIT, actor="ann")
        self.devices: dict[str, ExposedDevice] = {}
        self.waiting: list[str] = ["a", "b", "c"]
        self.gates: tuple[GateResult, ...] = ()
        self.now_ns = 0
        self.baked_ns = 0

    @rule(seconds=st.integers(0, 12))
    def time_passes(self, seconds: int) -> None:
        self.now_ns += seconds * S

    @rule(verdicts=st.tuples(st.sampled_from(list(Verdict)), st.sampled_from(list(Verdict))), count=st.integers(0, 2))
    def gates_change(self, verdicts: tuple[Verdict, Verdict], count: int) -> None:
        self.gates = gates_of(*verdicts)[:count]

    @rule(data=st.data(), phase=st.sampled_from(list(Phase)), reachable=st.booleans(), is_back=st.booleans())
    def a_device_reports(self, data: st.DataObject, phase: Phase, reachable: bool, is_back: bool) -> None:
        if self.devices:
            name = data.draw(st.sampled_from(sorted(self.devices)))
            restored = self.devices[name].restored
            self.devices[name] = ExposedDevice(
                device=name, phase=phase, restored=restored, reachable=reachable, is_back=is_back and restored
            )

    @rule(name=st.sampled_from(["x", "y", "z"]))
    def a_device_joins(self, name: str) -> None:
        if name not in self.devices and name not in self.waiting:
            self.waiting.append(name)

    @rule(command=st.sampled_from(list(Command)))
    def somebody_commands(self, command: Command) -> None:
        before = self.progress
        try:
            self.progress = apply_command(POLICY, before, command, actor="ann")
        except ConflictError:
            return
        assert not before.state.is_terminal
        assert self.progress.state not in (RolloutState.COMPLETED, RolloutState.ROLLED_BACK)

    @rule()
    def the_driver_looks(self) -> None:
        before = self.progress
        exposed = tuple(self.devices.values())
        rolling_back = before.state is RolloutState.ROLLING_BACK
        observation = Observation(
            now_ns=self.now_ns,
            tally=tally_of(exposed),
            waiting=tuple(self.waiting),
            to_restore=tuple(device.device for device in exposed if rolling_back and not device.restored),
            gates=self.gates,
        )
        decision = decide(POLICY, before, observation)
        assert decision == decide(POLICY, before, observation), "deciding must not depend on anything else"
        self._check(before, decision, observation)
        self.progress = decision.progress
        match decision.action:
            case Expose(devices=names):
                for name in names:
                    self.waiting.remove(name)
                    self.devices[name] = ExposedDevice(device=name, phase=Phase.PENDING)
            case Restore(devices=names):
                for name in names:
                    self.devices[name] = ExposedDevice(device=name, phase=Phase.PENDING, restored=True)

    def _check(self, before: Progress, decision: Decision, seen: Observation) -> None:
        after = decision.progress
        verdicts = {result.verdict for result in seen.gates}
        if before.state.is_terminal:
            assert decision == Decision(progress=before)
        if decision.action is not None:
            assert before.state is after.state
            kind = Expose if before.state is RolloutState.ACTIVE else Restore
            assert before.state in (RolloutState.ACTIVE, RolloutState.ROLLING_BACK)
            assert isinstance(decision.action, kind)
        if isinstance(decision.action, Expose):
            assert Verdict.FAIL not in verdicts
        moved_on = after.state is RolloutState.COMPLETED or (
            before.state is RolloutState.ACTIVE and after.stage > before.stage
        )
        if moved_on and not before.state.is_terminal:
            assert before.step is Step.GATING
            assert len(seen.gates) == len(POLICY.gates)
            assert verdicts == {Verdict.PASS}
            assert seen.tally.exposed
            assert seen.now_ns - before.bake_started_ns >= 10 * S
        if Verdict.FAIL in verdicts and before.state in (RolloutState.ACTIVE, RolloutState.PAUSED):
            assert after.state is RolloutState.ROLLING_BACK
        if after.state is RolloutState.ROLLED_BACK and before.state is not RolloutState.ROLLED_BACK:
            assert all(device.restored for device in self.devices.values())
            assert all(device.is_back for device in self.devices.values() if device.reachable)
        if after.state is RolloutState.PAUSED and before.state is RolloutState.ACTIVE:
            assert before.bake_extensions == POLICY.max_bake_extensions
            assert after.reason

    @invariant()
    def a_canceled_rollout_exposed_nobody_or_a_person_gave_its_rollback_up(self) -> None:
        if self.progress.state is RolloutState.CANCELED:
            assert not self.devices or "given up by" in self.progress.reason

    @invariant()
    def extensions_stay_within_the_policy(self) -> None:
        assert self.progress.bake_extensions <= POLICY.max_bake_extensions
        assert self.progress.stage < len(POLICY.stages)


TestRandomWalk = RandomWalk.TestCase
TestRandomWalk.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
