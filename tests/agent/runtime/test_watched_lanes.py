"""Lanes of a model on trial: a run that hangs keeps nobody else."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent.control.golden import check_golden
from edge_agent.errors import DeadlineExceededError, GoldenMismatchError, InferenceError, ModelHungError, WouldWaitError
from edge_agent.runtime.session import Model
from edge_agent.runtime.watched_lanes import WatchedLanes
from fleet_protocol.manifest import Artifact, Variant
from tests.agent.runtime import onnx_files
from tests.agent.runtime.lane_calls import Run, callers, queue_up, until

FAST, HANGS = {"x": np.array([[1.0]], np.float32)}, {"x": np.array([[1e15]], np.float32)}


def looping(path: Path, *, turns_per_one: float) -> Model:
    """y = x, after a loop of so many turns for each whole of the largest x."""
    turn = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still_go_on"]),
            helper.make_node("Identity", ["carried"], ["carried_on"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, ["n", 1]),
        ],
        [
            helper.make_tensor_value_info("still_go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_on", TensorProto.FLOAT, ["n", 1]),
        ],
    )
    onnx_files.save(
        path,
        [
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
            helper.make_node("Mul", ["largest", "turns_per_one"], ["long"]),
            helper.make_node("Cast", ["long"], ["turns"], to=TensorProto.INT64),
            helper.make_node("Loop", ["turns", "true", "x"], ["y"], body=turn),
        ],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        initializers=[
            numpy_helper.from_array(np.array(True), "true"),
            numpy_helper.from_array(np.array(turns_per_one, np.float32), "turns_per_one"),
        ],
    )
    return Model.load(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One that turns as often as x says."""
    return looping(tmp_path_factory.mktemp("loop") / "loop.onnx", turns_per_one=1.0)


def watched(*, limit: int = 1, hang_timeout_s: float = 60.0) -> WatchedLanes:
    return WatchedLanes(name="m", limit=limit, max_waiting=64, max_batch=16, hang_timeout_s=hang_timeout_s)


@pytest.fixture
def own(model: Model) -> Model:
    """The model in a session of its own: to be cancelled."""
    return Model.load(model.path)


def test_a_right_run_is_answered_and_leaves_nothing_behind(model: Model) -> None:
    lanes = watched()
    outputs, waited_us, shared_by = lanes.run(model, FAST)
    assert (outputs["y"].item(), waited_us, shared_by) == (1.0, 0.0, 1)
    assert lanes.oldest_run_s == 0.0 and lanes.is_idle


def test_no_run_begins_on_a_thread_that_must_not_wait(model: Model) -> None:
    lanes = watched()
    assert not lanes.try_enter()
    with pytest.raises(WouldWaitError):
        lanes.run(model, FAST, may_wait=False)


def test_giving_up_cancels_the_run_that_hangs_and_answers_everybody_who_waits(own: Model) -> None:
    lanes = watched()
    with callers() as threads:
        hung = threads.submit(lanes.run, own, HANGS)
        until(lambda: lanes.oldest_run_s > 0.05)
        waiting = queue_up(threads, lanes, own, [FAST] * 5)
        lanes.give_up()
        for call in waiting:
            with pytest.raises(ModelHungError, match="was taken back"):
                call.result(10)
        with pytest.raises(InferenceError):
            hung.result(10)
        with pytest.raises(ModelHungError):
            lanes.run(own, FAST)
    assert lanes.is_idle


def test_those_who_share_a_run_that_hangs_are_answered_too(own: Model) -> None:
    lanes, mixed = watched(), []
    own.is_batchable = True
    with callers() as threads:
        first = threads.submit(lanes.run, own, HANGS, deadline_ns=time.perf_counter_ns() + 300_000_000)
        until(lambda: lanes.oldest_run_s > 0)
        mixed = queue_up(threads, lanes, own, [HANGS, HANGS, HANGS])
        with pytest.raises(DeadlineExceededError):
            first.result(10)  # its caller's own deadline ended that one; one of the others hangs next
        until(lambda: lanes.oldest_run_s > 0.05)
        lanes.give_up()
        _require_all_failed(mixed)
    assert lanes.is_idle


def _require_all_failed(calls: list[Future[Run]]) -> None:
    for call in calls:
        with pytest.raises(InferenceError):
            call.result(10)


def test_closed_lanes_give_a_run_up_that_goes_on_beyond_the_limit(own: Model) -> None:
    lanes = watched(hang_timeout_s=0.2)
    with callers() as threads:
        hung = threads.submit(lanes.run, own, HANGS)
        until(lambda: lanes.oldest_run_s > 0)
        lanes.close()
        with pytest.raises(InferenceError):
            hung.result(10)


def test_closed_lanes_answer_those_who_came_before(model: Model) -> None:
    lanes, slow = watched(), {"x": np.array([[2e5]], np.float32)}
    with callers() as threads:
        first = threads.submit(lanes.run, model, slow)
        until(lambda: lanes.oldest_run_s > 0 or first.done())
        waiting = [threads.submit(lanes.run, model, FAST) for _ in range(4)]
        lanes.close()
        assert first.result(20)[0]["y"].item() == 2e5
        assert [call.result(20)[0]["y"].item() for call in waiting] == [1.0] * 4


def test_released_lanes_let_a_run_take_as_long_as_it_likes(own: Model) -> None:
    lanes = watched(hang_timeout_s=0.05)
    with callers() as threads:
        long = threads.submit(lanes.run, own, {"x": np.array([[4e5]], np.float32)})
        until(lambda: lanes.oldest_run_s > 0.06 or long.done())
        lanes.release()
        assert long.result(20)[0]["y"].item() == pytest.approx(4e5)
    assert lanes.is_closed


def test_warming_a_model_that_hangs_on_made_up_inputs_ends_within_its_limit(tmp_path: Path) -> None:
    hangs = looping(tmp_path / "hangs.onnx", turns_per_one=1e15)
    with pytest.raises(InferenceError, match=r"hangs: warming it took longer than 0\.2 s"):
        hangs.warm(limit_s=0.2)


def test_golden_vectors_on_which_a_model_hangs_are_wrong_within_their_limit(own: Model) -> None:
    variant = Variant(
        name="v", file=Artifact(sha256="0" * 64, size_bytes=1), opset=17, quantization="none", golden_tolerance=0.0
    )
    with pytest.raises(GoldenMismatchError, match="hangs on its golden vectors"):
        check_golden(own, dict(HANGS), dict(HANGS), variant, limit_s=0.2)
    assert own.run(FAST)["y"].item() == 1.0  # the run was cancelled, not the model
