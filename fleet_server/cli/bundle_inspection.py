"""What is in a bundle folder, as plain values and as tables, without running or trusting anything of it.

Nothing of a file but its digest and the headers of the golden vectors is read. A file that is absent or is not what
its digest says is shown, never hidden behind an error: a person inspects a bundle because something is wrong with it.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from fleet_protocol.bundle_folder import file_path, read_envelope, read_manifest
from fleet_protocol.errors import MalformedMessage, ProtocolError
from fleet_protocol.manifest import Artifact, Manifest, TensorSpec, bundle_digest
from fleet_server.cli.output import show_facts, show_line, show_table
from fleet_server.errors import ConfigError

_MAX_CARD_BYTES = 1024**2
_MAX_GOLDEN_ARRAYS = 4096
_INPUT = "input:"
_FIRST_FEATURES = 32
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class GoldenArray(msgspec.Struct, frozen=True, kw_only=True):
    """One array of the golden vectors, by its name in the file ("input:x", "output:int8:y")."""

    name: str
    datatype: str
    shape: list[int]


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle folder. `bundle` is the digest of its signed envelope, None where it is not signed.

    `missing` and `damaged` are digests of files that are not there or are not what they should be; `golden` is empty
    where its file cannot be read, and `golden_samples` then 0.
    """

    manifest: Manifest
    bundle: str | None
    missing: list[str]
    damaged: list[str]
    golden: list[GoldenArray]
    golden_samples: int
    card: str | None


def inspect_bundle(folder: Path) -> Inspection:
    """What is in `folder`. Raises ConfigError when it is no bundle folder, MalformedMessage for a damaged manifest."""
    if not (folder / "manifest.json").is_file():
        raise ConfigError(f"{folder} is not a bundle folder: it has no manifest.json")
    manifest = read_manifest(folder)
    try:
        envelope: bytes | None = read_envelope(folder)
    except ProtocolError:
        envelope = None
    missing = [a.sha256 for a in manifest.artifacts() if not file_path(folder, a.sha256).is_file()]
    damaged = [a.sha256 for a in manifest.artifacts() if a.sha256 not in missing and not _is_whole(folder, a)]
    golden = [] if manifest.golden.sha256 in missing else _golden(file_path(folder, manifest.golden.sha256))
    return Inspection(
        manifest=manifest,
        bundle=bundle_digest(envelope) if envelope is not None else None,
        missing=missing,
        damaged=damaged,
        golden=golden,
        golden_samples=next((a.shape[0] for a in golden if a.name.startswith(_INPUT) and a.shape), 0),
        card=_card(folder, manifest),
    )


def card_text(inspection: Inspection) -> str:
    """The card. Raises ConfigError when the bundle has none that can be shown."""
    manifest = inspection.manifest
    if manifest.card is None:
        raise ConfigError(f"{manifest.model} {manifest.version} ships no card")
    if inspection.card is None:
        raise ConfigError(f"the card {manifest.card.sha256} of {manifest.model} {manifest.version} cannot be read")
    return inspection.card


def show_card(text: str) -> None:
    """The card's lines, without what could steer a terminal."""
    for line in text.splitlines():
        show_line(line.expandtabs(4))


