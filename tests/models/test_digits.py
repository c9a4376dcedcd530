"""The committed digits: the holdout, the three bundles, and what the model card says of them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from edge_agent.control.golden import check_golden, load_golden
from edge_agent.runtime.session import Model
from edge_agent.telemetry.features import check_extractor, extract
from fleet_protocol.bins import BinSketch
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_protocol.manifest import TensorSpec
from models.digits.data import CALIBRATION, FINAL, LABELS, SELECTION, TRAIN, all_digits, split
from models.digits.recipe import HERE, HOLDOUT, VERSIONS, DigitsVersion

MAX_FOLDER_BYTES = 1_000_000
by_version = pytest.mark.parametrize("recipe", VERSIONS, ids=lambda recipe: recipe.version)


def of(version: str) -> DigitsVersion:
    return next(recipe for recipe in VERSIONS if recipe.version == version)


def answers(recipe: DigitsVersion, images: NDArray[Any]) -> NDArray[np.float32]:
    """The probabilities `[n, 10]` of the bundle's first variant, by ONNX Runtime alone."""
    variant = read_manifest(recipe.recipe.bundle).variants[0]
    path = file_path(recipe.recipe.bundle, variant.file.sha256)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    probabilities: NDArray[np.float32] = session.run(["probabilities"], {"image": images.astype(np.float32)})[0]
    return probabilities


def accuracy(recipe: DigitsVersion, images: NDArray[Any], labels: NDArray[Any]) -> float:
    return float((answers(recipe, images[:, None]).argmax(axis=1) == labels).mean())


def holdout() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    with np.load(HOLDOUT, allow_pickle=False) as archive:
        return archive["images"], archive["labels"]


def card() -> dict[str, list[float]]:
    """The model card's accuracies by version: fp32, variant in its own pipeline, variant on upright images."""
    rows = re.findall(r"^\| (\d\.\d\.\d) \| float \|([ .\d|]+)\|$", (HERE / "README.md").read_text(), re.MULTILINE)
    return {version: [float(cell) for cell in cells.split("|")] for version, cells in rows}


def test_the_parts_never_share_an_image_and_leave_none_out() -> None:
    parts = split()
    everything = np.concatenate([parts[name].images for name in (TRAIN, CALIBRATION, SELECTION, FINAL)])
    labels = np.concatenate([parts[name].labels for name in (TRAIN, CALIBRATION, SELECTION, FINAL)])

    def rows(images: NDArray[Any], truth: NDArray[Any]) -> list[bytes]:
        return sorted(image.tobytes() + bytes([label]) for image, label in zip(images, truth, strict=True))

    assert rows(everything, labels) == rows(all_digits().images, all_digits().labels)


def test_the_holdout_is_the_final_part_of_scikit_learns_images_bit_for_bit() -> None:
    images, labels = holdout()
    final = split()[FINAL]

    assert images.dtype == labels.dtype == np.uint8
    assert images.shape == (500, 8, 8)
    assert images.tobytes() == final.images.tobytes()
    assert labels.tobytes() == final.labels.tobytes()


