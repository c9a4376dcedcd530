"""Variants and what is known about them to an unsigned bundle folder (`fleet_protocol.bundle_folder`).

Invariants: the folder appears whole or not at all, and an existing one is never written over; every variant
has golden outputs and a measured tolerance; the variants share one signature; class and score references, random
features of outputs and the calibration of confidence are those of the first variant, which is the one a device
starts from.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.durable_files import sync_folder
from edge_agent.telemetry.features.answers import answer_scores
from edge_agent.telemetry.features.extractors import flat_samples
from fleet_protocol.bundle_folder import add_file, write_manifest
from fleet_protocol.manifest import (
    Artifact,
    ConfidenceCalibration,
    FeatureReference,
    Lineage,
    Manifest,
    RandomFeatureReference,
    ScoreReference,
    Task,
    TensorSpec,
    Variant,
)
from quantize.card import card_of
from quantize.confidence import calibrate_confidence
from quantize.data import Inputs, Samples
from quantize.errors import InvalidDataError, InvalidModelError, InvalidOptionError
from quantize.evaluation import loaded, run_all, scores_output
from quantize.golden import (
    golden_file,
    golden_inputs,
    golden_limit,
    golden_outputs,
    measure_tolerance,
    places_over_classes,
    places_over_scores,
    tolerance_scale,
)
from quantize.metrics import predicted_classes
from quantize.preparation.reading import opset_of
from quantize.references import class_counts, count_features, reference_sums, score_reference, watched_tensor

MEMORY_FLOOR_BYTES = 8 * 1024**2
MEMORY_PER_FILE_BYTE = 4
MAX_CARD_BYTES = 256 * 1024
MAX_REPORT_BYTES = 16 * 1024**2


@dataclass(frozen=True, kw_only=True)
class VariantFile:
    """One variant's file, how it was quantized, its measured metrics, and the least tolerance of its kind.

    `architectures` as in the manifest: none means every one.
    """

    name: str
    content: bytes
    quantization: str
    tolerance_floor: float
    expected: dict[str, float]
    architectures: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class BundleParts:
    """What a bundle is made of.

    `reference` are the training inputs behind the features' distributions; `unseen` are inputs that were not
    trained on, behind the class and score distributions and the golden vectors. `labelled` are samples that were not
    trained on either, with their truth: they calibrate the confidence of a classifier, and golden vectors are chosen
    among them. No `labels`: the classes' numbers. No `features`: none are watched. `embedding` is the input or output
    whose random features are summed, "" one that suits. `card` is what the maker says, in Markdown; the card that ships
    goes on with the manifest's facts. `report_html` is the page about how the variants were found.
    """

    model: str
    version: str
    created_at_ns: int
    task: Task = "classification"
    variants: Sequence[VariantFile]
    reference: Inputs
    unseen: Inputs
    labelled: Samples | None = None
    features: Sequence[FeatureReference] = ()
    embedding: str = ""
    labels: Sequence[str] = ()
    lineage: Lineage = field(default_factory=Lineage)
    licence: str = ""
    description: str = ""
    card: str = ""
    report_html: bytes | None = None


def write_bundle(folder: Path, parts: BundleParts) -> Manifest:
    """Make the bundle at `folder`, which must not exist or be empty, and return its manifest.

    Raises InvalidOptionError, InvalidDataError, InvalidModelError, and BundleRefusedError for a feature that a
    device would refuse.
    """
    check_output(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        manifest = _for_people(staging, parts, _manifest(staging, parts))
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


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What the first variant answers to the unseen samples and, where there are some, to the labelled ones."""

    unseen: dict[str, NDArray[Any]]
    labelled: dict[str, NDArray[Any]] | None


def _manifest(folder: Path, parts: BundleParts) -> Manifest:
    inputs, outputs, labels = _signature(parts)
    with loaded(parts.variants[0].content) as model:
        answers = _Answers(
            unseen=run_all(model, parts.unseen),
            labelled=None if parts.labelled is None else run_all(model, parts.labelled.inputs),
        )
    golden = _golden_inputs(parts, answers, inputs)
    golden_answers = {variant.name: golden_outputs(variant.content, golden) for variant in parts.variants}
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
                opset=opset_of(variant.content),
                quantization=variant.quantization,
                golden_tolerance=measure_tolerance(
                    variant.content,
                    golden,
                    floor=variant.tolerance_floor * tolerance_scale(parts.task, golden_answers[variant.name]),
                ),
                expected=variant.expected,
                architectures=list(variant.architectures),
            )
            for variant in parts.variants
        ],
        golden=add_file(folder, golden_file(golden, golden_answers)),
        features=count_features(parts.features, parts.reference, inputs),
        classes=class_counts(answers.unseen[scores_output(outputs).name]) if parts.task == "classification" else [],
        score=_score(parts, answers),
        random_features=_random_features(parts, answers, inputs, outputs),
        confidence=_confidence(parts, answers),
        memory_bytes=estimate_memory_bytes(parts.variants),
        lineage=parts.lineage,
        licence=parts.licence,
        description=parts.description,
    )


