"""Getting a bundle onto this device and choosing what of it runs: fetch, verify, check the fit, warm.

Each step raises what the state machine turns into an end: BundleRefusedError (REJECTED), ArtifactCorruptError,
GoldenMismatchError, ModelLoadError or DownloadError (FAILED). A MemoryBudgetError is REJECTED too: the bundle is right,
and may fit another day.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import psutil

from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.download import Downloader
from edge_agent.control.golden import Tensors, check_golden, load_golden
from edge_agent.errors import (
    AgentError,
    ArtifactCorruptError,
    BundleRefusedError,
    GoldenMismatchError,
    MemoryBudgetError,
)
from edge_agent.runtime.loading import Loading, load_model
from edge_agent.runtime.model_slot import ModelSlot
from edge_agent.runtime.providers import ProviderFallback
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
    """A loaded, verified model in its place in memory, the manifest and variant it came from, and how to load it again.

    `fallbacks` are the providers that could not run it.
    """

    manifest: Manifest
    variant: Variant
    slot: ModelSlot
    path: Path
    load: Callable[[], Model]
    fallbacks: tuple[ProviderFallback, ...] = ()


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


def admit_into_free_memory(size_bytes: int) -> None:
    """Raise MemoryBudgetError unless the machine has so much memory to spare."""
    available = psutil.virtual_memory().available
    if size_bytes > available:
        raise MemoryBudgetError(f"no memory: the bundle needs {size_bytes} bytes, {available} are free")


def warm_bundle(
    bundle: str,
    *,
    store: BundleStore,
    loading: Loading,
    must_answer: bool = True,
    admit: Callable[[int], None] = admit_into_free_memory,
) -> WarmModel:
    """Load the bundle's variants, check each against its golden vectors, keep the fastest right one.

    `admit` is told the bytes that the manifest asks for and raises when the machine has no room; the budget of all
    models is asked for each variant. `must_answer` is False for a shadow. Otherwise raises the first variant's
    failure when none is right.
    """
    manifest = store.manifest(bundle)
    admit(manifest.memory_bytes)
    golden = store.verified_file(manifest.golden)
    best: tuple[float, WarmModel] | None = None
    first_failure: AgentError = GoldenMismatchError(f"bundle {bundle} has no variants")
    for place, variant in enumerate(manifest.variants):
        try:
            warm, elapsed_s = _checked(manifest, variant, golden, store=store, loading=loading, must_answer=must_answer)
        except AgentError as error:
            first_failure = error if place == 0 else first_failure
            continue
        slower: WarmModel | None = warm
        if best is None or elapsed_s < best[0]:
            slower, best = best[1] if best is not None else None, (elapsed_s, warm)
        if slower is not None:
            loading.residency.remove(slower.slot)
    if best is None:
        raise first_failure
    return best[1]


def _checked(
    manifest: Manifest, variant: Variant, golden: Path, *, store: BundleStore, loading: Loading, must_answer: bool
) -> tuple[WarmModel, float]:
    """A variant that answers its golden vectors as it must, and the seconds of one run (where there is a choice)."""
    inputs, expected = load_golden(golden, variant.name)
    warm = _load(manifest, variant, store=store, loading=loading, golden=inputs, must_answer=must_answer)
    try:
        model = loading.residency.bring_back(warm.slot)
        check_golden(model, inputs, expected, variant)
        return warm, _median_run_s(model, inputs) if len(manifest.variants) > 1 else 0.0
    except BaseException:
        loading.residency.remove(warm.slot)
        raise


def load_installed(
    bundle: str, variant_name: str, *, store: BundleStore, loading: Loading, must_answer: bool = True
) -> WarmModel:
    """Load a variant that was chosen earlier, its digests and signatures checked again."""
    manifest = store.manifest(bundle)
    for variant in manifest.variants:
        if variant.name == variant_name:
            return _load(manifest, variant, store=store, loading=loading, golden=None, must_answer=must_answer)
    raise BundleRefusedError(f"bundle {bundle} has no variant {variant_name}")


def _load(
    manifest: Manifest,
    variant: Variant,
    *,
    store: BundleStore,
    loading: Loading,
    golden: Tensors | None,
    must_answer: bool,
) -> WarmModel:
    """Load one variant's file after checking its digest, now and whenever it comes back into memory.

    Providers other than the CPU must answer as it does, on the inputs `golden` or on made-up ones. Raises
    ArtifactCorruptError, ModelLoadError, MemoryBudgetError.
    """
    fallbacks: tuple[ProviderFallback, ...] = ()

    def load() -> Model:
        nonlocal fallbacks
        loaded = load_model(
            store.verified_file(variant.file),
            runtime=loading.runtime,
            cache_dir=loading.cache_dir,
            golden=golden,
            digest=variant.file.sha256,
        )
        fallbacks = loaded.fallbacks
        return loaded.model

    path = store.path(variant.file.sha256)
    slot = loading.residency.add(
        f"{manifest.model} {manifest.version} {variant.name}",
        load,
        size_hint_bytes=variant.file.size_bytes,
        path=path,
        must_answer=must_answer,
    )
    return WarmModel(manifest=manifest, variant=variant, slot=slot, path=path, load=load, fallbacks=fallbacks)


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
