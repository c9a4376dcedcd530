"""Slots, their names, and the reports about them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import json

from edge_agent.control.reports import MAX_REPORTS, model_reports
from edge_agent.control.slots import parts_of, quarantine_key, quarantined_bundle, slot_name, slot_of
from edge_agent.control.state import ControlState, Installed, ModelState
from fleet_protocol.messages import Assignment, ModelReport, Phase, Reported, decode, encode
from tests.agent.control.updates import BUNDLES

A = BUNDLES["eyes"][0]
MODELS = st.from_regex(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
ARMS = st.from_regex(r"^[a-z0-9][a-z0-9_-]{0,63}\Z") | st.just("main")


@given(MODELS, ARMS)
def test_a_slot_names_its_model_and_arm(model: str, arm: str) -> None:
    slot = slot_of(Assignment(model=model, version="1.0.0", bundle=A, arm=arm))

    assert parts_of(slot) == (model, arm)
    assert slot == slot_name(model, arm)
    assert (slot == model) == (arm == "main")
    assert quarantined_bundle(quarantine_key(slot, A)) == A


@given(MODELS, ARMS, ARMS)
def test_two_arms_never_share_a_slot_or_a_quarantine(model: str, one: str, other: str) -> None:
    first, second = slot_name(model, one), slot_name(model, other)

    assert (first == second) == (one == other)
    assert (quarantine_key(first, A) == quarantine_key(second, A)) == (one == other)


def test_the_report_of_an_arm_says_its_share_and_that_of_an_old_agent_is_of_the_only_arm() -> None:
    installed = Installed(bundle=A, version="1.0.0", variant="fp32")
    target = Assignment(model="eyes", version="1.0.0", bundle=A, arm="b", weight=0.2)
    slot = ModelState(phase=Phase.HEALTHY, active=installed, target=target)
    shadow = ModelState(target=Assignment(model="eyes", version="1.0.0", bundle=A, arm="s", shadow=True))
    state = ControlState(models={"eyes/s": shadow, "eyes/b": slot, "eyes": ModelState()})

    reports = {report.arm: report for report in model_reports(state)}
    assert (reports["b"].weight, reports["b"].active, reports["b"].shadow) == (0.2, A, False)
    assert reports["s"].shadow and not reports["main"].shadow
    old = json.decode(b'{"model":"eyes","phase":"HEALTHY"}', type=ModelReport)
    assert (old.arm, old.shadow, old.weight) == ("main", False, 1.0)


def test_a_report_with_every_slot_there_can_be_fits_its_message() -> None:
    target = Assignment(model="kept", version="1.0.0", bundle=A)
    models = {f"m{number}": ModelState(last_good=None) for number in range(MAX_REPORTS + 50)}
    state = ControlState(models={**models, "z": ModelState(phase=Phase.HEALTHY, target=target)})

    reports = model_reports(state)

    message = Reported(device="d", boot_id="00000001-00000002", sequence=1, at_ns=1, models=reports)
    assert decode(Reported, encode(message)) == message
    assert "z" in {report.model for report in reports}
