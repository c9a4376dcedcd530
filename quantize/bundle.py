"""Variants and what is known about them to an unsigned bundle folder (`fleet_protocol.bundle_folder`).

Invariants: the folder appears whole or not at all, and an existing one is never written over; every variant
has golden outputs and a measured tolerance; the variants share one signature; class and score references are
those of the first variant, which is the one a device starts from.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.durable_files import sync_folder
from fleet_protocol.bundle_folder import add_file, write_manifest
from fleet_protocol.manifest import FeatureReference, Lineage, Manifest, Task, TensorSpec, Variant
from quantize.data import Inputs
from quantize.errors import InvalidModelError, InvalidOptionError
from quantize.evaluation import loaded, run_all, scores_output
from quantize.golden import golden_file, golden_inputs, golden_outputs, measure_tolerance
from quantize.references import class_counts, count_features, score_reference
from quantize.static_int8 import opset_of

MEMORY_FLOOR_BYTES = 8 * 1024**2
MEMORY_PER_FILE_BYTE = 4


@dataclass(frozen=True, kw_only=True)
class VariantFile:
    """One variant's file, how it was quantized, its measured metrics, and the least tolerance of its kind."""

    name: str
    content: bytes
    quantization: str
    tolerance_floor: float
    expected: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class BundleParts:
    """What a bundle is made of.

    `reference` are the training inputs behind the features' distributions; `unseen` are inputs that were not
    trained on, behind the class and score distributions and the golden vectors. No `labels`: the classes'
    numbers. No `features`: none are watched.
    """

    model: str
    version: str
    created_at_ns: int
    task: Task = "classification"
    variants: Sequence[VariantFile]
    reference: Inputs
    unseen: Inputs
    features: Sequence[FeatureReference] = ()
    labels: Sequence[str] = ()
    lineage: Lineage = field(default_factory=Lineage)
    licence: str = ""
    description: str = ""


def write_bundle(folder: Path, parts: BundleParts) -> Manifest:
    """Make the bundle at `folder`, which must not exist or be empty, and return its manifest.

    Raises InvalidOptionError, InvalidDataError, InvalidModelError, and BundleRefusedError for a feature that a
    device would refuse.
    """
    check_output(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        manifest = _manifest(staging, parts)
        write_manifest(staging, manifest)
        staging.chmod(0o755)
        staging.replace(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def check_output(folder: Path) -> None:
    """Raise InvalidOptionError unless a bundle can be made at `folder`."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidOptionError(f"{folder} exists already: choose another --out or remove it")


def estimate_memory_bytes(variants: Sequence[VariantFile]) -> int:
    """An upper estimate of what loading any one of the variants adds to a process: weights are held as they
    are and packed for the kernels, beside the graph and the arena."""
    return MEMORY_FLOOR_BYTES + MEMORY_PER_FILE_BYTE * max(len(variant.content) for variant in variants)


def _manifest(folder: Path, parts: BundleParts) -> Manifest:
    inputs, outputs, labels = _signature(parts)
    golden = golden_inputs(parts.unseen, inputs)
    answers = {variant.name: golden_outputs(variant.content, golden) for variant in parts.variants}
    with loaded(parts.variants[0].content) as model:
        scores = run_all(model, parts.unseen)[scores_output(outputs).name]
    return Manifest(
        model=parts.model,
        version=parts.version,
        created_at_ns=parts.created_at_ns,
        task=parts.task,
        inputs=list(inputs),
        outputs=list(outputs),
        labels=labels,
        variants=[
            Variant(
                name=variant.name,
                file=add_file(folder, variant.content),
                opset=opset_of(variant.content, variant.name),
                quantization=variant.quantization,
                golden_tolerance=measure_tolerance(variant.content, golden, floor=variant.tolerance_floor),
                expected=variant.expected,
            )
            for variant in parts.variants
        ],
        golden=add_file(folder, golden_file(golden, answers)),
        features=count_features(parts.features, parts.reference, inputs),
        classes=class_counts(scores),
        score=score_reference(scores),
        memory_bytes=estimate_memory_bytes(parts.variants),
        lineage=parts.lineage,
        licence=parts.licence,
        description=parts.description,
    )


def _signature(parts: BundleParts) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], list[str]]:
    signatures = []
    for variant in parts.variants:
        with loaded(variant.content) as model:
            signatures.append((model.inputs, model.outputs))
    if any(signature != signatures[0] for signature in signatures):
        raise InvalidModelError("the variants do not have the same inputs and outputs: make them from one model")
    inputs, outputs = signatures[0]
    classes = scores_output(outputs).shape[1]
    labels = list(parts.labels) or [str(number) for number in range(classes)]
    if len(labels) != classes:
        raise InvalidOptionError(f"{len(labels)} class names were given and the model has {classes} classes")
    return inputs, outputs, labels