def _for_people(folder: Path, parts: BundleParts, manifest: Manifest) -> Manifest:
    """The manifest with its card and report, which are written from it and beside it."""
    report = None if parts.report_html is None else _bounded(folder, parts.report_html, "report", MAX_REPORT_BYTES)
    card = _bounded(folder, card_of(manifest, parts.card).encode(), "card", MAX_CARD_BYTES)
    return msgspec.structs.replace(manifest, card=card, report=report)


def _bounded(folder: Path, content: bytes, kind: str, limit: int) -> Artifact:
    if len(content) > limit:
        raise InvalidOptionError(f"the {kind} has {len(content):,} bytes and the limit is {limit:,}: shorten it")
    return add_file(folder, content)


def _golden_inputs(parts: BundleParts, answers: _Answers, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """Golden samples that the first variant answers with numbers, spread over classes or scores."""
    labelled = parts.labelled
    if labelled is not None and answers.labelled is not None:
        inputs, outputs, labels = labelled.inputs, answers.labelled, labelled.labels
    else:
        inputs, outputs, labels = parts.unseen, answers.unseen, None
    sound = np.flatnonzero(_answered_with_numbers(outputs))
    if not sound.size:
        raise InvalidModelError("the model answers every sample with NaN or infinity: it has no golden vectors")
    limit = golden_limit(_sample_bytes(inputs) + len(parts.variants) * _sample_bytes(outputs), specs)
    if parts.task == "classification" and labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu":
        places = places_over_classes(labels[sound], limit)
    else:
        scores = answer_scores(parts.task, inputs, outputs)
        places = places_over_scores(np.zeros(len(sound)) if scores is None else scores[sound], limit)
    return golden_inputs(inputs, specs, sound[places])


def _answered_with_numbers(outputs: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Whether each sample's answers `[n]` are finite, in every output."""
    rows = [np.isfinite(flat_samples(array)).all(axis=1) for array in outputs.values() if array.dtype.kind == "f"]
    everything: NDArray[np.bool_] = np.logical_and.reduce(
        [np.ones(len(next(iter(outputs.values()))), dtype=np.bool_), *rows]
    )
    return everything


def _sample_bytes(arrays: Inputs) -> int:
    return sum(array.nbytes // max(len(array), 1) for array in arrays.values())


def _score(parts: BundleParts, answers: _Answers) -> ScoreReference | None:
    scores = answer_scores(parts.task, parts.unseen, answers.unseen)
    if scores is not None:
        return score_reference(scores)
    if parts.task == "anomaly":
        raise InvalidModelError(
            "an anomaly model answers with one number a sample or with a reconstruction shaped like an input; this one "
            "does neither: choose another task"
        )
    return None


def _random_features(
    parts: BundleParts, answers: _Answers, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> RandomFeatureReference | None:
    tensor = parts.embedding or watched_tensor(inputs, outputs)
    if not tensor:
        return None
    values = answers.unseen.get(tensor, parts.reference.get(tensor))
    if values is None or values.ndim < 2 or values.dtype.kind not in "iuf":
        names = ", ".join(spec.name for spec in (*inputs, *outputs))
        raise InvalidOptionError(
            f"there is no tensor {tensor!r} of several numbers a sample to watch; there are {names}"
        )
    return reference_sums(tensor, values)


def _confidence(parts: BundleParts, answers: _Answers) -> ConfidenceCalibration | None:
    if parts.task != "classification" or parts.labelled is None or answers.labelled is None:
        return None
    truth = parts.labelled.labels
    if truth is None or truth.ndim != 1 or truth.dtype.kind not in "iu":
        raise InvalidDataError("confidence is calibrated with whole class numbers [n] as labels: give those")
    scores = answer_scores(parts.task, parts.labelled.inputs, answers.labelled)
    return None if scores is None else calibrate_confidence(scores, predicted_classes(answers.labelled) == truth)


def _signature(parts: BundleParts) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], list[str]]:
    signatures = []
    for variant in parts.variants:
        with loaded(variant.content) as model:
            signatures.append((model.inputs, model.outputs))
    if any(signature != signatures[0] for signature in signatures):
        raise InvalidModelError("the variants do not have the same inputs and outputs: make them from one model")
    inputs, outputs = signatures[0]
    return inputs, outputs, class_names(parts.task, parts.labels, outputs)


def class_names(task: Task, labels: Sequence[str], outputs: Sequence[TensorSpec]) -> list[str]:
    """The names of the classes, their numbers where `labels` gives none; none for other tasks than classification.

    Raises InvalidOptionError where `labels` does not fit, InvalidModelError for a classifier without scores.
    """
    if task != "classification":
        if labels:
            raise InvalidOptionError(f"a model for {task} has no classes: give no class names")
        return []
    classes = scores_output(outputs).shape[1]
    names = list(labels) or [str(number) for number in range(classes)]
    if len(names) != classes:
        raise InvalidOptionError(f"{len(names)} class names were given and the model has {classes} classes")
    return names
