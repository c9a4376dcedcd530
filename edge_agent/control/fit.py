"""Whether a bundle can run here at all: what is asked before any of its files is fetched or loaded. Pure but for the
look at the machine's free memory.
"""

from __future__ import annotations

import re

import onnxruntime
import psutil

from edge_agent.errors import BundleRefusedError, MemoryBudgetError
from edge_agent.telemetry.features import check_extractor
from edge_agent.version import AGENT_VERSION
from fleet_protocol.bins import check_edges
from fleet_protocol.errors import SketchError
from fleet_protocol.manifest import Manifest
from fleet_protocol.messages import Assignment

_VERSION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9}){0,3})(?![0-9])")


def check_fit(manifest: Manifest, assignment: Assignment) -> None:
    """Raise BundleRefusedError unless the bundle is what was assigned and this agent can run it."""
    if (manifest.model, manifest.version) != (assignment.model, assignment.version):
        raise BundleRefusedError(
            f"bundle {assignment.bundle} holds {manifest.model} {manifest.version}, "
            f"not the assigned {assignment.model} {assignment.version}"
        )
    for what, minimum, ours in (
        ("agent", manifest.minimum_agent, AGENT_VERSION),
        ("ONNX Runtime", manifest.minimum_onnxruntime, onnxruntime.__version__),
    ):
        if not _VERSION.match(minimum):
            raise BundleRefusedError(f"the bundle needs {what} {minimum[:80]!r}, which is not a version: rebuild it")
        if _numbers(minimum) > _numbers(ours):
            raise BundleRefusedError(f"the bundle needs {what} {minimum[:80]}, this is {ours}")
    for feature in manifest.features:
        check_extractor(feature, manifest.inputs)
        _check_edges(f"feature {feature.name!r}", feature.edges)
    if manifest.score is not None:
        _check_edges("the score", manifest.score.edges)


def admit_into_free_memory(size_bytes: int) -> None:
    """Raise MemoryBudgetError unless the machine has so much memory to spare."""
    available = psutil.virtual_memory().available
    if size_bytes > available:
        raise MemoryBudgetError(f"no memory: the bundle needs {size_bytes} bytes, {available} are free")


def _check_edges(what: str, edges: list[float]) -> None:
    try:
        check_edges(edges)
    except SketchError as error:
        raise BundleRefusedError(f"the reference of {what} is broken: {error}: rebuild the bundle") from None


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version for comparing; what follows them (a pre-release, a build) does not count."""
    found = _VERSION.match(version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()
