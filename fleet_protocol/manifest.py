"""The manifest of a bundle: what one version of a model is, and the digests of its files.

It is JSON inside a DSSE envelope (`fleet_protocol.envelope`, MANIFEST_TYPE). The bundle's digest is the
SHA-256 of the envelope's bytes, so a bundle is one immutable tree of content-addressed files.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from fleet_protocol.errors import MalformedMessage, UnsupportedSchema
from fleet_protocol.messages import Count
from fleet_protocol.names import ModelName, Sha256, VariantName, Version

MANIFEST_SCHEMA = 1
MAX_ARTIFACT_BYTES = 4 * 1024**3

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
"""Tensor element types by their Open Inference Protocol v2 names."""

Task = Literal["classification", "regression", "anomaly"]
"""What a model's answers are: classes, values, or how unusual a sample is (its reconstruction error or score)."""


class Artifact(Struct, frozen=True, kw_only=True):
    """One file, named by its content."""

    sha256: Sha256
    size_bytes: Annotated[int, Meta(ge=0, le=MAX_ARTIFACT_BYTES)]


class TensorSpec(Struct, frozen=True, kw_only=True):
    """A model's input or output; -1 in `shape` is a variable dimension."""

    name: str
    datatype: Datatype
    shape: list[Annotated[int, Meta(ge=-1)]]


class Variant(Struct, frozen=True, kw_only=True):
    """One ONNX file of the version.

    `expected` holds measured metrics on held-out data ("accuracy": 0.98); `golden_tolerance` is the largest
    absolute difference from the golden outputs that a right device shows. `architectures` (as `platform.machine`
    tells them, "x86_64") are those that it is a candidate for; none means every one.
    """

    name: VariantName
    file: Artifact
    opset: int
    quantization: str
    golden_tolerance: Annotated[float, Meta(ge=0)]
    expected: dict[str, float] = field(default_factory=dict)
    architectures: Annotated[list[str], Meta(max_length=16)] = field(default_factory=list)


class FeatureReference(Struct, frozen=True, kw_only=True):
    """How a feature is extracted on the device, and its distribution in the training data.

    `edges` `[bins + 1]` and `counts` `[bins]` are those of `fleet_protocol.bins.BinSketch`.
    """

    name: str
    extractor: str
    input: str
    edges: list[float]
    counts: list[Count]
    parameters: dict[str, float] = field(default_factory=dict)


class ScoreReference(Struct, frozen=True, kw_only=True):
    """The distribution of the answers' scores on the reference data: of the winning class, or, by the task, of the
    values or of how unusual the samples are (a single number answered, else a reconstruction's mean squared error).
    """

    edges: list[float]
    counts: list[Count]


class RandomFeatureReference(Struct, frozen=True, kw_only=True):
    """Sums of random Fourier features of one tensor on the reference data, for the MMD of any slice against it.

    `tensor` names an input, or the output that is the model's embedding. `bandwidth` is the kernel's, in the tensor's
    units; `seed` makes the frequencies; `sums` `[features]` are over `count` samples. `covariance_traces` are those of
    the first three powers of the covariance of the cosines (of size 1) over samples: how far chance alone puts a mean
    from the reference's. Older bundles have none.
    """

    tensor: str
    seed: Count
    bandwidth: Annotated[float, Meta(gt=0)]
    count: Count
    sums: Annotated[list[float], Meta(min_length=2, max_length=4096)]
    covariance_traces: Annotated[list[Annotated[float, Meta(ge=0)]], Meta(max_length=3)] = field(default_factory=list)


class ConfidenceCalibration(Struct, frozen=True, kw_only=True):
    """The probability that an answer is right by its winning score: straight lines between rising points.

    `scores` rise strictly, `confidences` from 0 to 1 never fall; outside, the nearest end holds.
    """

    scores: Annotated[list[float], Meta(min_length=1, max_length=64)]
    confidences: Annotated[list[Annotated[float, Meta(ge=0, le=1)]], Meta(min_length=1, max_length=64)]


class Lineage(Struct, frozen=True, kw_only=True):
    """Where a version comes from; "" is not recorded."""

    training_data_sha256: str = ""
    calibration_data_sha256: str = ""
    source_model_sha256: str = ""
    code_commit: str = ""
    parent_version: str = ""
    made_with: str = ""


class Manifest(Struct, frozen=True, kw_only=True):
    """One version of one model.

    `classes` counts the predicted classes on the reference data, by class index. `card` (Markdown) and `report` (HTML)
    are for people; a device fetches neither.
    """

    schema: int = MANIFEST_SCHEMA
    model: ModelName
    version: Version
    created_at_ns: int
    task: Task
    inputs: Annotated[list[TensorSpec], Meta(min_length=1, max_length=64)]
    outputs: Annotated[list[TensorSpec], Meta(min_length=1, max_length=64)]
    labels: list[str] = field(default_factory=list)
    variants: Annotated[list[Variant], Meta(min_length=1, max_length=16)]
    golden: Artifact
    features: Annotated[list[FeatureReference], Meta(max_length=256)] = field(default_factory=list)
    classes: Annotated[list[Count], Meta(max_length=4096)] = field(default_factory=list)
    score: ScoreReference | None = None
    random_features: RandomFeatureReference | None = None
    confidence: ConfidenceCalibration | None = None
    card: Artifact | None = None
    report: Artifact | None = None
    minimum_agent: str = "0.1.0"
    minimum_onnxruntime: str = "1.17.0"
    memory_bytes: Count = 0
    lineage: Lineage = field(default_factory=Lineage)
    licence: str = ""
    description: str = ""

    def artifacts(self) -> list[Artifact]:
        """Every file of the bundle, each once."""
        for_people = [artifact for artifact in (self.card, self.report) if artifact is not None]
        files = [self.golden, *(variant.file for variant in self.variants), *for_people]
        return list({artifact.sha256: artifact for artifact in files}.values())


def bundle_digest(envelope: bytes) -> str:
    """The digest that names a bundle: the SHA-256 of its signed envelope."""
    import hashlib  # with it comes OpenSSL, which a process without a fleet does not need

    return hashlib.sha256(envelope).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as the JSON that is signed."""
    return msgspec.json.encode(manifest)


def decode_manifest(payload: bytes) -> Manifest:
    """The manifest in a verified payload. Raises UnsupportedSchema, also when the rest does not parse, or
    MalformedMessage.
    """
    try:
        manifest: Manifest = _decoder(Manifest).decode(payload)
    except _UNDECODABLE as error:
        _check_schema(_peek_schema(payload))
        raise MalformedMessage(f"not a bundle manifest: {error}") from None
    _check_schema(manifest.schema)
    return manifest


def _check_schema(schema: int) -> None:
    if schema != MANIFEST_SCHEMA:
        raise UnsupportedSchema(f"manifest schema {schema} is not {MANIFEST_SCHEMA}: upgrade this agent")


def _peek_schema(payload: bytes) -> int:
    try:
        return int(_decoder(_SchemaOnly).decode(payload).schema)
    except _UNDECODABLE:
        return MANIFEST_SCHEMA


def read_unverified_manifest(envelope: bytes) -> Manifest:
    """The manifest in an envelope whose signatures were not checked: for showing, never for running."""
    from fleet_protocol.envelope import MANIFEST_TYPE, read_unverified

    return decode_manifest(read_unverified(envelope, MANIFEST_TYPE))


class _SchemaOnly(Struct):
    schema: int = MANIFEST_SCHEMA


_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@cache
def _decoder(kind: type) -> Any:
    """Made at its first use: a device without a fleet reads no manifest."""
    return msgspec.json.Decoder(kind)
