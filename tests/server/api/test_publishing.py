"""Attacks on publishing: nothing that was not signed, whole and new enters the catalogue."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import msgspec
import pytest

from fleet_protocol.envelope import DESIRED_TYPE, MANIFEST_TYPE, sign_envelope
from fleet_protocol.keys import PrivateKey
from fleet_protocol.manifest import encode_manifest
from tests.server.api.running import Bundle, Server, make_bundle, publish, upload


def _post(server: Server, envelope: bytes, model: str = "digits") -> httpx.Response:
    with server.client("operator") as client:
        return client.post(f"/api/v1/models/{model}/versions", content=envelope)


@pytest.fixture
def bundle(server: Server, tmp_path: Path) -> Bundle:
    made = make_bundle(tmp_path / "bundle", server.release_keys)
    with server.client("operator") as client:
        upload(client, made)
    return made


def _nothing_published(server: Server) -> bool:
    with server.client("viewer") as client:
        return bool(client.get("/api/v1/models").json()["items"] == [])


def test_a_signed_bundle_is_published_and_its_envelope_is_an_artifact(server: Server, bundle: Bundle) -> None:
    answer = _post(server, bundle.envelope)
    assert answer.status_code == 201
    digest = hashlib.sha256(bundle.envelope).hexdigest()
    assert answer.json() == {"model": "digits", "version": "1.0.0", "bundle": digest, "created": True}
    with server.client("viewer") as client:
        assert client.get(f"/api/v1/artifacts/{digest}").content == bundle.envelope
        listed = client.get("/api/v1/models").json()["items"]
        assert [(m["model"], m["latest"]) for m in listed] == [("digits", "1.0.0")]
        shown = client.get("/api/v1/models/digits/versions/1.0.0").json()
        assert shown["manifest"]["variants"][0]["expected"] == {"accuracy": 0.9}
        assert client.get("/api/v1/models/digits").json()["versions"][0]["bundle"] == digest
        assert client.get("/api/v1/models/none").status_code == 404


def test_the_same_bundle_again_changes_nothing_and_another_under_its_version_is_refused(
    server: Server, bundle: Bundle, tmp_path: Path
) -> None:
    assert _post(server, bundle.envelope).status_code == 201
    again = _post(server, bundle.envelope)
    assert (again.status_code, again.json()["created"]) == (200, False)
    other = make_bundle(tmp_path / "other", server.release_keys, content=b"other weights")
    assert publish(server, other).status_code == 409
    with server.client("viewer") as client:
        versions = client.get("/api/v1/models/digits/versions").json()["items"]
    assert [v["bundle"] for v in versions] == [hashlib.sha256(bundle.envelope).hexdigest()]


def test_an_unsigned_bundle_is_refused(server: Server, bundle: Bundle) -> None:
    answer = _post(server, sign_envelope(MANIFEST_TYPE, encode_manifest(bundle.manifest), []))
    assert answer.status_code == 422
    assert _nothing_published(server)


def test_a_bundle_signed_by_a_stranger_is_refused(server: Server, bundle: Bundle) -> None:
    strangers = [PrivateKey.generate(), PrivateKey.generate()]
    answer = _post(server, sign_envelope(MANIFEST_TYPE, encode_manifest(bundle.manifest), strangers))
    assert answer.status_code == 422
    assert _nothing_published(server)


def test_fewer_signatures_than_the_threshold_are_refused_also_when_one_signs_twice(
    server: Server, bundle: Bundle
) -> None:
    payload, one = encode_manifest(bundle.manifest), server.release_keys[0]
    for keys in ([one], [one, one]):
        answer = _post(server, sign_envelope(MANIFEST_TYPE, payload, keys))
        assert answer.status_code == 422
        assert "1 valid signatures by trusted keys, 2 needed" in answer.json()["detail"]
    assert _nothing_published(server)


def test_a_signature_moved_onto_another_manifest_is_refused(server: Server, bundle: Bundle) -> None:
    signed = msgspec.json.decode(bundle.envelope)
    changed = msgspec.structs.replace(bundle.manifest, version="9.9.9")
    forged = msgspec.json.decode(sign_envelope(MANIFEST_TYPE, encode_manifest(changed), []))
    forged["signatures"] = signed["signatures"]
    assert _post(server, msgspec.json.encode(forged)).status_code == 422
    assert _nothing_published(server)


def test_a_desired_state_signed_by_release_keys_is_no_bundle(server: Server, bundle: Bundle) -> None:
    payload = encode_manifest(bundle.manifest)
    assert _post(server, sign_envelope(DESIRED_TYPE, payload, server.release_keys)).status_code == 422
    assert _nothing_published(server)


def test_a_truncated_envelope_is_refused_at_every_length(server: Server, bundle: Bundle) -> None:
    for length in range(0, len(bundle.envelope), 97):
        assert _post(server, bundle.envelope[:length]).status_code in (400, 422)
    assert _nothing_published(server)


def test_a_signed_payload_that_is_no_manifest_is_refused(server: Server) -> None:
    for payload in (b"", b"{}", b"[" * 100_000, b"\xff", b'{"schema": 99}'):
        answer = _post(server, sign_envelope(MANIFEST_TYPE, payload, server.release_keys))
        assert answer.status_code == 400, payload[:20]
    assert _nothing_published(server)


def test_a_bundle_whose_file_was_never_uploaded_is_refused(server: Server, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "absent", server.release_keys, content=b"never sent")
    answer = _post(server, bundle.envelope)
    assert answer.status_code == 400
    assert "not on the server" in answer.json()["detail"]
    assert _nothing_published(server)


@pytest.mark.parametrize("content", [b"tampere", b"short", b"longer than it was"])
def test_a_file_changed_in_the_store_is_noticed(server: Server, bundle: Bundle, content: bytes) -> None:
    digest = bundle.manifest.variants[0].file.sha256
    (server.folder / "artifacts" / digest[:2] / digest).write_bytes(content)
    assert _post(server, bundle.envelope).status_code == 422
    assert _nothing_published(server)


def test_a_bundle_of_another_model_than_the_path_names_is_refused(server: Server, bundle: Bundle) -> None:
    assert _post(server, bundle.envelope, model="faces").status_code == 400
    assert _nothing_published(server)