def show_inspection(found: Inspection) -> None:
    """Facts and tables for a person."""
    manifest = found.manifest
    show_facts(
        (
            ("model", manifest.model),
            ("version", manifest.version),
            ("task", manifest.task),
            ("bundle", found.bundle or "not signed yet: fleet keys sign"),
            ("missing files", ", ".join(found.missing) or "none"),
            ("damaged files", ", ".join(found.damaged) or "none"),
            ("inputs", "; ".join(map(_tensor, manifest.inputs))),
            ("outputs", "; ".join(map(_tensor, manifest.outputs))),
            ("labels", ", ".join(manifest.labels)),
            ("golden vectors", _golden_fact(found)),
            *_reference_facts(manifest),
            ("needs", f"agent {manifest.minimum_agent}, ONNX Runtime {manifest.minimum_onnxruntime}"),
            ("memory", f"{manifest.memory_bytes:,} bytes"),
            *(
                (name.replace("_", " "), value)
                for name, value in msgspec.to_builtins(manifest.lineage).items()
                if value
            ),
            ("card", "none" if manifest.card is None else f"{manifest.card.size_bytes:,} bytes: --card shows it"),
            ("report", "none" if manifest.report is None else f"files/{manifest.report.sha256}"),
            ("licence", manifest.licence),
            ("description", manifest.description),
        )
    )
    show_table(
        ("VARIANT", "QUANTIZATION", "FOR", "BYTES", "TOLERANCE", "EXPECTED", "FILE"),
        [
            (
                v.name,
                v.quantization,
                ", ".join(v.architectures) or "every CPU",
                v.file.size_bytes,
                f"{v.golden_tolerance:g}",
                ", ".join(f"{k} {x:.4g}" for k, x in v.expected.items()),
                v.file.sha256[:12],
            )
            for v in manifest.variants
        ],
    )
    if manifest.features:
        show_table(
            ("FEATURE", "EXTRACTOR", "INPUT", "PARAMETERS", "BINS", "SAMPLES", "FROM", "TO"),
            [
                (
                    f.name,
                    f.extractor,
                    f.input,
                    " ".join(f"{name}={value:g}" for name, value in f.parameters.items()),
                    len(f.counts),
                    sum(f.counts),
                    f"{f.edges[0]:.4g}" if f.edges else "",
                    f"{f.edges[-1]:.4g}" if f.edges else "",
                )
                for f in manifest.features[:_FIRST_FEATURES]
            ],
        )
        if len(manifest.features) > _FIRST_FEATURES:
            show_line(f"and {len(manifest.features) - _FIRST_FEATURES} more features: --json shows them")


def _reference_facts(manifest: Manifest) -> list[tuple[str, str]]:
    score, random, confidence = manifest.score, manifest.random_features, manifest.confidence
    counts = [
        f"{manifest.labels[i] if i < len(manifest.labels) else i} {n}" for i, n in enumerate(manifest.classes[:32])
    ]
    return [
        ("classes", f"{sum(manifest.classes):,} samples: {', '.join(counts)}" if manifest.classes else "none"),
        (
            "score",
            f"{len(score.counts)} bins, {sum(score.counts):,} samples, {score.edges[0]:.4g} to {score.edges[-1]:.4g}"
            if score is not None and score.edges
            else "none",
        ),
        (
            "random features",
            f"{len(random.sums)} of {random.tensor}, {random.count:,} samples, bandwidth {random.bandwidth:.4g}, "
            f"seed {random.seed}"
            if random is not None
            else "none",
        ),
        (
            "confidence",
            f"{len(confidence.scores)} points, from {confidence.confidences[0]:.3g} at {confidence.scores[0]:.3g} "
            f"to {confidence.confidences[-1]:.3g} at {confidence.scores[-1]:.3g}"
            if confidence is not None
            else "not calibrated",
        ),
    ]


def _golden_fact(found: Inspection) -> str:
    if not found.golden:
        return "cannot be read"
    shapes = [f"{array.name} {array.datatype} {array.shape}" for array in found.golden]
    return f"{found.golden_samples} samples: {', '.join(shapes)}"


def _golden(path: Path) -> list[GoldenArray]:
    """The arrays of an npz by their headers; none where it is not one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:_MAX_GOLDEN_ARRAYS]
            arrays = []
            for name in names:
                with archive.open(name) as member:
                    shape, datatype = _header(member)  # type: ignore[arg-type] # a zip member is read like a file
                arrays.append(GoldenArray(name=name.removesuffix(".npy"), datatype=datatype, shape=shape))
    except _UNREADABLE:
        return []
    return arrays


def _header(member: BinaryIO) -> tuple[list[int], str]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, datatype = read(member)
    return list(shape), datatype.name


def _card(folder: Path, manifest: Manifest) -> str | None:
    if manifest.card is None or manifest.card.size_bytes > _MAX_CARD_BYTES:
        return None
    path = file_path(folder, manifest.card.sha256)
    try:
        with path.open("rb") as file:
            return file.read(_MAX_CARD_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return None


def _is_whole(folder: Path, artifact: Artifact) -> bool:
    try:
        with file_path(folder, artifact.sha256).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == artifact.sha256
    except OSError as error:
        raise MalformedMessage(f"cannot read a file of {folder}: {error.strerror}") from None


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.datatype} {spec.shape}"
