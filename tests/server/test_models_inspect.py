"""`fleet models inspect`: everything in a bundle folder is shown, also what is wrong with it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from fleet_protocol.bundle_folder import add_file, file_path, write_manifest
from fleet_protocol.manifest import (
    ConfidenceCalibration,
    FeatureReference,
    Lineage,
    Manifest,
    RandomFeatureReference,
    ScoreReference,
    TensorSpec,
    Variant,
)
from fleet_server.cli import app
from models.digits.recipe import VERSIONS

CARD = "# Pair\n\nTells two things apart.\x1b[2J\n"


def make_bundle(folder: Path) -> Manifest:
    golden = io.BytesIO()
    arrays = {"input:x": np.zeros((6, 2), dtype=np.float32), "output:int8:y": np.zeros((6, 3), dtype=np.float32)}
    np.savez(golden, allow_pickle=False, **arrays)
    manifest = Manifest(
        model="pair",
        version="0.1.0",
        created_at_ns=1,
        task="classification",
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 2])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 3])],
        labels=["cat", "dog", "bird"],
        variants=[
            Variant(
                name="int8",
                file=add_file(folder, b"model"),
                opset=18,
                quantization="QDQ",
                golden_tolerance=0.025,
                expected={"accuracy": 0.5625},
                architectures=["aarch64"],
            )
        ],
        golden=add_file(folder, golden.getvalue()),
        features=[
            FeatureReference(
                name="loudness",
                extractor="column",
                input="x",
                edges=[-1.5, 4.5],
                counts=[31],
                parameters={"index": 1.0},
            )
        ],
        classes=[17, 0, 4],
        score=ScoreReference(edges=[0.25, 0.75], counts=[21]),
        random_features=RandomFeatureReference(tensor="x", seed=9, bandwidth=2.5, count=31, sums=[0.0] * 8),
        confidence=ConfidenceCalibration(scores=[0.3, 0.9], confidences=[0.4, 0.95]),
        card=add_file(folder, CARD.encode()),
        lineage=Lineage(parent_version="0.0.9", made_with="edge-quantize 1"),
    )
    write_manifest(folder, manifest)
    return manifest


def run(*arguments: str, exits: int = 0) -> str:
    done = CliRunner(env={"COLUMNS": "250", "NO_COLOR": "1"}).invoke(app, ["models", "inspect", *arguments])
    assert done.exit_code == exits, done.output
    return done.stdout


@pytest.mark.parametrize(
    "fact",
    [
        "int8 QDQ aarch64 5 0.025 accuracy 0.5625",
        "golden vectors 6 samples: input:x float32 [6, 2], output:int8:y float32 [6, 3]",
        "loudness column x index=1 1 31 -1.5 4.5",
        "classes 21 samples: cat 17, dog 0, bird 4",
        "score 1 bins, 21 samples, 0.25 to 0.75",
        "random features 8 of x, 31 samples, bandwidth 2.5, seed 9",
        "confidence 2 points, from 0.4 at 0.3 to 0.95 at 0.9",
        "parent version 0.0.9",
        "made with edge-quantize 1",
        "missing files none",
        "damaged files none",
        f"card {len(CARD)} bytes",
    ],
)
def test_inspect_shows_what_the_bundle_says(tmp_path: Path, fact: str) -> None:
    make_bundle(tmp_path / "bundle")

    assert fact in " ".join(run(str(tmp_path / "bundle")).split())


def test_inspect_tells_all_as_json(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "bundle")

    told: dict[str, Any] = msgspec.json.decode(run(str(tmp_path / "bundle"), "--json"))

    assert msgspec.convert(told["manifest"], Manifest) == manifest
    assert (told["bundle"], told["missing"], told["damaged"]) == (None, [], [])
    assert told["golden"][0] == {"name": "input:x", "datatype": "float32", "shape": [6, 2]}
    assert (told["golden_samples"], told["card"]) == (6, CARD)


def test_the_card_is_printed_without_what_steers_a_terminal(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")

    printed = run(str(tmp_path / "bundle"), "--card")

    assert printed.startswith("# Pair\n\nTells two things apart.")
    assert "\x1b" not in printed


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    manifest = make_bundle(folder)
    file_path(folder, manifest.variants[0].file.sha256).write_bytes(b"other")
    file_path(folder, manifest.golden.sha256).unlink()

    told = msgspec.json.decode(run(str(folder), "--json"))

    assert told["missing"] == [manifest.golden.sha256]
    assert told["damaged"] == [manifest.variants[0].file.sha256]
    shown = run(str(folder))
    assert manifest.golden.sha256 in shown
    assert "cannot be read" in shown


def test_golden_vectors_that_are_no_archive_are_shown_as_unreadable(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    manifest = make_bundle(folder)
    for content in (b"not an archive", file_path(folder, manifest.golden.sha256).read_bytes()[:300]):
        file_path(folder, manifest.golden.sha256).write_bytes(content)

        assert "cannot be read" in run(str(folder))


def test_a_folder_that_is_no_bundle_is_one_clear_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        done = CliRunner().invoke(app, ["models", "inspect", str(folder)])

        assert done.exit_code != 0
        assert "is not a bundle folder: it has no manifest.json" in str(done.exception)


def test_a_bundle_without_a_card_says_so_when_asked_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_manifest(folder, msgspec.structs.replace(make_bundle(folder), card=None))

    done = CliRunner().invoke(app, ["models", "inspect", str(folder), "--card"])

    assert "ships no card" in str(done.exception)


@pytest.mark.parametrize("bundle", [version.recipe.bundle for version in VERSIONS], ids=[r.version for r in VERSIONS])
def test_the_bundles_that_were_made_before_are_shown(bundle: Path) -> None:
    shown = " ".join(run(str(bundle)).split())

    assert "missing files none" in shown
    assert "samples: input:image float32" in shown
