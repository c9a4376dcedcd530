"""The bundle store: no file is believed because it is there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edge_agent.errors import ArtifactCorruptError, BundleRefusedError, DownloadError
from tests.agent.control.bundles import STRANGER, bundle, store_in

CONTENT = b"an artifact"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_a_bundle_is_read_back_with_its_files(tmp_path: Path) -> None:
    small, store = bundle(tmp_path / "made"), store_in(tmp_path / "store")
    small.put_into(store)

    assert store.manifest(small.digest) == small.manifest
    assert all(store.has(artifact) for artifact in small.manifest.artifacts())
    assert store.verified_file(small.manifest.golden).read_bytes() == small.files[small.manifest.golden.sha256]


def test_a_download_of_other_bytes_is_refused_and_removed(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.partial_path(DIGEST).write_bytes(CONTENT + b"!")

    with pytest.raises(ArtifactCorruptError, match="tampered"):
        store.adopt(DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_adopting_what_was_never_downloaded_is_an_agent_error(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot store"):
        store_in(tmp_path).adopt(DIGEST)


@pytest.mark.parametrize("damage", [b"", b"x" * len(CONTENT), CONTENT[:-1]])
def test_a_file_that_the_disk_damaged_is_refused_and_removed(tmp_path: Path, damage: bytes) -> None:
    small, store = bundle(tmp_path / "made"), store_in(tmp_path / "store")
    small.put_into(store)
    golden = small.manifest.golden
    store.path(golden.sha256).write_bytes(damage)

    with pytest.raises(ArtifactCorruptError, match="damaged"):
        store.verified_file(golden)
    assert not store.has(golden)


def test_a_damaged_envelope_is_refused_and_removed(tmp_path: Path) -> None:
    small, store = bundle(tmp_path / "made"), store_in(tmp_path / "store")
    small.put_into(store)
    store.path(small.digest).write_bytes(small.envelope.replace(b"signatures", b"signaturez"))

    with pytest.raises(ArtifactCorruptError, match="damaged"):
        store.manifest(small.digest)
    with pytest.raises(ArtifactCorruptError, match="cannot be read"):
        store.manifest(small.digest)


def test_a_bundle_that_a_stranger_signed_is_refused(tmp_path: Path) -> None:
    small, store = bundle(tmp_path / "made", key=STRANGER), store_in(tmp_path / "store")
    small.put_into(store)

    with pytest.raises(BundleRefusedError, match="valid signatures"):
        store.manifest(small.digest)


def test_an_artifact_does_not_pass_for_a_bundle(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.partial_path(DIGEST).write_bytes(CONTENT)
    store.adopt(DIGEST)

    with pytest.raises(BundleRefusedError, match="not a signed envelope"):
        store.manifest(DIGEST)


def test_a_file_of_another_size_is_not_there(tmp_path: Path) -> None:
    small, store = bundle(tmp_path / "made"), store_in(tmp_path / "store")
    small.put_into(store)
    store.path(small.manifest.golden.sha256).write_bytes(b"short")

    assert not store.has(small.manifest.golden)


def test_a_disk_without_room_for_the_bundle_and_the_reserve_is_refused(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize

    store_in(tmp_path).require_space(1)
    with pytest.raises(BundleRefusedError, match="no space"):
        store_in(tmp_path).require_space(2 * free + 2**40)
    with pytest.raises(BundleRefusedError, match="in reserve"):
        store_in(tmp_path, reserve_bytes=2 * free + 2**40).require_space(1)


def test_garbage_collection_keeps_kept_bundles_whole_and_removes_all_else(tmp_path: Path) -> None:
    kept, gone = bundle(tmp_path / "a"), bundle(tmp_path / "b", version="2.0.0", golden=b"other")
    store = store_in(tmp_path / "store")
    kept.put_into(store)
    gone.put_into(store)
    store.partial_path(DIGEST).write_bytes(b"half a download")
    store.partial_path(kept.manifest.golden.sha256).write_bytes(b"half a repair")

    store.collect_garbage({kept.digest: None, "f" * 64: None})

    assert {path.name for path in (tmp_path / "store").iterdir()} == {
        kept.digest, *kept.files, f"{kept.manifest.golden.sha256}.partial"
    }  # fmt: skip


def test_garbage_collection_removes_nothing_while_a_kept_bundle_cannot_be_read(tmp_path: Path) -> None:
    kept, other = bundle(tmp_path / "a", key=STRANGER), bundle(tmp_path / "b", version="2.0.0")
    store = store_in(tmp_path / "store")
    kept.put_into(store)
    other.put_into(store)
    before = sorted((tmp_path / "store").iterdir())

    store.collect_garbage({kept.digest: None})

    assert sorted((tmp_path / "store").iterdir()) == before
