"""Fetching a bundle, refusing what does not fit, and warming what does."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.config import RuntimeSection
from edge_agent.control.download import Downloader
from edge_agent.control.fetching import fetch_bundle
from edge_agent.control.fit import check_fit
from edge_agent.control.golden import check_golden, load_golden
from edge_agent.control.installation import load_installed
from edge_agent.control.variant_choice import choose_variant
from edge_agent.errors import (
    AgentError,
    ArtifactCorruptError,
    BundleRefusedError,
    GoldenMismatchError,
    MemoryBudgetError,
    ModelLoadError,
)
from edge_agent.runtime.loading import Loading
from edge_agent.runtime.residency import Residency
from edge_agent.runtime.session import Model
from fleet_protocol.manifest import Artifact, FeatureReference, ScoreReference, Variant
from tests.agent.control.artifact_server import ArtifactServer
from tests.agent.control.bundles import GOLDEN, SCORES, SmallBundle, X, artifact, bundle, npz, store_in
from tests.agent.runtime import onnx_files

RESIDENCY = Residency(budget_bytes=None, on_event=lambda kind, name, detail: None)
LOADING = Loading(runtime=RuntimeSection(threads=1), residency=RESIDENCY, cache_dir=None)


@pytest.fixture
def small(tmp_path: Path) -> SmallBundle:
    return bundle(tmp_path / "made")


@pytest.fixture
def server(small: SmallBundle) -> Iterator[ArtifactServer]:
    with ArtifactServer(b"") as running:
        served = {**small.files, small.digest: small.envelope}

        def answer(handler: Any, content: bytes, first: int) -> None:
            body = served[handler.path.rpartition("/")[2]]
            handler.head(200, len(body))
            handler.wfile.write(body)

        running.faults = [answer] * 20
        yield running


def downloader(url: str) -> Downloader:
    return Downloader(
        base_url=url, username="d", password="", attempts=1, backoff_max_s=1.0, wait=lambda seconds: False
    )  # fmt: skip


def test_a_bundle_is_fetched_whole_and_only_once(tmp_path: Path, small: SmallBundle, server: ArtifactServer) -> None:
    store = store_in(tmp_path / "store")

    for _ in range(2):
        assert fetch_bundle(small.assignment, store=store, downloader=downloader(server.url)) == small.manifest

    assert len(server.requests) == 3
    assert choose_variant(small.digest, store=store, loading=LOADING).warm.variant.name == "fp32"


def test_a_file_that_was_damaged_on_the_way_is_fetched_once_more_and_then_refused(
    tmp_path: Path, small: SmallBundle
) -> None:
    store = store_in(tmp_path / "store")
    with ArtifactServer(b"something else altogether") as server:
        with pytest.raises(ArtifactCorruptError, match="digest"):
            fetch_bundle(small.assignment, store=store, downloader=downloader(server.url))
        assert len(server.requests) == 2


def test_a_bundle_of_another_model_or_version_than_assigned_is_refused(small: SmallBundle) -> None:
    for wrong in (replace(small.assignment, model="other"), replace(small.assignment, version="2.0.0")):
        with pytest.raises(BundleRefusedError, match="not the assigned"):
            check_fit(small.manifest, wrong)


def feature(**changes: Any) -> FeatureReference:
    return replace(FeatureReference(name="f", extractor="mean", input="x", edges=[0.0, 1.0], counts=[1]), **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"minimum_agent": "99.0.0"}, "needs agent 99.0.0"),
        ({"minimum_onnxruntime": "99.0"}, "needs ONNX Runtime 99.0"),
        ({"minimum_agent": "latest"}, "not a version"),
        ({"minimum_agent": ""}, "not a version"),
        ({"minimum_agent": "9" * 5_000}, "not a version"),
        ({"minimum_onnxruntime": "v1.2"}, "not a version"),
        ({"features": [feature(extractor="os.system")]}, "upgrade the agent"),
        ({"features": [feature(input="sound")]}, "sound"),
        ({"features": [feature(edges=[1.0, 0.0])]}, "strictly increasing"),
        ({"features": [feature(edges=[])]}, "edges"),
        ({"score": ScoreReference(edges=[0.5], counts=[])}, "the score"),
    ],
)
def test_a_bundle_that_this_agent_cannot_carry_out_is_refused_before_it_runs(
    small: SmallBundle, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(BundleRefusedError, match=says):
        check_fit(replace(small.manifest, **changes), small.assignment)


@pytest.mark.parametrize("minimum", ["0.0.1", "0.1", "0.1.0-rc.1", "0.1.0rc1"])
def test_a_bundle_for_this_agent_or_an_older_one_fits(small: SmallBundle, minimum: str) -> None:
    check_fit(replace(small.manifest, minimum_agent=minimum), small.assignment)


def test_a_bundle_that_needs_more_memory_than_there_is_is_refused(tmp_path: Path) -> None:
    store, large = store_in(tmp_path / "store"), bundle(tmp_path / "made", memory_bytes=2**60)
    large.put_into(store)

    with pytest.raises(MemoryBudgetError, match="no memory"):
        choose_variant(large.digest, store=store, loading=LOADING)


def test_a_model_that_answers_otherwise_than_its_golden_vectors_does_not_warm(tmp_path: Path) -> None:
    wrong = bundle(tmp_path / "made", golden=npz(input__x=X, output__fp32__scores=SCORES + 0.01))
    store = store_in(tmp_path / "store")
    wrong.put_into(store)

    with pytest.raises(GoldenMismatchError, match=r"differs from its golden output scores by 0\.01"):
        choose_variant(wrong.digest, store=store, loading=LOADING)


def test_the_right_variant_warms_also_when_the_first_is_wrong_here(tmp_path: Path) -> None:
    made = tmp_path / "made"
    right = bundle(made).manifest.variants[0]
    broken = replace(right, name="broken", file=artifact(b"not onnx", made))
    small = bundle(
        made, golden=npz(input__x=X, output__fp32__scores=SCORES, output__broken__scores=SCORES),
        variants=[broken, right],
    )  # fmt: skip
    small.files[broken.file.sha256] = b"not onnx"
    store = store_in(tmp_path / "store")
    small.put_into(store)

    assert choose_variant(small.digest, store=store, loading=LOADING).warm.variant.name == "fp32"


def test_when_no_variant_is_right_the_first_ones_failure_is_told(tmp_path: Path) -> None:
    made = tmp_path / "made"
    broken = Variant(
        name="broken", file=artifact(b"not onnx", made), opset=17, quantization="none", golden_tolerance=0.0
    )
    golden = npz(input__x=X, output__broken__scores=SCORES)
    small = bundle(made, golden=golden, variants=[broken])
    small.files[broken.file.sha256] = b"not onnx"
    store = store_in(tmp_path / "store")
    small.put_into(store)

    with pytest.raises(ModelLoadError, match="not an ONNX model"):
        choose_variant(small.digest, store=store, loading=LOADING)


def test_an_installed_variant_is_checked_again_each_time_it_is_loaded(tmp_path: Path, small: SmallBundle) -> None:
    store = store_in(tmp_path / "store")
    small.put_into(store)

    assert load_installed(small.digest, "fp32", store=store, loading=LOADING).manifest == small.manifest
    with pytest.raises(BundleRefusedError, match="no variant int8"):
        load_installed(small.digest, "int8", store=store, loading=LOADING)
    store.path(small.manifest.variants[0].file.sha256).write_bytes(b"tampered")
    with pytest.raises(ArtifactCorruptError, match="damaged"):
        load_installed(small.digest, "fp32", store=store, loading=LOADING)


def with_huge_array() -> bytes:
    header = json.dumps({"descr": "<f8", "fortran_order": False, "shape": [2**50]}).replace("false", "False")
    header = header.replace("[", "(").replace("]", ",)").ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    return rezip({"input:x.npy": array, "output:fp32:scores.npy": array})


def rezip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        GOLDEN[:-10],
        GOLDEN[: len(GOLDEN) // 2],
        npz(input__x=X),
        npz(output__fp32__scores=SCORES),
        npz(input__x=X, output__int8__scores=SCORES),
        rezip({"input:x.npy": b"not an array", "output:fp32:scores.npy": b"nor this"}),
        rezip({"input:x.npy": b"\x00" * (65 * 1024 * 1024)}),
        with_huge_array(),
    ],
    ids=["empty", "a magic number", "torn end", "half", "no outputs", "no inputs", "other variant", "no arrays",
         "a bomb", "an array of petabytes"],
)  # fmt: skip
def test_golden_vectors_that_cannot_be_used_are_a_golden_mismatch(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(content)

    with pytest.raises(GoldenMismatchError):
        load_golden(path, "fp32")


def test_golden_vectors_never_run_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    np.savez(path, **{"input:x": np.array([object()]), "output:fp32:y": np.array([object()])}, allow_pickle=True)

    with pytest.raises(GoldenMismatchError, match="cannot be read"):
        load_golden(path, "fp32")


DEFLATED = rezip({"input:x.npy": npz(x=X)[35:], "output:fp32:scores.npy": b"\x93NUMPY\x01\x00" + bytes(range(256)) * 4})


@settings(
    deadline=None, max_examples=200, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_golden_vectors_with_flipped_bits_are_read_or_an_agent_error(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from([GOLDEN, DEFLATED])))
    for place in data.draw(st.lists(st.integers(0, len(damaged) * 8 - 1), min_size=1, max_size=3)):
        damaged[place // 8] ^= 1 << place % 8
    path = tmp_path / "golden.npz"
    path.write_bytes(damaged)

    try:
        inputs, outputs = load_golden(path, "fp32")
    except AgentError:
        return
    assert all(isinstance(array, np.ndarray) for array in (*inputs.values(), *outputs.values()))


VARIANT = Variant(
    name="fp32",
    file=Artifact(sha256="0" * 64, size_bytes=0),
    opset=17,
    quantization="none",
    golden_tolerance=0.001,
)


@pytest.mark.parametrize(
    "expected",
    [
        {"scores": SCORES + 0.002},
        {"scores": SCORES[:1]},
        {"scores": SCORES.astype(np.float64) * np.nan},
        {"other": SCORES},
        {"scores": SCORES.astype("<U8")},
        {"scores": SCORES.astype(np.complex64)},
    ],
    ids=["too far", "another shape", "NaN", "another name", "text", "complex"],
)
def test_outputs_other_than_the_golden_ones_are_a_mismatch(tmp_path: Path, expected: dict[str, Any]) -> None:
    model = Model.load(onnx_files.linear(tmp_path / "linear.onnx"))

    check_golden(model, {"x": X}, {"scores": SCORES}, VARIANT)
    with pytest.raises(GoldenMismatchError):
        check_golden(model, {"x": X}, expected, VARIANT)
    with pytest.raises(GoldenMismatchError, match="fails on its golden vectors"):
        check_golden(model, {"y": X}, {"scores": SCORES}, VARIANT)
