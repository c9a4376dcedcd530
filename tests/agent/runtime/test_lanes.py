from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.errors import InferenceError, OverloadedError, WouldWaitError
from edge_agent.runtime.session import Model
from tests.agent.runtime.lane_calls import callers, lanes_of, queue_up, teach, until, x
from tests.agent.runtime.onnx_files import linear, row_of_table


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with callers() as pool:
        yield pool


@pytest.fixture
def model(tmp_path: Path) -> Model:
    loaded = Model.load(linear(tmp_path / "linear.onnx"))
    loaded.warm()
    assert loaded.is_batchable
    return loaded


@pytest.fixture
def table(tmp_path: Path) -> Model:
    loaded = Model.load(row_of_table(tmp_path / "table.onnx"))
    loaded.warm()
    loaded.is_batchable = True  # it is: `warm` may only have met rows that the table does not have
    return loaded


def test_a_lone_request_never_waits_for_a_batch(model: Model) -> None:
    outputs, waited_us, batch_size = lanes_of().run(model, x(1.0))

    np.testing.assert_array_equal(outputs["scores"], [[0.0, 6.0]])
    assert (waited_us, batch_size) == (0.0, 1)


def test_no_thread_is_started_for_calls_that_run_at_once_or_queue(model: Model, threads: ThreadPoolExecutor) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    lanes = lanes_of()
    lanes.try_enter()
    futures = queue_up(threads, lanes, model, [x(1.0), x(2.0)])
    lanes.leave()
    for future in futures:
        future.result(10)

    assert {thread.ident for thread in threading.enumerate()} - before <= {thread.ident for thread in threads._threads}


def test_a_lane_is_one_run_at_a_time() -> None:
    lanes = lanes_of(limit=2)

    assert [lanes.try_enter() for _ in range(3)] == [True, True, False]
    lanes.leave()
    assert lanes.try_enter()
    assert lanes.load().running == 2


def test_who_may_not_wait_is_told_so(model: Model) -> None:
    lanes = lanes_of()
    lanes.try_enter()

    with pytest.raises(WouldWaitError):
        lanes.run(model, x(1.0), may_wait=False)
    lanes.leave()
    assert lanes.run(model, x(1.0), may_wait=False)[2] == 1


def test_newcomers_do_not_overtake_those_who_wait(model: Model, threads: ThreadPoolExecutor) -> None:
    lanes = lanes_of()
    lanes.try_enter()
    (waiting,) = queue_up(threads, lanes, model, [x(1.0)])

    assert not lanes.try_enter()
    lanes.leave()
    assert waiting.result(10)[1] > 0
    until(lanes.try_enter)


def test_calls_that_wait_share_a_run_and_get_their_own_rows(model: Model, threads: ThreadPoolExecutor) -> None:
    lanes = lanes_of()
    teach(lanes)
    lanes.try_enter()
    futures = queue_up(threads, lanes, model, [x(1.0), x(2.0, rows=3), x(3.0)])
    lanes.leave()

    results = [future.result(10) for future in futures]

    assert [batch for _, _, batch in results] == [3, 3, 3]
    assert [outputs["scores"][:, 1].tolist() for outputs, _, _ in results] == [[6.0], [12.0] * 3, [18.0]]
    assert all(waited_us > 0 for _, waited_us, _ in results)


