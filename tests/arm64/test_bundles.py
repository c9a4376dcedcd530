"""Every bundle of the model zoo on the CPU that runs this: here on whatever `make test` runs on, on ARM by emulation.

What was answered and what may differ is noted per variant (`numerics`), for the summary of the emulated run.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.config import RuntimeSection
from edge_agent.control.candidates import candidates_for
from edge_agent.control.golden import check_golden, load_golden
from edge_agent.control.variant_choice import choose_variant
from edge_agent.errors import GoldenMismatchError
from edge_agent.runtime.loading import Loading, load_model
from edge_agent.runtime.residency import Residency
from fleet_protocol.envelope import MANIFEST_TYPE, sign_envelope
from fleet_protocol.manifest import Manifest, Variant, bundle_digest, decode_manifest
from tests.agent.control.bundles import RELEASE, store_in

MODELS = Path(__file__).resolve().parents[2] / "models"
BUNDLES = sorted(path.parent for path in MODELS.glob("*/bundles/*/manifest.json"))
RUNTIME = RuntimeSection(threads=1)


def named(folder: Path) -> str:
    """model-version, from models/MODEL/bundles/VERSION."""
    return f"{folder.parents[1].name}-{folder.name}"


def manifest_of(folder: Path) -> Manifest:
    return decode_manifest((folder / "manifest.json").read_bytes())


@pytest.fixture
def loading() -> Iterator[Loading]:
    residency = Residency(budget_bytes=None, on_event=lambda kind, name, detail: None)
    try:
        yield Loading(runtime=RUNTIME, residency=residency, cache_dir=None)
    finally:
        residency.close()


def test_the_model_zoo_has_bundles() -> None:
    assert BUNDLES


@pytest.mark.parametrize("folder", BUNDLES, ids=named)
def test_every_variant_answers_its_golden_vectors_within_its_tolerance(
    request: pytest.FixtureRequest, folder: Path
) -> None:
    manifest = manifest_of(folder)
    golden = folder / "files" / manifest.golden.sha256
    faults = []
    for variant in candidates_for(manifest, platform.machine()):
        inputs, expected = load_golden(golden, variant.name)
        model = load_model(folder / "files" / variant.file.sha256, runtime=RUNTIME, cache_dir=None).model
        note = f"{named(folder)} {variant.name}: {compared(model.run(inputs), expected, variant)}"
        request.node.user_properties.append(("numerics", note))
        try:
            check_golden(model, inputs, expected, variant)
        except GoldenMismatchError as error:
            faults.append(str(error))
    assert faults == []


def compared(answered: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], variant: Variant) -> str:
    """How far the answers are from the golden ones, for people."""
    largest = max(float(np.abs(answered[name].astype(float) - want).max()) for name, want in expected.items())
    return f"at most {largest:.2g} from its golden outputs, {variant.golden_tolerance:.2g} is allowed"


@pytest.mark.parametrize("folder", BUNDLES, ids=named)
def test_the_agent_finds_every_variant_right_and_keeps_the_fastest(
    tmp_path: Path, folder: Path, loading: Loading
) -> None:
    manifest = manifest_of(folder)
    envelope = sign_envelope(MANIFEST_TYPE, (folder / "manifest.json").read_bytes(), [RELEASE])
    digest = bundle_digest(envelope)
    store = store_in(tmp_path / "store")
    files = {artifact.sha256: (folder / "files" / artifact.sha256).read_bytes() for artifact in manifest.artifacts()}
    for sha256, content in {**files, digest: envelope}.items():
        store.partial_path(sha256).write_bytes(content)
        store.adopt(sha256)

    chosen = choose_variant(digest, store=store, loading=loading)

    assert [figures.variant for figures in chosen.figures if not figures.right] == []
    assert {figures.variant for figures in chosen.figures} == {
        variant.name for variant in candidates_for(manifest, platform.machine())
    }
    fastest = min(chosen.figures, key=lambda figures: figures.p50_us)
    assert chosen.warm.variant.name == fastest.variant
