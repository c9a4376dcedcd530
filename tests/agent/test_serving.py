"""The serving path: arms, shadows, options, many items at once, and what telemetry counts of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import (
    AgentError,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    UnknownModelError,
    WouldWaitError,
)
from edge_agent.local_api.service import CallOptions
from edge_agent.prediction import Prediction
from tests.agent.runtime import onnx_files
from tests.agent.telemetry.device import Device, X
from tests.real_servers.processes import wait_until


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    opened = Device(tmp_path)
    yield opened
    opened.close()


def answered(answer: Prediction | AgentError) -> Prediction:
    assert isinstance(answer, Prediction), answer
    return answer


def test_a_key_always_meets_the_same_arm_and_arms_get_their_shares(device: Device) -> None:
    device.put_to_work("1.0.0", weight=3.0)
    device.put_to_work("2.0.0", arm="b", weight=1.0)

    met = {key: device.path.infer("m", X, CallOptions(key=key)).arm for key in map(str, range(400))}
    again = {key: device.path.infer("m", X, CallOptions(key=key)).arm for key in met}

    assert again == met
    share = Counter(met.values())["b"] / len(met)
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    drawn = Counter(device.path.infer("m", X).version for _ in range(400))
    assert abs(drawn["2.0.0"] / 400 - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


def test_a_version_that_is_asked_for_answers_whatever_the_weights(device: Device) -> None:
    device.put_to_work("1.0.0", weight=1000.0)
    device.put_to_work("2.0.0", arm="b", weight=0.001)

    assert device.path.infer("m", X, CallOptions(version="2.0.0")).arm == "b"
    with pytest.raises(UnknownModelError, match=r"no version '3.0.0' of m is loaded here: loaded is 2.0.0, 1.0.0"):
        device.path.infer("m", X, CallOptions(version="3.0.0"))


def test_every_arm_has_a_window_of_its_own(device: Device) -> None:
    device.put_to_work("1.0.0")
    device.put_to_work("2.0.0", arm="b")
    for version in ("1.0.0", "1.0.0", "2.0.0"):
        device.path.infer("m", X, CallOptions(version=version))

    windows = {(window.version, window.arm): window for window in device.closed()}

    assert {key: window.count for key, window in windows.items()} == {("1.0.0", "main"): 2, ("2.0.0", "b"): 1}
    assert windows["1.0.0", "main"].batch_sizes == {1: 2}


def test_a_shadow_is_compared_in_idle_time_and_answers_nobody(device: Device, tmp_path: Path) -> None:
    device.put_to_work("1.0.0")
    # a negative weight lets the first class win where the served model sees the last
    opposite = onnx_files.linear(tmp_path / "opposite.onnx", weight=-1.0)
    shadow = device.put_to_work("2.0.0", arm="candidate", shadow=True, file=opposite)

    versions = {device.path.infer("m", X).version for _ in range(10)}
    wait_until(lambda: shadow.series._sums.shadow_compared >= 10, timeout_s=20, what="the shadow runs")
    windows = {window.arm: window for window in device.closed()}

    assert versions == {"1.0.0"}
    assert windows["candidate"].count == 0
    told = windows["candidate"].shadow
    assert told is not None
    assert (told.compared, told.disagreed) == (10, 10)


def test_a_shadow_that_fails_counts_its_errors_and_harms_no_call(device: Device, tmp_path: Path) -> None:
    device.put_to_work("1.0.0")
    shadow = device.put_to_work(
        "2.0.0", arm="candidate", shadow=True, file=onnx_files.two_inputs(tmp_path / "other.onnx")
    )

    assert device.path.infer("m", X).version == "1.0.0"
    wait_until(lambda: shadow.series._sums.errors.total() == 1, timeout_s=20, what="the shadow runs")


def test_many_items_share_runs_and_a_bad_one_costs_itself_only(device: Device) -> None:
    device.put_to_work()
    items = [{"x": np.full((1, 3), float(number), dtype=np.float32)} for number in range(11)]
    items[4] = {"x": np.zeros((1, 5), dtype=np.float32)}

    answers = device.path.infer_many("m", items)

    assert isinstance(answers[4], InvalidInputError)
    scores = [answered(answer).outputs["scores"].tolist() for place, answer in enumerate(answers) if place != 4]
    assert scores == [[[0.0, 6.0 * number]] for number in range(11) if number != 4]
    assert len({answered(answer).id for place, answer in enumerate(answers) if place != 4}) == 10
    (window,) = device.closed()
    assert window.count == 10
    assert window.errors == {"invalid_input": 1}
    assert window.batch_sizes == {8: 1, 2: 1}


def test_items_that_fail_together_are_answered_alone(device: Device, tmp_path: Path) -> None:
    device.put_to_work(file=onnx_files.row_of_table(tmp_path / "table.onnx"), task="regression", features=0)
    items = [{"x": np.array([row])} for row in (0, 7, 1)]

    answers = device.path.infer_many("m", items)

    assert answered(answers[0]).outputs["y"].tolist() == [10.0]
    assert isinstance(answers[1], InferenceError)
    assert answered(answers[2]).outputs["y"].tolist() == [20.0]


def test_a_call_that_may_not_wait_says_so_while_the_lane_is_taken(device: Device) -> None:
    serving = device.put_to_work()
    assert serving.lanes.try_enter()
    try:
        with pytest.raises(WouldWaitError):
            device.path.infer("m", X, CallOptions(may_wait=False))
        with pytest.raises(DeadlineExceededError):
            device.path.infer("m", X, CallOptions(timeout_s=0.05))
    finally:
        serving.lanes.leave()

    assert device.path.infer("m", X, CallOptions(may_wait=False)).version == "1.0.0"
    (window,) = device.closed()
    assert window.errors == {"deadline": 1}


def test_a_call_waits_for_a_sleeping_model_and_for_no_other(device: Device) -> None:
    serving = device.put_to_work()
    device.residency.sleep(serving.slot)
    assert serving.slot.model is None

    with pytest.raises(WouldWaitError):
        device.path.infer("m", X, CallOptions(may_wait=False))
    assert device.path.infer("m", X).outputs["scores"].tolist() == [[0.0, 6.0]]
    assert serving.slot.model is not None


def test_what_was_refused_does_not_speak_against_the_model(device: Device) -> None:
    device.put_to_work()
    device.path.infer("m", X)
    with pytest.raises(InvalidInputError):
        device.path.infer("m", {"x": np.zeros((1, 9), dtype=np.float32)})

    stats = device.path.stats("m", "main")

    assert stats is not None
    assert (stats.count, stats.errors, stats.refused) == (1, 0, 1)


def test_many_items_count_as_uses_of_the_model(device: Device) -> None:
    serving = device.put_to_work()
    device.path.infer_many("m", [X] * 11)

    assert serving.slot.uses == 11
    assert serving.slot.last_used_ns > 0


def test_a_batch_that_comes_too_late_is_counted_as_such(device: Device) -> None:
    serving = device.put_to_work()
    assert serving.lanes.try_enter()
    try:
        with pytest.raises(DeadlineExceededError):
            device.path.infer_many("m", [X] * 3, CallOptions(timeout_s=0.05))
    finally:
        serving.lanes.leave()

    (window,) = device.closed()
    assert window.errors == {"deadline": 1}
