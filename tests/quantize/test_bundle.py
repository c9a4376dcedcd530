"""Golden vectors, evaluation and the bundle folder."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import BundleRefusedError
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_protocol.manifest import TensorSpec
from models.digits.recipe import HERE
from quantize.bundle import BundleParts, VariantFile, write_bundle
from quantize.data import Samples
from quantize.errors import InvalidDataError, InvalidModelError, InvalidOptionError
from quantize.evaluation import measure
from quantize.golden import golden_file, golden_inputs, golden_outputs, measure_tolerance
from quantize.metrics import METRICS, metric_named
from quantize.references import default_features, uncounted
from tests.quantize.networks import dense_classifier

MODEL = dense_classifier(np.array([[2.0, -2.0], [0.0, 1.0]], dtype=np.float32))
X = np.random.default_rng(2).normal(size=(100, 2)).astype(np.float32)
SPECS = [TensorSpec(name="x", datatype="FP32", shape=[-1, 2])]
accuracy = METRICS["accuracy"]


def parts(*, content: bytes = MODEL) -> BundleParts:
    variant = VariantFile(
        name="fp32", content=content, quantization="none", tolerance_floor=0.001, expected={"accuracy": 0.9}
    )
    return BundleParts(
        model="pair",
        version="0.1.0",
        created_at_ns=1,
        variants=[variant],
        reference={"x": X},
        unseen={"x": X},
        features=default_features(SPECS),
    )


def by_hand(x: np.ndarray) -> np.ndarray:
    logits = x @ np.array([[2.0, -2.0], [0.0, 1.0]])
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def test_accuracy_is_the_share_of_right_answers_and_a_nan_answer_is_wrong() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [np.nan, 0.5]])

    assert accuracy({"y": scores}, Samples(inputs={"x": scores}, labels=np.array([0, 1, 1, 0]))) == 0.5
    with pytest.raises(InvalidDataError, match="classes 0 to 1"):
        accuracy({"y": scores}, Samples(inputs={"x": scores}, labels=np.array([0, 1, 2, 0])))


def test_a_model_is_measured_on_every_sample() -> None:
    truth = by_hand(X).argmax(axis=1)
    wrong = truth.copy()
    wrong[-7:] = 1 - wrong[-7:]

    measured = measure(MODEL, Samples(inputs={"x": X}, labels=wrong), accuracy)

    assert measured.metrics == {"accuracy": 0.93}
    assert measured.samples == 100
    assert 0 < measured.p50_us <= measured.p90_us
    assert measured.size_bytes == len(MODEL)
    with pytest.raises(InvalidDataError, match="no labels"):
        measure(MODEL, Samples(inputs={"x": X}), accuracy)
    with pytest.raises(InvalidOptionError, match="unknown metric"):
        metric_named("beauty")


def test_golden_vectors_hold_inputs_and_each_variants_answers() -> None:
    inputs = golden_inputs({"x": X}, SPECS)

    content = golden_file(inputs, {"fp32": golden_outputs(MODEL, inputs)})

    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        assert sorted(archive.files) == ["input:x", "output:fp32:probabilities"]
        assert archive["input:x"].shape == (8, 2)
        np.testing.assert_array_equal(archive["input:x"][[0, -1]], X[[0, -1]])
        np.testing.assert_allclose(archive["output:fp32:probabilities"], by_hand(archive["input:x"]), atol=1e-6)
    assert golden_file(inputs, {"fp32": golden_outputs(MODEL, inputs)}) == content


def test_golden_vectors_are_one_batch_because_a_device_runs_them_at_once() -> None:
    single = dense_classifier(np.eye(2, dtype=np.float32), batch=1)
    inputs = golden_inputs({"x": X}, [TensorSpec(name="x", datatype="FP32", shape=[1, 2])])

    assert golden_outputs(single, inputs)["probabilities"].shape == (1, 2)
    assert measure_tolerance(single, inputs, floor=0.001) == 0.001


def test_the_tolerance_is_at_least_the_floor_and_grows_with_what_is_measured() -> None:
    inputs = golden_inputs({"x": X}, SPECS)

    assert measure_tolerance(MODEL, inputs, floor=0.001) == 0.001
    # a floor below the rounding between two optimisation levels shows the measured part
    sensitive = (HERE / "fp32" / "1.1.0.onnx").read_bytes()
    images = {"image": np.random.default_rng(0).uniform(0, 16, size=(8, 1, 8, 8)).astype(np.float32)}
    assert 1e-9 < measure_tolerance(sensitive, images, floor=1e-9) < 1e-4


def test_a_model_that_answers_nan_has_no_golden_vectors() -> None:
    broken = dense_classifier(np.full((2, 2), np.nan, dtype=np.float32))

    with pytest.raises(InvalidModelError, match="NaN"):
        measure_tolerance(broken, golden_inputs({"x": X}, SPECS), floor=0.1)


def test_a_bundle_counts_its_references_with_the_devices_bins(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "bundle", parts())

    assert read_manifest(tmp_path / "bundle") == manifest
    assert [feature.name for feature in manifest.features] == ["column_0", "column_1"]
    assert [sum(feature.counts) for feature in manifest.features] == [100, 100]
    assert manifest.features[1].edges[0] == float(X[:, 1].min())
    assert manifest.classes == np.bincount(by_hand(X).argmax(axis=1)).tolist()
    assert manifest.score is not None
    np.testing.assert_allclose(manifest.score.edges[-1], by_hand(X).max(), rtol=1e-6)
    assert manifest.labels == ["0", "1"]
    assert all(file_path(tmp_path / "bundle", artifact.sha256).is_file() for artifact in manifest.artifacts())


def test_the_same_parts_give_the_same_manifest(tmp_path: Path) -> None:
    assert write_bundle(tmp_path / "a", parts()) == write_bundle(tmp_path / "b", parts())


def test_an_existing_bundle_is_never_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_bundle(folder, parts())
    before = (folder / "manifest.json").read_bytes()

    with pytest.raises(InvalidOptionError, match="exists already"):
        write_bundle(folder, replace(parts(), version="0.2.0"))
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"features": [uncounted("odd", "entropy", "x")]}, BundleRefusedError),
        ({"features": [uncounted("sharp", "sharpness", "x")]}, BundleRefusedError),
        ({"labels": ["yes", "no", "maybe"]}, InvalidOptionError),
        ({"reference": {"x": np.full((5, 2), np.nan)}}, InvalidDataError),
    ],
    ids=["unknown extractor", "unfit extractor", "too many class names", "nothing to count"],
)
def test_a_bundle_that_cannot_be_whole_does_not_appear(
    tmp_path: Path, wrong: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        write_bundle(tmp_path / "bundle", replace(parts(), **wrong))  # type: ignore[arg-type] # parametrized
    assert list(tmp_path.iterdir()) == []


def test_variants_of_different_models_are_refused(tmp_path: Path) -> None:
    other = dense_classifier(np.ones((3, 2), dtype=np.float32))
    both = [*parts().variants, *parts(content=other).variants]

    with pytest.raises(InvalidModelError, match="same inputs"):
        write_bundle(tmp_path / "bundle", replace(parts(), variants=both))


def test_features_are_chosen_by_the_inputs_shape() -> None:
    def chosen(shape: list[int]) -> list[str]:
        spec = TensorSpec(name="x", datatype="FP32", shape=shape)
        return [feature.extractor for feature in default_features([spec])]

    assert chosen([-1, 3, 8, 8]) == ["mean", "std", "brightness", "sharpness"]
    assert chosen([-1, 3]) == ["column", "column", "column"]
    assert chosen([-1, 490]) == ["mean", "std"]
    assert default_features([TensorSpec(name="t", datatype="BYTES", shape=[-1, 1])]) == []
