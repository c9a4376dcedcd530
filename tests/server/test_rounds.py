"""Work in rounds: what goes wrong in one does not end it."""

from __future__ import annotations

import threading

import pytest

from fleet_server.errors import StoreUnavailableError
from fleet_server.rounds import start_rounds


def test_neither_a_store_that_is_away_nor_a_fault_of_ours_ends_the_rounds(caplog: pytest.LogCaptureFixture) -> None:
    stop, ended = threading.Event(), threading.Event()
    outcomes: list[Exception | None] = [StoreUnavailableError("the store is away"), KeyError("a fault"), None]
    seen: list[int] = []

    def step() -> None:
        seen.append(len(seen))
        if len(seen) > len(outcomes):
            stop.set()
            return
        outcome = outcomes[len(seen) - 1]
        if outcome is not None:
            raise outcome

    thread = start_rounds("counting", step, every_s=0.001, stop=stop, at_end=ended.set)
    thread.join(10)

    assert not thread.is_alive()
    assert seen == [0, 1, 2, 3]
    assert ended.is_set()
    waits, fault = caplog.records
    assert waits.getMessage() == "counting waits, nothing is lost: the store is away"
    assert fault.exc_info is not None


def test_a_round_with_more_to_do_is_followed_at_once() -> None:
    stop, left = threading.Event(), [3, 2, 1]

    def step() -> bool:
        left.pop()
        if not left:
            stop.set()
        return bool(left)

    start_rounds("emptying", step, every_s=60.0, stop=stop).join(10)

    assert left == []
