"""The model card: the maker's words, then facts that are the manifest's own."""

from __future__ import annotations

import msgspec
import pytest

from fleet_protocol.manifest import (
    Artifact,
    ConfidenceCalibration,
    FeatureReference,
    Lineage,
    Manifest,
    RandomFeatureReference,
    ScoreReference,
    TensorSpec,
    Variant,
)
from quantize.card import card_of

FILE = Artifact(sha256="ab" * 32, size_bytes=12_345)
MANIFEST = Manifest(
    model="pair",
    version="1.2.3",
    created_at_ns=1_772_000_000_000_000_000,
    task="classification",
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 2])],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 2])],
    labels=["left", "right"],
    variants=[
        Variant(
            name="int8-qdq-u8s8",
            file=FILE,
            opset=18,
            quantization="QDQ",
            golden_tolerance=0.02,
            expected={"accuracy": 0.98765},
            architectures=["x86_64"],
        ),
        Variant(name="fp32", file=FILE, opset=18, quantization="none", golden_tolerance=0.001, expected={"auc": 0.5}),
    ],
    golden=FILE,
    features=[
        FeatureReference(
            name="a", extractor="column", input="x", edges=[0.0, 1.0], counts=[777], parameters={"index": 1.0}
        )
    ],
    classes=[30, 12],
    score=ScoreReference(edges=[0.0, 1.0], counts=[42]),
    random_features=RandomFeatureReference(tensor="x", seed=1, bandwidth=2.5, count=900, sums=[0.0] * 8),
    confidence=ConfidenceCalibration(scores=[0.5, 0.9], confidences=[0.25, 0.75]),
    lineage=Lineage(training_data_sha256="cd" * 32, parent_version="1.2.2"),
)


@pytest.mark.parametrize(
    "fact",
    [
        "pair 1.2.3, made 2026-02-25",
        "2: left, right",
        "x FP32 [n, 2]",
        "| int8-qdq-u8s8 | QDQ | 0.9877 | - | 12,345 | 0.02 | x86_64 | " + "ab" * 32,
        "| fp32 | none | - | 0.5 | 12,345 | 0.001 | every CPU |",
        "| a | column (index 1) | x | 1 | 777 |",
        "counted on 42 samples",
        "winning score: 1 bins, 42 samples",
        "8 sums over 900 samples, bandwidth 2.5",
        "from 0.25 to 0.75",
        "cd" * 32,
        "| parent version | 1.2.2 |",
        "| code commit | not recorded |",
        "a device measures it",
        "Estimated accuracy holds while",
    ],
)
def test_a_card_tells_what_the_manifest_holds(fact: str) -> None:
    assert fact in card_of(MANIFEST, "# Pair")


def test_the_makers_words_come_first_and_are_not_changed() -> None:
    words = "# Pair\n\nFor left|right.\n\n<b>Limits</b>: many."

    assert card_of(MANIFEST, words + "\n\n").startswith(words + "\n\n## This version")


def test_without_the_makers_words_the_card_has_a_title() -> None:
    described = msgspec.structs.replace(MANIFEST, description="Tells left from right")

    assert card_of(described, "").startswith("# pair 1.2.3\n\nTells left from right\n\n## ")
    assert card_of(MANIFEST, " \n").startswith("# pair 1.2.3\n\n## ")


def test_a_label_cannot_break_out_of_its_cell() -> None:
    hostile = msgspec.structs.replace(MANIFEST, labels=["a | b\n# Approved", "c"])

    card = card_of(hostile, "")

    assert "\n# Approved" not in card
    assert "a b # Approved" in " ".join(card.split())


def test_a_card_says_what_is_not_known() -> None:
    bare = msgspec.structs.replace(
        MANIFEST, features=[], classes=[], score=None, random_features=None, confidence=None, task="regression"
    )

    assert "No feature of the inputs is watched" in card_of(bare, "")
    assert "not calibrated" in card_of(msgspec.structs.replace(MANIFEST, confidence=None), "")
    assert "not calibrated" not in card_of(bare, "")