def test_all_committed_files_stay_small() -> None:
    files = [path for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    sizes = {path: path.stat().st_size for path in files if path.parent.name != "report"}

    assert sum(sizes.values()) < MAX_FOLDER_BYTES
    assert all(recipe.recipe.fp32.stat().st_size < 100_000 for recipe in VERSIONS)


@by_version
def test_every_file_of_a_bundle_has_its_digest_and_nothing_else_lies_there(recipe: DigitsVersion) -> None:
    manifest = read_manifest(recipe.recipe.bundle)

    for artifact in manifest.artifacts():
        content = file_path(recipe.recipe.bundle, artifact.sha256).read_bytes()
        assert hashlib.sha256(content).hexdigest() == artifact.sha256
        assert len(content) == artifact.size_bytes
    files = {path.name for path in recipe.recipe.bundle.rglob("*") if path.is_file() and path.parent.name != "report"}
    assert files == {"manifest.json"} | {artifact.sha256 for artifact in manifest.artifacts()}


@by_version
def test_a_manifest_says_all_a_device_and_a_server_need(recipe: DigitsVersion) -> None:
    manifest = read_manifest(recipe.recipe.bundle)

    assert (manifest.model, manifest.version, manifest.task) == ("digits", recipe.version, "classification")
    assert manifest.labels == list(LABELS)
    assert manifest.inputs == [TensorSpec(name="image", datatype="FP32", shape=[-1, 1, 8, 8])]
    assert manifest.outputs == [TensorSpec(name="probabilities", datatype="FP32", shape=[-1, 10])]
    assert manifest.variants[0].name in ("fp32", "fp32-optimised")
    assert not manifest.variants[0].architectures
    assert [feature.name for feature in manifest.features] == ["mean", "std", "brightness", "sharpness"]
    assert sum(manifest.classes) == 497
    assert manifest.score is not None
    assert sum(manifest.score.counts) == 497
    assert manifest.lineage.parent_version == recipe.parent
    assert manifest.lineage.training_data_sha256
    assert manifest.lineage.calibration_data_sha256
    assert manifest.memory_bytes > manifest.variants[0].file.size_bytes
    assert manifest.licence
    assert manifest.description


@by_version
def test_the_reference_distributions_are_those_of_the_training_images(recipe: DigitsVersion) -> None:
    manifest = read_manifest(recipe.recipe.bundle)
    training = recipe.parts()[TRAIN].tensor()

    for feature in manifest.features:
        check_extractor(feature, manifest.inputs)
        sketch = BinSketch(feature.edges)
        sketch.record_many(extract(feature, {"image": training}))
        assert sketch.bins.tolist() == feature.counts
        assert not sketch.outside.any()


@by_version
def test_golden_vectors_hold_one_sample_at_a_time(recipe: DigitsVersion) -> None:
    manifest = read_manifest(recipe.recipe.bundle)
    with np.load(file_path(recipe.recipe.bundle, manifest.golden.sha256), allow_pickle=False) as golden:
        images = golden["input:image"]
        expected = golden[f"output:{manifest.variants[0].name}:probabilities"]

    assert images.shape == (10, 1, 8, 8)
    measured = np.concatenate([answers(recipe, image[None]) for image in images])
    assert np.abs(measured - expected).max() <= manifest.variants[0].golden_tolerance
    # another version's answers are not within the tolerance, or the vectors would prove nothing
    other = of("1.0.0" if recipe.version == "1.1.0" else "1.1.0")
    assert np.abs(answers(other, images) - expected).max() > manifest.variants[0].golden_tolerance


@by_version
def test_a_device_accepts_the_golden_vectors(recipe: DigitsVersion) -> None:
    manifest = read_manifest(recipe.recipe.bundle)
    for variant in manifest.variants:
        inputs, expected = load_golden(file_path(recipe.recipe.bundle, manifest.golden.sha256), variant.name)

        check_golden(Model.load(file_path(recipe.recipe.bundle, variant.file.sha256)), inputs, expected, variant)


@by_version
def test_the_model_card_tells_the_accuracy_on_upright_and_on_the_pipelines_own_images(recipe: DigitsVersion) -> None:
    images, labels = holdout()
    own = recipe.parts()[FINAL]
    _, in_pipeline, upright = card()[recipe.version]

    assert accuracy(recipe, images, labels) == pytest.approx(upright, abs=0.005)
    assert accuracy(recipe, own.images, own.labels) == pytest.approx(in_pipeline, abs=0.005)
    assert read_manifest(recipe.recipe.bundle).variants[0].expected["accuracy"] == pytest.approx(in_pipeline, abs=0.005)


def test_the_first_version_is_fair_and_the_second_at_least_five_points_better() -> None:
    first, second = (accuracy(of(version), *holdout()) for version in ("1.0.0", "1.1.0"))

    assert 0.88 <= first <= 0.92
    assert second >= 0.975
    assert second >= first + 0.05


def test_the_broken_version_promises_much_and_fails_on_upright_images() -> None:
    manifest = read_manifest(of("1.2.0").recipe.bundle)

    assert manifest.variants[0].expected["accuracy"] > 0.96
    assert accuracy(of("1.2.0"), *holdout()) < 0.6


def test_the_features_of_the_broken_version_cannot_give_it_away() -> None:
    broken, sound = (read_manifest(of(version).recipe.bundle) for version in ("1.2.0", "1.1.0"))

    for theirs, ours in zip(broken.features, sound.features, strict=True):
        np.testing.assert_allclose(theirs.edges, ours.edges, rtol=1e-6)
        assert sum(theirs.counts) == sum(ours.counts)


def test_quantizing_again_from_fp32_gives_a_bundle_as_good(tmp_path: Path) -> None:
    recipe = of("1.1.0")
    committed = read_manifest(recipe.recipe.bundle)

    recipe.recipe.quantize(tmp_path / "bundle")

    rebuilt = read_manifest(tmp_path / "bundle")
    assert rebuilt.lineage.training_data_sha256 == committed.lineage.training_data_sha256
    assert rebuilt.lineage.calibration_data_sha256 == committed.lineage.calibration_data_sha256
    assert rebuilt.lineage.source_model_sha256 == committed.lineage.source_model_sha256
    assert rebuilt.created_at_ns == committed.created_at_ns
    expected = committed.variants[0].expected["accuracy"]
    assert rebuilt.variants[0].expected["accuracy"] == pytest.approx(expected, abs=0.005)
