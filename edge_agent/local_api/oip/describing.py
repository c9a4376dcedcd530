"""What the protocol tells of the server and its models: metadata, configuration, readiness, statistics.

A shadow answers nobody, so nothing here names one. `signature_of` is on the way of every call: what it makes
is kept for as long as the model's own signature is the same object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_agent.errors import UnknownModelError
from edge_agent.local_api.service import (
    CallStatistics,
    InferenceService,
    ModelDescription,
    RepositoryEntry,
    RepositoryState,
)
from edge_agent.version import AGENT_VERSION
from fleet_protocol.manifest import TensorSpec

SERVER_NAME = "edgefleet"
PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "statistics",
    "system_shared_memory",
)
_MAX_KEPT = 1024
"""Signatures kept; more names than this are asked for only by somebody who guesses."""
_NO_NUMBERS = frozenset({"BOOL", "BYTES"})
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """What a call needs to know of a model. `numbers_only` when none of its inputs is BOOL or BYTES."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    labels: tuple[str, ...]
    numbers_only: bool
    source: tuple[object, object, object]


_KEPT: dict[tuple[str, str | None], Signature] = {}


def signature_of(service: InferenceService, name: str, version: str | None) -> Signature:
    """The signature of what answers for `name`. Raises UnknownModelError."""
    description = description_of(service, name, version)
    source = (description.inputs, description.outputs, description.labels)
    kept = _KEPT.get((name, version))
    if kept is not None and all(map(_is, kept.source, source)):
        return kept
    signature = Signature(
        inputs={spec.name: spec for spec in description.inputs},
        outputs={spec.name: spec for spec in description.outputs},
        labels=description.labels,
        numbers_only=not any(spec.datatype in _NO_NUMBERS for spec in description.inputs),
        source=source,
    )
    if len(_KEPT) >= _MAX_KEPT:
        _KEPT.clear()
    _KEPT[name, version] = signature
    return signature


def _is(one: object, other: object) -> bool:
    return one is other


def description_of(service: InferenceService, name: str, version: str | None) -> ModelDescription:
    """What answers for `name`, or for its `version`. Raises UnknownModelError."""
    if version is None:
        return service.describe_model(name)
    for description in _answering(service, name):
        if description.version == version:
            return description
    raise UnknownModelError(f"no version {version[:80]!r} of a model {name[:80]!r} is loaded here")


def server_metadata() -> dict[str, Any]:
    """The answer of GET /v2."""
    return {"name": SERVER_NAME, "version": AGENT_VERSION, "extensions": EXTENSIONS}


def model_metadata(service: InferenceService, name: str, version: str | None) -> dict[str, Any]:
    """The answer of GET /v2/models/M. Raises UnknownModelError."""
    description = description_of(service, name, version)
    versions = sorted({entry.version for entry in _answering(service, name)} | {description.version})
    return {
        "name": name,
        "versions": versions if version is None else [version],
        "platform": PLATFORM,
        "inputs": description.inputs,
        "outputs": description.outputs,
    }


def model_config(service: InferenceService, name: str, version: str | None) -> dict[str, Any]:
    """The answer of …/config, in the words of Triton's model configuration. Raises UnknownModelError.

    With a `max_batch_size` of more than 0 the first dimension, which is the batch, is not among `dims`.
    """
    description = description_of(service, name, version)
    batches = description.max_batch > 1
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "max_batch_size": description.max_batch if batches else 0,
        "input": [_config_tensor(spec, batches) for spec in description.inputs],
        "output": [_config_tensor(spec, batches) for spec in description.outputs],
    }


def entry_of(service: InferenceService, name: str, version: str | None) -> RepositoryEntry:
    """Whether a model answers, or could. Raises UnknownModelError."""
    found: RepositoryEntry | None = None
    for entry in service.repository():
        if entry.name == name and version in (None, entry.version):
            if entry.state is RepositoryState.READY:
                return entry
            found = found or entry
    if found is None:
        what = f"model {name[:80]!r}" if version is None else f"version {version[:80]!r} of a model {name[:80]!r}"
        raise UnknownModelError(f"there is no {what} here")
    return found


def statistics(service: InferenceService, name: str | None, version: str | None) -> dict[str, Any]:
    """The answer of …/stats, for one model, version, or all. Raises UnknownModelError."""
    if name is not None:
        entry_of(service, name, version)
    memory = {(entry.name, entry.version, entry.arm): entry.memory_bytes for entry in service.describe_models()}
    return {
        "model_stats": [
            _statistics(entry, memory.get((entry.name, entry.version, entry.arm)))
            for entry in service.statistics()
            if name in (None, entry.name) and version in (None, entry.version)
        ]
    }


def _answering(service: InferenceService, name: str) -> list[ModelDescription]:
    return [entry for entry in service.describe_models() if entry.name == name and not entry.shadow]


def _config_tensor(spec: TensorSpec, batches: bool) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": _CONFIG_TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"),
        "dims": spec.shape[1:] if batches else spec.shape,
    }


def _statistics(entry: CallStatistics, memory_bytes: int | None) -> dict[str, Any]:
    calls = entry.successes
    runs = sum(entry.batches.values())
    around_ns = max(0, entry.total_ns - entry.queue_ns - entry.run_ns)
    return {
        "name": entry.name,
        "version": entry.version,
        "arm": entry.arm,
        "last_inference": entry.last_at_ms,
        "inference_count": calls,
        "execution_count": runs,
        "inference_stats": {
            "success": _duration(calls, entry.total_ns),
            "fail": _duration(entry.failures, 0),
            "queue": _duration(calls, entry.queue_ns),
            "compute_input": _duration(calls, around_ns),
            "compute_infer": _duration(calls, entry.run_ns),
            "compute_output": _duration(0, 0),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [
            {"batch_size": size, "compute_infer": {"count": count}} for size, count in sorted(entry.batches.items())
        ],
        "memory_usage": [] if memory_bytes is None else [{"type": "CPU", "id": 0, "byte_size": memory_bytes}],
    }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
