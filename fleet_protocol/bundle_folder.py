"""A bundle as a folder: how a bundle travels from the machine that made it to the server.

```
FOLDER/manifest.json        the manifest, unsigned
FOLDER/bundle.dsse.json     the manifest in its signed envelope, once signed
FOLDER/files/<sha256>       every file the manifest names
```
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from fleet_protocol.envelope import MANIFEST_TYPE, add_signatures, sign_envelope
from fleet_protocol.errors import MalformedMessage
from fleet_protocol.keys import PrivateKey
from fleet_protocol.manifest import Artifact, Manifest, decode_manifest, encode_manifest

_MANIFEST = "manifest.json"
_ENVELOPE = "bundle.dsse.json"
_FILES = "files"


def add_file(folder: Path, content: bytes) -> Artifact:
    """Put a file into the bundle folder under its digest."""
    digest = hashlib.sha256(content).hexdigest()
    files = folder / _FILES
    files.mkdir(parents=True, exist_ok=True)
    (files / digest).write_bytes(content)
    return Artifact(sha256=digest, size_bytes=len(content))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the unsigned manifest; an older signature no longer holds and is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MANIFEST).write_bytes(encode_manifest(manifest))
    (folder / _ENVELOPE).unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest:
    """The unsigned manifest of a bundle folder. Raises MalformedMessage."""
    return decode_manifest(_read(folder / _MANIFEST))


def file_path(folder: Path, sha256: str) -> Path:
    """Where the folder keeps the file of that digest."""
    return folder / _FILES / sha256


def sign_bundle(folder: Path, keys: Iterable[PrivateKey]) -> bytes:
    """Sign the folder's manifest, or add signatures to its envelope; returns and keeps the envelope.

    Raises MalformedMessage when the manifest is missing or one of its files is not there.
    """
    payload = _read(folder / _MANIFEST)
    for artifact in decode_manifest(payload).artifacts():
        if not file_path(folder, artifact.sha256).is_file():
            raise MalformedMessage(f"{folder} lacks the file {artifact.sha256} that its manifest names")
    path = folder / _ENVELOPE
    envelope = add_signatures(path.read_bytes(), keys) if path.exists() else sign_envelope(MANIFEST_TYPE, payload, keys)
    path.write_bytes(envelope)
    return envelope


def read_envelope(folder: Path) -> bytes:
    """The signed envelope of a bundle folder. Raises MalformedMessage when it is not signed yet."""
    if not (folder / _ENVELOPE).exists():
        raise MalformedMessage(f"{folder} is not signed: sign it with `fleet keys sign`")
    return _read(folder / _ENVELOPE)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MalformedMessage(f"cannot read {path}: {error.strerror}") from None
