"""The shadow compares in idle time, within its share, and is of no consequence to any call."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.errors import InferenceError, InvalidInputError
from edge_agent.runtime.session import Model
from edge_agent.runtime.shadow import (
    ABSOLUTE_TOLERANCE,
    MAX_SAMPLE_BYTES,
    MAX_WAITING,
    RELATIVE_TOLERANCE,
    ShadowRunner,
    Tensors,
    TimeShare,
    disagrees,
)
from tests.agent.runtime import onnx_files
from tests.real_servers.processes import wait_until

WAIT_S = 10.0
X = {"x": np.array([[1.0, 2.0, 3.0]], dtype=np.float32)}
NAN = float("nan")


class Seen:
    """What a runner told, and what it asks."""

    def __init__(self) -> None:
        self.compared: list[bool] = []
        self.errors: list[str] = []
        self.idle = self.spare = True

    def runner(self, run: Callable[[Tensors], Tensors], *, task: str = "classification") -> ShadowRunner:
        return ShadowRunner(
            run=run,
            task=task,
            is_idle=lambda: self.idle,
            may_run=lambda: self.spare,
            on_compared=self.compared.append,
            on_error=self.errors.append,
            max_share=1.0,
        )

    def wait(self, compared: int = 0, errors: int = 0) -> None:
        wait_until(
            lambda: (len(self.compared), len(self.errors)) == (compared, errors), WAIT_S, f"{compared} were compared"
        )


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def stopped() -> Iterator[list[ShadowRunner]]:
    runners: list[ShadowRunner] = []
    yield runners
    for runner in runners:
        runner.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "shadow"]


def scores(*rows: tuple[float, ...]) -> dict[str, NDArray[Any]]:
    return {"scores": np.array(rows, dtype=np.float32)}


def test_a_real_candidate_that_answers_otherwise_is_counted(
    tmp_path: Path, seen: Seen, stopped: list[ShadowRunner]
) -> None:
    served = Model.load(onnx_files.linear(tmp_path / "served.onnx"))
    same = Model.load(onnx_files.linear(tmp_path / "same.onnx", weight=3.0))
    other = Model.load(onnx_files.linear(tmp_path / "other.onnx", weight=-2.0))
    stopped += [seen.runner(same.run), seen.runner(other.run)]

    for runner in stopped:
        runner.offer(X, served.run(X))
        wait_until(lambda runner=runner: len(seen.compared) == stopped.index(runner) + 1, WAIT_S, "compared")  # type: ignore[misc] # mypy cannot see a bound default

    assert seen.compared == [False, True]


def test_nothing_runs_while_a_call_does_or_the_device_has_nothing_to_spare(
    seen: Seen, stopped: list[ShadowRunner]
) -> None:
    asked = threading.Semaphore(0)

    def is_idle() -> bool:
        asked.release()
        return seen.idle

    runner = ShadowRunner(
        run=lambda _: scores((0.0, 1.0)),
        task="classification",
        is_idle=is_idle,
        may_run=lambda: seen.spare,
        on_compared=seen.compared.append,
        on_error=seen.errors.append,
    )
    stopped.append(runner)
    seen.idle = False
    runner.offer(X, scores((0.0, 1.0)))
    assert asked.acquire(timeout=WAIT_S) and asked.acquire(timeout=WAIT_S)
    assert seen.compared == []

    seen.idle, seen.spare = True, False
    assert asked.acquire(timeout=WAIT_S) and asked.acquire(timeout=WAIT_S)
    assert seen.compared == []

    seen.spare = True
    seen.wait(compared=1)


def test_a_call_never_waits_for_a_full_queue_and_what_finds_no_room_is_counted(
    seen: Seen, stopped: list[ShadowRunner]
) -> None:
    seen.idle = False
    runner = seen.runner(lambda _: scores((0.0, 1.0)))
    stopped.append(runner)

    for _ in range(10 * MAX_WAITING):
        runner.offer(X, scores((0.0, 1.0)))

    waiting = 10 * MAX_WAITING - runner.not_sampled
    assert MAX_WAITING <= waiting <= MAX_WAITING + 1  # one may be in the thread's hand
    seen.idle = True
    seen.wait(compared=waiting)


def test_a_sample_above_the_limit_is_not_taken(seen: Seen, stopped: list[ShadowRunner]) -> None:
    runner = seen.runner(lambda _: scores((0.0, 1.0)))
    stopped.append(runner)

    runner.offer({"x": np.zeros(MAX_SAMPLE_BYTES, dtype=np.uint8)}, scores((0.0, 1.0)))

    assert runner.not_sampled == 1


def test_the_caller_may_change_its_arrays_at_once(seen: Seen, stopped: list[ShadowRunner]) -> None:
    given_inputs: list[Tensors] = []
    seen.idle = False
    runner = seen.runner(lambda inputs: given_inputs.append(inputs) or scores((0.0, 1.0)))  # type: ignore[func-returns-value] # the value is the other one
    stopped.append(runner)
    inputs, outputs = {"x": np.ones(3)}, scores((0.0, 1.0))

    runner.offer(inputs, outputs)
    inputs["x"][:], outputs["scores"][:] = 7.0, [[1.0, 0.0]]
    seen.idle = True

    seen.wait(compared=1)
    assert seen.compared == [False]
    assert given_inputs[0]["x"].tolist() == [1.0, 1.0, 1.0]


def test_whatever_a_candidate_raises_is_counted_and_the_next_sample_is_compared(
    seen: Seen, stopped: list[ShadowRunner], caplog: pytest.LogCaptureFixture
) -> None:
    faults = iter([InvalidInputError("x"), InferenceError("x"), ZeroDivisionError("x")])

    def run(_: Tensors) -> Tensors:
        fault = next(faults, None)
        if fault is not None:
            raise fault
        return scores((0.0, 1.0))

    runner = seen.runner(run)
    stopped.append(runner)
    for _ in range(4):
        runner.offer(X, scores((0.0, 1.0)))

    seen.wait(compared=1, errors=3)
    assert seen.errors == ["invalid_input", "inference", "internal"]
    assert "goes on with the next" in caplog.text


def test_a_candidate_without_samples_costs_no_thread_and_a_stopped_one_begins_none(seen: Seen) -> None:
    runner = seen.runner(lambda _: scores((0.0, 1.0)))
    assert not [thread for thread in threading.enumerate() if thread.name == "shadow"]

    runner.stop()
    runner.offer(X, scores((0.0, 1.0)))

    assert not [thread for thread in threading.enumerate() if thread.name == "shadow"]


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="needs priorities per thread")
def test_the_candidate_runs_at_a_lower_priority_than_the_calls(seen: Seen, stopped: list[ShadowRunner]) -> None:
    found: list[int] = []

    def run(_: Tensors) -> Tensors:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return scores((0.0, 1.0))

    runner = seen.runner(run)
    stopped.append(runner)
    runner.offer(X, scores((0.0, 1.0)))

    seen.wait(compared=1)
    assert found[0] > os.getpriority(os.PRIO_PROCESS, 0)


@given(st.floats(0.01, 1.0), st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.001, 2.0)), min_size=1, max_size=50))
def test_the_runs_never_take_more_than_their_share_of_the_time_but_for_one(
    share: float, pauses_and_runs: list[tuple[float, float]]
) -> None:
    now_s, spent_s, longest_s = 100.0, 0.0, 0.0
    budget = TimeShare(share=share, now_s=now_s)
    for pause_s, run_s in pauses_and_runs:
        now_s += pause_s
        now_s += budget.wait_s(now_s)
        budget.wait_s(now_s)
        budget.spend(run_s)
        now_s, spent_s, longest_s = now_s + run_s, spent_s + run_s, max(longest_s, run_s)
        assert spent_s <= share * (now_s - 100.0) + longest_s + 1e-6


def test_time_saved_up_is_bounded() -> None:
    budget = TimeShare(share=0.5, now_s=0.0)
    budget.wait_s(1_000_000.0)

    budget.spend(2.0)

    assert budget.wait_s(1_000_000.0) == pytest.approx(2.0)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, NAN])
def test_a_share_that_is_none_is_refused(seen: Seen, share: float) -> None:
    with pytest.raises(ValueError, match="max_share"):
        ShadowRunner(
            run=lambda _: {}, task="", is_idle=lambda: True, may_run=lambda: True,
            on_compared=seen.compared.append, on_error=seen.errors.append, max_share=share,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("served", "candidate", "answer"),
    [
        (scores((0.1, 0.9)), scores((0.49, 0.51)), False),
        (scores((0.1, 0.9)), scores((0.51, 0.49)), True),
        (scores((0.1, 0.9), (0.9, 0.1)), scores((0.2, 0.8), (0.2, 0.8)), True),
        (scores((0.1, 0.9)), {"probabilities": scores((0.4, 0.6))["scores"]}, False),
        (scores((0.1, 0.9)), scores((0.1, 0.9), (0.1, 0.9)), True),
        (scores((0.1, 0.9)), scores((NAN, 0.9)), True),
        (scores((NAN, 0.9)), scores((0.1, 0.9)), True),
        (scores((NAN, 0.9)), scores((0.3, NAN)), False),
        (scores((0.1, 0.9)), {}, True),
        (scores((0.5,)), scores((0.9,)), True),
        (scores((0.5,)), scores((0.5,)), False),
    ],
)
def test_a_classification_disagrees_where_another_class_wins(served: Tensors, candidate: Tensors, answer: bool) -> None:
    assert disagrees("classification", served, candidate) is answer


def y(*values: Any) -> dict[str, NDArray[Any]]:
    return {"y": np.array(values)}


@pytest.mark.parametrize(
    ("served", "candidate", "answer"),
    [
        (y(100.0), y(100.0 * (1 + RELATIVE_TOLERANCE) - 0.01), False),
        (y(100.0), y(100.0 * (1 + RELATIVE_TOLERANCE) + 0.01), True),
        (y(0.0), y(ABSOLUTE_TOLERANCE * 0.9), False),
        (y(0.0), y(ABSOLUTE_TOLERANCE * 1.1), True),
        (y(1.0, NAN), y(1.0, NAN), False),
        (y(1.0, NAN), y(NAN, 1.0), True),
        (y(1.0), y(NAN), True),
        (y(float("inf")), y(float("inf")), False),
        (y(float("inf")), y(-float("inf")), True),
        (y(1.0, 2.0), y(1.0), True),
        (y(1.0) | {"z": np.zeros(1)}, y(1.0), True),
        (y(1.0), y(1.0) | {"z": np.zeros(1)}, False),
        (y("a"), y("a"), False),
        (y("a"), y("b"), True),
        (y(1), y(1.0), False),
        (y("1"), y(1.0), True),
        (y(2**40), y(2**40 + 1), False),
    ],
)
def test_anything_else_disagrees_beyond_the_tolerance(served: Tensors, candidate: Tensors, answer: bool) -> None:
    assert disagrees("regression", served, candidate) is answer
