"""The tabular model: its parts, the trees, the committed bundle, and what the model card says."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent import Agent
from edge_agent.control.golden import check_golden, load_golden
from edge_agent.runtime.session import Model
from edge_agent.telemetry.features import check_extractor, extract
from fleet_protocol.bins import BinSketch
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_protocol.manifest import TensorSpec
from models.tabular.data import (
    CALIBRATION,
    COLUMNS,
    FINAL,
    HOLDOUT,
    LABELS,
    SELECTION,
    TRAIN,
    Table,
    all_rows,
    holdout,
    split,
)
from models.tabular.recipe import HERE, RECIPE
from models.tabular.scores import interval, logistic_regression, score, shipped

MAX_FILE_BYTES = 1_000_000
HOLDOUT_SHA256 = "8203f82e4eed2eee4f8626c43f37352eede0e98ab23a7a117ba81b136a33ee4c"


@pytest.fixture(scope="module")
def final() -> Table:
    return holdout()


def card_row(metric: str) -> list[float]:
    """The model card's row: each of trees, baseline and gain, followed by its interval's ends."""
    row = re.search(rf"^\| {metric} \|(.+)\|$", (HERE / "README.md").read_text(), re.MULTILINE)
    assert row is not None
    return [float(figure) for figure in re.findall(r"[-+]?\d\.\d{3}", row[1])]


def test_the_parts_never_share_a_row_and_leave_none_out() -> None:
    def rows(tables: list[Table]) -> list[bytes]:
        return sorted(
            row.tobytes() + bytes([label])
            for table in tables
            for row, label in zip(table.columns, table.labels, strict=True)
        )

    parts = split()

    assert rows([parts[name] for name in (TRAIN, CALIBRATION, SELECTION, FINAL)]) == rows([all_rows()])
    assert len(set(rows([all_rows()]))) == 569


def test_the_columns_are_scikit_learns_in_its_order_and_malignant_is_one() -> None:
    from sklearn.datasets import load_breast_cancer

    bunch: Any = load_breast_cancer()
    named = [name.replace(" error", "") for name in bunch.feature_names]
    theirs = [name if name.startswith(("mean", "worst")) else f"error {name}" for name in named]

    assert [name.replace(" ", "_") for name in theirs] == list(COLUMNS)
    assert [bunch.target_names[1 - place] for place in range(2)] == list(LABELS)
    assert all_rows().labels.sum() == 212


def test_the_holdout_is_the_pinned_final_part_bit_for_bit(final: Table) -> None:
    part = split()[FINAL]

    assert hashlib.sha256(HOLDOUT.read_bytes()).hexdigest() == HOLDOUT_SHA256
    assert final.columns.dtype == np.float32
    assert final.columns.shape == (150, len(COLUMNS))
    assert final.columns.tobytes() == part.columns.tobytes()
    assert final.labels.tobytes() == part.labels.tobytes()


def test_every_committed_file_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert all(size < MAX_FILE_BYTES for size in sizes.values()), sizes


def test_every_file_of_the_bundle_has_its_digest() -> None:
    for artifact in read_manifest(RECIPE.bundle).artifacts():
        content = file_path(RECIPE.bundle, artifact.sha256).read_bytes()
        assert hashlib.sha256(content).hexdigest() == artifact.sha256
        assert len(content) == artifact.size_bytes


def test_the_manifest_says_all_a_device_and_a_server_need() -> None:
    manifest = read_manifest(RECIPE.bundle)

    assert (manifest.model, manifest.version, manifest.task) == ("tabular", "1.0.0", "classification")
    assert manifest.labels == list(LABELS)
    assert manifest.inputs == [TensorSpec(name="columns", datatype="FP32", shape=[-1, 30])]
    assert manifest.outputs == [
        TensorSpec(name="label", datatype="INT64", shape=[-1]),
        TensorSpec(name="probabilities", datatype="FP32", shape=[-1, 2]),
    ]
    assert [feature.name for feature in manifest.features] == list(COLUMNS)
    assert sum(manifest.classes) == 134
    assert manifest.lineage.training_data_sha256
    assert manifest.licence
    assert manifest.description


def test_trees_ship_in_float_alone() -> None:
    assert [variant.name.split("-")[0] for variant in read_manifest(RECIPE.bundle).variants] == ["fp32"]


def test_quantizing_again_ships_the_same_trees(tmp_path: Path) -> None:
    RECIPE.quantize(tmp_path / "bundle")

    committed, rebuilt = (read_manifest(folder) for folder in (RECIPE.bundle, tmp_path / "bundle"))
    assert [variant.file for variant in rebuilt.variants] == [variant.file for variant in committed.variants]
    assert [variant.expected for variant in rebuilt.variants] == [variant.expected for variant in committed.variants]
    assert rebuilt.lineage.training_data_sha256 == committed.lineage.training_data_sha256


def test_the_reference_distributions_are_those_of_the_training_rows() -> None:
    manifest = read_manifest(RECIPE.bundle)
    training = split()[TRAIN].columns

    for feature in manifest.features:
        check_extractor(feature, manifest.inputs)
        sketch = BinSketch(feature.edges)
        values = extract(feature, {"columns": training})
        np.testing.assert_array_equal(values, training[:, COLUMNS.index(feature.name)])
        sketch.record_many(values)
        # edges are written with nine digits, so a value on one may be counted on its other side
        assert sum(feature.counts) == len(training)
        assert np.abs(sketch.bins - np.array(feature.counts)).sum() <= 4


def test_a_device_accepts_the_golden_vectors() -> None:
    manifest = read_manifest(RECIPE.bundle)

    for variant in manifest.variants:
        inputs, expected = load_golden(file_path(RECIPE.bundle, manifest.golden.sha256), variant.name)
        assert set(expected) == {"label", "probabilities"}
        check_golden(Model.load(file_path(RECIPE.bundle, variant.file.sha256)), inputs, expected, variant)


@pytest.mark.parametrize("metric", ["auc", "accuracy"])
def test_the_model_card_tells_the_scores_the_baselines_and_their_intervals(metric: str, final: Table) -> None:
    trees = shipped(final.columns)
    baseline = logistic_regression(split()[TRAIN], final.columns)
    own, theirs = (score(metric, answers, final.labels) for answers in (trees, baseline))
    row = card_row(metric)

    assert row[0] == pytest.approx(own, abs=0.001)
    # another BLAS may fit another last digit
    assert row[3] == pytest.approx(theirs, abs=0.008)
    assert row[6] == pytest.approx(own - theirs, abs=0.008)
    assert row[1:3] == pytest.approx(list(interval(metric, final.labels, trees)), abs=0.001)
    assert row[7:9] == pytest.approx(list(interval(metric, final.labels, trees, baseline)), abs=0.01)


def test_the_bundle_promises_the_auc_on_the_final_rows(final: Table) -> None:
    measured = score("auc", shipped(final.columns), final.labels)

    for variant in read_manifest(RECIPE.bundle).variants:
        assert variant.expected["auc"] == pytest.approx(measured, abs=1e-6)


def test_the_agent_serves_doubles_as_their_fp32_with_a_label_and_probabilities(final: Table) -> None:
    doubles: NDArray[np.float64] = final.columns[:5].astype(np.float64)
    with Agent(models={"tabular": str(RECIPE.fp32)}) as agent:
        answers = agent.infer("tabular", {"columns": doubles}).outputs

    assert answers["label"].dtype == np.int64
    assert answers["probabilities"].dtype == np.float32
    np.testing.assert_allclose(answers["probabilities"], shipped(final.columns[:5]), atol=1e-6)
    np.testing.assert_allclose(answers["probabilities"].sum(axis=1), 1.0, atol=1e-6)
    assert answers["label"].tolist() == answers["probabilities"].argmax(axis=1).tolist()