def test_calls_for_different_models_do_not_share_a_run(
    model: Model, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    other = Model.load(linear(tmp_path / "other.onnx", weight=5.0))
    other.warm()
    lanes = lanes_of()
    teach(lanes)
    lanes.try_enter()
    futures = [*queue_up(threads, lanes, model, [x(1.0)]), *queue_up(threads, lanes, other, [x(1.0)])]
    lanes.leave()

    assert [future.result(10)[0]["scores"][0, 1] for future in futures] == [6.0, 15.0]
    assert [future.result(10)[2] for future in futures] == [1, 1]


def test_a_model_that_cannot_batch_runs_its_calls_one_by_one(model: Model, threads: ThreadPoolExecutor) -> None:
    model.is_batchable = False
    lanes = lanes_of()
    lanes.try_enter()
    futures = queue_up(threads, lanes, model, [x(float(value)) for value in range(4)])
    lanes.leave()

    assert [future.result(10)[2] for future in futures] == [1] * 4


def test_the_higher_priority_runs_first_and_then_who_came_first(model: Model, threads: ThreadPoolExecutor) -> None:
    lanes = lanes_of(max_batch=1)
    order: list[str] = []
    lanes.try_enter()

    def call(name: str, priority: int) -> None:
        lanes.run(model, x(1.0), priority=priority)
        order.append(name)

    futures = []
    for name, priority in (("low", -1), ("first", 0), ("second", 0), ("high", 5)):
        before = lanes.load().waiting
        futures.append(threads.submit(call, name, priority))
        until(lambda: lanes.load().waiting == before + 1)  # noqa: B023 - called at once
    starts = list(lanes._waiting)
    lanes.leave()
    for future in futures:
        future.result(10)

    assert [call.priority for call in starts] == [5, 0, 0, -1]
    assert sorted(starts, key=lambda call: call.started_s) == starts


def test_a_full_queue_refuses_with_numbers_and_a_time_to_come_back(model: Model, threads: ThreadPoolExecutor) -> None:
    lanes = lanes_of(max_waiting=2)
    lanes.run(model, x(1.0))
    lanes.try_enter()
    futures = queue_up(threads, lanes, model, [x(1.0), x(2.0)])

    with pytest.raises(OverloadedError, match="2 calls wait for 1 lanes") as refused:
        lanes.run(model, x(3.0))
    lanes.leave()

    assert 0.05 <= refused.value.retry_after_s <= 30
    assert [future.result(10)[0]["scores"][0, 1] for future in futures] == [6.0, 12.0]
    assert lanes.load().shed == 1


def test_a_full_queue_gives_the_place_of_the_lowest_priority_to_a_higher_one(
    model: Model, threads: ThreadPoolExecutor
) -> None:
    lanes = lanes_of(max_waiting=2)
    lanes.try_enter()
    (low,) = queue_up(threads, lanes, model, [x(1.0)], priority=-5)
    (middle,) = queue_up(threads, lanes, model, [x(2.0)])
    high = threads.submit(lanes.run, model, x(3.0), priority=5)

    with pytest.raises(OverloadedError, match="higher priority"):
        low.result(10)
    lanes.leave()
    assert middle.result(10)[0]["scores"][0, 1] == 12.0
    assert high.result(10)[0]["scores"][0, 1] == 18.0


def test_a_bad_call_in_a_batch_costs_itself_only(table: Model, threads: ThreadPoolExecutor) -> None:
    lanes = lanes_of()
    teach(lanes)
    lanes.try_enter()
    calls = [{"x": np.array([value])} for value in (99, 0, 1, 0)]
    bad, *good = queue_up(threads, lanes, table, calls)
    lanes.leave()

    assert [future.result(10)[0]["y"].tolist() for future in good] == [[10.0], [20.0], [10.0]]
    assert [future.result(10)[2] for future in good] == [1, 1, 1]  # the batch failed, and they ran alone
    with pytest.raises(InferenceError):
        bad.result(10)
    assert lanes.wait_idle(10)


def test_raising_the_limit_lets_waiting_calls_run_at_once(model: Model, threads: ThreadPoolExecutor) -> None:
    lanes = lanes_of()
    lanes.try_enter()
    (future,) = queue_up(threads, lanes, model, [x(1.0)])

    lanes.set_limit(2)

    assert future.result(10)[0]["scores"][0, 1] == 6.0
    assert lanes.load().running == 1


def test_lowering_the_limit_waits_for_nobody_and_holds_for_the_next(model: Model) -> None:
    lanes = lanes_of(limit=2)
    assert lanes.try_enter()
    assert lanes.try_enter()
    lanes.set_limit(1)

    lanes.leave()
    assert not lanes.try_enter()
    lanes.leave()
    assert lanes.try_enter()


@pytest.mark.parametrize("limit", [0, -1, 65])
def test_a_senseless_limit_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        lanes_of().set_limit(limit)


def test_closing_drains_and_a_caller_that_came_just_before_still_gets_its_answer(
    model: Model, threads: ThreadPoolExecutor
) -> None:
    lanes = lanes_of()
    lanes.try_enter()
    (waiting,) = queue_up(threads, lanes, model, [x(1.0)])
    lanes.close()
    assert not lanes.wait_idle(0.01)
    lanes.leave()

    assert waiting.result(10)[0]["scores"][0, 1] == 6.0
    assert lanes.wait_idle(10)
    assert lanes.run(model, x(2.0))[0]["scores"][0, 1] == 12.0


def test_lane_time_is_counted_while_lanes_are_taken() -> None:
    lanes = lanes_of(limit=2)
    lanes.try_enter()
    started = time.perf_counter()
    until(lambda: time.perf_counter() - started > 0.02)
    during = lanes.load()
    lanes.leave()
    after = lanes.load()
    until(lambda: time.perf_counter() - started > 0.04)

    assert during.busy_ns >= 20e6
    assert after.busy_ns >= during.busy_ns
    assert lanes.load().busy_ns == after.busy_ns
    assert (during.running, after.running) == (1, 0)


def test_waits_and_service_times_are_told(model: Model, threads: ThreadPoolExecutor) -> None:
    lanes = lanes_of()
    lanes.try_enter()
    (future,) = queue_up(threads, lanes, model, [x(1.0)])
    until(lambda: lanes.load().longest_wait_ms > 5)
    lanes.leave()
    _, waited_us, _ = future.result(10)
    load = lanes.load()

    assert waited_us > 5000
    assert load.queued == 1
    assert load.queue_wait_ns == pytest.approx(waited_us * 1e3, rel=1e-3)
    assert load.queue_wait_ewma_ms > 0
    assert load.service_us > 0


def test_an_interrupted_caller_does_not_take_a_lane_with_it(
    model: Model, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = lanes_of()
    teach(lanes)
    lanes.try_enter()
    futures = queue_up(threads, lanes, model, [x(1.0), x(2.0)])
    interrupts = iter([KeyboardInterrupt()])

    def interrupted(real: Any = Model.execute) -> Any:
        def execute(self: Model, *arguments: Any) -> Any:
            for interrupt in interrupts:
                raise interrupt
            return real(self, *arguments)

        return execute

    monkeypatch.setattr(Model, "execute", interrupted())
    lanes.leave()

    with pytest.raises(KeyboardInterrupt):
        futures[0].result(10)
    assert futures[1].result(10)[0]["scores"][0, 1] == 12.0
    assert lanes.wait_idle(10)
