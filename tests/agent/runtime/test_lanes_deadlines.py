from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import DeadlineExceededError
from edge_agent.runtime.run_deadlines import RunDeadlines
from edge_agent.runtime.session import Model
from tests.agent.runtime.lane_calls import callers, lanes_of, queue_up, teach, until, x
from tests.agent.runtime.onnx_files import linear, mlperf_tiny

SLOW_ROWS = 4000
"""So many rows of the keyword model take some 150 ms."""


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


@pytest.fixture(scope="module")
def keywords() -> Model:
    loaded = Model.load(mlperf_tiny("kws.onnx"))
    loaded.warm()
    return loaded


def slow(rows: int = SLOW_ROWS) -> dict[str, np.ndarray]:
    return {"input_1": np.zeros((rows, 49, 10, 1), np.float32)}


def deadline_in(seconds: float) -> int:
    return time.perf_counter_ns() + int(seconds * 1e9)


def test_an_expired_call_leaves_the_queue_at_once(model: Model, threads: ThreadPoolExecutor) -> None:
    lanes = lanes_of()
    lanes.try_enter()
    (future,) = queue_up(threads, lanes, model, [x(1.0)], deadline_ns=deadline_in(0.05))

    with pytest.raises(DeadlineExceededError, match="in the queue"):
        future.result(5)
    assert (lanes.load().waiting, lanes.load().cancelled) == (0, 1)
    lanes.leave()
    assert lanes.is_idle


def test_a_call_that_comes_too_late_does_not_run(model: Model) -> None:
    lanes = lanes_of()

    with pytest.raises(DeadlineExceededError):
        lanes.run(model, x(1.0), deadline_ns=time.perf_counter_ns() - 1)
    assert lanes.load().busy_ns == 0


def test_a_call_within_its_deadline_is_answered(model: Model) -> None:
    outputs, _, _ = lanes_of().run(model, x(1.0), deadline_ns=deadline_in(30))

    assert outputs["scores"][0, 1] == 6.0


def test_a_running_call_is_cancelled_when_its_deadline_passes(keywords: Model) -> None:
    lanes = lanes_of()
    start = time.perf_counter()
    keywords.execute(slow())
    whole_s = time.perf_counter() - start

    start = time.perf_counter()
    with pytest.raises(DeadlineExceededError, match="while it ran"):
        lanes.run(keywords, slow(), deadline_ns=deadline_in(whole_s / 10))

    assert time.perf_counter() - start < 0.8 * whole_s
    assert lanes.is_idle
    assert lanes.load().cancelled == 1


def test_a_batch_goes_on_for_those_with_time_and_lets_the_late_one_go(
    keywords: Model, threads: ThreadPoolExecutor
) -> None:
    lanes = lanes_of(max_batch=16 * SLOW_ROWS)
    teach(lanes, largest=2**17)
    want = keywords.execute(slow(rows=1))["Identity"]
    lanes.try_enter()
    (late,) = queue_up(threads, lanes, keywords, [slow()], deadline_ns=deadline_in(0.15))
    (patient,) = queue_up(threads, lanes, keywords, [slow()])
    ended_s = []
    late.add_done_callback(lambda _: ended_s.append(time.perf_counter()))
    lanes.leave()

    outputs, _, batch_size = patient.result(20)
    patient_s = time.perf_counter()

    with pytest.raises(DeadlineExceededError, match="while it ran"):
        late.result(5)
    assert batch_size == 2
    assert ended_s[0] < patient_s
    np.testing.assert_allclose(outputs["Identity"], np.repeat(want, SLOW_ROWS, axis=0), rtol=1e-4)


def test_a_batch_is_cancelled_when_every_deadline_in_it_has_passed(
    keywords: Model, threads: ThreadPoolExecutor
) -> None:
    lanes = lanes_of(max_batch=16 * SLOW_ROWS)
    teach(lanes, largest=2**17)
    lanes.try_enter()
    futures = queue_up(threads, lanes, keywords, [slow(), slow()], deadline_ns=deadline_in(0.25))
    lanes.leave()

    for future in futures:
        with pytest.raises(DeadlineExceededError):
            future.result(5)
    assert lanes.wait_idle(5)
    assert lanes.load().cancelled == 2


def test_the_deadline_thread_ends_when_it_has_nothing_to_do_and_starts_again(model: Model) -> None:
    deadlines = RunDeadlines(idle_s=0.05)
    for _ in range(2):
        options = model.new_run_options()
        watched = deadlines.watch(time.perf_counter() + 0.02, options)
        until(lambda: options.terminate)  # noqa: B023 - called at once
        assert deadlines.forget(watched)
        until(lambda: not deadlines._running)


def test_a_run_that_ended_in_time_is_never_cancelled_afterwards(model: Model) -> None:
    deadlines = RunDeadlines(idle_s=0.05)
    options, other = model.new_run_options(), model.new_run_options()
    watched = deadlines.watch(time.perf_counter() + 0.05, options)
    assert not deadlines.forget(watched)
    deadlines.watch(time.perf_counter() + 0.06, other)

    until(lambda: other.terminate)
    assert not options.terminate


def test_forgotten_runs_do_not_pile_up_until_their_deadline(model: Model) -> None:
    deadlines = RunDeadlines(idle_s=0.05)
    options = model.new_run_options()
    for _ in range(5000):
        deadlines.forget(deadlines.watch(time.perf_counter() + 5, options))

    assert len(deadlines._heap) < 100
