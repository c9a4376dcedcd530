"""Which variants of a bundle this device looks at, and which of them it keeps. Pure.

Invariants:
- a variant for other architectures is neither fetched nor loaded;
- a hint narrows the look to one candidate, and a hint that names none narrows nothing;
- only a variant whose golden vectors held is ever kept, and of those the fastest one that was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edge_agent.errors import (
    AgentError,
    ArtifactCorruptError,
    BundleRefusedError,
    GoldenMismatchError,
    MemoryBudgetError,
    OverloadedError,
)
from fleet_protocol.manifest import Artifact, Manifest, Variant
from fleet_protocol.messages import FAULT_DAMAGED, FAULT_NO_MEMORY, FAULT_NOT_LOADED, FAULT_WRONG, VariantFigures


def candidates_for(manifest: Manifest, machine: str) -> list[Variant]:
    """The variants for an architecture (as `platform.machine` tells it), in the manifest's order.

    Raises BundleRefusedError when there is none.
    """
    found = [variant for variant in manifest.variants if _is_for(variant, machine)]
    if not found:
        raise BundleRefusedError(
            f"{manifest.model} {manifest.version} has no variant for {machine}: build one, or assign another version"
        )
    return found


def wanted_variants(manifest: Manifest, hint: str, machine: str) -> list[Variant]:
    """The one candidate that `hint` names, every candidate when it names none. Raises BundleRefusedError."""
    candidates = candidates_for(manifest, machine)
    return [variant for variant in candidates if variant.name == hint] or candidates


def needed_files(manifest: Manifest, variants: Iterable[Variant]) -> list[Artifact]:
    """The files that a device needs to check and run these variants, each once; none of those for people."""
    files = [manifest.golden, *(variant.file for variant in variants)]
    return list({artifact.sha256: artifact for artifact in files}.values())


def fastest_right(figures: Sequence[VariantFigures]) -> VariantFigures | None:
    """Of the variants that were right and measured the one with the least p50, the first of equals; None for none."""
    return min((one for one in figures if one.right and one.p50_us > 0), key=lambda one: one.p50_us, default=None)


def fault_of(error: AgentError) -> str:
    """The word for why a variant was not kept, as the fleet pools it."""
    match error:
        case MemoryBudgetError() | OverloadedError():
            return FAULT_NO_MEMORY
        case ArtifactCorruptError():
            return FAULT_DAMAGED
        case GoldenMismatchError():
            return FAULT_WRONG
    return FAULT_NOT_LOADED


def _is_for(variant: Variant, machine: str) -> bool:
    return not variant.architectures or machine.lower() in {name.lower() for name in variant.architectures}
