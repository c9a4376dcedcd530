"""Outcomes: each counted once, with the version that predicted, however late it comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.errors import InvalidInputError, UserError
from edge_agent.telemetry.prediction_ids import decode_prediction_id, encode_prediction_id
from fleet_protocol.messages import Outcomes
from tests.agent.telemetry.device import Device, X


def test_outcomes_after_a_swap_are_credited_to_the_version_that_predicted(device: Device) -> None:
    device.put_to_work("1.0.0")
    right, wrong = device.path.infer("m", X), device.path.infer("m", X)
    device.closed()
    device.put_to_work("2.0.0")
    for _ in range(5):
        device.closed()

    device.path.report_outcome(right.id, label="yes")
    device.path.report_outcome(wrong.id, label=0)

    by_version = {window.version: window.outcomes for window in device.closed()}
    assert by_version == {"1.0.0": Outcomes(correct=1, wrong=1), "2.0.0": None}


def test_outcomes_after_a_restart_are_credited_to_the_version_that_predicted(tmp_path: Path) -> None:
    before = Device(tmp_path)
    before.put_to_work("1.0.0")
    prediction_id = before.path.infer("m", X).id
    before.closed()
    before.close()
    after = Device(tmp_path)
    after.put_to_work("2.0.0")

    after.path.report_outcome(prediction_id, correct=True)

    by_version = {window.version: (window.count, window.outcomes) for window in after.closed()}
    assert by_version == {"1.0.0": (0, Outcomes(correct=1)), "2.0.0": (0, None)}
    after.close()


def test_an_outcome_that_is_reported_twice_counts_once(device: Device) -> None:
    device.put_to_work()
    made = device.path.infer("m", X)

    for _ in range(3):
        device.path.report_outcome(made.id, correct=False)

    assert device.closed()[0].outcomes == Outcomes(wrong=1)


def test_two_predictions_of_the_same_input_have_outcomes_of_their_own(device: Device) -> None:
    device.put_to_work()

    for _ in range(3):
        device.path.report_outcome(device.path.infer("m", X).id, correct=True)

    assert device.closed()[0].outcomes == Outcomes(correct=3)


def test_outcomes_for_ever_more_versions_are_refused_at_a_bound(device: Device) -> None:
    device.put_to_work()

    with pytest.raises(UserError, match="256 model versions"):
        for number in range(300):
            device.path.report_outcome(id_of_version(number), correct=True)

    assert len(device.closed()) == 256


def id_of_version(number: int) -> str:
    """An id that an earlier boot made for a version of its own."""
    return encode_prediction_id(
        boot_id="00000000-00000000", number=number, model="other", version=f"{number}.0.0", variant="fp32", arm="main",
        predicted_class=None, predicted_label=None, predicted_value=None,
    )  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_a_truth_without_a_finite_error_is_refused_and_does_not_spoil_the_window(device: Device, value: float) -> None:
    device.put_to_work(task="regression")
    made = device.path.infer("m", X)
    prediction_id = id_with_value(made.id, 2.0)

    with pytest.raises(InvalidInputError, match="finite"):
        device.path.report_outcome(prediction_id, value=value)
    device.path.report_outcome(prediction_id, value=5.0)

    [window] = [window for window in device.closed() if window.outcomes]
    assert window.outcomes == Outcomes(squared_error_sum=9.0, squared_error_count=1)


def id_with_value(text: str, value: float) -> str:
    """The same prediction, had its output been `value`."""
    made = decode_prediction_id(text)
    return encode_prediction_id(
        boot_id=made.boot_id, number=made.number, model=made.model, version=made.version, variant=made.variant,
        arm=made.arm, predicted_class=None, predicted_label=None, predicted_value=value,
    )  # fmt: skip
