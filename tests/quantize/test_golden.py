"""Golden vectors: which samples, how many, and how far an answer may differ."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_protocol.manifest import TensorSpec
from models.digits.recipe import HERE
from quantize.errors import InvalidModelError
from quantize.golden import (
    GOLDEN_SAMPLES,
    MAX_GOLDEN_BYTES,
    MAX_GOLDEN_SAMPLES,
    golden_file,
    golden_inputs,
    golden_limit,
    golden_outputs,
    measure_tolerance,
    places_over_classes,
    places_over_scores,
    tolerance_scale,
)
from tests.agent.runtime.onnx_files import mlperf_tiny
from tests.quantize.networks import dense_classifier

MODEL = dense_classifier(np.array([[2.0, -2.0], [0.0, 1.0]], dtype=np.float32))
X = np.random.default_rng(2).normal(size=(100, 2)).astype(np.float32)
SPECS = [TensorSpec(name="x", datatype="FP32", shape=[-1, 2])]
EIGHT = np.arange(8, dtype=np.int64)


def by_hand(x: np.ndarray) -> np.ndarray:
    logits = x @ np.array([[2.0, -2.0], [0.0, 1.0]])
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def test_golden_vectors_hold_inputs_and_each_variants_answers() -> None:
    inputs = golden_inputs({"x": X}, SPECS, EIGHT)

    content = golden_file(inputs, {"fp32": golden_outputs(MODEL, inputs)})

    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        assert sorted(archive.files) == ["input:x", "output:fp32:probabilities"]
        np.testing.assert_array_equal(archive["input:x"], X[:8])
        np.testing.assert_allclose(archive["output:fp32:probabilities"], by_hand(archive["input:x"]), atol=1e-6)
    assert golden_file(inputs, {"fp32": golden_outputs(MODEL, inputs)}) == content


def test_a_model_whose_batch_is_one_has_one_golden_sample() -> None:
    single = dense_classifier(np.eye(2, dtype=np.float32), batch=1)
    specs = [TensorSpec(name="x", datatype="FP32", shape=[1, 2])]
    inputs = golden_inputs({"x": X}, specs, places_over_scores(X[:, 0].astype(np.float64), golden_limit(8, specs)))

    assert golden_limit(8, specs) == 1
    assert golden_outputs(single, inputs)["probabilities"].shape == (1, 2)
    assert inputs["x"][0, 0] == np.sort(X[:, 0])[50]
    assert measure_tolerance(single, inputs, floor=0.001) == 0.001


def test_large_samples_are_fewer() -> None:
    assert golden_limit(100, SPECS) == MAX_GOLDEN_SAMPLES
    assert golden_limit(MAX_GOLDEN_BYTES // 3, SPECS) == 3
    assert golden_limit(MAX_GOLDEN_BYTES * 2, SPECS) == 1


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, MAX_GOLDEN_SAMPLES))
def test_golden_samples_are_spread_over_the_classes(labels: list[int], limit: int) -> None:
    truth = np.array(labels)

    places = places_over_classes(truth, limit)

    assert len(set(places.tolist())) == len(places) <= limit
    classes = set(labels)
    chosen = truth[places].tolist()
    assert len(set(chosen)) == min(len(classes), limit)  # every class, or as many as fit
    if len(classes) >= GOLDEN_SAMPLES:
        assert len(chosen) == len(set(chosen))  # one of each
    else:
        assert len(chosen) == min(limit, sum(min(labels.count(c), GOLDEN_SAMPLES) for c in classes), GOLDEN_SAMPLES)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=100), st.integers(2, MAX_GOLDEN_SAMPLES))
def test_golden_samples_run_from_the_least_to_the_greatest_score(scores: list[float], limit: int) -> None:
    values = np.array(scores)

    chosen = values[places_over_scores(values, limit)]

    assert len(chosen) == min(limit, GOLDEN_SAMPLES, len(scores))
    assert chosen[0] == min(scores)
    if len(chosen) > 1:
        assert chosen[-1] == max(scores)
    assert (np.diff(chosen) >= 0).all()


def test_the_tolerance_is_at_least_the_floor_and_grows_with_what_is_measured() -> None:
    inputs = golden_inputs({"x": X}, SPECS, EIGHT)

    assert measure_tolerance(MODEL, inputs, floor=0.001) == 0.001
    # a floor below the rounding between two optimisation levels shows the measured part
    sensitive = Path(HERE / "fp32" / "1.1.0.onnx").read_bytes()
    images = {"image": np.random.default_rng(0).uniform(0, 16, size=(8, 1, 8, 8)).astype(np.float32)}
    assert 1e-9 < measure_tolerance(sensitive, images, floor=1e-9) < 1e-4


def test_a_model_that_answers_nan_has_no_golden_vectors() -> None:
    broken = dense_classifier(np.full((2, 2), np.nan, dtype=np.float32))

    with pytest.raises(InvalidModelError, match="NaN"):
        measure_tolerance(broken, golden_inputs({"x": X}, SPECS, EIGHT), floor=0.1)


@pytest.mark.parametrize(
    ("task", "outputs", "scale"),
    [
        ("classification", {"y": np.array([[0.1, 0.9]])}, 1.0),
        ("classification", {"label": np.array([7]), "y": np.array([[0.1, 0.9]])}, 1.0),
        ("classification", {"logits": np.array([[-12.0, 8.0]])}, 20.0),
        ("regression", {"y": np.array([[0.001], [0.003]])}, 0.002),
        ("regression", {"y": np.array([[50.0]])}, 50.0),
        ("regression", {"y": np.array([[0.0]])}, 1.0),
        ("anomaly", {"y": np.array([[-30.0, 10.0]]), "z": np.array([[0.5]])}, 40.0),
    ],
)
def test_a_floor_is_a_share_of_the_answers_range_unless_they_are_probabilities(
    task: str, outputs: dict[str, np.ndarray], scale: float
) -> None:
    assert tolerance_scale(task, outputs) == pytest.approx(scale)


def test_a_way_in_which_onnx_runtime_cannot_load_the_model_is_no_devices_way() -> None:
    """MLPerf Tiny's kws does not load with the u8u8 kernels in ONNX Runtime 1.32."""
    file = mlperf_tiny("kws.onnx")
    inputs = {"input_1": np.random.default_rng(0).normal(size=(2, 49, 10, 1)).astype(np.float32)}

    assert 0.001 <= measure_tolerance(file.read_bytes(), inputs, floor=0.001) < 0.1
