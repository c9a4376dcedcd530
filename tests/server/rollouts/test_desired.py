"""The desired state of one device: generations only grow, models do not disturb each other."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from sqlalchemy import select

from fleet_protocol.messages import Assignment, Probation
from fleet_server.database.tables import desired
from fleet_server.errors import ConflictError
from fleet_server.rollouts.desired import MAX_ASSIGNMENTS, assign, read_assignments
from tests.server.rollouts.fleet import FLEET, Fleet


def _assignment(model: str, version: str = "1.0.0") -> Assignment:
    return Assignment(model=model, version=version, bundle="a" * 64)


def _assign(fleet: Fleet, assignments: dict[str, Sequence[Assignment]]) -> int:
    with fleet.engine.begin() as connection:
        return assign(
            connection,
            fleet=FLEET,
            device="d1",
            assignments=assignments,
            signer=fleet.signer,
            now_ns=fleet.now_ns,
            probation=Probation(),
        )


def test_each_write_is_the_next_generation_and_keeps_other_models(fleet: Fleet) -> None:
    assert _assign(fleet, {"a": [_assignment("a")], "b": [_assignment("b")]}) == 1
    assert _assign(fleet, {"a": [_assignment("a", "2.0.0")]}) == 2
    assert _assign(fleet, {"b": []}) == 3
    wanted = fleet.desired("d1")
    assert wanted is not None
    assert (wanted.device, wanted.generation, wanted.assignments) == ("d1", 3, [_assignment("a", "2.0.0")])
    with fleet.engine.connect() as connection:
        assert read_assignments(connection, fleet=FLEET, device="d1") == wanted.assignments
        assert read_assignments(connection, fleet=FLEET, device="unknown") == []
        assert connection.scalar(select(desired.c.published_generation)) == 0


def test_a_transaction_that_fails_later_leaves_no_desired_state(fleet: Fleet) -> None:
    with pytest.raises(ZeroDivisionError), fleet.engine.begin() as connection:
        assign(
            connection,
            fleet=FLEET,
            device="d1",
            assignments={"a": [_assignment("a")]},
            signer=fleet.signer,
            now_ns=1,
            probation=Probation(),
        )
        raise ZeroDivisionError
    assert fleet.desired("d1") is None


def test_more_assignments_than_a_device_may_have_are_refused(fleet: Fleet) -> None:
    many = [Assignment(model="a", version="1.0.0", bundle="a" * 64, arm=f"arm{n}") for n in range(MAX_ASSIGNMENTS + 1)]
    with pytest.raises(ConflictError, match=str(MAX_ASSIGNMENTS)):
        _assign(fleet, {"a": many})


def test_writers_at_once_each_get_a_generation_of_their_own(fleet: Fleet) -> None:
    generations: list[int] = []

    def write(number: int) -> None:
        model = f"m{number}"
        generations.append(_assign(fleet, {model: [_assignment(model)]}))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(generations) == [1, 2, 3, 4]
    wanted = fleet.desired("d1")
    assert wanted is not None
    assert {entry.model for entry in wanted.assignments} == {"m0", "m1", "m2", "m3"}
