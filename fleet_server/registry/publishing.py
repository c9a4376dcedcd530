"""Publishes a bundle: a version appears in the catalogue only when every byte of it was vouched for.

In this order; the first that fails refuses the bundle and nothing appears:
1. at least `threshold` trusted release keys signed the envelope;
2. its payload is a manifest this release understands;
3. every file it names is in the artifact store, with the promised size and, read again, the promised digest;
4. the version is not taken by another bundle (the same bundle again is fine and changes nothing).
The envelope is stored as an artifact under the bundle's digest, so a device fetches all of a bundle one way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
from sqlalchemy import Connection, insert, select

from fleet_protocol.envelope import MANIFEST_TYPE, MAX_ENVELOPE_BYTES, verify_envelope
from fleet_protocol.errors import MalformedMessage, SignatureError, UnsupportedSchema
from fleet_protocol.keys import PublicKey
from fleet_protocol.manifest import Artifact, Manifest, bundle_digest, decode_manifest
from fleet_server.database.engine import lock_for_write
from fleet_server.database.tables import artifacts as artifacts_table
from fleet_server.database.tables import models, versions
from fleet_server.errors import ConflictError, InvalidRequestError, NotFoundError, UntrustedBundleError
from fleet_server.registry.artifact_store import ArtifactStore, put


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedVersion:
    """A version in the catalogue; `created` is False when it was there already."""

    model: str
    version: str
    bundle: str
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBundle:
    """A bundle whose signatures and files hold. Only `verify_bundle` makes one."""

    manifest: Manifest
    envelope: bytes
    digest: str


def verify_bundle(
    store: ArtifactStore, envelope: bytes, *, release_keys: Sequence[PublicKey], threshold: int
) -> VerifiedBundle:
    """Steps 1 to 3. Raises UntrustedBundleError, or InvalidRequestError for a manifest of a later release."""
    try:
        payload = verify_envelope(envelope, MANIFEST_TYPE, release_keys, threshold)
        manifest = decode_manifest(payload)
    except SignatureError as error:
        raise UntrustedBundleError(f"the bundle's signatures do not hold: {error}") from None
    except (MalformedMessage, UnsupportedSchema) as error:
        raise InvalidRequestError(f"the bundle's signed payload is not usable: {error}") from None
    for artifact in manifest.artifacts():
        _check_artifact(store, artifact)
    return VerifiedBundle(manifest=manifest, envelope=envelope, digest=bundle_digest(envelope))


def require_released(store: ArtifactStore, bundle: str, *, release_keys: Sequence[PublicKey], threshold: int) -> None:
    """Raise UntrustedBundleError unless the keys of today released a published bundle.

    A version stays in the catalogue when a key that signed it is revoked; devices would refuse it.
    """
    try:
        with store.open(bundle) as file:
            envelope = file.read(MAX_ENVELOPE_BYTES + 1)
        verify_envelope(envelope, MANIFEST_TYPE, release_keys, threshold)
    except (SignatureError, NotFoundError) as error:
        raise UntrustedBundleError(
            f"bundle {bundle[:16]}… is not released by the keys of today ({error}): devices would refuse it; "
            "sign it with another release key and publish it under a new version"
        ) from None


def publish(
    connection: Connection, store: ArtifactStore, bundle: VerifiedBundle, *, published_by: str, now_ns: int
) -> PublishedVersion:
    """Step 4: put a verified bundle into the catalogue, in the caller's transaction. Raises ConflictError."""
    manifest = bundle.manifest
    result = PublishedVersion(model=manifest.model, version=manifest.version, bundle=bundle.digest, created=True)
    lock_for_write(connection, versions.name)
    key = (versions.c.model == manifest.model) & (versions.c.version == manifest.version)
    taken = connection.execute(select(versions.c.bundle).where(key)).scalar()
    if taken == bundle.digest:
        return replace(result, created=False)
    if taken is not None:
        raise ConflictError(
            f"{manifest.model} {manifest.version} is published already, as bundle {taken[:16]}…: "
            "a version never changes, publish this one under a new version"
        )
    put(store, bundle.digest, [bundle.envelope])
    record_artifact(connection, sha256=bundle.digest, size_bytes=len(bundle.envelope), now_ns=now_ns)
    if connection.execute(select(models.c.model).where(models.c.model == manifest.model)).scalar() is None:
        connection.execute(insert(models).values(model=manifest.model, created_ns=now_ns))
    connection.execute(
        insert(versions).values(
            model=manifest.model,
            version=manifest.version,
            bundle=bundle.digest,
            manifest=msgspec.to_builtins(manifest),
            published_by=published_by,
            published_ns=now_ns,
        )
    )
    return result


def record_artifact(connection: Connection, *, sha256: str, size_bytes: int, now_ns: int) -> None:
    """Note in the database that the store holds a file; noting it again changes nothing."""
    lock_for_write(connection, artifacts_table.name)
    known = select(artifacts_table.c.sha256).where(artifacts_table.c.sha256 == sha256)
    if connection.execute(known).scalar() is None:
        connection.execute(insert(artifacts_table).values(sha256=sha256, size_bytes=size_bytes, created_ns=now_ns))


def _check_artifact(store: ArtifactStore, artifact: Artifact) -> None:
    size_bytes = store.size_bytes(artifact.sha256)
    if size_bytes is None:
        raise InvalidRequestError(
            f"the bundle's file {artifact.sha256} is not on the server: PUT /api/v1/artifacts/{{sha256}} first"
        )
    if size_bytes != artifact.size_bytes:
        raise UntrustedBundleError(
            f"the file {artifact.sha256} has {size_bytes} bytes, the manifest promises {artifact.size_bytes}"
        )
    with store.open(artifact.sha256) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != artifact.sha256:
        raise UntrustedBundleError(f"the stored file {artifact.sha256} was changed: its bytes have the digest {found}")
