"""The little DER of the agent against the library it does without."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.enrolment.der import from_pem, private_key_pem, read_certificate, signing_request, to_pem
from edge_agent.enrolment.identity_file import NewKey, read_identity, read_new_key, write_identity
from fleet_protocol.keys import PrivateKey
from fleet_server.identity.certificate_authority import CertificateAuthority
from fleet_server.identity.signing_requests import proves_possession, read_request
from tests.server.identity.authority import make_authority

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@given(seed=st.binary(min_size=32, max_size=32), name=st.text(min_size=1, max_size=64))
@settings(max_examples=30)
def test_every_request_is_one_that_the_library_reads_and_believes(seed: bytes, name: str) -> None:
    key = PrivateKey(seed)
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return
    request = x509.load_pem_x509_csr(signing_request(key, name).encode())
    assert request.is_signature_valid
    public = request.public_key()
    assert isinstance(public, ed25519.Ed25519PublicKey)
    assert public.public_bytes_raw() == key.public.raw
    if 0 < len(encoded) <= 64:
        assert [entry.value for entry in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [name]
    private = serialization.load_pem_private_key(private_key_pem(seed).encode(), None)
    assert isinstance(private, ed25519.Ed25519PrivateKey)
    assert private.private_bytes_raw() == seed


@given(days=st.integers(1, 365 * 60), minutes=st.integers(0, 10**6))
@settings(max_examples=30)
def test_the_dates_of_a_certificate_are_read_as_the_library_reads_them(days: int, minutes: int) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    begins = NOW + timedelta(minutes=minutes)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "d")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(days)
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))  # past 2049 the form is another one
        .sign(key, None)
    )
    facts = read_certificate(certificate.public_bytes(serialization.Encoding.PEM).decode())
    assert facts.serial == f"{days:032x}"
    assert facts.begins_ns == int(certificate.not_valid_before_utc.timestamp()) * 10**9
    assert facts.expires_ns == int(certificate.not_valid_after_utc.timestamp()) * 10**9


@given(data=st.binary(max_size=200), cut=st.integers(0, 400))
@settings(max_examples=60)
def test_damaged_certificates_raise_value_error_and_nothing_else(
    authority: CertificateAuthority, data: bytes, cut: int
) -> None:
    good = from_pem("CERTIFICATE", authority.pem)
    for damaged in (data, good[:cut], good[:cut] + data, good[:cut] + data + good[cut + len(data) :]):
        try:
            read_certificate(to_pem("CERTIFICATE", damaged))
        except ValueError:
            continue


def test_key_and_certificate_stand_in_one_file_that_its_owner_alone_reads(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    new, path = NewKey.generate(), tmp_path / "identity.pem"
    issued = authority.issue_to_device(
        read_request(new.request("pi-1")), fleet="f", device="pi-1", now=NOW, life=timedelta(days=90)
    )
    path.write_text("something old")
    path.chmod(0o644)
    written = write_identity(path, new, certificate_pem=issued.pem, chain=[authority.pem])
    assert path.stat().st_mode & 0o777 == 0o600
    identity = read_identity(path)
    assert identity.certificate == written.certificate
    assert (identity.certificate.serial, identity.certificate.expires_ns) == (issued.serial, issued.expires_ns)
    csr = NewKey.generate().request("pi-1")
    proof = base64.b64decode(identity.prove(fleet="f", device="pi-1", csr=csr))
    assert proves_possession(issued.pem, proof, fleet="f", device="pi-1", csr=csr)
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.pem"]


def test_a_certificate_for_another_key_is_never_written(authority: CertificateAuthority, tmp_path: Path) -> None:
    issued = authority.issue_to_device(
        read_request(NewKey.generate().request("d")), fleet="f", device="d", now=NOW, life=timedelta(days=1)
    )
    path = tmp_path / "identity.pem"
    with pytest.raises(ValueError, match="not for the key"):
        write_identity(path, NewKey.generate(), certificate_pem=issued.pem, chain=[])
    assert not path.exists()
    assert read_new_key(path) is None
    path.write_text("torn")
    assert read_new_key(path) is None
    with pytest.raises(ValueError, match="private key"):
        read_identity(path)
