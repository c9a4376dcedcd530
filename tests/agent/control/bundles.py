"""Small signed bundles for the device's rooms."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.control.bundle_store import BundleStore, file_digest
from fleet_protocol.envelope import MANIFEST_TYPE, sign_envelope
from fleet_protocol.keys import PrivateKey
from fleet_protocol.manifest import Artifact, Manifest, TensorSpec, Variant, bundle_digest, encode_manifest
from fleet_protocol.messages import Assignment
from tests.agent.runtime import onnx_files

RELEASE = PrivateKey(b"r" * 32)
_BUSY_SIDE = 160
STRANGER = PrivateKey(b"s" * 32)
X = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]], dtype=np.float32)
SCORES = X @ np.tile(np.arange(2, dtype=np.float32) * 2, (3, 1))


def npz(**arrays: NDArray[Any]) -> bytes:
    """An .npz of arrays; a `__` in a name stands for a colon."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{name.replace('__', ':')}.npy", content.getvalue())
    return buffer.getvalue()


GOLDEN = npz(input__x=X, output__fp32__scores=SCORES)


@dataclass(frozen=True, kw_only=True)
class SmallBundle:
    """A manifest with its signed envelope and its files by digest."""

    manifest: Manifest
    envelope: bytes
    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        """The bundle's name."""
        return bundle_digest(self.envelope)

    @property
    def assignment(self) -> Assignment:
        """What a server would assign."""
        return Assignment(model=self.manifest.model, version=self.manifest.version, bundle=self.digest)

    def put_into(self, store: BundleStore) -> None:
        """As if it had been downloaded."""
        for sha256, content in {**self.files, self.digest: self.envelope}.items():
            store.partial_path(sha256).write_bytes(content)
            store.adopt(sha256)


def bundle(folder: Path, *, golden: bytes = GOLDEN, key: PrivateKey = RELEASE, **changes: Any) -> SmallBundle:
    """scores = x · (0, 2), signed; `changes` are the manifest's."""
    folder.mkdir(parents=True, exist_ok=True)
    model = onnx_files.linear(folder / "linear.onnx").read_bytes()
    files = {digest_of(content, folder): content for content in (model, golden)}
    manifest = Manifest(
        model="m",
        version="1.0.0",
        created_at_ns=1,
        task="classification",
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 3])],
        outputs=[TensorSpec(name="scores", datatype="FP32", shape=[-1, 2])],
        variants=[
            Variant(name="fp32", file=artifact(model, folder), opset=17, quantization="none", golden_tolerance=0.001)
        ],
        golden=artifact(golden, folder),
    )
    manifest = replace(manifest, **changes)
    return SmallBundle(
        manifest=manifest, envelope=sign_envelope(MANIFEST_TYPE, encode_manifest(manifest), [key]), files=files
    )


@dataclass(frozen=True, kw_only=True)
class VariantFile:
    """One variant of a bundle of several: its file, what it is said to answer to X, and where it is a candidate."""

    content: bytes
    scores: NDArray[Any] | None = None
    architectures: tuple[str, ...] = ()


def bundle_of_variants(
    folder: Path,
    variants: Mapping[str, VariantFile],
    *,
    golden_input: NDArray[Any] = X,
    golden_tolerance: float = 0.001,
    **changes: Any,
) -> SmallBundle:
    """A signed bundle of several variants, with a card and a report for people."""
    golden = npz(
        input__x=golden_input,
        **{f"output__{name}__scores": SCORES if one.scores is None else one.scores for name, one in variants.items()},
    )
    made = [
        Variant(
            name=name,
            file=artifact(one.content, folder),
            opset=17,
            quantization="none",
            golden_tolerance=golden_tolerance,
            architectures=list(one.architectures),
        )
        for name, one in variants.items()
    ]
    card, report = b"# a card", b"<html>a report</html>"
    small = bundle(
        folder, golden=golden, variants=made, card=artifact(card, folder), report=artifact(report, folder), **changes
    )
    for content in (card, report, *(one.content for one in variants.values())):
        small.files[digest_of(content, folder)] = content
    return small


def linear_file(folder: Path, *, busy: int = 0, weight: float = 2.0) -> bytes:
    """scores = x · (0, weight), after `busy` products of large matrices that add nothing to them."""
    folder.mkdir(parents=True, exist_ok=True)
    zeros = numpy_helper.from_array(np.zeros((_BUSY_SIDE, _BUSY_SIDE), np.float32), "zeros")
    matrix = np.tile(np.arange(2, dtype=np.float32) * weight, (3, 1))
    products = [helper.make_node("MatMul", [f"p{n}", "p0"], [f"p{n + 1}"]) for n in range(busy)]
    path = onnx_files.save(
        folder / f"linear-{busy}-{weight}.onnx",
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
            helper.make_node("Mul", ["zeros", "largest"], ["p0"]),
            *products,
            helper.make_node("ReduceMax", [f"p{busy}"], ["nothing"], keepdims=0),
            helper.make_node("Add", ["product", "nothing"], ["scores"]),
        ],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        outputs=[helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
        initializers=[numpy_helper.from_array(matrix, "w"), zeros],
    )
    return path.read_bytes()


def artifact(content: bytes, folder: Path) -> Artifact:
    """The artifact of some bytes."""
    return Artifact(sha256=digest_of(content, folder), size_bytes=len(content))


def digest_of(content: bytes, folder: Path) -> str:
    """The device's own idea of a digest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "content"
    path.write_bytes(content)
    return file_digest(path)


def store_in(folder: Path, *, reserve_bytes: int = 0) -> BundleStore:
    """A bundle store that trusts the release key."""
    return BundleStore(folder, release_keys=[RELEASE.public], threshold=1, reserve_bytes=reserve_bytes)
