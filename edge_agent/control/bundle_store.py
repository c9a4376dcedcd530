"""Bundles on the device's disk: content-addressed files, each verified before it is believed.

```
FOLDER/<sha256>           a whole, verified file (an envelope or an artifact)
FOLDER/<sha256>.partial   a download in progress
```
Invariants: a file without the suffix had its digest when it was put there; nothing is read for running
without its digest and its bundle's signatures being checked again; garbage collection keeps what it is told.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from edge_agent.durable_files import move_into_place
from edge_agent.errors import ArtifactCorruptError, BundleRefusedError, DownloadError
from fleet_protocol.envelope import MANIFEST_TYPE, MAX_ENVELOPE_BYTES, verify_envelope
from fleet_protocol.errors import ProtocolError
from fleet_protocol.keys import PublicKey
from fleet_protocol.manifest import Artifact, Manifest, decode_manifest
from fleet_protocol.root import KeyRule

_LOG = logging.getLogger(__name__)
_READ_BYTES = 1024 * 1024


class BundleStore:
    """The folder, and the release keys that make its bundles worth anything."""

    def __init__(self, folder: Path, *, release_keys: Sequence[PublicKey], threshold: int, reserve_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._reserve = folder, reserve_bytes
        plain = (KeyRule(tuple(release_keys), threshold),)
        self._rules: Callable[[], Sequence[KeyRule]] = lambda: plain

    def believe(self, rules: Callable[[], Sequence[KeyRule]]) -> None:
        """Ask `rules` whom to believe: bundles are installed by the first; installed ones may be by any of them."""
        self._rules = rules

    def path(self, sha256: str) -> Path:
        """Where the file of that digest is, or would be."""
        return self._folder / sha256

    def partial_path(self, sha256: str) -> Path:
        """Where its download grows."""
        return self._folder / f"{sha256}.partial"

    def has(self, artifact: Artifact) -> bool:
        """Whether a file of this digest and size was put here."""
        path = self.path(artifact.sha256)
        return path.is_file() and path.stat().st_size == artifact.size_bytes

    def partial_size(self, sha256: str) -> int:
        """How many bytes of its download are on the disk already."""
        try:
            return self.partial_path(sha256).stat().st_size
        except FileNotFoundError:
            return 0

    def held(self, model: str) -> list[tuple[Manifest, list[Artifact]]]:
        """Every bundle of a model whose envelope is here and holds, with those of its files that are here."""
        found = []
        for path in sorted(self._folder.iterdir()):
            if not path.suffix and _may_be_envelope(path):
                try:
                    manifest = self.manifest(path.name, is_installed=True)
                except (BundleRefusedError, ArtifactCorruptError):
                    continue
                if manifest.model == model:
                    found.append((manifest, [artifact for artifact in manifest.artifacts() if self.has(artifact)]))
        return found

    def require_space(self, needed_bytes: int) -> None:
        """Raise BundleRefusedError unless the disk holds `needed_bytes` and the reserve."""
        free = shutil.disk_usage(self._folder).free
        if free < needed_bytes + self._reserve:
            raise BundleRefusedError(
                f"no space: the bundle needs {needed_bytes} bytes and {self._reserve} in reserve, {free} are free"
            )

    def adopt(self, sha256: str) -> None:
        """Turn a finished download into a stored file.

        Raises ArtifactCorruptError, and removes the download, unless its digest is `sha256`; DownloadError when
        the disk fails.
        """
        partial = self.partial_path(sha256)
        try:
            found = file_digest(partial)
            if found != sha256:
                partial.unlink(missing_ok=True)
                raise ArtifactCorruptError(f"the download of {sha256} has the digest {found}: tampered with or damaged")
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            move_into_place(partial, self.path(sha256))
        except OSError as error:
            raise DownloadError(f"cannot store {partial}: {error.strerror or error}") from None

    def manifest(self, bundle: str, *, is_installed: bool = False) -> Manifest:
        """The manifest of a stored bundle, its digest and signatures checked now.

        One that `is_installed` may have the signatures of earlier release keys: revoking a key stops no device. Raises
        BundleRefusedError or ArtifactCorruptError.
        """
        try:
            with self.path(bundle).open("rb") as file:
                envelope = file.read(MAX_ENVELOPE_BYTES + 1)
        except OSError as error:
            raise ArtifactCorruptError(f"bundle {bundle} cannot be read: {error.strerror}") from None
        if hashlib.sha256(envelope).hexdigest() != bundle:
            self._refuse_damaged(bundle)
        refusal: ProtocolError | None = None
        rules = self._rules()
        for keys, threshold in rules if is_installed else rules[:1]:
            try:
                return decode_manifest(verify_envelope(envelope, MANIFEST_TYPE, keys, threshold))
            except ProtocolError as error:
                refusal = refusal or error
        raise BundleRefusedError(f"bundle {bundle} refused: {refusal}")

    def verified_file(self, artifact: Artifact) -> Path:
        """The path of a stored artifact whose digest is checked now. Raises ArtifactCorruptError."""
        path = self.path(artifact.sha256)
        try:
            found = file_digest(path)
        except OSError as error:
            raise ArtifactCorruptError(f"artifact {artifact.sha256} cannot be read: {error.strerror}") from None
        if found != artifact.sha256:
            self._refuse_damaged(artifact.sha256)
        return path

    def _refuse_damaged(self, sha256: str) -> NoReturn:
        """Remove the file, so that a later update fetches it again, and say so."""
        self.path(sha256).unlink(missing_ok=True)
        raise ArtifactCorruptError(f"file {sha256} on this disk was damaged and is removed")

    def collect_garbage(self, kept: Mapping[str, Collection[str] | None]) -> None:
        """Remove every file that is not kept: of each bundle the envelope, the golden vectors and the named variants.

        None keeps every variant. A kept bundle that cannot be read stops the collection.
        """
        digests = set()
        for bundle, names in kept.items():
            if not self.path(bundle).exists():
                continue
            try:
                manifest = self.manifest(bundle, is_installed=True)
            except (BundleRefusedError, ArtifactCorruptError) as error:
                _LOG.warning("garbage collection skipped: %s", error)
                return
            variants = [variant for variant in manifest.variants if names is None or variant.name in names]
            digests |= {bundle, manifest.golden.sha256, *(variant.file.sha256 for variant in variants)}
        for path in self._folder.iterdir():
            if path.name.removesuffix(".partial") not in digests:
                path.unlink(missing_ok=True)


def _may_be_envelope(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size <= MAX_ENVELOPE_BYTES and file.read(1) == b"{"
    except OSError:
        return False


def file_digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
