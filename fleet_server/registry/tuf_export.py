"""Writes bundles as a repository of The Update Framework, for clients that speak TUF and not edgefleet.

```
OUT/metadata/{1.root,N.targets,N.snapshot,timestamp}.json    OUT/targets/...    served by any static web server
```
The target MODEL/VERSION/bundle.dsse.json is the signed envelope, files/SHA256 are its files. Root keys sign the root,
release keys the targets, the director key snapshot and timestamp, as they do for devices. Invariants: the root of an
existing repository stays as it is; every other version goes up by one; what an existing repository lists stays listed;
`timestamp.json` is written last, so that a client sees the old repository or the new one. Needs the extra `tuf`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet_protocol.bundle_folder import file_path, read_envelope
from fleet_protocol.envelope import MANIFEST_TYPE, verify_envelope
from fleet_protocol.errors import MalformedMessage
from fleet_protocol.keys import PrivateKey
from fleet_protocol.manifest import decode_manifest
from fleet_server.errors import ConfigError

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

_ONLINE = ("snapshot", "timestamp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signers:
    """The private keys of each role; every one of them signs, and every one is needed."""

    root: Sequence[PrivateKey]
    release: Sequence[PrivateKey]
    director: PrivateKey


def export_tuf(
    bundles: Sequence[Path], out: Path, *, signers: Signers, root_days: int, targets_days: int, timestamp_days: int
) -> int:
    """Add signed bundle folders to the repository `out`, made where it is missing; returns the targets' version.

    Raises ConfigError, or MalformedMessage and SignatureError for a bundle that these release keys did not sign.
    """
    try:
        from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
    except ModuleNotFoundError:
        raise ConfigError("exporting a TUF repository needs python-tuf: pip install 'edgefleet[tuf]'") from None
    contents = [entry for bundle in bundles for entry in _targets_of(bundle, signers)]
    online = [_signer(signers.director)]
    keys = {"root": [_signer(key) for key in signers.root], "targets": [_signer(key) for key in signers.release]}
    keys |= dict.fromkeys(_ONLINE, online)
    metadata, targets_folder = out / "metadata", out / "targets"
    for folder in (metadata, targets_folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not (metadata / "1.root.json").exists():
        root = Root(expires=_in(root_days), consistent_snapshot=True)
        for role, role_signers in keys.items():
            for signer in role_signers:
                root.add_key(signer.public_key, role)
            root.roles[role].threshold = len(role_signers)
        _write(metadata / "1.root.json", Metadata(root), keys["root"])
    before = _existing(metadata)
    version = before.version + 1 if before is not None else 1
    listed: dict[str, Any] = dict(before.targets) if before is not None else {}
    for name, source in contents:
        target = TargetFile.from_file(name, str(source), ["sha256"])
        path = targets_folder / target.get_prefixed_paths()[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        listed[name] = target
    targets = Targets(version=version, expires=_in(targets_days), targets=listed)
    snapshot = Snapshot(version=version, expires=_in(targets_days), meta={"targets.json": MetaFile(version)})
    timestamp = Timestamp(version=version, expires=_in(timestamp_days), snapshot_meta=MetaFile(version))
    _write(metadata / f"{version}.targets.json", Metadata(targets), keys["targets"])
    _write(metadata / f"{version}.snapshot.json", Metadata(snapshot), online)
    _write(metadata / "timestamp.json", Metadata(timestamp), online)
    return version


def _targets_of(bundle: Path, signers: Signers) -> list[tuple[str, Path]]:
    """The targets of a bundle folder by name, once its signatures and the digests of its files hold."""
    keys = [key.public for key in signers.release]
    manifest = decode_manifest(verify_envelope(read_envelope(bundle), MANIFEST_TYPE, keys, len(keys)))
    named = [(f"{manifest.model}/{manifest.version}/bundle.dsse.json", bundle / "bundle.dsse.json")]
    for artifact in manifest.artifacts():
        path = file_path(bundle, artifact.sha256)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise MalformedMessage(f"{bundle} lacks the file {artifact.sha256}: {error.strerror}") from None
        if found != artifact.sha256:
            raise MalformedMessage(f"{path} was changed: its digest is {found}")
        named.append((f"files/{artifact.sha256}", path))
    return named


def _existing(metadata: Path) -> Any:
    """The targets that the repository's timestamp leads to, None in a new one."""
    from tuf.api.metadata import Metadata

    if not (metadata / "timestamp.json").exists():
        return None
    version = Metadata.from_file(str(metadata / "timestamp.json")).signed.snapshot_meta.version  # type: ignore[attr-defined]  # a timestamp has it
    return Metadata.from_file(str(metadata / f"{version}.targets.json")).signed


def _write(path: Path, metadata: Any, signers: Sequence[Signer]) -> None:
    for signer in signers:
        metadata.sign(signer, append=True)
    part = path.with_name(f".{path.name}.part")
    metadata.to_file(str(part))
    part.replace(path)


def _signer(key: PrivateKey) -> Signer:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import CryptoSigner

    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(key.seed))


def _in(days: int) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
