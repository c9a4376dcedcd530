"""Small signed bundles for the device's rooms."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from edge_agent.control.bundle_store import BundleStore, file_digest
from fleet_protocol.envelope import MANIFEST_TYPE, sign_envelope
from fleet_protocol.keys import PrivateKey
from fleet_protocol.manifest import Artifact, Manifest, TensorSpec, Variant, bundle_digest, encode_manifest
from fleet_protocol.messages import Assignment
from tests.agent.runtime import onnx_files

RELEASE = PrivateKey(b"r" * 32)
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
