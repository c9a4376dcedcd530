"""The model card that ships in a bundle: what the maker says, and after it what the manifest shows.

A pure function of both, so that a card never says another digest or figure than the manifest it ships with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from fleet_protocol.manifest import FeatureReference, Manifest, TensorSpec, Variant

_ORIGINS = (
    ("parent version", "parent_version"),
    ("training data, SHA-256", "training_data_sha256"),
    ("calibration data, SHA-256", "calibration_data_sha256"),
    ("source model, SHA-256", "source_model_sha256"),
    ("code commit", "code_commit"),
    ("made with", "made_with"),
)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f|`]+")


def card_of(manifest: Manifest, text: str) -> str:
    """The card in Markdown: the maker's `text` (or a title), then the facts of `manifest`."""
    head = text.strip() or f"# {manifest.model} {manifest.version}\n\n{_plain(manifest.description)}".strip()
    sections = [
        head,
        "## This version\n\n" + _version(manifest),
        "## Variants\n\n" + _variants(manifest.variants),
        "## What is watched on a device\n\n" + _watched(manifest),
        "## Where it comes from\n\n" + _lineage(manifest),
        "## Limits of these figures\n\n" + _limits(manifest),
    ]
    return "\n\n".join(sections) + "\n"


def _version(manifest: Manifest) -> str:
    made = datetime.fromtimestamp(manifest.created_at_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = [
        ("model", f"{manifest.model} {manifest.version}, made {made}"),
        ("task", manifest.task),
        ("takes", "; ".join(map(_tensor, manifest.inputs))),
        ("answers", "; ".join(map(_tensor, manifest.outputs))),
    ]
    if manifest.labels:
        facts.append(("classes", f"{len(manifest.labels)}: {', '.join(manifest.labels)}"))
    facts += [
        ("needs", f"agent {manifest.minimum_agent}, ONNX Runtime {manifest.minimum_onnxruntime}"),
        ("memory, at most about", f"{manifest.memory_bytes / 1024**2:.0f} MiB"),
        ("licence", manifest.licence or "not stated"),
    ]
    return _table(("", ""), facts)


def _variants(variants: Sequence[Variant]) -> str:
    metrics = list(dict.fromkeys(name for variant in variants for name in variant.expected))
    return _table(
        ("variant", "quantization", *metrics, "bytes", "golden tolerance", "for", "SHA-256"),
        [
            (
                variant.name,
                variant.quantization,
                *(f"{variant.expected[name]:.4g}" if name in variant.expected else "-" for name in metrics),
                f"{variant.file.size_bytes:,}",
                f"{variant.golden_tolerance:g}",
                ", ".join(variant.architectures) or "every CPU",
                variant.file.sha256,
            )
            for variant in variants
        ],
    )


def _watched(manifest: Manifest) -> str:
    lines = []
    if manifest.features:
        lines.append(_table(("feature", "extractor", "of", "bins", "samples"), map(_feature, manifest.features)) + "\n")
    else:
        lines.append("- No feature of the inputs is watched.")
    if manifest.classes:
        lines.append(f"- Predicted classes: counted on {sum(manifest.classes):,} samples.")
    if manifest.score is not None:
        kind = {"classification": "winning score", "anomaly": "anomaly score"}.get(manifest.task, "answered value")
        lines.append(f"- The {kind}: {len(manifest.score.counts)} bins, {sum(manifest.score.counts):,} samples.")
    random = manifest.random_features
    if random is not None:
        lines.append(
            f"- Random features of `{_plain(random.tensor)}`: {len(random.sums)} sums over {random.count:,} samples, "
            f"bandwidth {random.bandwidth:.4g}."
        )
    if manifest.confidence is not None:
        low, high = manifest.confidence.confidences[0], manifest.confidence.confidences[-1]
        lines.append(
            f"- Confidence: calibrated, from {low:.3g} to {high:.3g}; devices estimate their accuracy with it."
        )
    return "\n".join(lines)


def _lineage(manifest: Manifest) -> str:
    return _table(("", ""), [(title, getattr(manifest.lineage, field) or "not recorded") for title, field in _ORIGINS])


def _limits(manifest: Manifest) -> str:
    lines = [
        "- The metrics are of the maker's held-out samples; what a device sees may differ, which is what the watched "
        "distributions are for.",
        "- A golden tolerance is the largest difference from the shipped answers that another right CPU shows. It says "
        "that a device computes what the maker's did, not that the answers are true.",
    ]
    if len(manifest.variants) > 1:
        lines.append(
            "- Which variant is fastest depends on the CPU: a device measures it and keeps the fastest right one."
        )
    if manifest.task == "classification" and manifest.confidence is None:
        lines.append("- Scores are not calibrated: a score is no probability of being right.")
    if manifest.confidence is not None:
        lines.append(
            "- Estimated accuracy holds while a score means what it meant on the samples it was calibrated with."
        )
    return "\n".join(lines)


def _feature(feature: FeatureReference) -> tuple[str, str, str, str, str]:
    parameters = ", ".join(f"{name} {value:g}" for name, value in feature.parameters.items())
    extractor = f"{feature.extractor} ({parameters})" if parameters else feature.extractor
    return feature.name, extractor, feature.input, str(len(feature.counts)), f"{sum(feature.counts):,}"


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.datatype} [{', '.join('n' if size < 0 else str(size) for size in spec.shape)}]"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that cannot break out of a line or a table's cell."""
    return _UNSAFE.sub(" ", text).strip()
