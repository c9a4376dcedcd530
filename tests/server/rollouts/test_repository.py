"""What the operator API calls: create, look, list, command."""

from __future__ import annotations

import threading

import msgspec
import pytest
from sqlalchemy import func, select

from fleet_server.database.tables import rollouts
from fleet_server.errors import ConflictError, FleetError, InvalidRequestError, NotFoundError
from fleet_server.rollouts.repository import command_rollout, create_rollout, get_rollout, list_rollouts
from fleet_server.rollouts.views import RolloutView
from tests.server.rollouts.fleet import FLEET, MODEL, Fleet


def test_a_rollout_is_stored_with_its_whole_policy_and_a_salt_of_its_own(fleet: Fleet) -> None:
    rollout = create_rollout(
        fleet.engine, fleet=FLEET, model=MODEL, version="1.0.0", policy_json=b"{}", created_by="ann", now_ns=5
    )
    view = get_rollout(fleet.engine, rollout)
    assert (view.state, view.stage, view.stages, view.exposed_count) == ("SCHEDULED", 0, 3, 0)
    assert view.policy["salt"] == rollout
    assert view.policy["gates"]
    assert msgspec.json.decode(msgspec.json.encode(view), type=RolloutView) == view


def test_a_bad_policy_an_unknown_version_or_rollout_are_refused_and_store_nothing(fleet: Fleet) -> None:
    with pytest.raises(InvalidRequestError, match=r"\$\.gates"):
        fleet.create("1.0.0", gates=[])
    with pytest.raises(NotFoundError, match=r"9\.9\.9"):
        fleet.create("9.9.9")
    with pytest.raises(NotFoundError, match="nope"):
        get_rollout(fleet.engine, "nope")
    with pytest.raises(NotFoundError, match="nope"):
        command_rollout(fleet.engine, "nope", "abort", "ann", 1)
    assert list_rollouts(fleet.engine, fleet=FLEET) == []


def test_a_second_rollout_of_a_model_waits_until_the_first_is_over(fleet: Fleet) -> None:
    first = fleet.create("1.0.0")
    with pytest.raises(ConflictError, match=first):
        fleet.create("1.1.0")
    assert command_rollout(fleet.engine, first, "abort", "ann", fleet.now_ns).state == "CANCELED"
    assert get_rollout(fleet.engine, fleet.create("1.1.0")).state == "SCHEDULED"


def test_of_many_rollouts_created_at_once_one_wins(fleet: Fleet) -> None:
    for round_number in range(1, 6):
        made: list[str] = []
        refused: list[FleetError] = []
        barrier = threading.Barrier(6)

        def create(
            barrier: threading.Barrier = barrier, made: list[str] = made, refused: list[FleetError] = refused
        ) -> None:
            barrier.wait(timeout=10)
            try:
                made.append(fleet.create("1.0.0"))
            except ConflictError as error:
                refused.append(error)

        threads = [threading.Thread(target=create) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert (len(made), len(refused)) == (1, 5)
        command_rollout(fleet.engine, made[0], "abort", "ann", fleet.now_ns)
        with fleet.engine.connect() as connection:
            assert connection.scalar(select(func.count()).select_from(rollouts)) == round_number


def test_an_approval_is_needed_before_any_device_is_exposed(fleet: Fleet) -> None:
    fleet.enrol(2, v1_0_0=98)
    rollout = fleet.create("1.0.0", require_approval=True)
    for _ in range(3):
        fleet.live()
    assert (get_rollout(fleet.engine, rollout).state, fleet.running("1.0.0")) == ("AWAITING_APPROVAL", set())
    command_rollout(fleet.engine, rollout, "approve", "bob", fleet.now_ns)
    assert fleet.live_until(rollout, "COMPLETED").state == "COMPLETED"


def test_a_command_that_the_state_does_not_allow_changes_nothing(fleet: Fleet) -> None:
    rollout = fleet.create("1.0.0")
    before = get_rollout(fleet.engine, rollout)
    with pytest.raises(ConflictError, match="SCHEDULED"):
        command_rollout(fleet.engine, rollout, "approve", "ann", fleet.now_ns)
    with pytest.raises(InvalidRequestError, match="explode"):
        command_rollout(fleet.engine, rollout, "explode", "ann", fleet.now_ns)
    assert get_rollout(fleet.engine, rollout) == before


def test_a_list_is_newest_first_and_its_pages_meet_without_gap_or_repeat(fleet: Fleet) -> None:
    made = []
    for number in range(5):
        fleet.now_ns += number // 2  # some are created at the very same time
        made.append(fleet.create("1.0.0"))
        command_rollout(fleet.engine, made[-1], "abort", "ann", fleet.now_ns)
    seen: list[RolloutView] = []
    while page := list_rollouts(fleet.engine, fleet=FLEET, limit=2, after=seen[-1].id if seen else None):
        seen += page
    assert sorted(view.id for view in seen) == sorted(made)
    assert [view.created_ns for view in seen] == sorted((view.created_ns for view in seen), reverse=True)
    assert list_rollouts(fleet.engine, fleet="other") == []
    with pytest.raises(InvalidRequestError, match="limit"):
        list_rollouts(fleet.engine, fleet=FLEET, limit=0)
