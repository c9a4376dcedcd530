"""Evaluation and the bundle folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.control.golden import check_golden, load_golden
from edge_agent.errors import BundleRefusedError
from edge_agent.runtime.session import Model
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_protocol.manifest import Task, TensorSpec
from quantize.bundle import MAX_CARD_BYTES, BundleParts, VariantFile, write_bundle
from quantize.data import Samples
from quantize.errors import InvalidDataError, InvalidModelError, InvalidOptionError
from quantize.evaluation import loaded, run_all
from quantize.golden import MAX_GOLDEN_SAMPLES
from quantize.metrics import METRICS
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


def linear_network(weights: NDArray[np.float32]) -> bytes:
    """`y` = `x` @ `weights`: x FP32 `[n, inputs]`, weights `[inputs, outputs]`."""
    inputs, outputs = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


def by_hand(x: np.ndarray) -> np.ndarray:
    logits = x @ np.array([[2.0, -2.0], [0.0, 1.0]])
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def test_accuracy_is_the_share_of_right_answers_and_a_nan_answer_is_wrong() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [np.nan, 0.5]])

    assert accuracy({"y": scores}, Samples(inputs={"x": scores}, labels=np.array([0, 1, 1, 0]))) == 0.5
    with pytest.raises(InvalidDataError, match="classes 0 to 1"):
        accuracy({"y": scores}, Samples(inputs={"x": scores}, labels=np.array([0, 1, 2, 0])))


def test_a_model_answers_every_sample_and_in_their_order() -> None:
    with loaded(MODEL) as model:
        np.testing.assert_allclose(run_all(model, {"x": X})["probabilities"], by_hand(X), atol=1e-6)


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
        ({"task": "anomaly", "labels": ["good", "bad"]}, InvalidOptionError),
        ({"task": "anomaly", "unseen": {"x": X[:, :1]}}, InvalidDataError),
        ({"card": "x" * (MAX_CARD_BYTES + 1)}, InvalidOptionError),
    ],
    ids=[
        "unknown extractor",
        "unfit extractor",
        "too many class names",
        "nothing to count",
        "classes of no classifier",
        "samples that do not fit",
        "a card that is too long",
    ],
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


def test_a_labelled_bundle_calibrates_confidence_and_has_golden_vectors_of_every_class(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    truth = by_hand(X).argmax(axis=1)
    truth[::5] = 1 - truth[::5]
    x = np.tile(X, (3, 1))

    manifest = write_bundle(folder, replace(parts(), labelled=Samples(inputs={"x": x}, labels=np.tile(truth, 3))))

    assert manifest.confidence is not None
    assert 0.5 < manifest.confidence.confidences[-1] < 1.0
    inputs, expected = load_golden(file_path(folder, manifest.golden.sha256), "fp32")
    assert len(inputs["x"]) == 8
    of_class = [truth[int(np.flatnonzero((row == X).all(axis=1))[0])] for row in inputs["x"]]
    assert sorted(of_class) == [0] * 4 + [1] * 4
    [variant] = manifest.variants
    check_golden(Model.load(file_path(folder, variant.file.sha256)), inputs, expected, variant)


def test_labels_that_are_no_classes_cannot_calibrate_confidence(tmp_path: Path) -> None:
    values = Samples(inputs={"x": X}, labels=np.linspace(0, 1, 100))

    with pytest.raises(InvalidDataError, match="class numbers"):
        write_bundle(tmp_path / "bundle", replace(parts(), labelled=values))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "outputs", "scores"),
    [("anomaly", 4, lambda x: (x * x).mean(axis=1)), ("regression", 1, lambda x: 2.0 * x[:, 0])],
)
def test_a_model_without_classes_has_the_distribution_of_its_scores_and_no_classes(
    tmp_path: Path, task: Task, outputs: int, scores: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    """Twice the input, whole or its first column: the error of the reconstruction is the mean square of the input."""
    x = np.random.default_rng(3).normal(size=(200, 4)).astype(np.float32) * 30
    content = linear_network(2 * np.eye(4, outputs, dtype=np.float32))
    folder = tmp_path / "bundle"

    manifest = write_bundle(
        folder, replace(parts(content=content), task=task, reference={"x": x}, unseen={"x": x}, features=[])
    )

    assert (manifest.labels, manifest.classes, manifest.confidence) == ([], [], None)
    assert manifest.score is not None
    by_hand_scores = scores(x.astype(np.float64))
    assert sum(manifest.score.counts) == 200
    np.testing.assert_allclose(
        [manifest.score.edges[0], manifest.score.edges[-1]], [by_hand_scores.min(), by_hand_scores.max()], rtol=1e-4
    )
    [variant] = manifest.variants
    inputs, expected = load_golden(file_path(folder, manifest.golden.sha256), "fp32")
    assert 0.03 < variant.golden_tolerance < 1.0  # a thousandth of answers that span some hundred
    answers = scores(inputs["x"].astype(np.float64))
    assert np.argmin(by_hand_scores) == np.abs(by_hand_scores - answers[0]).argmin()
    assert np.argmax(by_hand_scores) == np.abs(by_hand_scores - answers[-1]).argmin()
    check_golden(Model.load(file_path(folder, variant.file.sha256)), inputs, expected, variant)


def test_a_bundle_sums_random_features_of_the_tensor_that_was_asked_for(tmp_path: Path) -> None:
    chosen = write_bundle(tmp_path / "a", parts()).random_features
    answer = write_bundle(tmp_path / "b", replace(parts(), embedding="probabilities")).random_features

    assert chosen is not None
    assert (chosen.tensor, chosen.count, len(chosen.sums)) == ("x", 100, 256)
    assert answer is not None
    assert answer.tensor == "probabilities"
    with pytest.raises(InvalidOptionError, match="no tensor 'y'"):
        write_bundle(tmp_path / "c", replace(parts(), embedding="y"))


def test_a_bundle_ships_the_makers_card_with_its_facts_and_its_report(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"

    manifest = write_bundle(folder, replace(parts(), card="# Pair\n\nTells two things apart.", report_html=b"<p>found"))

    assert manifest.card is not None
    assert manifest.report is not None
    card = file_path(folder, manifest.card.sha256).read_text()
    assert card.startswith("# Pair\n\nTells two things apart.\n\n## This version")
    assert manifest.variants[0].file.sha256 in card
    assert file_path(folder, manifest.report.sha256).read_bytes() == b"<p>found"
    assert {manifest.card, manifest.report} <= set(manifest.artifacts())


def test_a_variant_says_which_cpus_it_is_for(tmp_path: Path) -> None:
    [everywhere] = parts().variants
    both = [everywhere, replace(everywhere, name="int8-arm", architectures=("aarch64",))]

    manifest = write_bundle(tmp_path / "bundle", replace(parts(), variants=both))

    assert [variant.architectures for variant in manifest.variants] == [[], ["aarch64"]]


def test_samples_answered_with_nan_are_never_golden(tmp_path: Path) -> None:
    x = X.copy()
    x[::2] = np.nan
    folder = tmp_path / "bundle"

    manifest = write_bundle(folder, replace(parts(), unseen={"x": x}))

    inputs, _ = load_golden(file_path(folder, manifest.golden.sha256), "fp32")
    assert np.isfinite(inputs["x"]).all()
    with pytest.raises(InvalidModelError, match="golden"):
        write_bundle(tmp_path / "other", replace(parts(), unseen={"x": np.full_like(X, np.nan)}))


def test_many_classes_have_sixteen_golden_samples(tmp_path: Path) -> None:
    classes = np.eye(20, dtype=np.float32)
    content = dense_classifier(classes)
    samples = Samples(inputs={"x": np.tile(classes, (4, 1))}, labels=np.tile(np.arange(20), 4))
    folder = tmp_path / "bundle"

    manifest = write_bundle(
        folder,
        replace(parts(content=content), features=[], reference=samples.inputs, unseen=samples.inputs, labelled=samples),
    )

    inputs, expected = load_golden(file_path(folder, manifest.golden.sha256), "fp32")
    assert len(inputs["x"]) == MAX_GOLDEN_SAMPLES
    assert len(set(expected["probabilities"].argmax(axis=1).tolist())) == MAX_GOLDEN_SAMPLES
    assert manifest.confidence is None  # every answer was right: nothing is known of wrong ones


def test_features_are_chosen_by_the_inputs_shape() -> None:
    def chosen(shape: list[int]) -> list[str]:
        spec = TensorSpec(name="x", datatype="FP32", shape=shape)
        return [feature.extractor for feature in default_features([spec])]

    assert chosen([-1, 3, 8, 8]) == ["mean", "std", "brightness", "sharpness"]
    assert chosen([-1, 3]) == ["column", "column", "column"]
    assert chosen([-1, 490]) == ["mean", "std"]
    assert default_features([TensorSpec(name="t", datatype="BYTES", shape=[-1, 1])]) == []
