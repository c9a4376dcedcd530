"""The pool of threads: as many as there is work for, no more than it may have, and none for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from edge_agent.local_api.workers import REST_S, Workers
from tests.agent.local_api.small_service import DEADLINE_S, wait_until

NAME = "tested"


@pytest.fixture
def workers() -> Iterator[Workers]:
    pool = Workers(name=NAME, threads=4, max_waiting=2)
    yield pool
    pool.close()
    wait_until(lambda: not running())


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(f"edgefleet-{NAME}")]


class Held:
    """Work that is done when the test lets it."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = 0
        self.done = 0

    def __call__(self) -> None:
        self.begun += 1
        assert self.gate.wait(DEADLINE_S)
        self.done += 1


def test_no_thread_exists_before_there_is_work_and_one_serves_what_comes_one_by_one(workers: Workers) -> None:
    assert not running()
    for _ in range(20):
        done = threading.Event()
        workers.submit(done.set)
        assert done.wait(DEADLINE_S)
        workers.done()

    assert len(running()) == 1


def test_waiting_work_starts_threads_up_to_the_limit_and_all_of_it_is_done(workers: Workers) -> None:
    held = Held()
    for _ in range(6):
        assert not workers.is_full
        workers.submit(held)

    assert workers.is_full
    assert len(running()) == 4
    held.gate.set()
    wait_until(lambda: held.done == 6)


def test_threads_that_were_too_many_for_a_while_end_and_the_others_stay(workers: Workers) -> None:
    held = Held()
    for _ in range(4):
        workers.submit(held)
    held.gate.set()
    wait_until(lambda: held.done == 4)
    for _ in range(4):
        workers.done()
    workers.rest(REST_S)  # four were needed until now
    assert workers.threads == 4
    workers.submit(held)
    workers.done()
    workers.rest(2 * REST_S - 1)
    assert workers.threads == 4
    workers.rest(2 * REST_S)

    assert workers.threads == 1
    wait_until(lambda: len(running()) == 1)


def test_at_the_end_what_has_not_begun_is_not_done() -> None:
    pool, held = Workers(name=NAME, threads=1, max_waiting=5), Held()
    late: list[int] = []
    pool.submit(held)
    wait_until(lambda: held.begun == 1)
    pool.submit(lambda: late.append(1))
    pool.close()
    held.gate.set()
    wait_until(lambda: not running())

    assert (held.done, late) == (1, [])


def test_a_thread_that_the_system_refuses_is_done_without(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    workers.submit(held)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        workers.submit(held)
        with pytest.raises(RuntimeError):
            Workers(name=NAME, threads=1, max_waiting=0).submit(held)
    held.gate.set()

    wait_until(lambda: held.done == 2)


def refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
