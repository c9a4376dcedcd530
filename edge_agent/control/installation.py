"""From a verified file in the bundle store to a model in memory, for the first time and whenever it comes back.

Invariant: a file's digest is checked right before each load, and its bundle's signatures before each installation.
Raises ArtifactCorruptError, ModelLoadError (FAILED), BundleRefusedError and MemoryBudgetError (REJECTED: the bundle may
be right, and may fit another day).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.golden import Tensors
from edge_agent.errors import BundleRefusedError
from edge_agent.runtime.loading import Loading, load_model
from edge_agent.runtime.model_slot import ModelSlot
from edge_agent.runtime.providers import ProviderFallback
from edge_agent.runtime.session import Model
from fleet_protocol.manifest import Manifest, Variant


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


def load_installed(
    bundle: str, variant_name: str, *, store: BundleStore, loading: Loading, must_answer: bool = True
) -> WarmModel:
    """Load a variant that was chosen earlier, its digests and signatures checked again."""
    manifest = store.manifest(bundle, is_installed=True)
    for variant in manifest.variants:
        if variant.name == variant_name:
            return load_variant(manifest, variant, store=store, loading=loading, golden=None, must_answer=must_answer)
    raise BundleRefusedError(f"bundle {bundle} has no variant {variant_name}")


def load_variant(
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
