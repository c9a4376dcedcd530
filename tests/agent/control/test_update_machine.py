"""The update machine, driven in every order that the updater and the world can produce."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_agent.control import slots, transitions
from edge_agent.control.state import ControlState, Installed, ModelState
from fleet_protocol.messages import Phase
from tests.agent.control.updates import (
    CHOICES,
    IN_WORK,
    MAX_RESTARTS,
    RETRIES,
    SLOTS,
    UNPROVEN,
    Choice,
    bundle_of,
    bundles_of,
    choices_of,
    desired,
)


class Updates(RuleBasedStateMachine):
    """One device. `loadable` says which bundles this device's disk still holds whole."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ControlState()
        self.machine_boot = 0
        self.proven: dict[str, set[str]] = {name: set() for name in SLOTS}
        self.covered: set[str] = set()

    @initialize(choice=CHOICES)
    def first_desired(self, choice: Choice) -> None:
        self.state = transitions.accepted(self.state, desired(1, choice))

    def in_phase(self, *phases: Phase) -> list[str]:
        return [name for name, model in sorted(self.state.models.items()) if model.phase in phases]

    def pick(self, data: st.DataObject, *phases: Phase) -> str:
        return data.draw(st.sampled_from(self.in_phase(*phases)))

    @rule(choice=CHOICES, ahead=st.integers(1, 3), retry=RETRIES)
    def a_newer_desired(self, choice: Choice, ahead: int, retry: list[str]) -> None:
        self.accept(choice, ahead, retry)

    @rule(data=st.data())
    def another_version_of_one_model(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(SLOTS))
        self.accept(self.assigned() | {name: data.draw(choices_of(name))}, 1, [])

    @rule(data=st.data())
    def all_arms_are_exchanged_for_another(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(("eyes", "eyes/b")))
        others: Choice = {"eyes": None, "eyes/b": None, "eyes/s": None}
        self.accept(self.assigned() | others | {name: data.draw(st.sampled_from(bundles_of(name)))}, 1, [])

    @precondition(lambda self: self.with_another_last_good())
    @rule(data=st.data())
    def a_rollback_to_the_last_good_bundle(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.with_another_last_good()))
        self.accept(self.assigned() | {name: bundle_of(self.state.models[name].last_good)}, 1, [])

    def with_another_last_good(self) -> list[str]:
        models = sorted(self.state.models.items())
        return [name for name, model in models if model.last_good and model.last_good != model.active]

    def assigned(self) -> Choice:
        return {
            name: ("*" * model.target.shadow + model.target.bundle) if model.target else None
            for name, model in self.state.models.items()
        }

    def accept(self, choice: Choice, ahead: int, retry: list[str]) -> None:
        before = self.state
        after = transitions.accepted(before, desired(before.generation + ahead, choice, retry))

        assert after.generation == before.generation + ahead
        for name, model in after.models.items():
            if model.phase in UNPROVEN:  # only what was already in the middle of a swap goes on
                assert before.models[name].phase is model.phase
            if model.phase is Phase.REJECTED:
                assert model.target is not None and model.target.bundle in failed_bundles(after) and model.error
            if model.target is None:
                assert not transitions.is_in_work(model)
                assert (model.active is not None) <= (model.stands_in is not None)
            if model.phase is Phase.HEALTHY:
                assert model.target is not None and bundle_of(model.active) == model.target.bundle
        for name in SLOTS:
            target = after.models[name].target if name in after.models else None
            assert ("*" * target.shadow + target.bundle if target else None) == choice.get(name)
            if name not in after.models or {role_of(before, name), role_of(after, name)} == {"answers", "shadows"}:
                self.proven[name] = set()
            if role_of(before, name) == "answers" and role_of(after, name) == "shadows":
                self.covered.discard(slots.parts_of(name)[0])
        answered = {slots.parts_of(name)[0] for name in SLOTS if role_of(after, name) == "answers"}
        self.covered &= answered
        assert not set(retry) & set(after.quarantine)
        self.state = after

    @rule(choice=CHOICES, behind=st.integers(0, 5))
    def an_older_or_repeated_desired(self, choice: Choice, behind: int) -> None:
        old = desired(max(1, self.state.generation - behind), choice)

        assert transitions.accepted(self.state, old) is self.state

    @precondition(lambda self: self.in_phase(Phase.ACKED, Phase.DOWNLOADING))
    @rule(data=st.data())
    def one_step_on(self, data: st.DataObject) -> None:
        self.step_on(self.pick(data, Phase.ACKED, Phase.DOWNLOADING))

    def step_on(self, name: str) -> None:
        acked = self.state.models[name].phase is Phase.ACKED
        self.move(transitions.advanced(self.state, name, Phase.DOWNLOADING if acked else Phase.STAGED), name)

    @precondition(lambda self: self.in_phase(*IN_WORK))
    @rule(data=st.data(), steps=st.integers(2, 6))
    def the_updater_carries_it_on(self, data: st.DataObject, steps: int) -> None:
        """Several good steps at once: the way to a proven bundle is long, and chance alone rarely goes it."""
        name = self.pick(data, *IN_WORK)
        for _ in range(steps):
            phase = self.state.models[name].phase
            if phase in (Phase.ACKED, Phase.DOWNLOADING):
                self.step_on(name)
            elif phase is Phase.STAGED:
                self.warm(name)
            elif phase is Phase.WARMING:
                self.activate(name)
            elif phase is Phase.PROBATION:
                self.prove(name)

    @precondition(lambda self: self.in_phase(*UNPROVEN))
    @rule(data=st.data(), times=st.integers(1, MAX_RESTARTS + 1))
    def the_power_fails_again_and_again_with_an_unproven_bundle(self, data: st.DataObject, times: int) -> None:
        name = self.pick(data, *UNPROVEN)
        for _ in range(times):
            self.the_machine_loses_power()
            if self.state.models[name].phase is Phase.STAGED:
                self.warm(name)

    @precondition(lambda self: self.in_phase(Phase.STAGED, Phase.WARMING))
    @rule(data=st.data())
    def warming(self, data: st.DataObject) -> None:
        self.warm(self.pick(data, Phase.STAGED, Phase.WARMING))

    def warm(self, name: str) -> None:
        self.move(transitions.warming(self.state, name, str(self.machine_boot)), name)

    @precondition(lambda self: self.in_phase(Phase.WARMING))
    @rule(data=st.data())
    def the_hinted_variant_does_not_hold(self, data: st.DataObject) -> None:
        name = self.pick(data, Phase.WARMING)
        self.move(transitions.hint_refuted(self.state, name), name)
        assert self.state.models[name].phase is Phase.DOWNLOADING

    @precondition(lambda self: self.in_phase(Phase.STAGED))
    @rule(data=st.data())
    def a_file_that_was_there_is_gone(self, data: st.DataObject) -> None:
        name = self.pick(data, Phase.STAGED)
        self.move(transitions.advanced(self.state, name, Phase.DOWNLOADING), name)

    @precondition(lambda self: self.in_phase(Phase.WARMING))
    @rule(data=st.data())
    def activated(self, data: st.DataObject) -> None:
        self.activate(self.pick(data, Phase.WARMING))

    def activate(self, name: str) -> None:
        before = self.state.models[name]
        assert before.target is not None
        installed = Installed(bundle=before.target.bundle, version="1.0.0", variant=f"variant-{self.machine_boot % 2}")
        self.state = transitions.activated(self.state, name, installed)

        after = self.state.models[name]
        assert after.active == installed
        if after.phase is Phase.PROBATION:
            assert after.last_good == (before.active or before.last_good)
            assert after.guard is not None
        else:
            assert after.phase is Phase.HEALTHY and installed.bundle in self.proven[name]

    @precondition(lambda self: self.in_phase(Phase.PROBATION))
    @rule(data=st.data())
    def proven_in_probation(self, data: st.DataObject) -> None:
        self.prove(self.pick(data, Phase.PROBATION))

    def prove(self, name: str) -> None:
        self.move(transitions.proven(self.state, name), name)
        self.proven[name].add(str(bundle_of(self.state.models[name].active)))
        assert self.state.models[name].phase is Phase.HEALTHY

    @precondition(lambda self: self.in_phase(Phase.PROBATION))
    @rule(data=st.data())
    def reverted_in_probation(self, data: st.DataObject) -> None:
        name = self.pick(data, Phase.PROBATION)
        before = self.state.models[name]
        self.state = transitions.reverted(self.state, name, "worse than the incumbent")
        self.check_end(name, before, Phase.REVERTED)
        assert self.state.models[name].active == before.last_good

    @precondition(lambda self: self.in_phase(Phase.DOWNLOADING, Phase.WARMING))
    @rule(data=st.data())
    def failed(self, data: st.DataObject) -> None:
        name = self.pick(data, Phase.DOWNLOADING, Phase.WARMING)
        before = self.state.models[name]
        self.state = transitions.failed(self.state, name, "golden vectors differ")
        self.check_end(name, before, Phase.FAILED)
        assert self.state.models[name].active == before.active

    @precondition(lambda self: self.in_phase(Phase.PROBATION))
    @rule(data=st.data())
    def there_is_no_room_for_what_was_just_activated(self, data: st.DataObject) -> None:
        name = self.pick(data, Phase.PROBATION)
        before = self.state.models[name]
        self.state = transitions.rejected(self.state, name, "no memory")

        after = self.state.models[name]
        assert (after.phase, after.active, after.guard) == (Phase.REJECTED, before.last_good, None)

    @precondition(lambda self: self.in_phase(Phase.DOWNLOADING, Phase.WARMING))
    @rule(data=st.data())
    def rejected(self, data: st.DataObject) -> None:
        name = self.pick(data, Phase.DOWNLOADING, Phase.WARMING)
        before = self.state.models[name]
        self.move(transitions.rejected(self.state, name, "no memory"), name)
        assert self.state.models[name].error == "no memory"
        assert before.target is not None and not in_quarantine(self.state, name, before.target.bundle)

    @precondition(lambda self: self.loadable())
    @rule(data=st.data())
    def the_disk_damages_the_active_bundle(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.loadable()))
        before = self.state.models[name]
        self.state = transitions.active_unusable(self.state, name, "damaged")
        after = self.state.models[name]
        self.covered.discard(slots.parts_of(name)[0])

        assert bundle_of(after.active) in (None, bundle_of(before.last_good))
        assert after.active != before.active
        assert transitions.is_in_work(after) == (transitions.is_in_work(before) and after.phase is not Phase.HEALTHY)

    def loadable(self) -> list[str]:
        """Models whose active bundle is proven: those that a start loads."""
        return [
            name for name, model in sorted(self.state.models.items()) if model.active and model.phase not in UNPROVEN
        ]

    @rule()
    def the_process_is_killed(self) -> None:
        before = self.state
        self.state = transitions.recovered(before, str(self.machine_boot))

        for name, model in before.models.items():
            if model.guard and model.phase in UNPROVEN:
                self.check_end(name, model, Phase.REVERTED)
            else:
                assert self.state.models[name] == model
        assert transitions.recovered(self.state, str(self.machine_boot)) is self.state

    @rule()
    def the_machine_loses_power(self) -> None:
        self.machine_boot += 1
        before = self.state
        self.state = transitions.recovered(before, str(self.machine_boot))

        for name, model in before.models.items():
            after = self.state.models[name]
            if not (model.guard and model.phase in UNPROVEN):
                assert after == model
            elif model.guard.machine_restarts >= MAX_RESTARTS:
                self.check_end(name, model, Phase.REVERTED)
            else:
                assert after.phase is Phase.STAGED and after.guard is not None
                assert after.guard.machine_restarts == model.guard.machine_restarts + 1
                assert not (model.target and in_quarantine(self.state, name, model.target.bundle))

    @rule()
    def the_agent_is_stopped_and_started(self) -> None:
        stopped = transitions.stopped_cleanly(self.state)
        self.state = transitions.recovered(stopped, str(self.machine_boot))

        assert self.state is stopped
        assert not self.in_phase(*UNPROVEN)

    def move(self, state: ControlState, name: str) -> None:
        """A step that runs no model and takes none back: what serves stays."""
        before = self.state.models[name]
        self.state = state
        after = state.models[name]
        assert (after.active, after.last_good, after.target) == (before.active, before.last_good, before.target)

    def check_end(self, name: str, before: ModelState, phase: Phase) -> None:
        after = self.state.models[name]
        assert after.phase is phase and after.error and after.guard is None
        assert before.target is not None and in_quarantine(self.state, name, before.target.bundle)
        assert bundle_of(after.active) != before.target.bundle

    @invariant()
    def nothing_points_to_a_quarantined_bundle(self) -> None:
        for name, model in self.state.models.items():
            assert not in_quarantine(self.state, name, bundle_of(model.active))
            assert not in_quarantine(self.state, name, bundle_of(model.last_good))

    @invariant()
    def an_unproven_bundle_is_loaded_only_under_a_guard(self) -> None:
        for name, model in self.state.models.items():
            if model.phase in UNPROVEN and model.target is not None:
                is_back = model.target.bundle == bundle_of(model.last_good)
                assert (model.guard is not None) != is_back, name
            elif model.guard is not None:  # the count of restarts is kept while the update begins again
                assert model.phase in (Phase.DOWNLOADING, Phase.STAGED)

    @invariant()
    def what_serves_without_a_guard_has_proven_itself_here(self) -> None:
        for name, model in self.state.models.items():
            if model.phase is not Phase.PROBATION and model.active is not None:
                assert model.active.bundle in self.proven[name]

    @invariant()
    def the_way_back_has_proven_itself_here(self) -> None:
        for name, model in self.state.models.items():
            if model.last_good is not None:
                assert model.last_good.bundle in self.proven[name]

    @invariant()
    def a_model_in_probation_serves_its_target(self) -> None:
        for model in self.state.models.values():
            if model.phase is Phase.PROBATION:
                assert model.target is not None and bundle_of(model.active) == model.target.bundle

    @invariant()
    def a_model_that_answered_with_a_proven_bundle_answers_as_long_as_it_is_assigned(self) -> None:
        covered = {
            slots.parts_of(name)[0]
            for name, model in self.state.models.items()
            if (slots.answers(model) or model.stands_in) and transitions.without_unproven(model).active
        }
        serving = slots.serving(self.state).values()

        assert self.covered <= covered
        assert covered <= {service.assignment.model for service in serving if not service.assignment.shadow}
        self.covered = covered

    @invariant()
    def only_an_arm_that_answered_stands_in_and_only_while_no_other_can_answer(self) -> None:
        able = {
            slots.parts_of(name)[0]
            for name, model in self.state.models.items()
            if slots.answers(model) and transitions.without_unproven(model).active
        }
        for name, model in self.state.models.items():
            if model.stands_in is not None:
                assert model.target is None and not model.stands_in.shadow
                assert slots.parts_of(name)[0] not in able

    @invariant()
    def an_arm_beside_main_is_kept_only_while_it_has_a_purpose(self) -> None:
        for name, model in self.state.models.items():
            assert slots.parts_of(name)[1] == "main" or model.target or model.stands_in

    @invariant()
    def garbage_collection_keeps_what_serves_what_may_and_what_will(self) -> None:
        kept = transitions.kept_bundles(self.state)
        for model in self.state.models.values():
            target = model.target.bundle if model.target else None
            assert {bundle_of(model.active), bundle_of(model.last_good), target} - {None} <= kept
            variants = transitions.kept_variants(self.state)
            for installed in (model.active, model.last_good):
                if installed is not None:
                    names = variants[installed.bundle]
                    assert names is None or installed.variant in names
            if transitions.is_in_work(model):
                assert target is not None and variants[target] is None


def role_of(state: ControlState, name: str) -> str | None:
    """What a slot is assigned to do, or did before it stood in."""
    model = state.models.get(name, ModelState())
    assignment = model.target or model.stands_in
    return None if assignment is None else "shadows" if assignment.shadow else "answers"


def in_quarantine(state: ControlState, name: str, bundle: str | None) -> bool:
    return bundle is not None and slots.quarantine_key(name, bundle) in state.quarantine


def failed_bundles(state: ControlState) -> set[str]:
    return {slots.quarantined_bundle(key) for key in state.quarantine}


Updates.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None, derandomize=True)
TestUpdates = Updates.TestCase
