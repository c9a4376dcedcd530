"""What a window tells about answers without their truth: estimated accuracy, and the scores of other tasks."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.telemetry.merging import merge_windows
from edge_agent.telemetry.recorder import Recorder
from edge_agent.telemetry.series import Series, SeriesKey
from fleet_protocol.bins import BinSketch
from fleet_protocol.manifest import ConfidenceCalibration, ScoreReference
from fleet_protocol.messages import OutboxStatus, Resources, Window, decode, encode

KEY = SeriesKey("m", "1.0.0", "fp32", "main")
CALIBRATION = ConfidenceCalibration(scores=[0.5, 0.9], confidences=[0.2, 0.8])
STEP = 1 / 1024  # sums travel in steps of so much
SCORE = ScoreReference(edges=[0.0, 1.0, 2.0], counts=[1, 1])


def window_of(series: Series, sequence: int = 1) -> Window:
    made = series.close_window(start_ns=1, end_ns=2, resources=Resources(), outbox=OutboxStatus())
    return decode(Window, encode(made(device="d1", boot_id="00000000-00000000", sequence=sequence)))


def test_the_estimate_sums_calibrated_confidences_and_their_variances() -> None:
    series = Series(KEY)
    series.watch((), None, confidence=CALIBRATION)
    # below the first point, between the points, above the last, and two rows in one call
    for scores in ((0.1,), (0.7,), (0.99, 0.9)):
        series.samples.append((1.0, 0.0, 1, (0,) * len(scores), scores))
    series.absorb()

    told = window_of(series).estimated_accuracy

    assert told is not None
    expected = np.array([0.2, 0.5, 0.8, 0.8])
    assert told.count == 4
    assert told.confidence_sum == pytest.approx(expected.sum(), abs=STEP)
    assert told.variance_sum == pytest.approx((expected * (1 - expected)).sum(), abs=STEP)


def test_an_answer_that_is_not_a_number_is_not_estimated() -> None:
    series = Series(KEY)
    series.watch((), SCORE, confidence=CALIBRATION)
    series.samples.append((1.0, 0.0, 1, (0, 0), (float("nan"), 0.9)))
    series.absorb()

    told = window_of(series)

    assert told.estimated_accuracy is not None
    assert (told.estimated_accuracy.count, told.estimated_accuracy.confidence_sum) == (1, pytest.approx(0.8, abs=STEP))
    assert BinSketch.from_bytes(SCORE.edges, told.score).count == 2


def test_without_a_calibration_nothing_is_estimated() -> None:
    series = Series(KEY)
    series.watch((), SCORE)
    series.samples.append((1.0, 0.0, 1, (0,), (0.9,)))
    series.absorb()

    assert window_of(series).estimated_accuracy is None


def test_estimates_begin_again_with_each_window_and_add_up_when_merged() -> None:
    series = Series(KEY)
    series.watch((), None, confidence=CALIBRATION)
    windows = []
    for sequence in (1, 2):
        series.samples.append((1.0, 0.0, 1, (0,), (0.9,)))
        series.absorb()
        windows.append(window_of(series, sequence))

    assert [w.estimated_accuracy.count for w in windows if w.estimated_accuracy] == [1, 1]
    merged = merge_windows(*windows).estimated_accuracy
    assert merged is not None
    assert (merged.count, merged.confidence_sum) == (2, pytest.approx(1.6, abs=2 * STEP))


@pytest.mark.parametrize(
    ("task", "outputs", "place"),
    [("anomaly", {"y": np.array([[1.0, 2.0]])}, 1), ("regression", {"y": np.array([[0.25]])}, 0)],
)
def test_the_score_of_an_anomaly_or_a_value_is_counted_on_sampled_calls(
    task: str, outputs: dict[str, np.ndarray], place: int
) -> None:
    recorder = Recorder(device="d1", window_s=3_600.0, outbox=None, data_dir=None)
    series = recorder.serve(KEY, None)
    series.watch((), SCORE, task=task)
    inputs = {"x": np.array([[0.0, 1.0]])}

    assert series.has_features
    recorder.sample_inputs(series, inputs, outputs)
    for array in outputs.values():
        array[:] = 9.0  # the caller's own from now on
    recorder.sample_inputs(series, inputs)  # without its answer, there is no score
    recorder.totals()

    assert BinSketch.from_bytes(SCORE.edges, window_of(series).score).bins.tolist() == [1 - place, place]
