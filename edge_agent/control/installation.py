"""Getting a bundle onto this device and choosing what of it runs: fetch, verify, check the fit, warm.

Each step raises what the state machine turns into an end: BundleRefusedError (REJECTED), ArtifactCorruptError,
GoldenMismatchError, ModelLoadError or DownloadError (FAILED).
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import numpy as np
import onnxruntime
import psutil

from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.download import Downloader
from edge_agent.control.golden import Tensors, check_golden, load_golden
from edge_agent.errors import AgentError, ArtifactCorruptError, BundleRefusedError, GoldenMismatchError
from edge_agent.runtime.session import Model
from edge_agent.telemetry.features import check_extractor
from edge_agent.version import AGENT_VERSION
from fleet_protocol.bins import check_edges
from fleet_protocol.envelope import MAX_ENVELOPE_BYTES
from fleet_protocol.errors import SketchError
from fleet_protocol.manifest import Artifact, Manifest, Variant
from fleet_protocol.messages import Assignment

_FETCH_TRIES = 2  # a second look, since damage may have happened on the way
_TIMED_RUNS = 20
_VERSION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9}){0,3})(?![0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmModel:
    """A loaded, verified model and the manifest and variant it came from."""

    manifest: Manifest
    variant: Variant
    model: Model


def fetch_bundle(assignment: Assignment, *, store: BundleStore, downloader: Downloader) -> Manifest:
    """Bring every file of the assigned bundle into the store, verified; returns the manifest."""
    if not store.path(assignment.bundle).exists():
        _fetch(assignment.bundle, None, store=store, downloader=downloader)
    manifest = store.manifest(assignment.bundle)
    check_fit(manifest, assignment)
    missing = [artifact for artifact in manifest.artifacts() if not store.has(artifact)]
    store.require_space(sum(artifact.size_bytes for artifact in missing))
    for artifact in missing:
        _fetch(artifact.sha256, artifact, store=store, downloader=downloader)
    return manifest


def _fetch(sha256: str, artifact: Artifact | None, *, store: BundleStore, downloader: Downloader) -> None:
    exact = artifact.size_bytes if artifact else None
    limit = MAX_ENVELOPE_BYTES if exact is None else exact
    for attempt in range(_FETCH_TRIES):
        try:
            downloader.fetch(sha256, store.partial_path(sha256), max_bytes=limit, exact_bytes=exact)
            store.adopt(sha256)
        except ArtifactCorruptError:
            if attempt + 1 == _FETCH_TRIES:
                raise
        else:
            return


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


def _check_edges(what: str, edges: list[float]) -> None:
    try:
        check_edges(edges)
    except SketchError as error:
        raise BundleRefusedError(f"the reference of {what} is broken: {error}: rebuild the bundle") from None


def warm_bundle(bundle: str, *, store: BundleStore, threads: int) -> WarmModel:
    """Load the bundle's variants, check each against its golden vectors, keep the fastest right one.

    Raises BundleRefusedError when memory is short, otherwise the first variant's failure when none is right.
    """
    manifest = store.manifest(bundle)
    available = psutil.virtual_memory().available
    if manifest.memory_bytes > available:
        raise BundleRefusedError(f"no memory: the bundle needs {manifest.memory_bytes} bytes, {available} are free")
    golden = store.verified_file(manifest.golden)
    best: tuple[float, WarmModel] | None = None
    first_failure: AgentError = GoldenMismatchError(f"bundle {bundle} has no variants")
    for place, variant in enumerate(manifest.variants):
        try:
            model = load_variant(variant, store=store, threads=threads)
            inputs, expected = load_golden(golden, variant.name)
            check_golden(model, inputs, expected, variant)
        except AgentError as error:
            first_failure = error if place == 0 else first_failure
            continue
        elapsed_s = _median_run_s(model, inputs) if len(manifest.variants) > 1 else 0.0
        if best is None or elapsed_s < best[0]:
            best = (elapsed_s, WarmModel(manifest=manifest, variant=variant, model=model))
    if best is None:
        raise first_failure
    return best[1]


def load_installed(bundle: str, variant_name: str, *, store: BundleStore, threads: int) -> WarmModel:
    """Load a variant that was chosen earlier, its digests and signatures checked again."""
    manifest = store.manifest(bundle)
    for variant in manifest.variants:
        if variant.name == variant_name:
            return WarmModel(
                manifest=manifest, variant=variant, model=load_variant(variant, store=store, threads=threads)
            )
    raise BundleRefusedError(f"bundle {bundle} has no variant {variant_name}")


def load_variant(variant: Variant, *, store: BundleStore, threads: int) -> Model:
    """Load one variant's file after checking its digest. Raises ArtifactCorruptError or ModelLoadError."""
    return Model.load(store.verified_file(variant.file), threads=threads)


def _median_run_s(model: Model, inputs: Tensors) -> float:
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        model.run(inputs)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version for comparing; what follows them (a pre-release, a build) does not count."""
    found = _VERSION.match(version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()
